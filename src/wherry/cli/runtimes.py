"""Commands about runtimes: runtime list install remove."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

from cyclopts import App

from wherry import errors
from wherry.cli.command import DEFAULT, SERVER, Common, DryRun, app, command
from wherry.cli.output import format_bytes, note, print_table, progress, show
from wherry.client.schema import RuntimeInfo

runtime_app = App(name="runtime", help="Install what runs models.", group=SERVER)
app.command(runtime_app)


@command(
    "list",
    group=SERVER,
    parent=runtime_app,
    examples=["wherry runtime list", "wherry runtime list -o json"],
)
def list_runtimes(*, common: Common = DEFAULT) -> None:
    """List what can run models on the server, and where each is installed."""
    with common.connect() as client:
        runtimes = client.runtimes.list()
    show(common, runtimes, lambda: _print_runtimes(runtimes))


def _print_runtimes(runtimes: list[RuntimeInfo]) -> None:
    rows = [
        (
            each.name,
            each.place + (" (outdated)" if each.is_outdated else ""),
            describe_packages(each),
            format_bytes(each.size_bytes) if each.size_bytes else "",
        )
        for each in runtimes
    ]
    print_table(("RUNTIME", "INSTALLED", "PACKAGES", "SIZE"), rows)
    if any(each.place == "missing" for each in runtimes):
        note("next: wherry runtime install RUNTIME")


def describe_packages(runtime: RuntimeInfo) -> str:
    """`torch 2.13.0, pillow 12.0.0`."""
    return ", ".join(f"{name} {version}" for name, version in runtime.packages.items())


@command(
    "install",
    group=SERVER,
    parent=runtime_app,
    examples=["wherry runtime install torch", "wherry runtime install keras --dry-run"],
)
def install_runtime(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Install a runtime into an environment of its own, beside the server's.

    Args:
        name: The runtime.
    """
    with common.connect() as client, progress(f"install {name}") as report:
        if not dry_run:
            client.runtimes.install(name, on_progress=report)
        runtime = _find(client.runtimes.list(), name)
    show(common, runtime, lambda: _print_installed(runtime, dry_run=dry_run))


def _find(runtimes: list[RuntimeInfo], name: str) -> RuntimeInfo:
    for each in runtimes:
        if each.name == name:
            return each
    raise errors.NotFound(f"no runtime {name!r}", hint="wherry runtime list")


def _print_installed(runtime: RuntimeInfo, *, dry_run: bool) -> None:
    name, packages = runtime.name, describe_packages(runtime)
    if runtime.place == "server":
        print(f"{name} is in the server's own environment: {packages or 'it needs no package'}")
    elif dry_run:
        print(f"would install {name}; nothing was done")
    else:
        print(f"installed {name}: {packages}, {format_bytes(runtime.size_bytes)}")


@command(
    "remove",
    group=SERVER,
    parent=runtime_app,
    examples=["wherry runtime remove torch", "wherry runtime remove torch --dry-run"],
)
def remove_runtime(name: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Remove a runtime's own environment, unless a deployment needs it.

    Args:
        name: The runtime.
    """
    with common.connect() as client:
        removed = client.runtimes.remove(name, dry_run=dry_run)
    word = "would remove" if dry_run else "removed"
    show(common, removed, lambda: print(f"{word} {name}: {format_bytes(removed.size_bytes)}"))
