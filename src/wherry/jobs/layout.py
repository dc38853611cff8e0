"""Folders as people have them: the model one folder down, or its tokenizer, or its weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from wherry.models.bundle import MANIFEST
from wherry.models.registry.detect import list_model_paths
from wherry.models.registry.translators import COMPANIONS

TOKENIZER = "tokenizer.json"
DIFFUSION = "model_index.json"
HOMES = ("tokenizer", "onnx")
"""Where diffusers and some exporters of ONNX put a tokenizer."""
TRANSFORMER = "0_Transformer"
"""Where old versions of sentence-transformers put all but the pooling."""
MAX_DEPTH = 4


def lay_out(files: Path, target: Path) -> Path:
    """The folder of the model; or the same with files at the top that were in a folder of their own.

    Args:
        files: left as it is.
        target: where the other one goes, if there is one.
    """
    files = _go_down(files)
    paths = list_model_paths(files)
    raised = [] if MANIFEST in paths or TOKENIZER in paths else _find_raised(paths)
    if not raised:
        return files
    shutil.rmtree(target, ignore_errors=True)
    for path in paths:
        name = PurePosixPath(path).name
        link(files / path, target / (name if path in raised and name not in paths else path))
    return target


def link(source: Path, target: Path) -> None:
    """The same file at another place."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _go_down(files: Path) -> Path:
    """Into a folder that is alone in its folder, unless it is code: that is imported by its name."""
    for _ in range(MAX_DEPTH):
        paths = list_model_paths(files)
        tops = {PurePosixPath(path).parts[0] for path in paths}
        is_alone = len(tops) == 1 and not tops & set(paths)
        if not is_alone or any(path.endswith(".py") for path in paths):
            break
        files /= tops.pop()
    return files


def _find_raised(paths: Sequence[str]) -> list[str]:
    """Files of a folder of their own that belong to the top."""
    if DIFFUSION in paths:
        return []  # its parts stay where its list says that they are
    if f"{TRANSFORMER}/config.json" in paths:
        return [path for path in paths if str(PurePosixPath(path).parent) == TRANSFORMER]
    home = next((home for home in HOMES if f"{home}/{TOKENIZER}" in paths), None)
    return [f"{home}/{name}" for name in COMPANIONS if f"{home}/{name}" in paths]
