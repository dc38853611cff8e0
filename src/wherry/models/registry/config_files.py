"""Reads JSON files of a model's folder; every value in them is only a claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry.errors import InvalidInput
from wherry.models.trust.files import open_regular

MAX_CONFIG_BYTES = 4 << 20
MAX_VOCABULARY_BYTES = 64 << 20


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The file's object; an empty one if there is no such file, or it holds something else."""
    value = read_json(folder, name)
    return value if isinstance(value, dict) else {}


def read_json(folder: Path, name: str, most_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """The file's value; None if there is no such file."""
    if not (folder / name).exists():
        return None
    with open_regular(folder / name) as file:
        data = file.read(most_bytes + 1)
    try:
        if len(data) > most_bytes:
            raise ValueError("too long")
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name!r} is not valid JSON") from error


def architecture_of(config: Mapping[str, Any]) -> str:
    """Names of transformers' classes, as `config.json` has them."""
    names = config.get("architectures")
    return " ".join(map(str, names)) if isinstance(names, list) else ""
