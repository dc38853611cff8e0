"""Ollama's pictures, which are base64 without a word of what they are."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import ImagePart, Part

TYPE_BY_BEGINNING = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
}
"""First characters of the base64 of a picture → its media type."""


def picture_parts(images: Sequence[str], place: str) -> list[Part]:
    """Parts of a message; whether the model sees is for its runtime to say."""
    parts: list[Part] = []
    for index, image in enumerate(images):
        kind = next(
            (TYPE_BY_BEGINNING[each] for each in TYPE_BY_BEGINNING if image.startswith(each)), ""
        )
        if not kind:
            raise InvalidInput(
                "this is no picture in base64",
                hint="send the base64 of a PNG, JPEG, GIF or WebP, without 'data:'",
                param=f"{place}[{index}]",
            )
        parts.append(ImagePart(f"data:{kind};base64,{image}"))
    return parts
