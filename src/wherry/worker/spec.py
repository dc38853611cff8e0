"""What the controller tells the launcher, the launcher tells the worker, and the worker reports."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Literal

import msgspec

from wherry.models.tasks.task import Signature
from wherry.worker.sandbox.sandbox import Sandbox, SandboxMode


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle."""

    path: str
    size: int
    sha256: str


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One worker to run: everything the launcher needs, and nothing of users or databases."""

    id: str
    generation: int = 1
    """Grows with every attempt; fences what an earlier one may still do."""
    deployment: str
    """`team/name`, for titles and logs only."""
    model: str
    version: int
    replica: int = 0
    digest: str
    files: tuple[FileEntry, ...]
    """Empty for a bundle folder that is not in the blob store (`bundle_folder` is used as is)."""
    bundle_folder: str = ""
    device: str = "cpu"
    token: bytes = b""
    """Shared by this worker and the gateways, for the mutual hello."""
    secrets: dict[str, str] = {}
    """Only for trusted runtimes (`upstream`)."""
    runtime_options: dict[str, Any] = {}
    """The operator's settings that a runtime must know (`allow_pickle`, `trusted_types`)."""
    environment: str = ""
    """Digest of the Python environment; empty = the one that Wherry runs in."""
    memory_mib: int = 0
    memory_limit_mib: int = 0
    """Allocations beyond it fail; 0 = no bound of its own."""
    runtime: str = ""
    """As in the manifest; decides what the sandbox lets through."""
    sandbox: SandboxMode = "auto"
    max_frame_credits: int = 64

    @property
    def title(self) -> str:
        """The process title."""
        name = self.deployment.removeprefix("default/")
        return f"wherry: worker {name}@{self.version} #{self.replica}"


class LaunchOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Read by the launcher from the descriptor it is given."""

    spec: WorkerSpec
    blobs_folder: str
    bundles_folder: str
    environments_folder: str
    scratch_folder: str
    """Of this worker alone."""
    library_folders: tuple[str, ...] = ()
    """Where native libraries are besides the usual places."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Read by the worker from the descriptor it is given: no more than it needs."""

    spec: WorkerSpec
    bundle_folder: str
    sandbox: Sandbox = Sandbox()


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of JSON from launcher or worker to the placement."""

    state: Literal["fetching", "loading", "ready", "alive", "failed"]
    detail: str = ""
    """For `failed`: an error code and a message, `code: message`."""
    hint: str = ""
    load_seconds: float = 0.0
    memory_mib: int = 0
    """0 = not measured this time."""
    in_flight: int = 0
    """For `alive`: requests that have no answer yet."""
    busy_ms: int = 0
    """For `alive`: age of the batch that runs now."""
    finished: int = 0
    waiting: int = 0
    """For `alive`: requests that have not begun."""
    busy_seconds: float = 0.0
    """For `alive`: how long it has worked since it was ready; see `wherry.worker.busy`."""
    calibration: dict[str, Any] = {}
    """What the runtime chose at load (threads, batch sizes), for `wherry show`."""
    signature: Signature | None = None
    """For `ready`: the tensors that the runtime found, of a model whose manifest names none."""
    sandbox: Sandbox | None = None
    """What holds the worker; told by the launcher, before anything of the model runs."""


def leave_for_child(message: msgspec.Struct) -> int:
    """A descriptor from which a child reads a message; it has no name on any disk.

    Not a pipe: those hold some kilobytes only, and whoever writes more waits for the reader.
    """
    descriptor = open_nameless()
    fill_nameless(descriptor, message)
    return descriptor


def open_nameless() -> int:
    """An empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("wherry-worker")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def fill_nameless(descriptor: int, message: msgspec.Struct) -> None:
    """Write a message into it, to be read from its beginning."""
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(message))
    os.lseek(descriptor, 0, os.SEEK_SET)
