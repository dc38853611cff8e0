"""What holds a worker that runs untrusted models, in the order in which it is put on.

The launcher calls `confine`, then executes the worker, which calls `seal` before it looks at
anything of the model. What a kernel lacks is left out and told; whether that is acceptable is the
operator's setting `sandbox`. The parts, and what each stops: docs/security.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

SandboxMode = Literal["auto", "required", "off"]

TRUSTED_RUNTIMES = frozenset({"upstream"})
"""They run no model, only our own code, and need the network."""
SOCKET_RUNTIMES = frozenset({"llama_cpp", "llama_embeddings"})
"""They need a Unix socket of their own while they load."""
SERVER_RUNTIMES = frozenset({"vllm"})
"""The one exception: their framework is a server with processes and sockets of its own. It may
start programs and talk to itself; it reads, writes and reaches no more than other workers."""
PROGRAM_RUNTIMES: dict[str, tuple[str, ...]] = {
    "apertium": tuple(
        f"/usr/bin/{name}"
        for name in (
            "apertium-anaphora", "apertium-extract-caps", "apertium-interchunk",
            "apertium-posttransfer", "apertium-postchunk", "apertium-pretransfer",
            "apertium-restore-caps", "apertium-tagger", "apertium-transfer", "cg-proc", "lrx-proc",
            "lsx-proc", "lt-proc", "rtx-proc",
        )
    ),
}  # fmt: skip
"""Runtime → programs of the system that it starts while it loads. They stay in the same sandbox."""

MEMORY_FACTOR, MEMORY_MARGIN_MIB = 2, 1024
"""Batches, threads and long prompts take more than the one input that was tried at import."""
LEAST_MEMORY_MIB = 256
"""Below it, not even Python and its packages load."""

AS_SERVER = "with programs and sockets of its own"
NEEDED_PARTS = ("privileges", "files", "calls")
"""What `required` requires."""

INTERPRETERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-*.so.1")
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64")
SMALL_READS = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")
HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/bus/pci/devices")
"""Runtimes count cores, and onnxruntime looks for other processors than the main one."""
KERNEL_FACTS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory")
SERVER_PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/bin", "/sbin")
"""Of the system: vLLM asks `lscpu`, and compiles with `gcc`."""
SERVER_READS = (
    "/proc", "/etc/hosts", "/etc/passwd", "/etc/nsswitch.conf", "/sys/fs/cgroup",
    "/sys/bus", "/sys/class", "/sys/devices",
)  # fmt: skip
"""Each process must find itself in /proc; Landlock keeps others' memory and environment closed.
What connects processes (gloo, NCCL) looks at the machine's devices first."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - by its processes, under names of their own
GPU_DEVICES = ("nvidia*", "dri", "kfd")
GPU_READS = ("/proc/driver/nvidia", "/sys/bus/pci", "/sys/devices", "/sys/class", "/sys/module")


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force around a worker."""

    parts: dict[str, str] = {}
    """Part → how: `files` → `Landlock ABI 7`."""
    missing: dict[str, str] = {}
    """Part → why it is not in force."""
    is_root: bool = False
    """Whether it runs as root, if without root's capabilities."""

    def __str__(self) -> str:
        """Its parts in a line."""
        return ", ".join(self.parts) or "nothing"

    @property
    def lacks(self) -> list[str]:
        """Needed parts that are missing."""
        return [part for part in NEEDED_PARTS if part not in self.parts]


