"""Pictures inside conversations: who may send them, how large, and how a model gets to see them.

A picture is a `data:` URL: the server fetches no links. What it may be is decided here for every
runtime, before a model's own decoder or another server sees a byte of it.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from typing import NoReturn

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import ChatInput, GenerationInput, ImagePart
from wherry.models.tasks.image import FORMATS, MAX_PIXELS, image_from_file
from wherry.models.tasks.image_fit import MAX_SIDE, ImageOptions, import_pillow
from wherry.models.tasks.picture_parts import check_parts

MAX_PICTURES = 16
"""In one conversation."""
MAX_PICTURE_BYTES = 20 << 20
LONGEST_SIDE = 2048
"""Pixels; larger ones are made smaller: no model that runs here looks at more."""
CONTENT_TYPES = tuple(f"image/{name.lower()}" for name in FORMATS)


def picture_url(data: bytes, content_type: str = "image/png") -> str:
    """A file as the `data:` URL that stands in a message."""
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


def pictures_of(item: GenerationInput) -> list[ImagePart]:
    """All pictures of a conversation, in order."""
    if not isinstance(item, ChatInput):
        return []
    return [
        part
        for message in item.messages
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, ImagePart)
    ]


def expect_text_only(item: GenerationInput) -> None:
    """Refuse pictures for a model that reads text."""
    if pictures_of(item):
        raise InvalidInput(
            "this model reads text only",
            hint="send parts of type 'text', or ask a model of the task 'image-text-to-text'",
            param="messages",
        )


def check_pictures(item: GenerationInput) -> None:
    """Refuse what is no picture, too large or too many, by the files' headers alone.

    Raises:
        InvalidInput: it says which picture.
        MissingExtra: Pillow is not installed.
    """
    for place, data in _read_files(item):
        _check_header(place, data)


def plain_pictures(item: GenerationInput) -> list[str]:
    """Every picture decoded and written anew, as `data:` URLs of small upright RGB PNG files.

    A model's own decoder, often one in C that guesses formats, never sees a client's bytes.

    Raises:
        InvalidInput: as `check_pictures`, and for one that is damaged or cut off.
        MissingExtra: Pillow is not installed.
    """
    return [picture_url(_plain_png(place, data)) for place, data in _read_files(item)]


def _read_files(item: GenerationInput) -> Iterator[tuple[str, bytes]]:
    """Each picture's name for messages, and its bytes, one after the other."""
    found = pictures_of(item)
    if len(found) > MAX_PICTURES:
        raise InvalidInput(
            f"the conversation has {len(found)} pictures, the limit is {MAX_PICTURES}",
            hint="leave out those of earlier turns",
            param="messages",
        )
    for number, part in enumerate(found, 1):
        yield f"picture {number}", _read_url(f"picture {number}", part.url)


def _read_url(place: str, url: str) -> bytes:
    scheme, colon, rest = url[:4096].partition(":")
    header, comma, _ = rest.partition(",")
    if not colon or scheme.lower() != "data":
        _refuse(place, "is a link, and the server fetches none", "send it as a data: URL")
    content_type, _, encoding = header.lower().rpartition(";")
    if not comma or encoding.strip() != "base64" or content_type not in CONTENT_TYPES:
        _refuse(
            place,
            "is no data: URL of a picture in base64",
            f"data:image/png;base64,…; types: {', '.join(CONTENT_TYPES)}",
        )
    text = url[len(scheme) + len(header) + 2 :]
    if len(text) > MAX_PICTURE_BYTES * 4 // 3 + 4:
        _refuse(place, f"has more than {MAX_PICTURE_BYTES} bytes", "make it smaller")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        _refuse(place, "is not valid base64", "encode the file's bytes")


def _check_header(place: str, data: bytes) -> None:
    pillow = import_pillow()
    try:
        check_parts(data)
    except InvalidInput as error:
        raise _refused_file(place, error) from error
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    # Pillow's readers raise whatever a broken file makes them stumble over
    except Exception as error:
        raise _refusal(place, "cannot be read", f"formats: {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        _refuse(place, f"has {width} x {height} pixels", f"the limit is {MAX_PIXELS} in all")


def _plain_png(place: str, data: bytes) -> bytes:
    try:
        pixels = image_from_file(data, ImageOptions()).pixels
    except InvalidInput as error:
        raise _refused_file(place, error) from error
    pillow = import_pillow()
    picture = pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if picture.mode == "RGBA":
        paper = pillow.new("RGBA", picture.size, "white")
        picture = pillow.alpha_composite(paper, picture)
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=1)
    return written.getvalue()


def _refused_file(place: str, error: InvalidInput) -> InvalidInput:
    return _refusal(place, f"is refused: {error.message}", error.hint)


def _refusal(place: str, fact: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{place} {fact}", hint=hint, param="messages")


def _refuse(place: str, fact: str, hint: str) -> NoReturn:
    raise _refusal(place, fact, hint)
