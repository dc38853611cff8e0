"""Where the environment of a runtime is, if it has one of its own.

`environments/torch.runtime` names the environment that `wherry runtime install torch` made.
Only workers whose framework the server's own environment lacks run in it. Read by the launcher and
by `wherry.jobs.runtime_environments`, which writes it; a worker knows nothing of it.
"""

from __future__ import annotations

from pathlib import Path

from wherry.worker.runtimes.catalog import BUILT_IN

POINTER_SUFFIX = ".runtime"


def pointer_of(environments: Path, runtime: str) -> Path:
    """The file that holds the digest of the runtime's environment."""
    return environments / f"{runtime}{POINTER_SUFFIX}"


def read_pointer(pointer: Path) -> str:
    """The digest; "" if the runtime has no environment of its own."""
    try:
        return pointer.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def find_own_environment(environments: Path, runtime: str) -> Path | None:
    """The environment that workers of a runtime must run in; None = the server's own."""
    if runtime not in BUILT_IN:
        return None
    digest = read_pointer(pointer_of(environments, runtime))
    if not digest:
        return None
    # only now: nearly every worker starts without reading what is installed
    from wherry.worker.runtimes.extras import versions_of

    return None if versions_of(BUILT_IN[runtime][1]) else environments / digest
