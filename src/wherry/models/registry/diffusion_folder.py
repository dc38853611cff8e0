"""Recognises folders that diffusers saved: a list of parts, and a folder of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from wherry.errors import FormatNotAllowed
from wherry.models.registry.config_files import read_config

INDEX = "model_index.json"
LIBRARIES = frozenset({None, "diffusers", "stable_diffusion", "transformers"})
"""Where the classes of parts may come from; None is a part that is left out, `stable_diffusion` the
module of diffusers with the safety checker. Any other name would be imported, whatever it is."""
WEIGHTS, PICKLES = ".safetensors", (".bin", ".ckpt", ".pt")
TEXTS = (".json", ".txt", ".model")
VARIANT = re.compile(r"\.(fp16|bf16|non_ema)(?=[.-])")
"""Other weights of the same part, as publishers put them beside the plain ones."""


def find_files(folder: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """The list of parts and what they consist of; none if the folder is not diffusers'.

    Raises:
        FormatNotAllowed: a part brings its own code, or its weights are pickles.
    """
    if INDEX not in paths:
        return ()
    index = read_config(folder, INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise FormatNotAllowed(f"{INDEX!r} names no pipeline of diffusers")
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    for name, value in parts.items():
        _check_part(name, value)
    used = [name for name, value in parts.items() if value[0] is not None]
    return (INDEX, *(path for name in used for path in _files_of(name, paths)))


def find_variant(files: Sequence[str]) -> str:
    """What the weights are called beside the plain ones; "" if they are the plain ones."""
    found = {match[1] for path in files if (match := VARIANT.search(PurePosixPath(path).name))}
    return min(found, default="")


def _check_part(name: str, value: list[Any]) -> None:
    if len(value) != 2 or not all(each is None or isinstance(each, str) for each in value):
        raise FormatNotAllowed(f"{INDEX!r} names no class for {name!r}")
    if value[0] not in LIBRARIES:
        raise FormatNotAllowed(
            f"the part {name!r} is of {value[0]!r}, which is neither diffusers nor transformers",
            hint="save the pipeline with classes of diffusers and transformers only",
        )


def _files_of(part: str, paths: Sequence[str]) -> list[str]:
    own = [path for path in paths if PurePosixPath(path).parent == PurePosixPath(part)]
    weights = [path for path in own if path.endswith(WEIGHTS)]
    if not weights and any(path.endswith(PICKLES) for path in own):
        raise FormatNotAllowed(
            f"the weights of {part!r} are pickles",
            hint="save the pipeline again with save_pretrained(…, safe_serialization=True)",
        )
    kept = _plainest([*weights, *(path for path in own if path.endswith(".index.json"))])
    texts = [path for path in own if path.endswith(TEXTS) and not path.endswith(".index.json")]
    return sorted([*texts, *kept])


def _plainest(files: Sequence[str]) -> list[str]:
    """Of several sets of the same weights, the plain one, else one of the others."""
    sets: dict[str, list[str]] = {}
    for path in files:
        match = VARIANT.search(PurePosixPath(path).name)
        sets.setdefault(match[1] if match else "", []).append(path)
    return sets[min(sets)] if sets else []
