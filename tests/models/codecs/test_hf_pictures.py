"""Hugging Face's shapes of tasks that look at pictures, and how a file comes in."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.models.codecs.hf_asking import answer, decode, encode

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.image_fit import Frame
from wherry.models.tasks.image_segmentation import Segmentation
from wherry.models.tasks.image_to_text import ImageText
from wherry.models.tasks.object_detection import Detection
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import Embedding, TextInput
from wherry.models.tasks.text_to_image import Picture, PictureRequest


def png(size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
TEXT = base64.b64encode(PNG).decode()
LABELS = Classification(labels=("cat", "dog"), scores=np.array([0.25, 0.75], np.float32))


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "image/png"}, {"content-type": "application/octet-stream"}],
    ids=["without a type", "with its type", "with the type of anything"],
)
def test_a_file_comes_as_it_is(headers: dict[str, str]):
    (item,) = decode("image-classification", PNG, headers=headers).items
    assert item.pixels.shape == (3, 4, 3)


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "application/json"}], ids=["0.x", "later"]
)
@pytest.mark.parametrize("text", [TEXT, f"data:image/png;base64,{TEXT}"], ids=["base64", "URL"])
def test_a_file_comes_as_text_beside_parameters(headers: dict[str, str], text: str):
    body = {"inputs": text, "parameters": {"top_k": 1}}
    decoded = decode("image-classification", body, headers=headers)
    assert decoded.items[0].pixels.shape == (3, 4, 3)
    assert answer("image-classification", decoded, [LABELS]) == [{"label": "dog", "score": 0.75}]


def test_labels_are_one_list_the_best_first():
    decoded = decode("image-classification", PNG)
    assert answer("image-classification", decoded, [LABELS]) == [
        {"label": "dog", "score": 0.75},
        {"label": "cat", "score": 0.25},
    ]


def test_the_text_of_a_picture_is_generated():
    decoded = decode("image-to-text", PNG)
    found = answer("image-to-text", decoded, [ImageText(text="Dear")])
    assert found == [{"generated_text": "Dear"}]


def test_of_many_labels_five_are_told():
    labels = tuple("abcdefgh")
    output = Classification(labels=labels, scores=np.linspace(0, 1, 8, dtype=np.float32))
    found = answer("image-classification", decode("image-classification", PNG), [output])
    assert [each["label"] for each in found] == ["h", "g", "f", "e", "d"]
    decoded = decode("image-classification", {"inputs": TEXT, "parameters": {"top_k": 99}})
    assert len(answer("image-classification", decoded, [output])) == 8


def test_labels_of_the_client_are_chosen_for_a_picture():
    parameters = {"candidate_labels": ["cat", "dog"], "hypothesis_template": "a {}"}
    decoded = decode("zero-shot-image-classification", {"inputs": TEXT, "parameters": parameters})
    (item,) = decoded.items
    assert (item.labels, item.template) == (("cat", "dog"), "a {}")
    found = answer("zero-shot-image-classification", decoded, [LABELS])
    assert found == [{"label": "dog", "score": 0.75}, {"label": "cat", "score": 0.25}]


def test_objects_have_boxes_of_whole_pixels():
    decoded = decode("object-detection", {"inputs": TEXT, "parameters": {"threshold": 0.25}})
    assert decoded.items[0].threshold == 0.25
    output = Detection(
        labels=("cat",),
        scores=np.array([0.75], np.float32),
        boxes=np.array([[0.4, 1.6, 3.0, 2.9]], np.float32),
        size=(3, 4),
    )
    assert answer("object-detection", decoded, [output]) == [
        {"label": "cat", "score": 0.75, "box": {"xmin": 0, "ymin": 2, "xmax": 3, "ymax": 3}}
    ]


@pytest.mark.parametrize(("threshold", "labels"), [(0.0, ["sky", "sea"]), (0.65, ["sky"])])
def test_masks_are_pictures_the_surest_first(threshold: float, labels: list[str]):
    body = {"inputs": TEXT, "parameters": {"threshold": threshold, "subtask": "semantic"}}
    sea = np.full((3, 4), 0.25, np.float32)
    sea[2] = 0.6
    output = Segmentation(
        labels=("sea", "sky"),
        probabilities=np.stack([sea, np.float32(0.8) - sea * np.float32(0.5)]),
        frame=Frame(1.0, 1.0),
        size=(3, 4),
    )
    found = answer("image-segmentation", decode("image-segmentation", body), [output])
    assert [each["label"] for each in found] == labels
    with Image.open(io.BytesIO(base64.b64decode(found[0]["mask"]))) as mask:
        assert mask.size == (4, 3)
        assert np.asarray(mask)[0].tolist() == [255] * 4
        assert np.asarray(mask)[2].tolist() == [0] * 4


def test_a_picture_becomes_a_vector_and_so_does_a_text():
    decoded = decode("image-feature-extraction", PNG)
    assert decoded.items[0].pixels.shape == (3, 4, 3)
    output = Embedding(vector=np.array([3, 4], np.float32))
    assert answer("image-feature-extraction", decoded, [output]) == [[3.0, 4.0]]
    decoded = decode("image-feature-extraction", {"inputs": {"text": "a cat"}, "normalize": True})
    assert decoded.items == [TextInput("a cat")]
    assert answer("image-feature-extraction", decoded, [output]) == [[0.6, 0.8]]


def test_a_picture_is_made_and_leaves_as_a_file():
    parameters = {
        "width": 8, "height": 6, "seed": 3, "num_inference_steps": 4, "guidance_scale": 2,
        "negative_prompt": "blue",
    }  # fmt: skip
    decoded = decode("text-to-image", {"inputs": "red", "parameters": parameters})
    assert decoded.items == [
        PictureRequest(
            prompt="red", negative_prompt="blue", seed=3, size=(6, 8), steps=4, guidance=2.0
        )
    ]
    output = Picture(pixels=np.zeros((3, 4, 3), np.uint8), seed=3, prompt="red", size=(6, 8))
    reply = encode("text-to-image", decoded, [output])
    assert reply.content_type == "image/png"
    with Image.open(io.BytesIO(reply.body)) as picture:
        assert picture.size == (8, 6)


def test_a_made_picture_comes_as_json_where_nothing_else_is_accepted():
    headers = {"accept": "application/json"}
    decoded = decode("text-to-image", {"inputs": "red"}, headers=headers)
    output = Picture(pixels=np.zeros((3, 4, 3), np.uint8), seed=3, prompt="red")
    assert answer("text-to-image", decoded, [output])["seed"] == 3


def test_a_task_without_a_shape_takes_a_file_too():
    (item,) = decode("keypoint-detection", PNG).items
    assert item.pixels.shape == (3, 4, 3)
    (item,) = decode("face-recognition", {"inputs": TEXT, "other": TEXT}).items
    assert item.other is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not an image",
        PNG[:40],
        {},
        {"inputs": "not base64!"},
        {"inputs": 3},
        {"inputs": []},
        {"inputs": "http://example.com/a.png"},
        b'{"inputs": ',
    ],
    ids=["empty", "text", "cut", "nothing", "no base64", "number", "no numbers", "link", "half"],
)
@pytest.mark.parametrize("task", ["image-classification", "image-to-text", "keypoint-detection"])
def test_what_is_no_picture_is_refused(task: str, body: Any):
    with pytest.raises(InvalidInput):
        decode(task, body)


@pytest.mark.parametrize(
    ("task", "parameters", "param"),
    [
        ("image-classification", {"top_k": 0}, "parameters.top_k"),
        ("object-detection", {"threshold": 2}, "parameters.threshold"),
        ("image-segmentation", {"threshold": -1}, "parameters.threshold"),
        ("image-segmentation", {"subtask": "panoptic"}, "parameters.subtask"),
        ("zero-shot-image-classification", {}, "candidate_labels"),
        ("zero-shot-image-classification", {"candidate_labels": []}, "candidate_labels"),
        ("text-to-image", {"width": 0, "height": 4}, "parameters.width"),
        ("text-to-image", {"width": 4}, "height"),
        ("text-to-image", {"seed": -1}, "parameters.seed"),
    ],
)
def test_a_wrong_parameter_is_named(task: str, parameters: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        decode(task, {"inputs": TEXT, "parameters": parameters}, TaskConfig())
    assert refused.value.param == param


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(InvalidInput, match="pixels"):
        decode("image-classification", png((10_000, 10_000)))
