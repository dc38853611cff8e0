"""The command that runs a server: serve."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from cyclopts import Group, Parameter

from wherry import settings as settings_module
from wherry.cli.command import SERVER, command
from wherry.cli.output import UsageError, note
from wherry.settings import Settings, load_settings

SETTINGS = Group("Settings (flag > WHERRY_… variable > file)", sort_key=5)
SECRETS = frozenset({"admin_key"})
"""Settings without a flag: a command line is seen by every user of the machine."""


def read_setting_docs() -> dict[str, str]:
    """Setting → the text under it in `wherry/settings.py`, which Python itself forgets."""
    tree = ast.parse(inspect.getsource(settings_module))
    body = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == Settings.__name__
    )
    docs: dict[str, str] = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def _flag_type(kind: Any) -> Any:
    """The type of a setting as a flag that may be left out."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return list[str] | None
    return kind | None


def make_flags() -> type[Any]:
    """A dataclass with a flag for every setting, all None unless given."""
    docs = read_setting_docs()
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(Settings):
        if field.name in SECRETS:
            continue
        default = (
            "" if field.default in ("", (), 0, False, None) else f" [default: {field.default}]"
        )
        parameter = Parameter(group=SETTINGS, help=docs.get(field.name, "") + default)
        annotation = Annotated[_flag_type(field.type), parameter]
        fields.append((field.name, annotation, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass("Flags", fields, frozen=True, kw_only=True)
    made.__module__ = (
        __name__  # else it seems to be of the standard library, and is not taken apart
    )
    return made


Flags: Any = make_flags()
NO_FLAGS = Flags()


def serve(
    *,
    config: Path | None = None,
    demo: bool = False,
    every: Annotated[bool, Parameter(name="--all", negative="")] = False,
    once: bool = False,
    debug: bool = False,
    flags: Any = NO_FLAGS,
) -> int:
    """Run a server until Ctrl-C.

    Args:
        config: TOML file with settings.
        demo: Serve a few small models at once, to try things with, and call each of them.
        every: With --demo: a model for every task, too; half a gigabyte and some minutes.
        once: End after the demo's calls; the exit code tells whether every answer came.
        debug: Show the traceback of an error.
    """
    given = {name: value for name, value in vars(flags).items() if value is not None}
    if every and not demo:
        raise UsageError("--all is for the demo", hint="wherry serve --demo --all")
    settings = load_settings(given, file=config)
    from wherry.app.server import serve as run_server  # brings the server

    if not demo:
        return run_server(settings, on_ready=_announce)
    from wherry.cli.demo import Demo, quieted

    tour = Demo(once=once, folder=settings.folder, is_full=every)
    status = run_server(quieted(settings, given), demo=True, on_ready=tour.start)
    return status or (tour.status if once else 0)


serve.__annotations__["flags"] = Annotated[
    Flags, Parameter(name="*")
]  # made at run time, so its name cannot be written above
command(
    "serve",
    group=SERVER,
    examples=[
        "wherry serve",
        "wherry serve --demo --port 8080",
        "wherry serve --demo --all",
        "wherry serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem",
    ],
)(serve)


def _announce(url: str, key: str) -> None:
    """Tell where the server is and how it is called; the key stays in its file."""
    del key
    note(f"wherry listens at {url}")
    note("the key of this machine's user is found by SDK and CLI; for others:")
    note('  eval "$(wherry env)"')
    note(f'  curl -H "Authorization: Bearer $WHERRY_API_KEY" {url}/platform/v1/overview')
