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
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "source.spm",
    "target.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "tokenizer/tokenizer.json",
)
"""What may lie beside a model and says how it is used."""
MODULE_FILES = re.compile(r"\d_\w+/(config\.json|model\.safetensors)")
"""Poolings and layers of sentence-transformers."""
GRAPHS = (
    *(
        tuple(f"{home}{name}.onnx" for name in names)
        for names in (
            ("encoder_model", "decoder_model_merged"),
            ("encoder_model", "decoder_model", "decoder_with_past_model"),
            ("encoder_model", "decoder_model"),
        )
        for home in ("", "onnx/")
    ),
    ("model.onnx",),
    ("onnx/model.onnx",),
)
"""Graphs that make a model together, as exporters name them; the first that is there is taken."""
WEIGHTS = "model.safetensors"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json")
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
    if _is_static(present):
        return [WEIGHTS, *_sides(present)]
    for graphs in GRAPHS:
        if all(path in present for path in graphs):
            data = [f"{path}{end}" for path in graphs for end in ("_data", ".data")]
            return [*graphs, *(path for path in data if path in present), *_sides(present)]
    models = [path for path in present if path.endswith((".gguf", ".skops", ".onnx"))]
    if len(models) == 1:
        return models if models[0].endswith(".gguf") else [*models, *_sides(present)]
    if weights := _find_weights(present):
        return [*weights, *_sides(present)]
    if models:
        raise InvalidInput(
            f"{reference.place!r} has {len(models)} models",
            hint=f"write {reference.text}!/FILE, with one of: {_list_some(models)}",
        )
    raise InvalidInput(
        f"{reference.place!r} has no .onnx, .gguf, .skops or model.safetensors file",
        hint="look for a repository with an ONNX or GGUF export of the model, or with safetensors",
    )


def _is_static(present: Sequence[str]) -> bool:
    """Whether it is a table of vectors: what sentence-transformers wrote of it pools nothing.

    Graphs beside it take texts in a form of their own.
    """
    has_table = {WEIGHTS, "modules.json", "tokenizer.json"} <= set(present)
    return has_table and not any("_Pooling/" in path for path in present)


def _find_weights(present: Sequence[str]) -> list[str]:
    """PyTorch's, in one file or in shards, as safetensors."""
    if "config.json" not in present:
        return []
    return [WEIGHTS] if WEIGHTS in present else [path for path in present if SHARD.fullmatch(path)]


def _sides(present: Sequence[str]) -> list[str]:
    layers = [path for path in present if MODULE_FILES.fullmatch(path)]
    return [*(path for path in SIDE_FILES if path in present), *layers]


def _list_some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_SHOWN} more" if len(paths) > MAX_SHOWN else ""
    return ", ".join(paths[:MAX_SHOWN]) + more
