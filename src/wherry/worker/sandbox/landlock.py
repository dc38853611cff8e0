"""File rules of a process, by Landlock: what is not allowed below cannot be opened.

https://docs.kernel.org/userspace-api/landlock.html. Rights that a kernel does not know are left to
`seccomp`. It does not hold descriptors that are open already, and not `stat` or `chmod`.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from wherry.worker.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # alike on every architecture
VERSION_FLAG = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO = 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10
MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE = 1 << 11, 1 << 12, 1 << 13, 1 << 14
IOCTL_DEV, RESOLVE_UNIX = 1 << 15, 1 << 16

READ = READ_FILE | READ_DIR
READ_WRITE = READ_FILE | WRITE_FILE | TRUNCATE
OWN = (
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM
    | MAKE_FIFO | MAKE_SOCK | REFER
)  # fmt: skip
"""All that a folder of one's own is for; no devices, and nothing in it can be executed."""
DEVICE = READ_WRITE | IOCTL_DEV
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule for a single file may name; others are an error there."""

FILE_RIGHTS = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV, 9: RESOLVE_UNIX}
"""Rights by the version (ABI) that brought them."""
TCP_BIND_CONNECT = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's Landlock ABI; 0 = it has none, or it is switched off."""
    try:
        return kernel.call(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def restrict(rights: Mapping[Path, int], pinned: Iterable[Path] = (), *, tcp: bool = False) -> int:
    """Allow this process, and whatever it executes, no files but these; the ABI in force.

    Also no TCP port, no abstract Unix socket and no signal to a process outside, where the kernel
    can (ABI 4, 6), and no Unix socket that another process made (ABI 9).

    Args:
        rights: path → rights; what does not exist is passed over.
        pinned: of those, the ones in `/proc`: their rule would go when the kernel forgets the
            entry, so a descriptor keeps it, also over `exec`.
        tcp: leave TCP ports alone.

    Raises:
        OSError: the kernel has no Landlock, or refuses.
    """
    abi = kernel.call(CREATE_RULESET, None, 0, VERSION_FLAG)
    handled = sum(rights for since, rights in FILE_RIGHTS.items() if since <= abi)
    attributes = _Attributes(
        handled,
        TCP_BIND_CONNECT if abi >= 4 and not tcp else 0,
        ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0,
    )
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = kernel.call(CREATE_RULESET, ctypes.addressof(attributes), size, 0)
    try:
        for path, wanted in rights.items():
            _allow(ruleset, path, wanted & handled, keep=path in pinned)
        kernel.call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: Path, rights: int, *, keep: bool) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not here, or not ours: then there is nothing to allow
    if not stat.S_ISDIR(os.fstat(parent).st_mode):
        rights &= OF_FILES
    rule = _PathBeneath(rights, parent)
    try:
        kernel.call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        if keep:
            os.set_inheritable(parent, True)
        else:
            os.close(parent)
