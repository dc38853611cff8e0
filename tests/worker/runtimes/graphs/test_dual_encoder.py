"""Pictures and texts in one space: of a tiny model made here, whose space is that of colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.pictures import Served, file_of

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_embeddings import OPENAI_EMBEDDINGS
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.text import TextInput

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after importorskip

VOCABULARY = ["[PAD]", "[UNK]", "a", "photo", "of", "red", "green", "blue", "yellow"]
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
}


def save(path: Path, nodes: list[Any], inputs: list[Any], output: Any, **constants: Any) -> None:
    graph = helper.make_graph(
        nodes,
        "side",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def write_pictures(folder: Path) -> None:
    """The mean of each channel."""
    save(
        folder / "vision_model.onnx",
        [
            helper.make_node("GlobalAveragePool", ["pixel_values"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["image_embeds"]),
        ],
        [("pixel_values", TensorProto.FLOAT, ["n", 3, 8, 8])],
        ("image_embeds", TensorProto.FLOAT, ["n", 3]),
    )


def write_texts(folder: Path) -> None:
    """The sum of the colours of a text's words; and its tokenizer."""
    table = np.zeros((len(VOCABULARY), 3), dtype=np.float32)
    for colour, vector in COLOURS.items():
        table[VOCABULARY.index(colour)] = vector
    table[:, 0] += 1e-3  # no vector is zero
    save(
        folder / "text_model.onnx",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
            helper.make_node("Mul", ["vectors", "weights"], ["seen"]),
            helper.make_node("ReduceSum", ["seen", "tokens"], ["text_embeds"], keepdims=0),
        ],
        [
            ("input_ids", TensorProto.INT64, ["n", "tokens"]),
            ("attention_mask", TensorProto.INT64, ["n", "tokens"]),
        ],
        ("text_embeds", TensorProto.FLOAT, ["n", 3]),
        table=table,
        last=np.array([-1]),
        tokens=np.array([1]),
    )
    words = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def bundle_of(folder: Path, task: str, *, texts: bool = True, **options: Any) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder)
    files = ["vision_model.onnx"]
    if texts:
        write_texts(folder)
        files += ["text_model.onnx", "tokenizer.json"]
    manifest = Manifest(task=task, runtime="onnx", files=tuple(files), options=options)
    return Bundle(folder, manifest)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(bundle_of(tmp_path_factory.mktemp("space"), "image-feature-extraction"))


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(bundle_of(tmp_path_factory.mktemp("space"), "zero-shot-image-classification"))


def plain(colour: str) -> bytes:
    red, green, blue = (200 * part for part in COLOURS[colour])
    return file_of(Image.new("RGB", (20, 30), (red, green, blue)))


def vector(served: Served, **body: Any) -> np.ndarray:
    return np.array(served.ask(**body)["embedding"])


# ------------------------------------------------------------------------------ one space


def test_a_text_finds_the_picture_that_it_describes(embedder: Served) -> None:
    pictures = {colour: vector(embedder, image=plain(colour)) for colour in COLOURS}
    for colour in COLOURS:
        text = vector(embedder, text=f"a photo of {colour}")
        nearness = {name: float(text @ picture) for name, picture in pictures.items()}
        assert max(nearness, key=lambda name: nearness[name]) == colour
        assert np.linalg.norm(text) == pytest.approx(1, abs=1e-5)


def test_pictures_and_texts_of_one_batch_are_as_alone(embedder: Served) -> None:
    bodies = [{"image": plain(colour)} for colour in COLOURS]
    together = embedder.outputs(*bodies)
    for body, joined in zip(bodies, together, strict=True):
        assert np.array_equal(embedder.outputs(body)[0].vector, joined.vector)
    texts = [{"text": "red"}, {"text": "a photo of green"}, {"text": "blue yellow"}]
    for body, joined in zip(texts, embedder.outputs(*texts), strict=True):
        # sums of another order: float noise
        assert embedder.outputs(body)[0].vector == pytest.approx(joined.vector, abs=1e-6)


def test_pictures_and_texts_never_share_a_batch(embedder: Served) -> None:
    picture = embedder.runtime.prepare(ImageInput(np.zeros((9, 9, 3), np.uint8)))
    text = embedder.runtime.prepare(TextInput("red"))
    assert picture.group != text.group
    assert text.length == 1


def test_the_openai_door_takes_the_texts(embedder: Served) -> None:
    call = Call("openai.embeddings", "r", "space", "1")
    body = json.dumps({"model": "space", "input": ["red", "a photo of blue"]}).encode()
    decoded = OPENAI_EMBEDDINGS.decode(memoryview(body), call, embedder.task, embedder.config)
    outputs = [embedder.runtime.run([embedder.runtime.prepare(item)])[0] for item in decoded.items]
    reply = OPENAI_EMBEDDINGS.encode(decoded, outputs, call, embedder.task, embedder.config)
    answer = json.loads(bytes(reply.body))
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == vector(embedder, text="red").tolist()
    assert answer["usage"]["prompt_tokens"] == 5


