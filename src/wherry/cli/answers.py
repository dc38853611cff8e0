"""Answers of models for people: fields, and a table for every list of things that were found.

An answer is read by its fields, whatever the task. `print_answer` shows the whole of it,
`sum_up` says it in a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from wherry.cli.output import one_line, print_fields, print_table, shorten

BEST_SCORES = 5
SHOWN_SCORES = 3
"""Of those in a cell."""
SHOWN_NUMBERS = 6
"""Of a longer list of numbers."""
LONGEST_LINE = 180
"""Characters of an answer in a line."""
BLOCKS = "▁▂▃▄▅▆▇█"

Answer = Mapping[str, Any]


class Table(NamedTuple):
    """What a list in an answer says."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def print_answer(answer: Answer) -> None:
    """A whole answer: its fields, then its tables."""
    tables = find_tables(answer)
    fields = {
        name: show_value(value)
        for name, value in answer.items()
        if name not in tables and not _is_said_elsewhere(name, answer)
    }
    print_fields(fields)
    for number, table in enumerate(tables.values()):
        if fields or number:
            print()
        print_table(table.columns, table.rows)


def _is_said_elsewhere(name: str, answer: Answer) -> bool:
    """Whether people see a field in another one, or in the file that was saved."""
    if name == "prediction":  # which every task has for the simplest clients
        others = [value for other, value in answer.items() if other != name]
        return "items" in answer or answer[name] in others
    if name == "content_type":
        return True
    return is_forecast(answer) and name in ("quantiles", "timestamps")


def name_documents(answer: Answer, inputs: Answer) -> Answer:
    """Scores of texts beside the texts that were sent."""
    documents, sentences = inputs.get("documents"), inputs.get("sentences")
    if isinstance(documents, list) and "results" in answer:
        ranked = [
            {"score": each["score"], "document": documents[each["index"]]}
            for each in answer["results"]
        ]
        return {**answer, "results": ranked}
    if isinstance(sentences, list) and "similarities" in answer:
        pairs = zip(answer["similarities"], sentences, strict=True)
        return {"similarities": [{"score": score, "sentence": text} for score, text in pairs]}
    return answer


def find_tables(answer: Answer) -> dict[str, Table]:
    """Field → its table, for all fields that are better read as one."""
    if is_forecast(answer):
        return {"mean": _forecast_table(answer)}
    found: dict[str, Table] = {}
    for name, value in answer.items():
        if _are_poses(value):
            found[name] = _joint_table(value)
        elif is_scores(value):
            found[name] = Table(("LABEL", "SCORE"), _best_scores(value))
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            found[name] = _thing_table(value)
    return found


def is_forecast(answer: Answer) -> bool:
    """Whether an answer says how a series goes on."""
    return isinstance(answer.get("mean"), list) and isinstance(answer.get("quantiles"), dict)


def _are_poses(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and "keypoints" in each for each in value)
    )


def is_scores(value: Any) -> bool:
    """Whether a value is a score for each of some labels."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(each, float) for each in value.values())
    )


def _best_scores(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:BEST_SCORES]
    return [(label, f"{score:.4f}") for label, score in ranked]


def _thing_table(things: Sequence[Answer]) -> Table:
    """A row for each thing, a column for each field that any of them has."""
    names = [name for name in dict.fromkeys(chain.from_iterable(things)) if name != "corners"]
    if "label" in names and "prediction" in names:
        names.remove("prediction")
    rows = [[_cell(name, thing.get(name)) for name in names] for thing in things]
    columns = [f"{name} (x, y, x, y)" if name == "box" else name for name in names]
    return Table([column.upper() for column in columns], rows)


def _cell(name: str, value: Any) -> str:
    if name in ("start", "end") and isinstance(value, float):
        return show_seconds(value)
    if name == "score" and isinstance(value, float):
        return f"{value:.4f}"
    if name == "box" and isinstance(value, dict):
        return ", ".join(f"{each:.0f}" for each in value.values())
    if is_scores(value):
        return ", ".join(f"{label} {score}" for label, score in _best_scores(value)[:SHOWN_SCORES])
    if isinstance(value, dict):
        return f"{len(value)} points"
    return show_value(value)


def _joint_table(poses: Sequence[Answer]) -> Table:
    """Every joint of every body."""
    rows = [
        (number, joint, f"{place['x']:.0f}", f"{place['y']:.0f}", f"{place['score']:.2f}")
        for number, pose in enumerate(poses, 1)
        for joint, place in pose["keypoints"].items()
    ]
    return Table(("BODY", "JOINT", "X", "Y", "SCORE"), rows)


def _forecast_table(answer: Answer) -> Table:
    """A row for every step that is forecast."""
    quantiles: Mapping[str, Sequence[float]] = answer["quantiles"]
    steps = answer.get("timestamps") or range(1, len(answer["mean"]) + 1)
    columns = ("WHEN", "MEAN", *(f"{float(level):.0%}" for level in quantiles))
    values = zip(answer["mean"], *quantiles.values(), strict=True)
    rows = [(step, *map(_number, row)) for step, row in zip(steps, values, strict=True)]
    return Table(columns, rows)


# ------------------------------------------------------------------------------ values


def show_value(value: Any) -> str:
    """A value for people: four digits of a number, the first of many numbers."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if _is_long(value):
        shown = ", ".join(map(_number, value[:SHOWN_NUMBERS]))
        return f"{len(value)} numbers: {shown} …"
    if isinstance(value, list) and all(isinstance(each, int | float) for each in value):
        return ", ".join(map(_number, value))
    if isinstance(value, dict) and all(isinstance(each, int | float) for each in value.values()):
        return ", ".join(f"{name} {_number(each)}" for name, each in value.items())
    return msgspec.json.encode(value).decode()


