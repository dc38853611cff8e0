"""Inputs to try a model with whose publisher gave none."""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from wherry.models.bundle import Manifest
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.table_columns import Column, read_columns
from wherry.models.tasks.task import TensorSpec, media_of

WIDTH = re.compile(r"\btakes (\d{1,5})\b")
MAX_ELEMENTS = 1 << 22
"""Largest tensor that is made up; such a model needs a sample of its publisher's."""
IMAGE_SIDE = 32
SILENT_SAMPLES = 1600
"""A tenth of a second."""


def make_sample(manifest: Manifest) -> dict[str, Any] | None:
    """One plain input by the task and the signature; None if none can be thought of."""
    if manifest.task == "image-text-to-text":
        return {"text": "Describe this picture.", "image": _grey_png(64, 64), "max_tokens": 4}
    if manifest.task == "text-generation":
        if manifest.runtime == "python_stream":  # its classes mostly expect a conversation
            return {"text": "Hello", "max_tokens": 4}
        return {"prompt": "Hello", "max_tokens": 4}
    if manifest.task == "text-to-image":
        if manifest.labels:
            return {"prompt": manifest.labels[0], "seed": 0}
        return {"prompt": "a red square", "seed": 0, "steps": 2}
    inputs = find_task(manifest.task).signature(manifest.task_config()).inputs
    if manifest.task.startswith("tabular"):
        return _make_row(manifest, inputs)
    if manifest.task == "time-series-forecasting":
        return _make_series(manifest)
    if manifest.task != "tensor" and inputs and all(map(_is_text, inputs)):
        return {spec.name: "hello" for spec in inputs} | _languages(manifest)
    if media_of(find_task(manifest.task)) == "image":
        sample: dict[str, Any] = {"image": _grey_png(*_image_size(manifest.options))}
        if any(spec.name == "candidate_labels" for spec in inputs):
            sample["candidate_labels"] = ["grey", "red"]
        return sample
    if media_of(find_task(manifest.task)) == "audio":
        return {"audio": [0.0] * SILENT_SAMPLES}
    return _make_tensors(manifest.signature.inputs)


def resize_sample(sample: Mapping[str, Any], refusal: str) -> dict[str, Any] | None:
    """The row again, as wide as the refusal says that rows are; None if it does not say."""
    found = WIDTH.search(refusal)
    if found is None or not isinstance(sample.get("row"), list):
        return None
    width = int(found[1])
    return {"row": [0.0] * width} if 0 < width != len(sample["row"]) else None


def _languages(manifest: Manifest) -> dict[str, Any]:
    """Of a translator that must be told: two that it knows."""
    codes = manifest.options.get("language_codes")
    if manifest.task != "translation" or not isinstance(codes, dict) or not codes:
        return {}
    known = list(codes)
    wanted = {"source_language": known[0], "target_language": known[-1]}
    stated = {name: tag for name in wanted if (tag := manifest.options.get(name))}
    return {**wanted, **stated}


def _is_text(spec: TensorSpec) -> bool:
    return spec.datatype == "BYTES" and len(spec.shape) == 1


def _make_row(manifest: Manifest, inputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    if columns := read_columns(manifest.task_config()):
        return {"row": {column.name: _make_cell(column) for column in columns}}
    if len(inputs) == 1 and len(inputs[0].shape) == 2:
        names = manifest.options.get("feature_names", ())
        width = inputs[0].shape[1] if inputs[0].shape[1] > 0 else len(names) or 1
        return {"row": [_make_value(inputs[0])] * width}
    return {"row": {spec.name: _make_value(spec) for spec in inputs}}


def _make_series(manifest: Manifest) -> dict[str, Any]:
    """A line with a wave on it, longer than any season of days or months."""
    length, horizon = 48, 12
    sample: dict[str, Any] = {
        "target": [round(step + 5 * math.sin(step * math.pi / 6), 3) for step in range(length)],
        "horizon": horizon,
    }
    names = manifest.options.get("covariates", ())
    if names:
        sample["covariates"] = {name: [0.0] * (length + horizon) for name in names}
    return sample


def _make_cell(column: Column) -> Any:
    if column.categories:
        return column.categories[0]
    return {"boolean": False, "number": 0.0, "integer": 0}.get(column.kind, "a")


def _make_tensors(inputs: tuple[TensorSpec, ...]) -> dict[str, Any] | None:
    sample: dict[str, Any] = {}
    for spec in inputs:
        shape = [max(1, size) for size in spec.shape] if spec.datatype else [1]
        if spec.datatype == "BF16" or math.prod(shape) > MAX_ELEMENTS:
            return None
        value: Any = _make_value(spec)
        for size in reversed(shape):
            value = [value] * size
        sample[spec.name] = value
    return sample or None


def _make_value(spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        return "a"
    if spec.datatype == "BOOL":
        return False
    return 0 if "INT" in spec.datatype else 0.0


def _image_size(options: Mapping[str, Any]) -> tuple[int, int]:
    size = options.get("image_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(n, int) for n in size):
        height, width = size
        return max(1, min(height, 512)), max(1, min(width, 512))
    return IMAGE_SIDE, IMAGE_SIDE


def _grey_png(height: int, width: int) -> str:
    """A grey picture as base64: small however large it is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * 3 * width) * height, 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return base64.b64encode(data).decode()
