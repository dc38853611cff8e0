"""Runs a command on a kernel that lacks a part of the sandbox.

`python -m tests.sandbox.without landlock|seccomp|privileges command…`: the kernel itself is told to
refuse those calls to the command and its children, as an older kernel, or a container's, does.
"""

from __future__ import annotations

import errno
import os
import sys

from wherry.worker.sandbox import kernel, seccomp, syscalls

ABSENT = {
    "landlock": ("landlock_create_ruleset", (444, 444), seccomp.refuse(errno.ENOSYS)),
    "seccomp": ("seccomp", (317, 277), seccomp.refuse(errno.EINVAL)),
    "privileges": ("capset", (126, 91), seccomp.refuse(errno.EPERM)),
}

if __name__ == "__main__":
    name, numbers, refusal = ABSENT[sys.argv[1]]
    syscalls.NUMBERS[name] = numbers
    kernel.control_process(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.assemble({name: refusal}))
    os.execv(sys.argv[2], sys.argv[2:])
