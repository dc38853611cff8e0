"""Pictures of a prompt: what is drawn is what was asked for, and a seed draws it again."""

from __future__ import annotations

import base64
import io
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.pictures import Served
from tests.real_models import digits_csv, run_recipe

from wherry.errors import InvalidInput
from wherry.learning.mnist import read_pictures
from wherry.models.bundle import Bundle

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from wherry.worker.runtimes.graphs.generator import Vocabulary


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return run_recipe("digit-pictures", tmp_path_factory.mktemp("drawer"))


@pytest.fixture(scope="module")
def drawer(bundle: Bundle) -> Served:
    return Served(bundle)


def read(answer: dict[str, Any]) -> np.ndarray:
    assert answer["content_type"] == "image/png"
    with Image.open(io.BytesIO(base64.b64decode(answer["image"]))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_what_is_drawn_is_near_what_people_wrote(drawer: Served, bundle: Bundle) -> None:
    pictures, digits = read_pictures(digits_csv())
    real = pictures.reshape(-1, 784) / 255
    hits = 0
    for digit in range(10):
        for seed in range(5):
            drawn = read(drawer.ask(prompt=f"draw a {digit}", seed=seed)).reshape(-1) / 255
            nearest = np.argsort(((real - drawn) ** 2).sum(axis=1))[:5]
            hits += int(np.bincount(digits[nearest], minlength=10).argmax() == digit)
    assert hits >= 45
    assert bundle.manifest.options["agreement"] > 0.85
    assert f"{bundle.manifest.options['agreement']:.2f}" in bundle.manifest.description


def test_a_seed_draws_the_same_picture_again_whatever_it_shares_a_batch_with(
    drawer: Served,
) -> None:
    body = {"prompt": "seven", "seed": 42}
    (alone,) = drawer.outputs(body)
    others = [{"prompt": "three", "seed": number} for number in range(15)]
    together = drawer.outputs(*others[:7], body, *others[7:])
    assert np.array_equal(alone.pixels, together[7].pixels)
    assert not np.array_equal(alone.pixels, drawer.outputs({**body, "seed": 43})[0].pixels)


def test_without_a_seed_each_picture_is_another_and_tells_its_seed(drawer: Served) -> None:
    one, other = drawer.ask(prompt="seven"), drawer.ask(prompt="seven")
    assert one["image"] != other["image"]
    again = drawer.ask(prompt="seven", seed=one["seed"])
    assert again["image"] == one["image"]
    assert 0 <= one["seed"] < 1 << 32


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("7", "7"),
        ("a handwritten SEVEN, please", "7"),
        ("画一个 3", "3"),
        ("zero", "0"),
    ],
)
def test_a_prompt_that_names_a_digit_gets_it(drawer: Served, prompt: str, label: str) -> None:
    assert drawer.ask(prompt=prompt)["prompt"] == label


def test_a_prompt_that_names_none_gets_one_that_the_seed_draws(
    drawer: Served, bundle: Bundle
) -> None:
    told = {drawer.ask(prompt="a red square", seed=seed)["prompt"] for seed in range(20)}
    assert len(told) > 3
    answer = drawer.ask(prompt="a red square", seed=5)
    assert answer == drawer.ask(prompt="a red square", seed=5)
    assert answer["prompt"] in "0123456789"
    options = {**bundle.manifest.options, "unknown_prompt": "refuse"}
    manifest = msgspec.structs.replace(bundle.manifest, options=options)
    strict = Served(msgspec.structs.replace(bundle, manifest=manifest))
    with pytest.raises(InvalidInput, match="nothing that the model knows") as refused:
        strict.ask(prompt="a red square")
    assert refused.value.param == "prompt"
    assert "it knows 0, 1, 2" in refused.value.hint


@pytest.mark.parametrize("size", [(256, 256), (64, 200), (1, 1), (28, 28)])
def test_a_picture_has_the_size_that_was_asked_for(drawer: Served, size: tuple[int, int]) -> None:
    answer = drawer.ask(prompt="five", width=size[0], height=size[1])
    assert read(answer).shape == (size[1], size[0])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "text"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 20_000}, "prompt"),
        ({"prompt": "5", "seed": -1}, "seed"),
        ({"prompt": "5", "seed": 2**63}, "seed"),
        ({"prompt": "5", "seed": 0.5}, "seed"),
        ({"prompt": "5", "width": 64}, "height"),
        ({"prompt": "5", "width": 0, "height": 64}, "width"),
        ({"prompt": "5", "width": 64, "height": 50_000}, "height"),
        ({"prompt": "5", "negative_prompt": "a six"}, "negative_prompt"),
        ({"prompt": "5", "steps": 20}, "steps"),
        ({"prompt": "5", "steps": 10**9}, "steps"),
        ({"prompt": "5", "guidance": 7.5}, "guidance"),
        ({"prompt": "5", "guidance": float("nan")}, "guidance"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_drawn_is_refused(
    drawer: Served, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        drawer.ask(**fields)
    assert refused.value.param == param


def test_tensors_carry_texts_and_seeds(drawer: Served) -> None:
    tensors = {
        "text": np.array([b"one", b"two"], dtype=object),
        "seed": np.array([3, 4], dtype=np.int64),
    }
    items = drawer.task.from_tensors(tensors, drawer.config)
    outputs = drawer.runtime.run([drawer.runtime.prepare(item) for item in items])
    found = drawer.task.to_tensors(outputs, drawer.config)["image"]
    assert found.shape == (2, 28, 28, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found[1, :, :, 0], read(drawer.ask(prompt="two", seed=4)))
    with pytest.raises(InvalidInput, match="'seed'"):
        drawer.task.from_tensors({**tensors, "seed": np.array([1])}, drawer.config)


def test_of_several_labels_the_longest_is_meant() -> None:
    vocabulary = Vocabulary(("boot", "ankle boot", "T-shirt/top"), {"trainers": "boot"})
    assert vocabulary.find("an Ankle  Boot!") == 1
    assert vocabulary.find("my old trainers") == 0
    assert vocabulary.find("a t-shirt top, red") == 2
    assert vocabulary.find("booted") is None
    with pytest.raises(InvalidInput, match="no label"):
        Vocabulary(("boot",), {"hat": "cap"})
