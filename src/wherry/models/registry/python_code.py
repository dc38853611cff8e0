"""Looks at a Python model without running it: its class, its task, its requirements."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.errors import InvalidInput
from wherry.models.registry.manifest import parse_requirement
from wherry.models.trust.files import open_regular

CLASS_NAME = "Model"
MAIN_FILE = "model.py"
REQUIREMENTS = "requirements.txt"
MAX_CODE_BYTES = 1 << 20


def find_entry(folder: Path, found: Sequence[str], options: Mapping[str, Any]) -> str | None:
    """`file.py:Class` of the model's class; None if no file of the folder has one.

    Raises:
        InvalidInput: the option `entry` names a class that is not there.
    """
    wanted = options.get("entry")
    if wanted is not None:
        file, _, name = str(wanted).partition(":")
        if file not in found or find_class(folder / file, name or CLASS_NAME) is None:
            raise InvalidInput(f"there is no class {str(wanted)[:200]!r} in the folder")
        return f"{file}:{name or CLASS_NAME}"
    at_top = [path for path in found if "/" not in path]
    candidates = [MAIN_FILE] if MAIN_FILE in at_top else at_top
    for file in candidates:
        if find_class(folder / file, CLASS_NAME) is not None:
            return f"{file}:{CLASS_NAME}"
    return None


def find_class(file: Path, name: str) -> ast.ClassDef | None:
    """The class of this name at the top of a file; `InvalidInput` if the file is no Python."""
    for node in _parse(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def read_task(file: Path) -> str | None:
    """The text that the class `Model` assigns to `task`, if it does."""
    found = find_class(file, CLASS_NAME)
    for node in found.body if found else []:
        if (
            isinstance(node, ast.Assign)
            and [ast.unparse(target) for target in node.targets] == ["task"]
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            return node.value.value
    return None


def read_requirements(folder: Path) -> tuple[str, ...]:
    """The lines of `requirements.txt`, each checked; none if there is no such file."""
    if not (folder / REQUIREMENTS).exists():
        return ()
    lines = (line.split(" #")[0].strip() for line in _read(folder / REQUIREMENTS).splitlines())
    return tuple(
        str(parse_requirement(line)) for line in lines if line and not line.startswith("#")
    )


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(_read(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"{file.name!r} is not valid Python: {error}") from error


def _read(file: Path) -> str:
    with open_regular(file) as opened:
        data = opened.read(MAX_CODE_BYTES + 1)
    if len(data) > MAX_CODE_BYTES:
        raise InvalidInput(f"{file.name!r} is over {MAX_CODE_BYTES >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file.name!r} is not text in UTF-8") from error
