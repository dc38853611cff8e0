"""Folders whose tokenizer lies one folder down, as some exporters write them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from wherry.models.bundle import MANIFEST
from wherry.models.registry.detect import list_model_paths
from wherry.models.registry.translators import COMPANIONS

TOKENIZER = "tokenizer.json"
HOMES = ("tokenizer", "onnx")
"""Where diffusers and some exporters of ONNX put it."""


def lay_out(files: Path, target: Path) -> Path:
    """The folder; or the same with the tokenizer at the top, if it was in one of `HOMES`.

    Args:
        files: left as it is.
        target: where the other one goes.
    """
    paths = list_model_paths(files)
    homes = [home for home in HOMES if f"{home}/{TOKENIZER}" in paths]
    if MANIFEST in paths or TOKENIZER in paths or not homes:
        return files
    shutil.rmtree(target, ignore_errors=True)
    for path in paths:
        link(files / path, target / path)
    for name in COMPANIONS:
        source = PurePosixPath(homes[0], name)
        if str(source) in paths and name not in paths:
            link(files / source, target / name)
    return target


def link(source: Path, target: Path) -> None:
    """The same file at another place."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
