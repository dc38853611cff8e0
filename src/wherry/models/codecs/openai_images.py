"""OpenAI's `/v1/images/generations`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.png import png_text, png_url
from wherry.models.tasks.task import Task, TaskConfig
from wherry.models.tasks.text import TextInput, check_text
from wherry.models.tasks.text_to_image import (
    MAX_SEED,
    MAX_SIDE,
    Picture,
    PictureRequest,
    check_prompt,
)

MAX_PICTURES = 10
"""Most pictures of one request: OpenAI's own limit."""
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class ImagesRequest(msgspec.Struct):
    """What is read of the body; `model` is the door's, `user`, `quality` and `style` are hints."""

    prompt: str
    n: Annotated[int, Meta(ge=1, le=MAX_PICTURES)] | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    """Not OpenAI's; most other servers have it."""
    negative_prompt: str | None = None
    """Not OpenAI's either."""
    stream: bool | None = None
    background: Any = UNSET


class ImageItem(msgspec.Struct, omit_defaults=True):
    """One picture of the answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    """What the model understood, where that is not the prompt itself."""


class ImagesReply(msgspec.Struct):
    """The answer."""

    created: int
    data: list[ImageItem]
    output_format: str
    size: str


_decoder = msgspec.json.Decoder(ImagesRequest)
_encoder = msgspec.json.Encoder()


class OpenAIImages:
    """A prompt to pictures.

    Files are not kept: with `response_format` `url` a picture's address is a `data:` URL.
    """

    tasks = frozenset({"text-to-image"})

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item for each picture; given a seed, each has the next one."""
        request: ImagesRequest = decode_json(body, _decoder)
        if request.stream:
            raise InvalidInput("pictures are not streamed", hint="leave it out", param="stream")
        if request.background not in (UNSET, None, "auto", "opaque"):
            raise InvalidInput(
                "the model's pictures have no transparency", hint="leave it out", param="background"
            )
        prompt = check_prompt(TextInput(check_text(request.prompt, config, "prompt")))
        negative = request.negative_prompt or ""
        items = [
            PictureRequest(
                prompt=prompt,
                negative_prompt=check_text(negative, config, "negative_prompt") if negative else "",
                seed=None if request.seed is None else (request.seed + number) % (MAX_SEED + 1),
                size=_read_size(request.size),
            )
            for number in range(request.n or 1)
        ]
        return Decoded(items, request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Picture],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """The pictures in order."""
        request: ImagesRequest = decoded.context
        data: list[ImageItem] = []
        size = ""
        for output in outputs:
            pixels = output.sized()
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            revised = output.prompt if output.prompt != request.prompt else None
            if request.response_format == "url":
                data.append(ImageItem(url=png_url(pixels), revised_prompt=revised))
            else:
                data.append(ImageItem(b64_json=png_text(pixels), revised_prompt=revised))
        return Reply(_encoder.encode(ImagesReply(call.created, data, "png", size)))


OPENAI_IMAGES = OpenAIImages()


def _read_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of `WIDTHxHEIGHT`; None for `auto`."""
    if text is None or text == "auto":
        return None
    found = SIZE.fullmatch(text)
    if found is None or max(int(found[1]), int(found[2])) > MAX_SIDE:
        raise InvalidInput(
            f"'size' must be 'auto' or WIDTHxHEIGHT of at most {MAX_SIDE} pixels a side, "
            f"not {text[:40]!r}",
            param="size",
        )
    return int(found[2]), int(found[1])
