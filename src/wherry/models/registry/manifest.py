"""Checks a manifest against itself and its folder, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement

from wherry.errors import InvalidInput
from wherry.models.bundle import (
    CODE_RUNTIMES,
    MANIFEST,
    Manifest,
    encode_manifest,
    safe_relative_path,
)
from wherry.models.tasks.catalog import task_names
from wherry.models.tasks.table_columns import check_columns
from wherry.models.tasks.task import TensorSpec, type_by_datatype

MAX_LABELS = 200_000
MAX_LABEL_CHARACTERS = 500
MAX_REQUIREMENTS = 200
MAX_TEXT_CHARACTERS = 20_000
MAX_LANGUAGES = 500
MAX_MANIFEST_CHARACTERS = 4 << 20
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What would act on the terminal of whoever reads it, or turn its text around."""
RUNTIME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
DATATYPES = {*type_by_datatype, "BYTES", "BF16", ""}


def check_manifest(manifest: Manifest, paths: Sequence[str]) -> None:
    """`InvalidInput` says which key is wrong. `paths` are the files that are there."""
    if manifest.task not in task_names():
        raise InvalidInput(
            f"unknown task {manifest.task!r}", hint="known: " + ", ".join(task_names())
        )
    if not RUNTIME.fullmatch(manifest.runtime):
        raise InvalidInput(f"{manifest.runtime[:80]!r} is not the name of a runtime")
    _check_words(manifest)
    _check_files(manifest, paths)
    _check_labels(manifest)
    _check_tensors(manifest.signature.inputs)
    _check_tensors(manifest.signature.outputs)
    if manifest.task.startswith("tabular"):
        check_columns(manifest.task_config())
    check_requirements(manifest)
    if manifest.max_batch_rows < 0:
        raise InvalidInput("max_batch_rows is negative")
    _check_text(manifest)


def stored_paths(manifest: Manifest, paths: Sequence[str]) -> list[str]:
    """Which files of the folder become part of the version: those named, or else all."""
    chosen = list(manifest.files or (path for path in paths if path != MANIFEST))
    return [*dict.fromkeys(chosen)]


def parse_requirement(line: str) -> Requirement:
    """One requirement; `InvalidInput` for anything that is no name with versions."""
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise InvalidInput(
            f"{line[:200]!r} is not a requirement such as 'torch>=2.4'",
            hint="options of pip, files and other lists are not taken",
        ) from error
    if requirement.url:
        raise InvalidInput(
            f"the requirement {requirement.name!r} names a URL", hint="name a version instead"
        )
    return requirement


def check_requirements(manifest: Manifest) -> None:
    """`InvalidInput` unless they are a Python model's, plain, and not too many."""
    if manifest.requirements and manifest.runtime not in CODE_RUNTIMES:
        raise InvalidInput(
            f"requirements are for Python models, not for runtime {manifest.runtime!r}"
        )
    if len(manifest.requirements) > MAX_REQUIREMENTS:
        raise InvalidInput(f"over {MAX_REQUIREMENTS} requirements")
    for line in manifest.requirements:
        parse_requirement(line)


def _check_words(manifest: Manifest) -> None:
    """What people read is shown in lists and on terminals."""
    for name in ("description", "licence", "source", "good_at", "bad_at"):
        text: str = getattr(manifest, name)
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInput(f"{name} is over {MAX_TEXT_CHARACTERS} characters", param=name)
        _refuse_controls(text, name)
    if len(manifest.languages) > MAX_LANGUAGES:
        raise InvalidInput(f"over {MAX_LANGUAGES} languages", param="languages")
    for name in ("languages", "labels"):
        for text in getattr(manifest, name):
            _refuse_controls(text, name)


def _refuse_controls(text: str, name: str) -> None:
    if found := CONTROLS.search(text):
        raise InvalidInput(
            f"{name} holds the control character U+{ord(found[0]):04X}",
            hint="leave out codes for terminals and for the direction of text",
            param=name,
        )


def _check_files(manifest: Manifest, paths: Sequence[str]) -> None:
    for path in manifest.files:
        if str(safe_relative_path(path)) != path or path == MANIFEST:
            raise InvalidInput(f"files names {path!r}, which is no plain name of a model's file")
        if path not in paths:
            raise InvalidInput(
                f"{MANIFEST} names the file {path!r}, which is not in the folder",
                hint="names are relative to the folder, and case matters",
            )
    if not manifest.files and manifest.runtime in ("onnx", "llama_cpp", "sklearn"):
        raise InvalidInput(f"{MANIFEST} names no files", hint="for example files = ['model.onnx']")


def _check_labels(manifest: Manifest) -> None:
    labels = manifest.labels
    if len(labels) > MAX_LABELS or any(len(label) > MAX_LABEL_CHARACTERS for label in labels):
        raise InvalidInput("there are too many labels, or one is too long")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InvalidInput(f"two labels are called {twice!r}")


def _check_tensors(specs: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names) or "" in names:
        raise InvalidInput("two tensors of the signature have the same name, or one has none")
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise InvalidInput(
                f"the tensor {spec.name!r} has the unknown datatype {spec.datatype!r}",
                hint="known: " + ", ".join(sorted(DATATYPES - {""})),
            )
        if any(not -1 <= size < 1 << 40 for size in spec.shape) or len(spec.shape) > 64:
            raise InvalidInput(f"the tensor {spec.name!r} has the shape {list(spec.shape)}")


def _check_text(manifest: Manifest) -> None:
    """TOML holds no null, so options or a sample with one could not be stored."""
    try:
        text = encode_manifest(manifest)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"options or sample hold a value that {MANIFEST} cannot: {error}",
            hint="leave out nulls",
        ) from error
    if len(text) > MAX_MANIFEST_CHARACTERS:
        raise InvalidInput(f"{MANIFEST} is over {MAX_MANIFEST_CHARACTERS >> 20} MiB")