class Cage(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker may use; all paths absolute."""

    python: Path
    bundle: Path
    scratch: Path
    """The only folder that it may write."""
    environment: Path | None = None
    """Of the model; None = the one that this process runs in."""
    private: Path | None = None
    """The server's data folder: nothing that holds it may be readable."""
    device: str = "cpu"
    library_folders: tuple[Path, ...] = ()
    """Of `LD_LIBRARY_PATH`."""
    memory_limit_mib: int = 0
    unix_sockets: bool = False
    programs: tuple[Path, ...] = ()
    """What it may execute until `seal_programs`."""
    server: bool = False
    """Of `SERVER_RUNTIMES`: programs and sockets are its own affair."""


class Confinement(msgspec.Struct, frozen=True):
    """What the operator has set about workers."""

    sandbox: SandboxMode = "auto"
    worker_memory_mib: int = 0

    def memory_limit_mib(self, measured_mib: int, most_mib: int) -> int:
        """Of a worker that took so much at its import, where all together may take `most_mib`."""
        limit = self.worker_memory_mib or measured_mib * MEMORY_FACTOR + MEMORY_MARGIN_MIB
        return max(LEAST_MEMORY_MIB, min(limit, most_mib))


def is_trusted(runtime: str) -> bool:
    """Whether workers of a runtime run without a sandbox."""
    return runtime in TRUSTED_RUNTIMES


def confine(cage: Cage) -> Sandbox:
    """Give up everything a worker does not need, for good, but the right to execute it."""
    if sys.platform != "linux":
        nothing = f"{sys.platform} has none of it: only Linux does"
        return Sandbox(missing=dict.fromkeys(NEEDED_PARTS, nothing))
    # imported here: other systems lack what these import
    from wherry.worker.sandbox import kernel, landlock, limits, own_user, seccomp

    parts: dict[str, str] = {}
    missing: dict[str, str] = {}
    rights, pinned = _file_rights(cage)
    if cage.server:
        try:
            kernel.leave_network()
            parts["network"] = "one of its own, without a way out"
        except OSError as error:
            missing["network"] = f"only root can give it one of its own: {error.strerror}"
    if refusal := own_user.become_own_user(_must_read(cage), cage.bundle, cage.scratch):
        missing["user"] = refusal
    else:
        parts["user"] = str(os.getuid())
    limits.limit_threads()
    if cage.memory_limit_mib:
        limits.limit_memory(cage.memory_limit_mib)
        parts["memory"] = f"{cage.memory_limit_mib} MiB"
    try:
        kernel.drop_capabilities()
        kernel.control_process(kernel.PR_SET_NO_NEW_PRIVS, 1)
        parts["privileges"] = "no capabilities, no_new_privs"
    except OSError as error:
        missing["privileges"] = f"the kernel refuses: {error.strerror}"
        missing |= dict.fromkeys(("files", "calls"), "it needs no_new_privs")
        return Sandbox(parts=parts, missing=missing, is_root=os.getuid() == 0)
    exposed = [path for path in rights if cage.private and path in (*cage.private.parents,)]
    try:
        abi = landlock.restrict(rights, pinned, tcp=cage.server)
        parts["files"] = f"Landlock ABI {abi}"
    except OSError as error:
        missing["files"] = f"the kernel has no Landlock, or it is switched off: {error.strerror}"
    if exposed and "files" in parts:
        del parts["files"]
        missing["files"] = f"the data folder lies in {exposed[0]}, which Python must read"
    try:
        if cage.server:
            seccomp.confine_server()
            parts["calls"] = f"seccomp, {AS_SERVER}"
        else:
            seccomp.confine(
                os.getpid(), unix_sockets=cage.unix_sockets, programs=bool(cage.programs)
            )
            parts["calls"] = "seccomp"
    except OSError as error:
        missing["calls"] = f"the kernel refuses a filter of system calls: {error.strerror}"
    return Sandbox(parts=parts, missing=missing, is_root=os.getuid() == 0)


def seal(sandbox: Sandbox) -> None:
    """In the worker, first of all: execute nothing any more, unless that is what it is for."""
    if "calls" in sandbox.parts and AS_SERVER not in sandbox.parts["calls"]:
        from wherry.worker.sandbox import seccomp

        seccomp.refuse_exec()


def seal_programs(sandbox: Sandbox) -> None:
    """In a worker that started programs to load, once it has: neither processes nor programs."""
    if "calls" in sandbox.parts:
        from wherry.worker.sandbox import seccomp

        seccomp.refuse_programs()


def seal_sockets(sandbox: Sandbox) -> None:
    """In a worker that needed sockets to load, once it has."""
    if "calls" in sandbox.parts:
        from wherry.worker.sandbox import seccomp

        seccomp.refuse_sockets()


# ------------------------------------------------------------------------------ files


def _must_read(cage: Cage) -> list[Path]:
    """Ours: what has to be reached besides what every user of a machine can read."""
    return [*dict.fromkeys([*_python_folders(cage), cage.bundle])]


def _python_folders(cage: Cage) -> list[Path]:
    """Standard library and packages, as this process finds them, and the model's own."""
    found = [sys.base_prefix, sys.prefix, *(each for each in sys.path if each)]
    if cage.environment is not None:
        found = [sys.base_prefix, str(cage.environment), str(_package_folder())]
    real = [Path(each).resolve() for each in found]
    # sys.path begins with the working folder, which is the scratch one
    return [each for each in real if each.exists() and each != cage.scratch.resolve()]


def _package_folder() -> Path:
    """Our own package."""
    return Path(__file__).resolve().parents[2]


def _file_rights(cage: Cage) -> tuple[dict[Path, int], Sequence[Path]]:
    """Path → Landlock rights, and which of them are in /proc."""
    from wherry.worker.sandbox import landlock

    in_proc = [Path(f"/proc/{os.getpid()}"), *map(Path, KERNEL_FACTS)]
    readable = [Path(each) for each in (*LIBRARIES, *SMALL_READS, *HARDWARE)]
    readable += [*in_proc, *cage.library_folders, *_python_folders(cage), cage.bundle]
    rights = dict.fromkeys(readable, landlock.READ)
    rights[Path("/dev/null")] = landlock.READ_WRITE
    if cage.device != "cpu":
        rights |= dict.fromkeys(map(Path, GPU_READS), landlock.READ)
        for pattern in GPU_DEVICES:
            rights |= dict.fromkeys(Path("/dev").glob(pattern), landlock.DEVICE | landlock.READ)
    # the kernel asks this of the program and of its loader; libraries are only read
    for pattern in INTERPRETERS:
        for loader in Path("/").glob(pattern[1:]):
            rights[loader.resolve()] = landlock.READ | landlock.EXECUTE
    for program in cage.programs:
        rights[program] = landlock.READ | landlock.EXECUTE
    rights[cage.python.resolve()] = landlock.READ | landlock.EXECUTE
    rights[cage.scratch] = landlock.OWN
    if cage.server:
        rights |= dict.fromkeys(map(Path, SERVER_READS), landlock.READ)
        # of Python and its packages: some bring programs, such as a compiler
        executable = [*map(Path, SERVER_PROGRAMS), *_python_folders(cage)]
        rights |= dict.fromkeys(executable, landlock.READ | landlock.EXECUTE)
        rights[Path(SHARED_MEMORY)] = landlock.OWN
    return rights, in_proc
