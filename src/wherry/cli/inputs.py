"""What people write on a command line → a plain input of a model: a text, JSON, or files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.cli.output import shorten
from wherry.cli.sound import SOUND_SUFFIXES

LONGEST_SAMPLE = 200
LONGEST_PATH = 1024
"""Characters: what is longer is no file's name."""
TEXT_SUFFIXES = frozenset({".md", ".txt"})

Sample = Mapping[str, Any]
"""An input as the model takes it; empty if none is known."""


def read_inputs(words: Sequence[str], sample: Sample, task: str = "") -> dict[str, Any]:
    """Words of a command line as one input: what the model is asked, and what that is about.

    A second picture is compared with the first, labels that follow a picture are to choose from.
    """
    field = SECOND_FIELDS.get(task)
    if field is None or len(words) < 2 or find_file(words[0]) is None:
        return read_input(" ".join(words), sample)
    first, rest = words[0], " ".join(words[1:])
    return {**read_input(first, sample), field: find_file(rest) or rest}


SECOND_FIELDS = {
    "face-recognition": "other",
    "zero-shot-image-classification": "candidate_labels",
}
"""Task → where what follows the first file goes."""


def read_input(prompt: str, sample: Sample) -> dict[str, Any]:
    """A prompt as `/predict` takes it: a JSON object as it is, a file's content, or a text."""
    if prompt.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(prompt, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise errors.InvalidInput(f"the prompt is not valid JSON: {error}") from error
    if (path := find_file(prompt)) is not None:
        return _read_file(path, sample)
    return _read_text(prompt, sample)


def find_file(word: str) -> Path | None:
    """The file that a word names, if it is there."""
    path = Path(word).expanduser()
    return path if len(word) < LONGEST_PATH and path.is_file() else None


def _read_file(path: Path, sample: Sample) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if (read := READERS.get(suffix)) is not None:
        return read(path, sample)
    usual = "audio" if suffix in SOUND_SUFFIXES else "image"
    return {_field_of(sample, usual): path}


def _read_json(path: Path, sample: Sample) -> dict[str, Any]:
    return read_input(read_text_file(path), sample)


def _read_text_file(path: Path, sample: Sample) -> dict[str, Any]:
    return _read_text(read_text_file(path), sample)


def read_text_file(path: Path) -> str:
    """What a file says.

    Raises:
        InvalidInput: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"{path} is not a text in UTF-8") from error


def _read_csv(path: Path, sample: Sample) -> dict[str, Any]:
    """A table by its columns; for a model of series, the last column that is numbers."""
    head, *rows = [*csv.reader(read_text_file(path).splitlines())] or [[]]
    if not rows or any(len(row) != len(head) for row in rows):
        raise errors.InvalidInput(f"{path} is not a table: a head, and rows as long as it")
    columns = {name: [row[index] for row in rows] for index, name in enumerate(head)}
    if "target" not in sample:
        return {"table": columns}
    series = [found for each in columns.values() if (found := _as_numbers(each)) is not None]
    if not series:
        raise errors.InvalidInput(f"{path} has no column of numbers")
    return {"target": series[-1]}


def _as_numbers(texts: Sequence[str]) -> list[float | None] | None:
    """Numbers of a column, None where one is missing; None if it is of something else."""
    try:
        return [float(each) if each.strip() else None for each in texts]
    except ValueError:
        return None


def _read_array(path: Path, sample: Sample) -> dict[str, Any]:
    """NumPy's file of one array."""
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise errors.InvalidInput(f"{path} is not an array: {error}") from error
    return {_field_of(sample, "X"): array}


READERS: dict[str, Callable[[Path, Sample], dict[str, Any]]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".npy": _read_array,
    **dict.fromkeys(TEXT_SUFFIXES, _read_text_file),
}
"""Suffix → how the file is read; all others are sounds and pictures."""


def _read_text(text: str, sample: Sample) -> dict[str, Any]:
    """A text where the model takes one: `text`, else the first text of its sample."""
    if "image" in sample:
        raise errors.InvalidInput(f"there is no file {text[:200]!r}", hint="give a picture's file")
    if "audio" in sample:
        raise errors.InvalidInput(f"there is no file {text[:200]!r}", hint="give a sound's file")
    texts = [name for name, value in sample.items() if isinstance(value, str)]
    if "text" in sample or not sample:
        return {"text": text}
    if len(texts) == 1:
        return {texts[0]: text}
    shown = shorten(msgspec.json.encode(sample).decode(), LONGEST_SAMPLE)
    raise errors.InvalidInput(
        "this model does not take a text", hint=f"its input looks like {shown}"
    )


def _field_of(sample: Sample, usual: str) -> str:
    return next(iter(sample)) if len(sample) == 1 else usual
