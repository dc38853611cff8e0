"""The tables of tasks × models × doors: out of the catalogues of tasks, codecs, rows and models.

Which doors serve a task follows from the codecs that their rows name; the answers are those that a
live server gave (scripts/record_outputs.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from wherry.doors.route import Row
from wherry.models.codecs.catalog import BUILT_IN as CODECS
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.hf import SHAPES
from wherry.models.registry.catalog import CatalogModel, catalog
from wherry.models.tasks.catalog import BUILT_IN as TASKS

TASK_PAGES = Path(__file__).parent.parent / "docs" / "tasks"
OUTPUTS = TASK_PAGES / "outputs.json"
SHARED_PAGES = {
    "face-recognition": "face-detection.md",
    "tabular-classification": "tabular.md",
    "tabular-regression": "tabular.md",
}
"""Tasks that are told on the page of another."""
DOORS = {
    "predict": ("Plain JSON", "predict.md"),
    "inference": ("Open Inference", "open-inference.md"),
    "inference.grpc": ("Open Inference over gRPC", "open-inference.md"),
    "huggingface": ("Hugging Face", "huggingface.md"),
    "kserve": ("KServe v1", "mlflow-and-kserve.md"),
    "mlflow": ("MLflow", "mlflow-and-kserve.md"),
    "openai": ("OpenAI", "openai.md"),
    "anthropic": ("Anthropic", "anthropic.md"),
    "ollama": ("Ollama", "ollama.md"),
    "rerank": ("Rerank", "tasks/text-ranking.md"),
}
"""Tag of a door's rows → its name, and its page in docs/."""
GRPC = "inference.grpc"
"""The codec of a door that has methods instead of rows."""


class Output(msgspec.Struct):
    """What a model was asked and answered, in words."""

    task: str
    model: str
    question: str
    answer: str


class Way(NamedTuple):
    """A path on which a task is asked."""

    tag: str
    path: str


def read_outputs() -> list[Output]:
    """What the live server said."""
    return msgspec.json.decode(OUTPUTS.read_bytes(), type=list[Output])


def doors_of_all(rows: Iterable[Row]) -> list[str]:
    """Tags of the doors that serve every task."""
    tags = [row.tag for row in rows if row.codec and not find_codec(row.codec).tasks]
    if GRPC in CODECS and not find_codec(GRPC).tasks:
        tags.append(GRPC)
    return [tag for tag in DOORS if tag in tags]


def ways_of(task: str, rows: Sequence[Row]) -> list[Way]:
    """Paths of the doors that serve only some tasks, this one among them."""
    common = doors_of_all(rows)
    found = [
        Way(row.tag, row.path)
        for row in rows
        if row.codec and row.tag not in common and task in find_codec(row.codec).tasks
    ]
    paths = [way.path for way in found]
    return [way for way in found if not any(way.path.startswith(f"{each}/") for each in paths)]


def page_of(task: str) -> str:
    """The task's page in docs/tasks."""
    return SHARED_PAGES.get(task, f"{task}.md")


def models_of(task: str) -> list[CatalogModel]:
    """The catalogue's models that are made for a task."""
    return [entry for entry in catalog().values() if entry.task == task]


def ordered_tasks() -> list[str]:
    """Tasks as they are shown: in the order of the answers, then those that have none."""
    shown = dict.fromkeys(output.task for output in read_outputs())
    return [*shown, *(task for task in TASKS if task not in shown)]


# ------------------------------------------------------------------------------ the README's


class Words(NamedTuple):
    """What the README's table says in a language."""

    head: tuple[str, str, str, str]
    common: str
    """`{doors}` serve every task."""
    own: str
    """In place of a model's name."""
    folder: str = "docs"


ENGLISH = Words(
    ("Task", "Model", "Doors of its own", "Asked → a real answer"),
    "Every task is served by {doors}; some have doors of their own, too.",
    "your own",
)
CHINESE = Words(
    ("任务", "模型", "专有接口", "提问 → 真实回答"),
    "每种任务都可以通过 {doors} 调用；有些任务还有自己的专有接口。",
    "您自己的模型",
)


def readme_table(rows: Sequence[Row], words: Words) -> str:
    """A line for each task and model: where it is asked, and what it said."""
    doors = ", ".join(_link(tag, f"{words.folder}/") for tag in doors_of_all(rows))
    lines = [_line(words.head), _line(["---"] * len(words.head))]
    outputs = read_outputs()
    for task in ordered_tasks():
        said = [output for output in outputs if output.task == task] or [Output(task, "", "", "")]
        link = f"[{task}]({words.folder}/tasks/{page_of(task)})"
        paths = "<br>".join(f"`{way.path}`" for way in ways_of(task, rows))
        for number, output in enumerate(said):
            model = f"`{output.model}`" if output.model else words.own
            answer = f"{output.question} → {output.answer}" if output.answer else ""
            lines.append(_line(["" if number else link, model, "" if number else paths, answer]))
    return "\n".join([words.common.format(doors=doors), "", *lines])


def _link(tag: str, folder: str) -> str:
    name, page = DOORS[tag]
    return f"[{name}]({folder}{page})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


# ------------------------------------------------------------------------------ docs/tasks


def index_tables(rows: Sequence[Row]) -> tuple[str, str]:
    """Tasks × doors, and the models of the catalogue with an answer of each."""
    return _door_table(rows), _model_table()


def _door_table(rows: Sequence[Row]) -> str:
    common = doors_of_all(rows)
    ways = {task: ways_of(task, rows) for task in ordered_tasks()}
    tags = [tag for tag in DOORS if any(way.tag == tag for found in ways.values() for way in found)]
    lines = [
        _line(["Task", *(_link(tag, "../") for tag in tags), "Hugging Face's clients read"]),
        _line(["---"] * (len(tags) + 2)),
    ]
    for task, found in ways.items():
        by_tag = ["<br>".join(f"`{way.path}`" for way in found if way.tag == tag) for tag in tags]
        form = "the task's shape" if task in SHAPES else "the plain form"
        lines.append(_line([f"[{task}]({page_of(task)})", *by_tag, form]))
    served = "\n".join(f"* {_link(tag, '../')}{_first_path(tag, rows)}" for tag in common)
    return "\n".join(
        ["Each of these serves every task:", "", served, "", "Others some:", "", *lines]
    )


def _first_path(tag: str, rows: Sequence[Row]) -> str:
    served = [row.path.replace(":path}", "}") for row in rows if row.tag == tag and row.codec]
    paths = [path for path in served if "{name}" in path]
    return f": `{min(paths, key=len)}`" if paths else ""


def _model_table() -> str:
    answers = {output.model: output for output in reversed(read_outputs())}
    lines = [
        _line(("Model", "Task", "Languages", "Memory", "Licence", "Asked → a real answer")),
        _line(["---"] * 6),
    ]
    for entry in sorted(catalog().values(), key=lambda each: ordered_tasks().index(each.task)):
        said = answers.get(entry.name)
        lines.append(
            _line(
                (
                    f"`{entry.name}`",
                    entry.task,
                    ", ".join(entry.languages),
                    f"{entry.memory_mib} MiB",
                    entry.licence,
                    f"{said.question} → {said.answer}" if said else "",
                )
            )
        )
    return "\n".join(lines)
