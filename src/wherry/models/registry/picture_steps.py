"""Sizes and colours in a `preprocessor_config.json` of Hugging Face, as the bundle's options say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESAMPLINGS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
LARGEST_CROPPED = 384
"""ConvNeXt's processor cuts smaller pictures only (`crop_pct`)."""


def fit_options(steps: Mapping[str, Any]) -> dict[str, Any]:
    """How another size becomes the model's, and the order of colours."""
    options = _size_options(steps)
    if (resampling := RESAMPLINGS.get(_whole(steps.get("resample"), -1))) and options:
        options["resample"] = resampling
    if steps.get("do_flip_channel_order"):
        options["channel_order"] = "BGR"
    return options


def _size_options(steps: Mapping[str, Any]) -> dict[str, Any]:
    size, shortest = _sides(steps.get("size")), _shortest(steps.get("size"))
    if steps.get("do_center_crop"):
        crop = _sides(steps.get("crop_size")) or size
        if crop is None:
            return {}
        if size is None:  # the shorter side is made this long, then the middle is cut
            return _cut("crop", crop, shortest)
        return _cut("stretch", crop, size[0])
    part = steps.get("crop_pct")
    if size is None and isinstance(part, float) and 0 < part <= 1 and shortest > 0:
        if shortest >= LARGEST_CROPPED:
            return {"image_size": [shortest, shortest]}
        return {"image_size": [shortest, shortest], "image_fit": "crop", "crop_scale": part}
    return {"image_size": size} if size else {}


def _cut(fit: str, crop: list[int], resized: int) -> dict[str, Any]:
    """The middle, `crop` large, of a picture whose side had become `resized` long."""
    options: dict[str, Any] = {"image_size": crop}
    if fit == "crop":
        options["image_fit"] = fit
    if resized > crop[0]:
        options["crop_scale"] = crop[0] / resized
    return options


def _sides(size: Any) -> list[int] | None:
    """Height and width, where both are said."""
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    found = [length for side in sides if (length := _whole(side, 0)) > 0]
    return found if len(found) == 2 else None


def _shortest(size: Any) -> int:
    return _whole(size.get("shortest_edge"), 0) if isinstance(size, dict) else 0


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int else default
