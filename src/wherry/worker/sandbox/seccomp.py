"""A filter of system calls, assembled here: no network, no other process, no other program.

The filter is a binary search over the calls that need a decision; all others pass at once, and
newer kernels (5.11) remember which, so that they cost nothing. A refused call fails with EPERM,
which libraries report; ENOSYS is for what they then do in an older way.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping, Sequence

from wherry.worker.sandbox import kernel
from wherry.worker.sandbox.syscalls import COLUMN, LAST_KNOWN, LATER, NUMBERS

SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_MODE_FILTER = 1
ALL_THREADS, KEEP_SPECULATION = 1 << 0, 1 << 2
"""Without the second, kernels before 5.16 slow a filtered process down as a whole."""

LOAD, JUMP, JUMP_EQUAL, JUMP_NOT_BELOW, JUMP_ANY_BIT, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, FAIL = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16

CLONE_THREAD = 0x0001_0000
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
PR_SET_MM, PR_SET_PTRACER = 35, 0x5961_6D61
NAMESPACES = 0x7E02_0080
"""Every CLONE_NEW…: of mounts, time, cgroups, host names, IPC, users, processes, the network."""
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_FLAGS = 1, 0x80800

MODES_AND_TIMES = (
    "chmod", "fchmod", "fchmodat", "utime", "utimes", "futimesat", "utimensat",
)  # fmt: skip

OF_SERVERS = frozenset(
    {
        "fork", "vfork", "execve", "kill", "tkill", "tgkill", "prlimit64",
        "sched_setaffinity", "sched_setscheduler", "sched_setparam", "setpriority",
        "socketpair", "connect", "bind", "listen", "memfd_create", "mmap",
    }
)  # fmt: skip
"""Calls that a server with several processes cannot do without."""

Code = list[bytes]
Rules = dict[str, Code]


def confine(pid: int, *, unix_sockets: bool, programs: bool = False) -> None:
    """All but the refusal to execute, which must wait until the worker has been executed.

    Args:
        pid: of this process, the only one that may be sent signals.
        unix_sockets: for llama.cpp, which must talk to itself through one while it loads.
        programs: for runtimes that start programs of the system while they load.

    Raises:
        OSError: the kernel does not filter, or this is a machine without a table.
    """
    rules = {name: refuse() for name in NUMBERS if name != "execve"}
    rules |= {name: refuse(errno.ENOSYS) for name in ("clone3", "io_uring_setup", "pidfd_open")}
    # done without effect: copying a file sets its mode and times, and must not fail over that
    rules |= {name: refuse(0) for name in MODES_AND_TIMES}
    only_self = argument_in(0, (pid,))
    own = argument_in(0, (0,))
    rules |= {
        # threads, but no processes
        "clone": argument_has(0, CLONE_THREAD),
        "kill": only_self,
        "tgkill": only_self,
        "prlimit64": argument_in(0, (0, pid)),
        "sched_setaffinity": own,
        "sched_setscheduler": own,
        "sched_setparam": own,
        "sched_setattr": own,
        "prctl": argument_not_in(0, (kernel.PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_PTRACER)),
        # a pair has no name that another could be reached by; datagrams could be sent to one
        "socketpair": unix_stream(),
        # memory of this kind is not in RLIMIT_DATA
        "mmap": argument_has_not(3, MAP_SHARED | MAP_ANONYMOUS),
    }
    if unix_sockets:
        rules["socket"] = unix_stream()
        for name in ("connect", "bind", "listen"):
            del rules[name]
    if programs:
        for name in ("clone", "fork", "vfork"):
            del rules[name]
    install(assemble(rules))


def confine_server() -> None:
    """For a runtime that is a server: processes and sockets are its own affair, the kernel is not.

    What `confine` refuses for being able to reach other processes is held by Landlock here.

    Raises:
        OSError: as `confine`.
    """
    rules = {name: refuse() for name in NUMBERS if name not in OF_SERVERS}
    rules |= {name: refuse(errno.ENOSYS) for name in ("clone3", "io_uring_setup", "pidfd_open")}
    rules |= {name: refuse(0) for name in MODES_AND_TIMES}
    rules["clone"] = argument_has_none(0, NAMESPACES)
    rules["socket"] = argument_in(0, (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK))
    rules["prctl"] = argument_not_in(0, (PR_SET_MM, PR_SET_PTRACER))
    install(assemble(rules))


def refuse_exec() -> None:
    """The last part: in the worker, before anything of the model is looked at."""
    install(assemble({"execve": refuse()}), all_threads=True)


def refuse_programs() -> None:
    """For what has started programs while it loaded: threads are all that it can start from now."""
    rules = {name: refuse() for name in ("execve", "fork", "vfork")}
    rules["clone"] = argument_has(0, CLONE_THREAD)
    install(assemble(rules), all_threads=True)


def refuse_sockets() -> None:
    """For llama.cpp, once it has loaded: it has its socket, and needs no other."""
    names = ("socket", "connect", "bind", "listen")
    install(assemble({name: refuse() for name in names}), all_threads=True)


# ------------------------------------------------------------------------------ what is decided


def refuse(error: int = errno.EPERM) -> Code:
    """Fail."""
    return [_code(RETURN, FAIL | error)]


def argument_in(index: int, allowed: Sequence[int]) -> Code:
    """Pass if the argument (its lower 32 bits) is one of these."""
    return _choose(index, JUMP_EQUAL, allowed, ALLOW, FAIL | errno.EPERM)


def argument_not_in(index: int, refused: Sequence[int]) -> Code:
    """Pass unless it is one of these."""
    return _choose(index, JUMP_EQUAL, refused, FAIL | errno.EPERM, ALLOW)


def argument_has(index: int, bits: int) -> Code:
    """Pass if one of the bits is set."""
    return _choose(index, JUMP_ANY_BIT, (bits,), ALLOW, FAIL | errno.EPERM)


def argument_has_none(index: int, bits: int) -> Code:
    """Pass if none of the bits is set."""
    return _choose(index, JUMP_ANY_BIT, (bits,), FAIL | errno.EPERM, ALLOW)


def argument_has_not(index: int, bits: int) -> Code:
    """Pass unless all of these bits are set."""
    one, other = bits & -bits, bits & (bits - 1)
    return [
        _code(LOAD, ARGUMENTS_AT + 8 * index),
        _code(JUMP_ANY_BIT, one, 0, 2),
        _code(JUMP_ANY_BIT, other, 0, 1),
        _code(RETURN, FAIL | errno.EPERM),
        _code(RETURN, ALLOW),
    ]


def unix_stream() -> Code:
    """Pass for family and type of a Unix stream."""
    types = [SOCK_STREAM | flags for flags in (0, 0x800, 0x80000, SOCK_FLAGS)]
    return [
        _code(LOAD, ARGUMENTS_AT),
        _code(JUMP_EQUAL, AF_UNIX, 1, 0),
        _code(RETURN, FAIL | errno.EPERM),
        *argument_in(1, types),
    ]


def _choose(index: int, jump: int, values: Sequence[int], then: int, otherwise: int) -> Code:
    tests = [_code(jump, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [
        _code(LOAD, ARGUMENTS_AT + 8 * index),
        *tests,
        _code(RETURN, otherwise),
        _code(RETURN, then),
    ]


# ------------------------------------------------------------------------------ assembly


def assemble(rules: Mapping[str, Code], machine: str | None = None) -> bytes:
    """The program: another architecture's calls kill, unknown calls are not there."""
    column, architecture = _architecture(machine or platform.machine())
    decided = sorted(
        (NUMBERS[name][column], code) for name, code in rules.items() if NUMBERS[name][column] >= 0
    )
    later = [_code(JUMP_EQUAL, number, len(LATER) - at, 0) for at, number in enumerate(LATER)]
    program = [
        _code(LOAD, ARCHITECTURE_AT),
        _code(JUMP_EQUAL, architecture, 1, 0),
        _code(RETURN, KILL_PROCESS),
        _code(LOAD, NUMBER_AT),
        # also the numbers of x32, which are old calls with a bit set
        _code(JUMP_NOT_BELOW, LAST_KNOWN + 1, 0, len(later) + 2),
        *later,
        _code(RETURN, FAIL | errno.ENOSYS),
        _code(RETURN, ALLOW),
        *_search(decided),
    ]
    return b"".join(program)


def _search(decided: Sequence[tuple[int, Code]]) -> Code:
    if len(decided) <= 2:
        chain: Code = []
        for number, code in decided:
            chain += [_code(JUMP_EQUAL, number, 0, len(code)), *code]
        return [*chain, _code(RETURN, ALLOW)]
    middle = len(decided) // 2
    below, rest = _search(decided[:middle]), _search(decided[middle:])
    # a conditional jump reaches 255 instructions only, an unconditional one any number
    return [
        _code(JUMP_NOT_BELOW, decided[middle][0], 0, 1),
        _code(JUMP, len(below)),
        *below,
        *rest,
    ]


def _code(operation: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, when_true, when_false, value)


def _architecture(machine: str) -> tuple[int, int]:
    if machine not in COLUMN:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    return COLUMN[machine]


def install(program: bytes, *, all_threads: bool = False) -> None:
    """Filter this process from now on, and whatever it executes. Needs no_new_privs."""
    machine = platform.machine()
    _architecture(machine)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    argument = ctypes.create_string_buffer(header, len(header))
    flags = KEEP_SPECULATION | (ALL_THREADS if all_threads else 0)
    kernel.call(SECCOMP[machine], SET_MODE_FILTER, flags, argument)