def test_a_model_of_pictures_alone_refuses_texts(tmp_path: Path) -> None:
    served = Served(bundle_of(tmp_path, "image-feature-extraction", texts=False))
    assert len(vector(served, image=plain("red"))) == 3
    with pytest.raises(InvalidInput, match="pictures only"):
        served.ask(text="red")


def test_tensors_of_either_kind_are_taken(embedder: Served) -> None:
    for tensors in (
        {"image": np.zeros((2, 8, 8, 3), np.uint8)},
        {"text": np.array([b"red", b"blue"], dtype=object)},
    ):
        items = embedder.task.from_tensors(tensors, embedder.config)
        outputs = embedder.runtime.run([embedder.runtime.prepare(item) for item in items])
        found = embedder.task.to_tensors(outputs, embedder.config)["embedding"]
        assert found.shape == (2, 3)


def test_sides_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="dimensions"):
        Served(bundle_of(tmp_path, "image-feature-extraction", dimensions=4))


# ------------------------------------------------------------------------------ labels


def test_the_label_that_fits_is_the_surest(chooser: Served) -> None:
    labels = [*COLOURS]
    for colour in COLOURS:
        answer = chooser.ask(image=plain(colour), candidate_labels=labels)
        assert answer["label"] == colour
        assert list(answer["scores"]) == labels
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_scores_are_the_softmax_of_scaled_cosines(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "zero-shot-image-classification", logit_scale=3.0)
    answer = Served(bundle).ask(
        image=plain("yellow"), candidate_labels=["red", "blue"], hypothesis_template="{}"
    )
    picture, red, blue = (
        np.array(each, float) for each in ((1, 1, 0), (1.001, 0, 0), (0.001, 0, 1))
    )
    cosines = [
        picture @ each / np.linalg.norm(picture) / np.linalg.norm(each) for each in (red, blue)
    ]
    expected = np.exp(3 * np.array(cosines))
    assert list(answer["scores"].values()) == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_sigmoid_scores_each_label_by_itself(tmp_path: Path) -> None:
    options = {"function": "sigmoid", "logit_scale": 20.0, "logit_bias": -10.0}
    served = Served(bundle_of(tmp_path, "zero-shot-image-classification", **options))
    answer = served.ask(image=plain("yellow"), candidate_labels=["red", "green", "blue"])
    assert answer["scores"]["red"] > 0.9 < answer["scores"]["green"]
    assert answer["scores"]["blue"] < 0.01


def test_labels_that_come_again_give_the_same_scores(chooser: Served) -> None:
    body = {"image": plain("red"), "candidate_labels": ["red", "green"]}
    first, again = chooser.ask(**body), chooser.ask(**body)
    assert first == again
    together = chooser.outputs(body, {**body, "candidate_labels": ["blue", "red", "yellow"]})
    assert together[1].labels == ("blue", "red", "yellow")
    assert together[0].scores == pytest.approx(list(first["scores"].values()), abs=1e-6)


def test_labels_of_tensors_are_for_each_picture_or_for_all(chooser: Served) -> None:
    pictures = np.array([plain("red"), plain("blue")], dtype=object)
    for labels in (
        np.array([b"red", b"blue"], dtype=object),
        np.array([[b"red", b"blue"], [b"red", b"blue"]], dtype=object),
    ):
        tensors = {"image": pictures, "candidate_labels": labels}
        items = chooser.task.from_tensors(tensors, chooser.config)
        outputs = chooser.runtime.run([chooser.runtime.prepare(item) for item in items])
        found = chooser.task.to_tensors(outputs, chooser.config)
        assert found["label"].tolist() == [b"red", b"blue"]
        assert found["scores"].shape == (2, 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "candidate_labels"),
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": "red"}, "candidate_labels"),
        ({"candidate_labels": ["red", ""]}, "candidate_labels"),
        ({"candidate_labels": ["red", 3]}, "candidate_labels"),
        ({"candidate_labels": ["red", "red"]}, "candidate_labels"),
        ({"candidate_labels": ["x" * 501]}, "candidate_labels"),
        ({"candidate_labels": [str(number) for number in range(10_000)]}, "candidate_labels"),
        ({"candidate_labels": ["red"], "hypothesis_template": "no place"}, "hypothesis_template"),
        ({"candidate_labels": ["red"], "hypothesis_template": 3}, "hypothesis_template"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_labels_are_bounded(chooser: Served, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        chooser.ask(image=plain("red"), **fields)
    assert refused.value.param == param


def test_a_chooser_without_a_graph_for_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no graph for texts"):
        Served(bundle_of(tmp_path, "zero-shot-image-classification", texts=False))
