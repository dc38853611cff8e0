"""The simplest clients that anyone writes: `requests` and one plain JSON object."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from tests.conftest import LiveServer

DIGITS = {str(digit) for digit in range(10)}


def post(live: LiveServer, name: str, **fields: Any) -> requests.Response:
    """What a beginner types."""
    headers = {"Authorization": f"Bearer {live.key}", **fields.pop("headers", {})}
    return requests.post(f"{live.url}/predict/{name}", headers=headers, timeout=30, **fields)


def draw_one(size: tuple[int, int] = (28, 28), mode: str = "L") -> Image.Image:
    """A white stroke on black, scaled and coloured."""
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[4:24, 13:16] = 255
    return Image.fromarray(pixels).resize(size).convert(mode)


def packed(picture: Image.Image, form: str = "PNG") -> bytes:
    """A picture as a file."""
    target = io.BytesIO()
    picture.save(target, form)
    return target.getvalue()


def check_label(answer: requests.Response) -> str:
    """Label and confidence of a picture's answer."""
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["label"] in DIGITS
    assert 0 < result["confidence"] <= 1
    return result["label"]


def test_a_picture_as_nested_lists_gets_a_label_and_a_confidence(live: LiveServer):
    pixels = np.asarray(draw_one()) / 255
    answer = post(live, "digits", json={"image": pixels.tolist()})
    assert check_label(answer) == "1"
    again = post(live, "digits", json={"image": pixels.tolist()})
    assert again.json() == answer.json()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_as_base64_is_the_same_picture(live: LiveServer, form: str):
    text = base64.b64encode(packed(draw_one(), form)).decode()
    assert check_label(post(live, "digits", json={"image": text})) == "1"
    address = f"data:image/{form.lower()};base64,{text}"
    assert check_label(post(live, "digits", json={"image": address})) == "1"


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream"])
def test_a_picture_as_a_file_is_the_same_picture(live: LiveServer, content_type: str):
    headers = {"Content-Type": content_type}
    answer = post(live, "digits", data=packed(draw_one()), headers=headers)
    assert check_label(answer) == "1"


@pytest.mark.parametrize("size", [(280, 280), (14, 14), (60, 28)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "P"])
def test_a_picture_of_another_size_and_colour_is_converted(
    live: LiveServer, size: tuple[int, int], mode: str
):
    text = base64.b64encode(packed(draw_one(size, mode))).decode()
    check_label(post(live, "digits", json={"image": text}))


def test_a_coloured_picture_as_nested_lists_is_converted(live: LiveServer):
    pixels = np.asarray(draw_one((56, 56), "RGB")) / 255
    check_label(post(live, "digits", json={"image": pixels.tolist()}))


def test_a_text_gets_a_prediction(live: LiveServer):
    text = "A charming film with a thin plot."
    answer = post(live, "topics", json={"text": text})
    result = answer.json()
    assert result["prediction"] in {"movie-review", "product-review", "newspaper", "tweet"}
    assert result["prediction"] == result["label"]
    assert post(live, "topics", json={"text": text}).json() == result


def test_a_table_row_gets_a_prediction(live: LiveServer):
    result = post(live, "iris", json={"row": [5.1, 3.5, 1.4, 0.2]}).json()
    assert result["prediction"] == "setosa"
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_every_other_task_has_a_plain_form_too(live: LiveServer):
    assert post(live, "echo", json={"X": [1.5, 2.5]}).json()["X"] == [1.5, 2.5]
    assert len(post(live, "embeddings", json={"text": "a boat"}).json()["embedding"]) == 384
    said = post(live, "chat", json={"text": "Say hello.", "max_tokens": 5})
    assert said.json()["prediction"]


def test_either_header_carries_the_key(live: LiveServer):
    url = f"{live.url}/predict/topics"
    for headers in ({"x-api-key": live.key}, {"Authorization": f"bearer {live.key}"}):
        assert requests.post(url, json={"text": "x"}, headers=headers, timeout=30).ok
    assert requests.post(url, json={"text": "x"}, timeout=30).status_code == 401


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("topics", {}),
        ("topics", {"text": None}),
        ("topics", {"text": ["a"]}),
        ("topics", {"row": [1]}),
        ("digits", {"image": []}),
        ("digits", {"image": [[0.5, 0.5], [0.5]]}),
        ("digits", {"image": [["a"]]}),
        ("digits", {"image": [[1e300]]}),
        ("digits", {"image": "no base64"}),
        ("digits", {"image": "http://127.0.0.1/picture.png"}),
        ("iris", {"row": [1, 2, 3]}),
        ("iris", {"row": ["a", "b", "c", "d"]}),
        ("iris", {"row": [1e308] * 4}),
        ("iris", {"row": [1, 2, 3, 4], "zzz": 1}),
        ("chat", {"text": "x", "max_tokens": -1}),
        ("nobody", {"text": "x"}),
    ],
    ids=str,
)
def test_a_mistake_is_told_plainly(live: LiveServer, name: str, body: Any):
    answer = post(live, name, json=body)
    assert answer.status_code == (404 if name == "nobody" else 400)
    error = answer.json()["error"]
    assert error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]
