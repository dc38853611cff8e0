"""Names of a model's classes that its publisher put beside the model, or into it.

A list of texts in JSON, `{"0": "cat"}`, `{"cat": 0}`, or a line for each class, with or without its
number before it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from wherry.models.registry.manifest import MAX_LABEL_CHARACTERS, MAX_LABELS
from wherry.models.trust.files import open_regular

NAMED_TASKS = frozenset({"image-classification", "image-segmentation", "object-detection"})
"""Tasks whose publishers give names this way; for others `config.json` has them."""
FILE_NAME = re.compile(
    r"(.*[_.-])?(labels?|label_?map|class(es)?|class_?names?|synset|id2label)"
    r"([_.-].*)?\.(txt|json|names)|.*\.names",
    re.IGNORECASE,
)
METADATA_KEYS = ("names", "labels", "classes", "class_names", "character", "id2label")
"""Where exporters of ONNX put them: Ultralytics `names`, Paddle `character`."""
NUMBERED = re.compile(r"(\d+)\s*[:,\t ]\s*(\S.*)")
MAX_NAMES_BYTES = 1 << 20


def find_names_file(folder: Path, paths: Sequence[str], main: str) -> tuple[str, ...]:
    """The names in the one file beside the model that looks as if it had them; else none."""
    home = PurePosixPath(main).parent
    found = [
        path
        for path in paths
        if PurePosixPath(path).parent == home and FILE_NAME.fullmatch(PurePosixPath(path).name)
    ]
    if len(found) != 1:
        return ()
    with open_regular(folder / found[0]) as file:
        data = file.read(MAX_NAMES_BYTES + 1)
    return read_names(data)


def names_in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names that an exporter wrote into the model; else none."""
    for key in METADATA_KEYS:
        if names := read_names(metadata.get(key, "").encode()):
            return names
    return ()


def read_names(data: bytes) -> tuple[str, ...]:
    """Names in the order of the model's outputs; none if this is no list of names."""
    if len(data) > MAX_NAMES_BYTES:
        return ()
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return ()
    if text[:1] in ("[", "{"):
        return _distinct(_from_value(_parse(text)))
    return _distinct(_from_lines([line.strip() for line in text.splitlines()]))


def _parse(text: str) -> Any:
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for read in readers:  # Ultralytics writes Python's form: {0: 'person'}
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _from_value(value: Any) -> list[str]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    if not isinstance(value, dict):
        return []
    pairs = list(value.items())
    if all(type(number) is int for _, number in pairs):
        pairs = [(number, name) for name, number in pairs]
    try:
        by_number = sorted((int(number), str(name)) for number, name in pairs)
    except (ValueError, TypeError):
        return []
    return _in_order(by_number)


def _from_lines(lines: Sequence[str]) -> list[str]:
    numbered = [NUMBERED.fullmatch(line) for line in lines if line]
    if numbered and all(numbered):
        names = _in_order(sorted((int(found[1]), found[2]) for found in numbered if found))
        if names:
            return names
    return [line for line in lines if line]


def _in_order(by_number: Sequence[tuple[int, str]]) -> list[str]:
    if [number for number, _ in by_number] != list(range(len(by_number))):
        return []
    return [name for _, name in by_number]


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, none twice: ImageNet has two cranes."""
    if not 2 <= len(names) <= MAX_LABELS or any(
        not 0 < len(name) <= MAX_LABEL_CHARACTERS - 8 for name in names
    ):
        return ()
    seen: set[str] = set()
    distinct = [
        f"{name} ({number})" if name in seen or seen.add(name) else name
        for number, name in enumerate(names)
    ]
    return tuple(distinct) if len(set(distinct)) == len(distinct) else ()
