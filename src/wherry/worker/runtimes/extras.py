"""What the extras of our own package install, and whether that is here.

Read from the package's metadata, so that `pip install 'wherry[torch]'` and `wherry runtime install
torch` go by one list, that of pyproject.toml. Needs `packaging`: for the server's environment only.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata

from packaging.requirements import Requirement

from wherry.errors import Internal

OURSELVES = "wherry"


@cache
def requirements_of(extra: str) -> tuple[str, ...]:
    """Requirements of an extra on this machine; the build has written out those that it names.

    Raises:
        Internal: the installed metadata knows no such extra.
    """
    found = [
        _without_marker(each)
        for each in _listed()
        if each.marker and each.marker.evaluate({"extra": extra}) and not _is_core(each)
    ]
    if not found:
        raise Internal(
            f"the installed package wherry has no extra {extra!r} for this machine",
            hint="install Wherry again",
        )
    return tuple(found)


@cache
def core_requirements() -> tuple[str, ...]:
    """What Wherry needs without any extra, on this machine."""
    return tuple(_without_marker(each) for each in _listed() if _is_core(each))


def versions_of(extra: str) -> dict[str, str]:
    """Name → version of an extra's packages in this environment; empty if one of them is missing."""
    found: dict[str, str] = {}
    for line in requirements_of(extra):
        name = Requirement(line).name
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return {}
    return found


def _listed() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires(OURSELVES) or ()]


def _is_core(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _without_marker(requirement: Requirement) -> str:
    return str(requirement).partition(";")[0].strip()
