"""What an import took for granted of a model that does not say it, and how to say otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec

from wherry.models.bundle import MANIFEST, Manifest
from wherry.models.registry.class_names import NAMED_TASKS
from wherry.models.registry.exported_pictures import PICTURE_TASKS
from wherry.models.registry.sentence_modules import MODULES, USUAL_POOLING
from wherry.models.tasks.task import TensorSpec

GRAPH_RUNTIMES = frozenset({"onnx", "torch", "keras", "tensorflow"})
"""Whose files say nothing of pixels; those of TensorFlow Lite do."""
PIXEL_OPTIONS = frozenset({"pixel_scale", "mean", "std", "channel_order"})
WEIGHTS = frozenset({".onnx", ".gguf", ".safetensors", ".tflite", ".pt2", ".pt", ".keras"})
POOLING_RUNTIMES = frozenset({"onnx", "transformers"})
LAG_RUNTIMES = frozenset({"onnx", "sklearn", "xgboost", "lightgbm"})
MAX_NAMES = 4


class Imported(msgspec.Struct, frozen=True):
    """A folder and what was made of it."""

    manifest: Manifest
    paths: Sequence[str]
    said: Mapping[str, Any]
    """The importer's own options."""


def find_assumptions(
    manifest: Manifest, paths: Sequence[str], said: Mapping[str, Any]
) -> list[str]:
    """Sentences for whoever imports; none of a model whose owner wrote its manifest.

    Args:
        manifest: what was made of the folder.
        paths: files of the folder.
        said: the importer's own options.
    """
    if MANIFEST in paths:
        return []
    what = Imported(manifest, paths, said)
    found = (_of_files, _of_tensors, _of_pixels, _of_labels, _of_boxes, _of_vectors, _of_series)
    return [text for each in found for text in each(what)]


def _of_files(what: Imported) -> Iterator[str]:
    """Publishers often give a model in several precisions."""
    files = what.manifest.files
    left = [path for path in what.paths if _is_weights(path) and path not in files]
    if left and files:
        more = f" and {len(left) - MAX_NAMES} more" if len(left) > MAX_NAMES else ""
        yield (
            f"the model is {files[0]}; left out: {', '.join(left[:MAX_NAMES])}{more} (to "
            "serve another, leave the others away)"
        )


def _is_weights(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in WEIGHTS


def _of_tensors(what: Imported) -> Iterator[str]:
    if what.manifest.task != "tensor":
        return
    inputs = what.manifest.signature.inputs
    if len(inputs) == 1 and _is_of_pictures(inputs[0]):
        yield (
            f"its input {list(inputs[0].shape)} looks like pictures, but takes plain numbers: to send "
            "files of pictures, import it with --task image-classification (or another of pictures)"
        )
    if any(each.name == "input_ids" for each in inputs):
        yield "it takes numbers of tokens: to send texts, put its tokenizer.json into the folder"


def _is_of_pictures(tensor: TensorSpec) -> bool:
    shape = tensor.shape
    return len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)) and 0 not in shape


def _of_pixels(what: Imported) -> Iterator[str]:
    manifest = what.manifest
    if manifest.task not in PICTURE_TASKS or manifest.runtime not in GRAPH_RUNTIMES:
        return
    if not PIXEL_OPTIONS & manifest.options.keys():
        yield (
            "pixels are RGB, from 0 to 1, for the folder does not say how it was trained; to say "
            "otherwise: -p channel_order=BGR -p pixel_scale=1 -p mean=[0.485,0.456,0.406] "
            "-p std=[0.229,0.224,0.225]"
        )
    if "image_fit" not in manifest.options:
        yield (
            "pictures of another shape are stretched; to say otherwise: -p image_fit=crop, or pad"
        )


def _of_labels(what: Imported) -> Iterator[str]:
    if what.manifest.task in NAMED_TASKS and not what.manifest.labels:
        yield "no names of its classes were found: answers number them; to name them: --labels A,B,C"


def _of_boxes(what: Imported) -> Iterator[str]:
    family = what.manifest.options.get("family")
    if what.manifest.task == "object-detection" and family and "family" not in what.said:
        yield f"boxes are read as those of {family!r}; to say otherwise: -p family=…"


def _of_vectors(what: Imported) -> Iterator[str]:
    task, runtime, options = what.manifest.task, what.manifest.runtime, what.manifest.options
    is_said = {MODULES, f"{USUAL_POOLING}/config.json"} & set(what.paths) or "pooling" in what.said
    if task == "feature-extraction" and runtime in POOLING_RUNTIMES and not is_said:
        scaled = "scaled to length 1" if options.get("normalise", True) else "not scaled"
        yield (
            f"the vector of a text is pooled by {options.get('pooling', 'mean')!r} and {scaled}, for "
            f"the folder has no {MODULES}; to say otherwise: -p pooling=cls -p normalise=false"
        )


def _of_series(what: Imported) -> Iterator[str]:
    options = what.manifest.options
    if what.manifest.task != "time-series-forecasting" or what.manifest.runtime not in LAG_RUNTIMES:
        return
    if "scaling" not in options:
        yield (
            "windows are scaled by their own mean and deviation; to say otherwise: -p scaling=none, "
            "mean or last"
        )
    if not {"levels", "errors"} & options.keys():
        yield (
            "how far it errs is not known: every quantile is the mean; to say more: -p levels=[0.1,0.5,0.9] "
            "if it gives quantiles, or -p errors=[0.05,0.07], the deviation at each step"
        )
