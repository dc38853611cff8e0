"""Runs a command as an ordinary user, where the tests run as root.

`python -m tests.sandbox.as_user USER FOLDER command…`: the folder becomes the user's. What lies in
closed folders (Python in root's home) is shown to the command by the sandbox's own means.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wherry.worker.sandbox import own_user

REPOSITORY = Path(__file__).parents[2]


def main(user: int, folder: Path, command: list[str]) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)
    readable = [Path(each).resolve() for each in (sys.base_prefix, sys.prefix, REPOSITORY)]
    own_user.uncover(readable, folder)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(folder)
    os.chdir(REPOSITORY)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
