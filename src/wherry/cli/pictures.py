"""Pictures on the command line: what was found is drawn on the picture that was sent.

Boxes, joints, masks and lines of text are recognised by their fields, whatever the task. Pillow
draws; without it the answer is told in words only.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.cli.output import HERE, new_file, note, shorten

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
LONGEST_LABEL = 40
LEAST_SCORE = 0.3
"""A joint of which the model is less sure is not drawn."""
PIXELS_A_LINE = 300
"""A line is a pixel wide for each so many of the picture's longer side."""
MASK_ALPHA = 110
"""Of 255: how much of the picture a mask hides."""


def save_picture(
    answer: dict[str, Any], inputs: dict[str, Any], name: str, folder: Path = HERE
) -> dict[str, Any]:
    """The answer with its picture, made or drawn on, in a new file of the folder."""
    if answer.get("content_type") == "image/png" and isinstance(answer.get("image"), str):
        path = new_file(name, ".png", folder)
        path.write_bytes(base64.b64decode(answer["image"]))
        note(f"saved the picture as {path}")
        return {**answer, "image": str(path)}
    sent = inputs.get("image")
    if not isinstance(sent, Path) or not _has_marks(answer):
        return answer
    try:
        drawn = draw_marks(sent, answer)
    except ModuleNotFoundError:
        note("hint: pip install 'wherry[image]' to see what was found on the picture")
        return answer
    path = new_file(name, ".png", folder)
    drawn.save(path)
    note(f"saved the picture with what was found as {path}")
    return _without_masks(answer)


def draw_marks(path: Path, answer: dict[str, Any]) -> Image:
    """The picture, upright, with everything that the answer places on it."""
    from PIL import Image, ImageDraw, ImageOps

    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    for mask, colour in zip(_masks(answer), _colours(), strict=False):
        tint = Image.new("RGB", picture.size, colour)
        picture.paste(tint, mask=mask.point([min(each, MASK_ALPHA) for each in range(256)]))
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / PIXELS_A_LINE))
    for (label, corners), colour in zip(_outlines(answer), _colours(), strict=False):
        draw.polygon(corners, outline=colour, width=width)
        _write(draw, corners[0], label, colour, 8 * width)
    for points, colour in zip(_joints(answer), _colours(), strict=False):
        for x, y in points:
            reach = 2 * width
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    return picture


def _has_marks(answer: dict[str, Any]) -> bool:
    return any(
        isinstance(answer.get(key), list)
        for key in ("objects", "faces", "poses", "lines", "segments")
    )


def _without_masks(answer: dict[str, Any]) -> dict[str, Any]:
    """Masks are seen in the picture; as text they would fill the terminal."""
    if "segments" not in answer:
        return answer
    segments = [{key: each[key] for key in each if key != "mask"} for each in answer["segments"]]
    return {**answer, "segments": segments}


def _outlines(answer: dict[str, Any]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """What is framed: a label, and the corners."""
    for found in [*answer.get("objects", []), *answer.get("faces", [])]:
        left, top, right, bottom = (found["box"][side] for side in CORNERS)
        label = f"{found.get('label', 'face')} {found['score']:.2f}"
        yield label, [(left, top), (right, top), (right, bottom), (left, bottom)]
    for line in answer.get("lines", []):
        yield line["text"], [tuple(corner) for corner in line["corners"]]


def _joints(answer: dict[str, Any]) -> Iterator[list[tuple[float, float]]]:
    """Points of one body, or one face, each."""
    for pose in answer.get("poses", []):
        joints = pose["keypoints"].values()
        yield [(each["x"], each["y"]) for each in joints if each["score"] >= LEAST_SCORE]
    for face in answer.get("faces", []):
        yield [(each["x"], each["y"]) for each in face["landmarks"].values()]


def _masks(answer: dict[str, Any]) -> Iterator[Image]:
    from PIL import Image

    for segment in answer.get("segments", []):
        yield Image.open(io.BytesIO(base64.b64decode(segment["mask"]))).convert("L")


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _write(draw: ImageDraw, place: tuple[float, float], label: str, colour: str, size: int) -> None:
    """A label on its colour, above the place if there is room."""
    from PIL import ImageFont

    font = ImageFont.load_default(max(10, size))
    text = shorten(label, LONGEST_LABEL)
    left, top, right, bottom = draw.textbbox(place, text, font=font)
    rise = bottom - top if place[1] > bottom - top else 0
    draw.rectangle((left, top - rise, right, bottom - rise), fill=colour)
    draw.text((place[0], place[1] - rise), text, fill="white", font=font)
