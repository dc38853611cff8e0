"""Runtimes in virtual environments of their own, because frameworks conflict.

Such an environment holds what the runtime's extra installs (see `Environments`: a Python model's
are of the same kind). A file beside it names it, written when it is whole: an interrupted
installation leaves the earlier one in use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from packaging.requirements import Requirement

from wherry.client.schema import Problem, RuntimeInfo
from wherry.errors import InvalidInput, NotFound
from wherry.jobs.environments import Environments, OnLine, digest_of, normalise_requirements
from wherry.worker.runtimes.catalog import BUILT_IN
from wherry.worker.runtimes.extras import requirements_of, versions_of
from wherry.worker.runtimes.own_environment import (
    POINTER_SUFFIX,
    pointer_of,
    read_pointer,
)

INSTALL_HINT = "can this machine reach its package index? then see pip's own words in the log"


class RuntimeEnvironments:
    """The runtimes of one server, and where their frameworks are.

    Args:
        folder: `data/environments`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # what is installed is listed by Wherry, not by a model
        self._environments = Environments(folder, allow_code=False)

    def list(self) -> list[RuntimeInfo]:
        """All that Wherry brings, by name."""
        return [self.find(name) for name in sorted(BUILT_IN)]

    def find(self, name: str) -> RuntimeInfo:
        """One of them, or `NotFound`."""
        if name not in BUILT_IN:
            raise NotFound(f"no runtime {name[:80]!r}", hint="wherry runtime list")
        extra = BUILT_IN[name][1]
        if not extra:
            return RuntimeInfo(name=name, place="server")
        if found := versions_of(extra):
            return RuntimeInfo(name=name, extra=extra, place="server", packages=found)
        digest = read_pointer(pointer_of(self._folder, name))
        marker = self._environments.describe(digest) if digest else None
        if marker is None:
            return RuntimeInfo(name=name, extra=extra, place="missing")
        versions = {_plain(package): version for package, version in marker.packages.items()}
        names = [_plain(Requirement(line).name) for line in marker.requirements]
        return RuntimeInfo(
            name=name,
            extra=extra,
            place="own environment",
            packages={each: versions[each] for each in names if each in versions},
            size_bytes=marker.size_bytes,
            is_outdated=digest != digest_of(_requirements(extra)),
        )

    def install(self, name: str, on_line: OnLine) -> RuntimeInfo:
        """Make the environment of a runtime, unless the server's own has its framework.

        Raises:
            NotFound: there is no such runtime.
            InvalidInput: pip cannot install it; what it said.
        """
        found = self.find(name)
        if found.place == "server":
            return found
        digest = self._environments.build(_requirements(found.extra), on_line, INSTALL_HINT)
        pointer = pointer_of(self._folder, name)
        temporary = pointer.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(pointer)
        return self.find(name)

    def remove(self, name: str, used: Collection[str]) -> None:
        """Remove a runtime's environment; `used` are digests that models' versions need.

        Raises:
            NotFound: the runtime has none.
        """
        self.find(name)
        pointer = pointer_of(self._folder, name)
        digest = read_pointer(pointer)
        if not digest:
            raise NotFound(
                f"runtime {name!r} has no environment of its own", hint="wherry runtime list"
            )
        pointer.unlink(missing_ok=True)
        if digest not in {*used, *self.used()}:
            self._environments.remove(digest)

    def used(self) -> set[str]:
        """Digests of the environments that runtimes have."""
        return {*map(read_pointer, self._folder.glob(f"*{POINTER_SUFFIX}"))} - {""}


def check_installable(name: str) -> None:
    """`InvalidInput` for a runtime that needs no package."""
    if name in BUILT_IN and not BUILT_IN[name][1]:
        raise InvalidInput(f"runtime {name!r} needs nothing that could be installed")


def explain(runtime: RuntimeInfo) -> Problem | None:
    """What `wherry doctor` says of a runtime; None where there is nothing to say."""
    install = f"wherry runtime install {runtime.name}"
    subject = f"runtime {runtime.name}"
    packages = ", ".join(f"{name} {version}" for name, version in runtime.packages.items())
    if runtime.is_outdated:
        what = f"its own environment is of another Wherry: {packages}"
        return Problem(severity="warning", subject=subject, what=what, remedy=install)
    if runtime.place == "own environment":
        what = f"it has an environment of its own: {packages}"
        return Problem(severity="info", subject=subject, what=what)
    if runtime.place == "missing":
        what = "its framework is not installed, so its models cannot be served"
        remedy = f"pip install 'wherry[{runtime.extra}]', or {install}"
        return Problem(severity="info", subject=subject, what=what, remedy=remedy)
    return None


def _requirements(extra: str) -> list[str]:
    return normalise_requirements(requirements_of(extra))


def _plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
