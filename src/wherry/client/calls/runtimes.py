"""Runtimes: where each framework is, and environments of their own for them."""

from __future__ import annotations

from wherry.client.calls.jobs import OnProgress, wait_for_job
from wherry.client.schema import Job, RuntimeInfo
from wherry.client.wire import Call, ask, ask_for_all, platform


def list_runtimes() -> Call[list[RuntimeInfo]]:
    """What can run models on this server, and where it is installed."""
    return (yield from ask_for_all(platform("GET", "runtimes"), RuntimeInfo))


def install_runtime(
    name: str,
    *,
    wait: bool = True,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Call[Job]:
    """Install a runtime into an environment of its own.

    Args:
        name: the runtime.
        wait: return when the job has succeeded.
        on_progress: called with every change.
        timeout: seconds to wait.
    """
    job = yield from ask(platform("POST", "runtimes", name, verb="install"), Job)
    if not wait:
        return job
    return (yield from wait_for_job(job.id, on_progress=on_progress, timeout=timeout))


def remove_runtime(name: str, *, dry_run: bool = False) -> Call[RuntimeInfo]:
    """Remove a runtime's own environment, unless a deployment needs it; gives what it was."""
    request = platform("DELETE", "runtimes", name, query={"dry_run": dry_run})
    return (yield from ask(request, RuntimeInfo))
