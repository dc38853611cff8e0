"""What tests of pictures share: a bundle in its runtime, and pictures in files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wherry.models.bundle import Bundle
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime


class Served:
    """A bundle in its runtime, asked in plain requests."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.task: Any = find_task(bundle.manifest.task)
        self.config = bundle.manifest.task_config()
        self.runtime: Any = create_runtime(bundle.manifest.runtime)
        self.runtime.load(bundle, "cpu")

    def outputs(self, *bodies: dict[str, Any]) -> Sequence[Any]:
        """The structs that one batch answers."""
        items = [self.task.from_plain(body, self.config) for body in bodies]
        return self.runtime.run([self.runtime.prepare(item) for item in items])

    def ask(self, **body: Any) -> dict[str, Any]:
        """One plain answer, as JSON carries it."""
        plain = self.task.to_plain(self.outputs(body)[0], self.config)
        return json.loads(encode_plain(plain))


def file_of(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def open_photo(path: Path) -> Image.Image:
    """A photo in RGB."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """What two boxes (xmin, ymin, xmax, ymax) have in common, as a share of their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def corners(box: dict[str, float]) -> list[float]:
    """A plain box as a list."""
    return [box[name] for name in ("xmin", "ymin", "xmax", "ymax")]


def random_picture(height: int, width: int) -> np.ndarray:
    """Noise, uint8 [height, width, 3]."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
