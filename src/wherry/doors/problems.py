"""What is wrong with a server, why, and what to do: for the overview and for `wherry doctor`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.client.schema import Deployment, Problem
from wherry.doors.platform_base import Parts
from wherry.jobs.runtime_environments import RuntimeEnvironments, explain
from wherry.settings import Settings
from wherry.storage.database import read_revisions
from wherry.worker.sandbox.sandbox import Sandbox, SandboxMode

FULL_SHARE = 0.05
FULL_BYTES = 2 << 30
"""A disk with less than both of these free is nearly full."""
EMPTY_BYTES = 256 << 20
MEMORY_SHARE = 0.95

SERVER = "server"
SANDBOX_REMEDIES = {
    "auto": "use a kernel that has it (docs/security.md), or publish models of people you trust "
    "only; WHERRY_SANDBOX=required refuses the others",
    "required": "use a kernel that has it (docs/security.md), or set WHERRY_SANDBOX=auto",
}


def find_deployment_problems(deployments: Sequence[Deployment]) -> list[Problem]:
    """Deployments that do not serve as they should, the worst first."""
    found = [
        Problem(
            severity="error" if each.state == "failing" else "warning",
            subject=each.name,
            what=f"deployment {each.name!r} is {each.state}",
            cause=each.cause,
            remedy=each.remedy or f"wherry logs {each.name}",
        )
        for each in deployments
        if each.state in ("failing", "degraded")
    ]
    found += [
        Problem(
            severity="warning",
            subject=each.name,
            what=f"deployment {each.name!r} does not serve what its spec says",
            cause=each.rollout.reason,
            remedy=f"wherry deploy another version, or wherry promote {each.name}",
        )
        for each in deployments
        if each.rollout.phase == "rolled_back"
    ]
    return sorted(found, key=lambda problem: problem.severity)


async def find_server_problems(parts: Parts, overview: dict[str, Any] | None) -> list[Problem]:
    """What is wrong with the server itself; `overview` is None when the controller is away."""
    settings = parts.settings
    problems = await asyncio.to_thread(_find_storage_problems, parts, settings.folder)
    if overview is None:
        problems.append(
            Problem(
                severity="error",
                subject=SERVER,
                what="the controller does not answer",
                cause="the main process restarts, or hangs",
                remedy="wait a moment; if it stays so, restart wherry serve",
            )
        )
    else:
        problems += _find_memory_problems(overview)
        problems += find_sandbox_problems(settings.sandbox, read_sandbox(overview))
    if not parts.gateway.settler.is_healthy:
        problems.append(
            Problem(
                severity="error",
                subject=SERVER,
                what="outcomes cannot be recorded, so requests are refused",
                cause="the journal cannot be written",
                remedy="free some space on the disk of the data folder",
            )
        )
    problems += [
        Problem(
            severity="warning",
            subject=name,
            what=f"worker {name!r} makes no progress",
            cause="its model hangs in one request",
            remedy="it is killed and restarted when the request's time is over",
        )
        for name in parts.gateway.stuck_workers()
    ]
    return problems


def read_sandbox(overview: dict[str, Any]) -> Sandbox | None:
    """What holds models, as the main process found; None = not tried."""
    return msgspec.convert(overview.get("sandbox"), Sandbox | None)


def find_sandbox_problems(mode: SandboxMode, sandbox: Sandbox | None) -> list[Problem]:
    """What does not hold models on this machine, and what follows."""
    if mode == "off":
        what = "nothing holds models: they run with the rights of the server's user"
        remedy = "unset WHERRY_SANDBOX"
        return [Problem(severity="warning", subject="sandbox", what=what, remedy=remedy)]
    if sandbox is None:
        return []
    follows = "models are refused" if mode == "required" else "models run without it"
    found = [
        Problem(
            severity="error" if mode == "required" else "warning",
            subject="sandbox",
            what=f"the part {part!r} of the sandbox is missing, so {follows}",
            cause=sandbox.missing.get(part, ""),
            remedy=SANDBOX_REMEDIES[mode],
        )
        for part in sandbox.lacks
    ]
    if "user" in sandbox.missing and sandbox.is_root:
        found.append(
            Problem(
                severity="warning",
                subject="sandbox",
                what="workers have no users of their own: they own what the server's user owns",
                cause=sandbox.missing["user"],
                remedy="run the server as an ordinary user, or let root change users and mounts",
            )
        )
    held = Problem(severity="info", subject="sandbox", what=f"models are held by: {sandbox}")
    return [*found, held]


def find_runtime_problems(folder: Path) -> list[Problem]:
    """Which frameworks are missing, and which have an environment of their own."""
    runtimes = RuntimeEnvironments(folder / "environments").list()
    return [problem for each in runtimes if (problem := explain(each)) is not None]


def find_exposure(settings: Settings) -> list[Problem]:
    """What the settings open, and to whom."""
    found: list[Problem] = []
    if settings.allow_code:
        found.append(
            Problem(
                severity="warning",
                subject="allow_code",
                what="models may bring Python code",
                cause=f"sandbox = {settings.sandbox!r} decides what holds it, and pip runs the "
                "set-up of its requirements as the server's user",
                remedy="give the scope publish to people you trust, or unset WHERRY_ALLOW_CODE",
            )
        )
    if settings.allow_pickle:
        found.append(
            Problem(
                severity="warning",
                subject="allow_pickle",
                what="models may be pickles, which run any code when they load",
                cause="WHERRY_ALLOW_PICKLE is set",
                remedy="save models with skops.io.dump and unset it",
            )
        )
    if "*" in settings.allowed_hosts:
        found.append(
            Problem(
                severity="warning",
                subject="allowed_hosts",
                what="requests for any host name are served",
                cause="a web page could point its own name at this server",
                remedy="list the names in WHERRY_ALLOWED_HOSTS",
            )
        )
    return [*found, _describe_listening(settings)]


def _describe_listening(settings: Settings) -> Problem:
    where = f"{settings.host}:{settings.port}"
    if settings.tls_cert:
        what, remedy = f"it listens on {where} with TLS", ""
    elif _is_loopback(settings.host):
        what = f"it listens on {where}: only this machine can connect"
        remedy = "for others: wherry serve --host ADDRESS --tls-cert FILE --tls-key FILE"
    else:
        what = f"it listens on {where} without TLS, trusting a proxy in front"
        remedy = "let nobody but the proxy reach this port"
    return Problem(severity="info", subject="network", what=what, remedy=remedy)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _find_storage_problems(parts: Parts, folder: Path) -> list[Problem]:
    found: list[Problem] = []
    try:
        with parts.database.read() as connection:
            read_revisions(connection)
    except errors.Unavailable as error:
        found.append(
            Problem(
                severity="error",
                subject="database",
                what="the database is away; what runs goes on",
                cause=error.message,
                remedy="start the database again, or free some space on its disk",
            )
        )
    disk = shutil.disk_usage(folder)
    if disk.free < max(EMPTY_BYTES, min(FULL_BYTES, disk.total * FULL_SHARE)):
        found.append(
            Problem(
                severity="error" if disk.free < EMPTY_BYTES else "warning",
                subject="disk",
                what="the disk of the data folder is nearly full",
                cause=f"{disk.free >> 20} of {disk.total >> 20} MiB are free",
                remedy="remove versions that are not served: wherry list, wherry rm",
            )
        )
    return found


def _find_memory_problems(overview: dict[str, Any]) -> list[Problem]:
    used, limit = overview["memory_used_mib"], overview["memory_limit_mib"]
    if used < limit * MEMORY_SHARE:
        return []
    return [
        Problem(
            severity="warning",
            subject="memory",
            what="models use nearly all the memory they may",
            cause=f"{used} of {limit} MiB",
            remedy="stop a deployment, or raise memory_limit_mib",
        )
    ]
