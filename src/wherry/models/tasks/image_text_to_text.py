"""Task `image-text-to-text`: a conversation with pictures in it; all else is `text-generation`.

The two share their types: models that see answer whatever models that read do. What may be a
picture is in `chat_pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.base64_file import decode_file
from wherry.models.tasks.chat_pictures import picture_url
from wherry.models.tasks.generation import (
    ChatInput,
    GenerationInput,
    ImagePart,
    TextGeneration,
    TextPart,
)
from wherry.models.tasks.task import Signature, TaskConfig, Tensors, TensorSpec

QUESTION = "Describe this picture."
"""What is asked about a picture that comes alone."""
MAGIC = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
"""How files begin; only what a `data:` URL says of itself, nothing trusts it."""


class ImageTextToText(TextGeneration):
    """The task; its one instance is `IMAGE_TEXT_TO_TEXT`."""

    name = "image-text-to-text"
    media = "image"

    def signature(self, config: TaskConfig) -> Signature:
        """Texts and files of pictures in; texts and finish reasons out."""
        found = super().signature(config)
        if config.signature.inputs:
            return found
        return Signature((*found.inputs, TensorSpec("image", "BYTES", (-1,))), found.outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[ChatInput]:
        """One conversation a text; `image`, if it is there, is a file for each."""
        rest = {name: tensor for name, tensor in tensors.items() if name != "image"}
        items = super().from_tensors(rest, config)
        if "image" not in tensors:
            return items
        files = tensors["image"].ravel()
        if files.dtype != np.dtype(object) or len(files) != len(items):
            raise InvalidInput(
                "input 'image' is not one file for each text",
                hint=f"send a BYTES tensor of shape [{len(items)}]",
                param="image",
            )
        for item, file in zip(items, files.tolist(), strict=True):
            _show(item, file)
        return items

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> GenerationInput:
        """As `text-generation`; `image` (base64, a `data:` URL or a file's bytes) goes with `text`."""
        fields = dict(body)
        picture = fields.pop("image", None)
        if picture is None:
            return super().from_plain(fields, config)
        if "prompt" in fields or "messages" in fields:
            raise InvalidInput(
                "'image' goes with 'text'",
                hint="in 'messages' a picture is a part of a message's content",
                param="image",
            )
        item = super().from_plain({"text": QUESTION, **fields}, config)
        if isinstance(item, ChatInput):
            _show(item, picture)
        return item


IMAGE_TEXT_TO_TEXT = ImageTextToText()


def _show(item: ChatInput, picture: Any) -> None:
    """Put a picture in front of the one message's text."""
    (message,) = item.messages
    text = message.content if isinstance(message.content, str) else ""
    message.content = [ImagePart(_url_of(picture)), TextPart(text)]


def _url_of(picture: Any) -> str:
    match picture:
        case bytes():
            return picture_url(picture, _content_type(picture))
        case str() if ":" in picture[:8]:
            return picture  # looked at with all others of a conversation
        case str():
            return _url_of(decode_file(picture, "image", "picture"))
        case _:
            raise InvalidInput(
                f"'image' must be a picture's file as base64, not {type(picture).__name__}",
                param="image",
            )


def _content_type(data: bytes) -> str:
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), "image/png")
