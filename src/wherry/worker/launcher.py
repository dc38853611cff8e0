"""Runs before a worker, in the main environment: fetch, verify, drop rights, then become it.

The only part of a worker's life that may see the blob store. It inherits three descriptors: the
listening socket, the report socket, and the order. Everything else is closed, the environment is
what the placement gave (nearly nothing), and `exec` leaves no trusted code behind.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from wherry import errors
from wherry.models.trust.materialise import materialise
from wherry.storage.blobs import LocalBlobs
from wherry.worker.runtimes.own_environment import find_own_environment
from wherry.worker.sandbox.limits import limit_always
from wherry.worker.sandbox.sandbox import (
    PROGRAM_RUNTIMES,
    SERVER_RUNTIMES,
    SOCKET_RUNTIMES,
    Cage,
    Sandbox,
    confine,
    is_trusted,
)
from wherry.worker.spec import (
    LaunchOrder,
    Report,
    WorkerConfig,
    fill_nameless,
    open_nameless,
)

PR_SET_PDEATHSIG = 1


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
    send_report(reports, Report(state="fetching"))
    config_fd = open_nameless()  # while that is allowed
    try:
        folder = fetch(order)
        environment = find_environment(order)
        python = str(environment / "bin" / "python") if environment else sys.executable
        limit_always()
        sandbox = enter_sandbox(order, folder, Path(python), environment)
    except errors.WherryError as error:
        report = Report(state="failed", detail=f"{error.code}: {error.message}", hint=error.hint)
        send_report(reports, report)
        sys.exit(3)
    if os.getppid() != arguments.parent:
        sys.exit(4)  # it died while a change of user had made the kernel forget `die_with_parent`
    send_report(reports, Report(state="loading", sandbox=sandbox))
    fill_nameless(
        config_fd, WorkerConfig(spec=order.spec, bundle_folder=str(folder), sandbox=sandbox)
    )
    for descriptor in (arguments.listen_fd, arguments.report_fd, config_fd):
        os.set_inheritable(descriptor, True)
    reports.detach()
    if environment is not None:
        # ours may be a whole site-packages, which would shadow the packages in there
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
    """The verified folder of the bundle, without links: the sandbox lets in real folders."""
    spec = order.spec
    if spec.bundle_folder:
        return Path(spec.bundle_folder).resolve()
    target = Path(order.bundles_folder) / spec.digest.removeprefix("sha256:")
    materialise(LocalBlobs(Path(order.blobs_folder)), spec.files, target)
    return target.resolve()


def find_environment(order: LaunchOrder) -> Path | None:
    """The model's own environment, else its runtime's; None = the one that this process runs in."""
    folder = Path(order.environments_folder)
    digest = order.spec.environment
    found = folder / digest if digest else find_own_environment(folder, order.spec.runtime)
    if found is not None and not (found / "bin" / "python").exists():
        again = (
            "import the model again" if digest else f"wherry runtime install {order.spec.runtime}"
        )
        raise errors.NotFound(
            f"the Python environment {found.name[:12]!r} is not on this machine", hint=again
        )
    return found


def enter_sandbox(
    order: LaunchOrder, folder: Path, python: Path, environment: Path | None
) -> Sandbox:
    """Confine this process as the order says; `SandboxMissing` if that must be and cannot.

    The worker that is executed next still does the last step itself.
    """
    spec = order.spec
    if spec.sandbox == "off" or is_trusted(spec.runtime):
        off = "switched off" if spec.sandbox == "off" else "its runtime is trusted"
        return Sandbox(missing={"sandbox": off})
    sandbox = confine(
        Cage(
            python=python,
            bundle=folder.resolve(),
            scratch=Path(order.scratch_folder).resolve(),
            environment=environment,
            private=Path(order.blobs_folder).resolve().parent,
            device=spec.device,
            library_folders=tuple(map(Path, order.library_folders)),
            memory_limit_mib=spec.memory_limit_mib,
            unix_sockets=spec.runtime in SOCKET_RUNTIMES,
            programs=tuple(map(Path, PROGRAM_RUNTIMES.get(spec.runtime, ()))),
            server=spec.runtime in SERVER_RUNTIMES,
        )
    )
    if spec.sandbox == "required" and sandbox.lacks:
        lacking = "; ".join(f"{part}: {sandbox.missing[part]}" for part in sandbox.lacks)
        raise errors.SandboxMissing(
            f"the sandbox that this server requires cannot be made: {lacking}",
            hint="wherry doctor says what is missing; the operator may set WHERRY_SANDBOX=auto",
        )
    return sandbox


def send_report(reports: socket.socket, report: Report) -> None:
    """One line to the placement."""
    reports.send(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