def _is_long(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 2 * SHOWN_NUMBERS
        and all(isinstance(each, int | float) for each in value)
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def show_seconds(seconds: float) -> str:
    """`0:03.4`: a place in a sound."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}"


def draw_line(values: Sequence[float]) -> str:
    """Numbers as a row of blocks, the least and the greatest of them at the ends of the scale."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


# ------------------------------------------------------------------------------ in a line


def sum_up(answer: Answer) -> str:
    """The answer in a line: what matters of it, by the first field that is known."""
    for name, say in SAYINGS.items():
        if name in answer:
            return shorten(one_line(say(answer)), LONGEST_LINE)
    return shorten(one_line(msgspec.json.encode(answer).decode()), LONGEST_LINE)


def _say_same(answer: Answer) -> str:
    who = "one person" if answer["same"] else "two people"
    return f"{who} (likeness {answer['similarity']:.2f})"


def _say_label(answer: Answer) -> str:
    label, confidence = answer["label"], answer.get("confidence")
    return str(label) if confidence is None else f"{label} ({confidence:.0%})"


def _say_things(field: str, one: str, describe: Callable[[Answer], str]) -> Callable[[Answer], str]:
    def say(answer: Answer) -> str:
        things = answer[field]
        if not things:
            return f"no {one}"
        count = f"{len(things)} {one}{'s' if len(things) > 1 else ''}"
        return f"{count}: {', '.join(map(describe, things))}"

    return say


def _at(thing: Answer) -> str:
    """Where a box is, in pixels."""
    box = thing["box"]
    width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
    return f"{width:.0f} × {height:.0f} at {box['xmin']:.0f}, {box['ymin']:.0f}"


def _describe_pose(pose: Answer) -> str:
    joint, place = next(iter(pose["keypoints"].items()))
    return f"{len(pose['keypoints'])} joints, {joint} at {place['x']:.0f}, {place['y']:.0f}"


def _say_text(answer: Answer) -> str:
    return f"“{one_line(answer['text']).strip()}”"


def _say_forecast(answer: Answer) -> str:
    mean: Sequence[float] = answer["mean"]
    shown = ", ".join(f"{value:.0f}" for value in mean[:SHOWN_NUMBERS])
    return f"{draw_line(mean)} {shown}{' …' if len(mean) > SHOWN_NUMBERS else ''}"


def _say_vector(answer: Answer) -> str:
    return show_value(answer["embedding"])


SAYINGS: dict[str, Callable[[Answer], str]] = {
    "same": _say_same,
    "objects": _say_things(
        "objects", "object", lambda thing: f"{thing['label']} {thing['score']:.2f}"
    ),
    "faces": _say_things("faces", "face", _at),
    "poses": _say_things("poses", "body", _describe_pose),
    "entities": _say_things(
        "entities", "name", lambda thing: f"{thing['text']} ({thing['label']})"
    ),
    "items": _say_things("items", "item", lambda item: item["title"] or item["id"]),
    "results": _say_things(
        "results", "document", lambda each: f"number {each['index'] + 1} {each['score']:.2f}"
    ),
    "label": _say_label,
    "text": _say_text,
    "segments": _say_things(
        "segments", "segment", lambda thing: f"{thing['label']} {thing['score']:.2f}"
    ),
    "audio": lambda answer: f"{answer['duration']:.1f} s of sound",
    "image": lambda answer: f"a picture of “{answer['prompt']}”, seed {answer['seed']}",
    "mean": _say_forecast,
    "embedding": _say_vector,
    "similarities": lambda answer: ", ".join(f"{each:.2f}" for each in answer["similarities"]),
    "prediction": lambda answer: show_value(answer["prediction"]),
}
"""Field by which an answer is known → how it is said; the first that an answer has counts."""
