"""Writes the pages of docs/ that say what the code says: cli, settings, api, errors.

`--check` writes nothing and fails if a page is not what it would be. No server is started.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import difflib
import inspect
import io
import itertools
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from task_tables import CHINESE, ENGLISH, Words, index_tables, readme_table

from wherry import errors
from wherry import settings as settings_module
from wherry.app.gateway import GatewayProcess
from wherry.cli import main as cli_main
from wherry.cli.command import app as cli
from wherry.cli.command import examples_by_command
from wherry.cli.serve import SECRETS
from wherry.client import schema
from wherry.control.supervisor import GatewayOrder
from wherry.doors.errors import GRPC_STATUS, HTTP_STATUS, openai_error, render_openai
from wherry.doors.route import Row
from wherry.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTICE = "<!-- Made by scripts/build_docs.py (`make docs`). Do not edit: edit what it reads. -->"
COLUMNS = 100
SHOWN_DIFF_LINES = 20
TITLES = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "rerank": "Reranking",
    "inference": "Open Inference Protocol v2",
    "huggingface": "Hugging Face's tasks",
    "ollama": "Ollama",
    "mlflow": "MLflow",
    "kserve": "KServe v1",
    "predict": "Plain JSON",
    "operations": "For operators and their tools",
}
"""Tags of the doors that are no part of the platform API → headings, in the order of the page."""


def main() -> int:
    """Write or check every page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page would change")
    is_check = parser.parse_args().check
    drifted = [name for name, build in PAGES.items() if not settle(ROOT / name, build(), is_check)]
    if drifted:
        say(f"error: {', '.join(drifted)} is not what the code says")
        say("hint: make docs")
    return int(bool(drifted))


def settle(path: Path, text: str, is_check: bool) -> bool:
    """Write a page, or tell whether it is as it should be and show how it is not."""
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    if present == text:
        return True
    if not is_check:
        path.write_text(text, encoding="utf-8")
        say(f"wrote {path.relative_to(ROOT)}")
        return True
    lines = difflib.unified_diff(
        present.splitlines(), text.splitlines(), path.name, "as the code says", lineterm="", n=0
    )
    for line in itertools.islice(lines, SHOWN_DIFF_LINES):
        say(line)
    return False


def say(line: str) -> None:
    """A line for people."""
    sys.stdout.write(line + "\n")


