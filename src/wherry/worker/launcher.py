"""Runs before a worker, in the main environment: fetch, verify, drop rights, then become it.

The only part of a worker's life that may see the blob store. It inherits three descriptors: the
listening socket, the report socket, and the order. Everything else is closed, the environment is
what the placement gave (nearly nothing), and `exec` leaves no trusted code behind.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import msgspec

from wherry import errors
from wherry.models.trust.materialise import materialise
from wherry.storage.blobs import LocalBlobs
from wherry.worker.spec import LaunchOrder, Report, WorkerConfig, leave_for_child

PR_SET_PDEATHSIG = 1
MAX_WRITTEN_FILE_BYTES = 1 << 30
MAX_OPEN_FILES = 4096


def main() -> None:
    """Prepare what the order says and execute the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--order-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    reports = socket.socket(fileno=arguments.report_fd)
    with os.fdopen(arguments.order_fd, "rb") as source:
        order = msgspec.msgpack.decode(source.read(), type=LaunchOrder)
    reports.send(msgspec.json.encode(Report(state="fetching")) + b"\n")
    try:
        folder = fetch(order)
        python = find_python(order)
    except errors.WherryError as error:
        report = Report(state="failed", detail=f"{error.code}: {error.message}", hint=error.hint)
        reports.send(msgspec.json.encode(report) + b"\n")
        sys.exit(3)
    config_fd = leave_for_child(WorkerConfig(spec=order.spec, bundle_folder=str(folder)))
    limit_resources()
    for descriptor in (arguments.listen_fd, arguments.report_fd, config_fd):
        os.set_inheritable(descriptor, True)
    reports.detach()
    if order.spec.environment:
        # ours may be a whole site-packages, which would shadow the model's own packages
        os.unsetenv("PYTHONPATH")
    command = [python, "-m", "wherry.worker"]
    command += ["--listen-fd", str(arguments.listen_fd), "--report-fd", str(arguments.report_fd)]
    command += ["--config-fd", str(config_fd)]
    os.execv(python, command)  # noqa: S606 - an argument list of our own, no shell


def die_with_parent(parent: int) -> None:
    """Be killed when the supervisor is; survives `exec` (Linux; elsewhere the report socket does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(4)  # it died before we asked


def fetch(order: LaunchOrder) -> Path:
    """The verified folder of the bundle."""
    spec = order.spec
    if spec.bundle_folder:
        return Path(spec.bundle_folder)
    target = Path(order.bundles_folder) / spec.digest.removeprefix("sha256:")
    materialise(LocalBlobs(Path(order.blobs_folder)), spec.files, target)
    return target


def find_python(order: LaunchOrder) -> str:
    """The interpreter of the model's environment; ours if it has none of its own."""
    if not order.spec.environment:
        return sys.executable
    python = Path(order.environments_folder) / order.spec.environment / "bin" / "python"
    if not python.exists():
        raise errors.NotFound(
            f"the Python environment {order.spec.environment[:12]!r} is not on this machine",
            hint="import the model again",
        )
    return str(python)


def limit_resources() -> None:
    """Bounds that no healthy worker meets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower_limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    lower_limit(resource.RLIMIT_FSIZE, MAX_WRITTEN_FILE_BYTES)


def lower_limit(which: int, value: int) -> None:
    """Set a limit, or keep a stricter one."""
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


if __name__ == "__main__":
    main()
