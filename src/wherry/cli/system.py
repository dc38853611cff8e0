"""Commands about the server and this machine: status doctor env version completion."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import platform
import shlex
import shutil
from typing import Literal

from cyclopts import App

from wherry import __version__, errors
from wherry.cli.command import DEFAULT, SERVER, Common, DryRun, app, command
from wherry.cli.deployments import print_deployments
from wherry.cli.output import format_age, note, print_fields, print_table, print_wrapped, show
from wherry.client.local import find_address, find_server, list_servers, servers_folder
from wherry.client.schema import Overview, Problem, RuntimeInfo
from wherry.settings import client_environment, default_data_folder

MINIMUM_FREE_BYTES = 2_000_000_000


@command("status", group=SERVER, examples=["wherry status", "wherry status -o json"])
def status(*, common: Common = DEFAULT) -> None:
    """Show whether a server runs, where, and how it is."""
    with common.connect() as client:
        overview = client.overview()
        url = client.url
    show(common, {"url": url, "overview": overview}, lambda: _print_status(url, overview))


def _print_status(url: str, overview: Overview) -> None:
    local = find_server(url)
    print_fields(
        {
            "server": url,
            "version": overview.version,
            "up for": format_age(overview.started_at),
            "process": local.pid if local else "",
            "data": local.data if local else "",
            "team": overview.team,
            "you may": ", ".join(overview.scopes),
            "sandbox": overview.sandbox,
            "memory": f"{overview.memory_used_mib} of {overview.memory_limit_mib} MiB",
            "last hour": f"{overview.requests_last_hour} requests, "
            f"{overview.errors_last_hour} errors",
        }
    )
    if overview.deployments:
        print()
        print_deployments(overview.deployments)
    if overview.problems:
        print()
        print_problems(overview.problems)


def print_problems(problems: list[Problem]) -> None:
    """What is wrong, why, and what to do, a few lines each."""
    for problem in problems:
        cause = f": {problem.cause}" if problem.cause else ""
        print_wrapped(f"{problem.severity}: {problem.subject}: {problem.what}{cause}")
        if problem.remedy:
            print_wrapped(f"  hint: {problem.remedy}")


@command("doctor", group=SERVER, examples=["wherry doctor", "wherry doctor -o json"])
def doctor(*, common: Common = DEFAULT) -> int:
    """Look for what is wrong with this machine and the server; exit code 1 if something is."""
    told = _check_server(common)
    problems = [*check_machine(), *told]
    if not any(problem.subject == "sandbox" for problem in told):
        # no server has said what it found
        problems += [*_check_sandbox(), *_check_runtimes()]
    show(common, problems, lambda: print_problems(problems))
    if not problems and common.output == "table":
        print("nothing is wrong")
    return int(any(problem.severity == "error" for problem in problems))


def _check_server(common: Common) -> list[Problem]:
    try:
        with common.connect() as client:
            return client.problems()
    except errors.Unavailable as error:
        what = error.message
        return [Problem(severity="warning", subject="server", what=what, remedy=error.hint)]
    except errors.WherryError as error:
        what = error.message
        return [Problem(severity="error", subject="server", what=what, remedy=error.hint)]


def check_machine() -> list[Problem]:
    """What is wrong or missing here, without asking a server."""
    return [*_check_disk(), *_check_key_files()]


def _check_sandbox() -> list[Problem]:
    from wherry.worker.sandbox.probe import probe_sandbox

    sandbox = probe_sandbox()
    lacks = [
        Problem(
            severity="warning",
            subject="sandbox",
            what=f"this machine lacks the part {part!r} of the sandbox that holds models",
            cause=sandbox.missing.get(part, ""),
            remedy="WHERRY_SANDBOX=required refuses models where it is missing",
        )
        for part in sandbox.lacks
    ]
    held = Problem(severity="info", subject="sandbox", what=f"models would be held by: {sandbox}")
    return [*lacks, held]


def _check_disk() -> list[Problem]:
    folder = default_data_folder()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= MINIMUM_FREE_BYTES:
        return []
    what = f"only {free_bytes // 1_000_000} MB are free"
    remedy = "free some, or serve with --data on another disk"
    return [Problem(severity="warning", subject=str(folder), what=what, remedy=remedy)]


def _check_runtimes() -> list[Problem]:
    from wherry.jobs.runtime_environments import explain

    return [problem for each in _find_runtimes() if (problem := explain(each)) is not None]


def _find_runtimes() -> list[RuntimeInfo]:
    """What could run models here, with the environments of the usual data folder."""
    from wherry.jobs.runtime_environments import RuntimeEnvironments

    return RuntimeEnvironments(default_data_folder() / "environments").list()


def _check_key_files() -> list[Problem]:
    return [
        Problem(
            severity="error",
            subject=str(path),
            what="other users may read this file, and it holds a key",
            remedy=f"chmod 600 {shlex.quote(str(path))}",
        )
        for path in sorted(servers_folder().glob("*.json"))
        if path.stat().st_mode & 0o077
    ]


@command("env", group=SERVER, examples=['eval "$(wherry env)"', "wherry env -o json"])
def env(*, common: Common = DEFAULT) -> None:
    """Print what to set so that the SDKs of OpenAI, Anthropic and others find the server and its key."""
    address = find_address(common.url, common.api_key)
    told = common.url or client_environment().get("WHERRY_URL")
    if not told and not list_servers():
        raise errors.Unavailable("no server runs on this machine", hint="wherry serve")
    variables = {
        "ANTHROPIC_BASE_URL": address.url,
        "OPENAI_BASE_URL": f"{address.url}/v1",
        "WHERRY_URL": address.url,
    }
    if address.key:
        names = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "WHERRY_API_KEY")
        variables |= dict.fromkeys(names, address.key)
    else:
        note("hint: no key is known for this server; set WHERRY_API_KEY")
    show(common, variables, lambda: _print_exports(variables))


def _print_exports(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


@command("version", group=SERVER, examples=["wherry version", "wherry version -o json"])
def show_version(*, common: Common = DEFAULT) -> None:
    """Show the versions of Wherry, Python and what models need."""
    from importlib.metadata import version

    versions = {"wherry": __version__, "python": platform.python_version()}
    versions["numpy"] = version("numpy")
    for each in _find_runtimes():
        where = "" if each.place == "server" else f" of {each.name}'s own environment"
        versions |= {f"{package}{where}": found for package, found in each.packages.items()}
    versions["system"] = platform.platform()
    show(common, versions, lambda: print_table(("WHAT", "VERSION"), list(versions.items())))


# ------------------------------------------------------------------------------ completion

Shell = Literal["bash", "zsh", "fish"]
completion_app = App(
    name="completion", help="Let the shell complete commands and options.", group=SERVER
)
app.command(completion_app)


@command(
    "install",
    group=SERVER,
    parent=completion_app,
    examples=["wherry completion install", "wherry completion install --shell zsh"],
)
def install_completion(
    *, shell: Shell | None = None, dry_run: DryRun = False, common: Common = DEFAULT
) -> None:
    """Install completion for your shell; takes effect in the next one.

    Args:
        shell: Default: the one you are in.
    """
    found = _find_shell(shell)
    if dry_run:
        plan = {"shell": found, "dry_run": True}
        show(common, plan, lambda: print(f"would install completion for {found}"))
        return
    path = app.install_completion(shell=found)
    show(common, {"path": str(path)}, lambda: print(f"installed {path}"))


@command(
    "show",
    group=SERVER,
    parent=completion_app,
    examples=["wherry completion show --shell bash > wherry.bash"],
)
def show_completion(*, shell: Shell | None = None, common: Common = DEFAULT) -> None:
    """Print the script that `install` would install.

    Args:
        shell: Default: the one you are in.
    """
    script = app.generate_completion(shell=_find_shell(shell))
    show(common, {"script": script}, lambda: print(script))


def _find_shell(shell: Shell | None) -> Shell:
    if shell is not None:
        return shell
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    try:
        found = detect_shell()
    except ShellDetectionError:
        found = None
    if found not in ("bash", "zsh", "fish"):
        raise errors.InvalidInput("which shell is it?", hint="give --shell bash, zsh or fish")
    return found
