"""What model hubs have in common: `owner/name@revision`, and which files make a model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wherry.errors import InvalidInput, NotFound
from wherry.models.sources.source import Progress, Reference, file_name, target_path
from wherry.storage.blobs import explain_full_disk

REPOSITORY = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,100}))?", re.ASCII)
SIDE_FILES = (
    "tokenizer.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
)
GRAPHS = ("model.onnx", "onnx/model.onnx")
MAX_SHOWN = 12


class Repository(NamedTuple):
    """A repository of a hub and, if said, a branch, tag or commit."""

    name: str
    revision: str | None


def parse_repository(place: str) -> Repository:
    """`owner/name` or `owner/name@revision`."""
    match = REPOSITORY.fullmatch(place)
    if not match or ".." in place:
        raise InvalidInput(
            f"{place[:100]!r} is not a repository", hint="write owner/name or owner/name@revision"
        )
    return Repository(match[1], match[2])


def choose_files(
    reference: Reference, wanted_files: Sequence[str], present: Sequence[str]
) -> dict[str, str]:
    """Path in the repository → name in the target folder.

    Raises:
        NotFound: a wanted file is not there.
        InvalidInput: none was named and it is not plain which make the model.
    """
    if len(reference.inner) > 1:
        raise InvalidInput("archives in a repository are not looked into")
    if reference.inner:
        chosen = {reference.inner[0]: file_name(reference.inner[0])}
    else:
        chosen = {path: path for path in wanted_files or _guess_files(reference, present)}
    for path in chosen:
        if path not in present:
            raise NotFound(
                f"{reference.place!r} has no file {path!r}", hint=f"it has: {_list_some(present)}"
            )
    return chosen


def fetch_all(
    chosen: Mapping[str, str],
    download: Callable[[str], str],
    target_folder: Path,
    progress: Progress,
) -> list[Path]:
    """Download each file with the hub's library, which returns where it put it."""
    files: list[Path] = []
    for number, (path, name) in enumerate(chosen.items()):
        progress(f"downloading {path}", number, len(chosen))
        files.append(place_file(Path(download(path)), target_folder, name))
    return files


def place_file(downloaded: Path, folder: Path, name: str) -> Path:
    """Make a file of the library's cache appear in the target folder."""
    target = target_path(folder, name)
    original = downloaded.resolve()
    part = target.with_name(f".{target.name}.part")
    with explain_full_disk():
        try:
            try:
                os.link(original, part)
            except OSError:  # another file system, or one without links
                shutil.copyfile(original, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _guess_files(reference: Reference, present: Sequence[str]) -> list[str]:
    graph = next((path for path in GRAPHS if path in present), None)
    if graph is not None:
        data = [path for path in (f"{graph}_data", f"{graph}.data") if path in present]
        return [graph, *data, *(path for path in SIDE_FILES if path in present)]
    models = [path for path in present if path.endswith((".gguf", ".skops", ".onnx"))]
    if len(models) == 1:
        sides = [path for path in SIDE_FILES if path in present]
        return models if models[0].endswith(".gguf") else [*models, *sides]
    if models:
        raise InvalidInput(
            f"{reference.place!r} has {len(models)} models",
            hint=f"write {reference.text}!/FILE, with one of: {_list_some(models)}",
        )
    raise InvalidInput(
        f"{reference.place!r} has no .onnx, .gguf or .skops file",
        hint="look for a repository with an ONNX or GGUF export of the model",
    )


def _list_some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else ""
    return ", ".join(paths[:MAX_SHOWN]) + more
