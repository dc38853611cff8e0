"""OpenAI's requests for pictures, and what they are answered."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wherry.errors import InvalidInput
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_images import OPENAI_IMAGES
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text_to_image import TEXT_TO_IMAGE, Picture

CALL = Call("openai.images", "request", "drawer", "1", created=1_700_000_000)
GOOD = {"model": "drawer", "prompt": "a boat"}


def decode(**fields: Any) -> Any:
    body = json.dumps({**GOOD, **fields}).encode()
    return OPENAI_IMAGES.decode(memoryview(body), CALL, TEXT_TO_IMAGE, TaskConfig())


def answer(*pictures: Picture, **fields: Any) -> dict[str, Any]:
    reply = OPENAI_IMAGES.encode(decode(**fields), pictures, CALL, TEXT_TO_IMAGE, TaskConfig())
    return json.loads(bytes(reply.body))


def picture(prompt: str = "a boat", size: tuple[int, int] | None = None) -> Picture:
    pixels = np.full((4, 6, 3), 200, dtype=np.uint8)
    return Picture(pixels=pixels, seed=1, prompt=prompt, size=size)


def test_the_catalogue_knows_the_codec() -> None:
    assert find_codec("openai.images") is OPENAI_IMAGES


def test_n_pictures_are_n_items_whose_seeds_follow_each_other() -> None:
    items = decode(n=3, seed=7, size="640x480").items
    assert [item.seed for item in items] == [7, 8, 9]
    assert {item.size for item in items} == {(480, 640)}
    assert {item.prompt for item in items} == {"a boat"}
    assert [item.seed for item in decode(n=2).items] == [None, None]
    assert [item.seed for item in decode(n=2, seed=2**63 - 1).items] == [2**63 - 1, 0]
    assert decode(size="auto").items[0].size is None


def test_a_picture_is_base64_of_a_png() -> None:
    found = answer(picture(size=(32, 64)))
    assert found["created"] == 1_700_000_000
    assert (found["size"], found["output_format"]) == ("64x32", "png")
    (item,) = found["data"]
    assert list(item) == ["b64_json"]
    with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as opened:
        assert (opened.format, opened.size) == ("PNG", (64, 32))


def test_an_address_is_the_picture_itself() -> None:
    (item,) = answer(picture(), response_format="url")["data"]
    assert item["url"].startswith("data:image/png;base64,")


def test_what_the_model_understood_is_told() -> None:
    (item,) = answer(picture("7"))["data"]
    assert item["revised_prompt"] == "7"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 20_000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "0x0"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "64x64\n"}, "size"),
        ({"response_format": "gif"}, "response_format"),
        ({"output_format": "webp"}, "output_format"),
        ({"seed": -1}, "seed"),
        ({"stream": True}, "stream"),
        ({"background": "transparent"}, "background"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_made_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(**fields)
    assert refused.value.param == param