def page(title: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([NOTICE, f"# {title}", *parts]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [columns, ["---"] * len(columns), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(cell: str) -> str:
    """A cell whose text has no bars or line breaks."""
    return " ".join(cell.replace("|", "\\|").split())


def code(text: str) -> str:
    """Text as code; nothing stays nothing."""
    return f"`{text}`" if text else ""


# ------------------------------------------------------------------------------ settings


def build_settings() -> str:
    """Every setting of a server."""
    rows = [
        (
            code(name),
            code(PREFIX + name.upper()),
            "" if name in SECRETS else code("--" + name.replace("_", "-")),
            code(kind),
            code(default),
            text,
        )
        for name, kind, default, text in read_fields(settings_module, Settings.__name__)
    ]
    return page(
        "Settings",
        "Flag > environment > file > default. The file is TOML with these names at its top level; "
        "name it with `wherry serve --config FILE` or `WHERRY_CONFIG`. In the environment, lists "
        "are separated by commas and `1` or `true` is yes. An unknown key in the file is an error.",
        table(("Setting", "Environment", "Flag", "Type", "Default", "Meaning"), rows),
        "The client and the CLI read `WHERRY_URL` and `WHERRY_API_KEY`. A deployment of an "
        "upstream model may name variables `WHERRY_SECRET_*` "
        "([why](decisions/0011-secrets.md)). The file is read once, at the start.",
    )


def read_fields(module: ModuleType, name: str) -> list[tuple[str, str, str, str]]:
    """Name, type, default and text of a struct's fields, as its source says them."""
    tree = ast.parse(inspect.getsource(module))
    body = next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )
    fields: list[tuple[str, str, str, str]] = []
    for node, after in itertools.pairwise([*body, ast.Pass()]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if is_text else ""  # type: ignore[union-attr]
        fields.append((node.target.id, show_type(node.annotation), show_default(node.value), text))
    return fields


def show_default(node: ast.expr | None) -> str:
    """A default for people: sizes in MiB and GiB, nothing for what is empty."""
    if node is None:
        return "required"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        units = {20: "MiB", 30: "GiB", 40: "TiB"}
        bits = ast.literal_eval(node.right)
        return f"{ast.literal_eval(node.left)} {units[bits]}"
    if isinstance(node, ast.Call):
        return (
            ""
            if not node.args and not node.keywords
            else ast.unparse(node).partition("lambda: ")[2].rstrip(")")
        )
    value = ast.literal_eval(node)
    return (
        ""
        if value in ("", (), [], {}, None)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def show_type(node: ast.expr) -> str:
    """An annotation for people: the bounds of a number rather than how they are written."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
        assert isinstance(node.slice, ast.Tuple)
        kind, meta = node.slice.elts
        assert isinstance(meta, ast.Call)
        bounds = [f"{each.arg}={ast.unparse(each.value)}" for each in meta.keywords]
        return f"{show_type(kind)}, {', '.join(bounds)}"
    if isinstance(node, ast.BinOp):
        return f"{show_type(node.left)} | {show_type(node.right)}"
    return ast.unparse(node)


# ------------------------------------------------------------------------------ errors


def build_errors() -> str:
    """Every error a caller can meet."""
    rows = [
        (
            code(kind.code),
            str(HTTP_STATUS[kind]),
            code(GRPC_STATUS[kind]),
            "yes" if issubclass(kind, errors.TryLater) else "",
            inspect.getdoc(kind) or "",
            code(kind.__name__),
        )
        for kind in errors.all_errors()
        if kind is not errors.WherryError
    ]
    return page(
        "Errors",
        "An error says what is wrong and what to do next. `code` is stable; the text may change. "
        "With `Retry-After` the same request may succeed later.",
        table(("Code", "HTTP", "gRPC", "`Retry-After`", "Meaning, and what to do", "Python"), rows),
        "## Shapes",
        "Each door answers in its protocol's own shape:",
        table(
            ("Door", "Body"),
            [
                (
                    "`/platform/v1`, `/predict`, operators",
                    '`{"error": {"code", "message", "hint", "request_id", "param"?}}`',
                ),
                ("`/v1` (OpenAI)", '`{"error": {"message", "type", "param", "code"}}`'),
                (
                    "`/v1/messages` (Anthropic)",
                    '`{"type": "error", "error": {"type", "message"}, "request_id"}`',
                ),
                ("`/v2` (Open Inference)", '`{"error": "message (hint)"}`'),
                ("gRPC (Open Inference)", "`message (hint)` as the status's details"),
            ],
        ),
        "OpenAI's SDKs decide by status, so some differ under `/v1`:",
        table(("Code here", "HTTP", "`code`", "`type`"), differing_openai_rows()),
        "Under `/v2` a 422 is a 400. A stream that fails after it has begun ends with one event "
        'that holds `{"error": …}`. Exit codes of the CLI: 1 failure, 2 wrong usage, 130 '
        "interrupted.",
        "In Python the SDK raises these classes: `from wherry import errors`, then "
        "`except errors.TryLater as error: error.retry_after_seconds`.",
    )


def differing_openai_rows() -> list[tuple[str, ...]]:
    """The errors whose status or code OpenAI's clients see otherwise."""
    rows: list[tuple[str, ...]] = []
    for kind in errors.all_errors():
        if kind is errors.WherryError:
            continue
        status, _, _ = render_openai(kind("text"), "")
        shown = openai_error(kind("text"), status)
        if status != HTTP_STATUS[kind] or shown["code"] != kind.code:
            rows.append(
                (
                    code(kind.code),
                    str(status),
                    code(shown["code"] or "null"),
                    code(str(shown["type"])),
                )
            )
    return rows


# ------------------------------------------------------------------------------ api


def build_api() -> str:
    """Every row of every door."""
    rows = all_rows()
    tags = dict.fromkeys([*TITLES, *(row.tag for row in rows)])
    parts: list[str] = []
    for tag in tags:
        title = TITLES.get(tag, f"Platform: {tag}")
        lines = [describe_row(row) for row in rows if row.tag == tag]
        columns = ("Method", "Path", "Scope", "What it does", "Body", "Answer")
        parts += [f"## {title}", table(columns, lines)]
    return page(
        "HTTP API",
        "One server, one port, one key: `Authorization: Bearer KEY` or `x-api-key: KEY`. A scope "
        "of `open` needs no key, `any` takes every valid key. The same as OpenAPI 3.1: "
        "`GET /openapi.json`; to read and try: `/docs`. Lists come in pages: `?limit=` (most "
        "200) and `?cursor=` with the `next` of the page before.",
        *parts,
        "## Bodies of the platform API",
        "Unknown fields in requests are refused; unknown fields in answers may appear.",
        *describe_requests(),
    )


@cache
def all_rows() -> list[Row]:
    """The rows that a gateway serves."""
    return asyncio.run(collect_rows())


async def collect_rows() -> list[Row]:
    """They, from a gateway that is made and never run."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as unused:
        order = GatewayOrder("gateway 0", Settings(data=folder), f"{folder}/none.sock", 0)
        process: Any = GatewayProcess(order, unused)
        try:
            return list(process._doors.application.rows)
        finally:
            await process._journal.close()
            process._authenticator.close()
            process._database.close()


def describe_row(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    path = row.path.replace(":path}", "}")
    answer = show_kind(row.answer)
    if row.streams:
        answer = f"{answer} or events" if answer else "events"
    return (row.method, code(path), row.permission, row.summary, show_kind(row.request), answer)


def show_kind(kind: Any) -> str:
    """A body's type for people."""
    if kind is None:
        return ""
    if kind is dict:
        return "JSON"
    inner = getattr(kind, "__args__", ())
    if inner:
        return f"page of {', '.join(each.__name__ for each in inner)}"
    return code(kind.__name__)


def describe_requests() -> list[str]:
    """A table for each struct that clients send."""
    parts: list[str] = []
    for name, kind in vars(schema).items():
        if not isinstance(kind, type) or not issubclass(kind, (schema.Request, schema.Spec)):
            continue
        if kind in (schema.Request, schema.Spec):
            continue
        rows = [
            (code(field), code(shown), default if default == "required" else code(default), text)
            for field, shown, default, text in read_fields(schema, name)
        ]
        parts += [
            f"### {name}",
            inspect.getdoc(kind) or "",
            table(("Field", "Type", "Default", "Meaning"), rows),
        ]
    return parts


# ------------------------------------------------------------------------------ cli


def build_cli() -> str:
    """The help of every command."""
    assert cli_main  # its import registers the commands
    parts = [
        "Every command has `--help`, `-o json` and, where it changes something, `--dry-run`. "
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. The server and the key "
        "come from `--url` and `--api-key`, else `WHERRY_URL` and `WHERRY_API_KEY`, else from a "
        "server of the same user on this machine.",
        fence(help_of([])),
    ]
    for name in sorted(examples_by_command):
        parts += [f"## wherry {name}", fence(help_of(name.split()))]
    return page("Command line", *parts)


def help_of(words: Sequence[str]) -> str:
    """What `--help` prints."""
    file = io.StringIO()
    console = Console(file=file, width=COLUMNS, no_color=True, color_system=None)
    cli.help_print(list(words), console=console)
    lines = [line.rstrip() for line in file.getvalue().strip().splitlines()]
    shown = (line for line, before in zip(lines, ["", *lines], strict=False) if line or before)
    return "\n".join(shown)


def fence(text: str) -> str:
    """Text as it stands."""
    return f"```text\n{text}\n```"


# ------------------------------------------------------------------------------ tasks


def build_tasks() -> str:
    """Every task: its page, its doors, its models."""
    doors, models = index_tables(all_rows())
    return page(
        "Tasks",
        "What goes in and comes out of a model. Every model does one task, and is asked by every "
        "door that knows the task. An embedder answers the questions of `sentence-similarity`, "
        "`text-ranking` and `zero-shot-classification`, too.",
        doors,
        "## Models of the catalogue",
        "`wherry run NAME` pulls, deploys and asks one; `make demo ALL=1` all that have an answer "
        "here. The answers are those of a live server (`scripts/record_outputs.py`).",
        models,
    )


def build_readme(name: str, words: Words) -> Callable[[], str]:
    """The README with its table of tasks between the marks."""

    def build() -> str:
        before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(BEGIN_TASKS)
        _, _, after = rest.partition(END_TASKS)
        table_of_tasks = readme_table(all_rows(), words)
        return f"{before}{BEGIN_TASKS}\n\n{table_of_tasks}\n\n{END_TASKS}{after}"

    return build


BEGIN_TASKS = "<!-- tasks: made by scripts/build_docs.py (`make docs`) -->"
END_TASKS = "<!-- end of tasks -->"

PAGES: dict[str, Callable[[], str]] = {
    "docs/settings.md": build_settings,
    "docs/errors.md": build_errors,
    "docs/cli.md": build_cli,
    "docs/api.md": build_api,
    "docs/tasks/index.md": build_tasks,
    "README.md": build_readme("README.md", ENGLISH),
    "README.zh-CN.md": build_readme("README.zh-CN.md", CHINESE),
}
"""Path from the root → what it should say."""

if __name__ == "__main__":
    sys.exit(main())
