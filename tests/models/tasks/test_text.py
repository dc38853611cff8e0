from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.classification import Classification, shortest_floats
from wherry.models.tasks.task import TaskConfig, TensorSpec, Usage
from wherry.models.tasks.text import (
    FEATURE_EXTRACTION,
    TEXT_CLASSIFICATION,
    Embedding,
    TextInput,
)

CONFIG = TaskConfig(labels=("bad", "good"))
TASKS = (TEXT_CLASSIFICATION, FEATURE_EXTRACTION)


def texts(*values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def classification(*scores: float) -> Classification:
    return Classification(
        labels=CONFIG.labels, scores=np.array(scores, dtype=np.float32), usage=Usage(rows=1)
    )


def test_the_catalogue_knows_the_tasks() -> None:
    assert find_task("text-classification") is TEXT_CLASSIFICATION
    assert find_task("feature-extraction") is FEATURE_EXTRACTION


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("key", ["text", "inputs", "input"])
def test_a_plain_text_is_an_item(task: Any, key: str) -> None:
    assert task.from_plain({key: "你好 👋"}, CONFIG) == TextInput("你好 👋")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no 'text'"),
        ({"txt": "a"}, "no 'text'"),
        ({"text": ""}, "is empty"),
        ({"text": 7}, "must be a string, not int"),
        ({"text": None}, "must be a string, not NoneType"),
        ({"text": ["a", "b"]}, "must be a string, not list"),
        ({"text": "a\ud800b"}, "not valid Unicode"),
        ({"text": "a" * ((1 << 20) + 1)}, "has 1048577 bytes, the limit is 1048576"),
    ],
)
def test_a_text_that_no_model_could_read_is_refused(body: dict[str, Any], message: str) -> None:
    for task in TASKS:
        with pytest.raises(InvalidInput, match=message) as caught:
            task.from_plain(body, CONFIG)
        assert caught.value.param == "text"


def test_a_bundle_may_lower_the_limit_but_not_lift_it() -> None:
    low = TaskConfig(options={"max_text_bytes": 5})
    assert TEXT_CLASSIFICATION.from_plain({"text": "hello"}, low).text == "hello"
    with pytest.raises(InvalidInput, match="has 6 bytes, the limit is 5"):
        TEXT_CLASSIFICATION.from_plain({"text": "你好"}, low)
    high = TaskConfig(options={"max_text_bytes": 1 << 40})
    with pytest.raises(InvalidInput, match="the limit is 1048576"):
        TEXT_CLASSIFICATION.from_plain({"text": "a" * ((1 << 20) + 1)}, high)


@pytest.mark.parametrize("task", TASKS)
def test_a_tensor_of_texts_is_one_item_each(task: Any) -> None:
    expected = [TextInput("a"), TextInput("日本")]
    flat = texts(b"a", "日本".encode())
    assert task.from_tensors({"text": flat}, CONFIG) == expected
    assert task.from_tensors({"text": flat.reshape(2, 1)}, CONFIG) == expected
    assert task.from_tensors({"text": flat[:0]}, CONFIG) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "one input tensor 'text'"),
        ({"words": texts(b"a")}, r"one input tensor 'text', not \['words'\]"),
        ({"text": texts(b"a"), "more": texts(b"a")}, "one input tensor 'text'"),
        ({"text": np.zeros(2)}, "must have datatype BYTES"),
        ({"text": texts(b"a", b"b").reshape(1, 2)}, r"must have shape \[n\], not \[1, 2\]"),
        ({"text": np.array(b"a", dtype=object)}, r"must have shape \[n\], not \[\]"),
        ({"text": texts(b"\xff\xfe")}, "not valid UTF-8"),
        ({"text": texts(b"\xed\xa0\x80")}, "not valid UTF-8"),  # a surrogate, encoded
        ({"text": texts(b"")}, "is empty"),
        ({"text": texts(3)}, "must be a string, not int"),
        ({"text": np.full(65_537, b"a", dtype=object)}, "has 65537 texts, the limit is 65536"),
    ],
)
def test_tensors_that_hold_no_texts_are_refused(
    tensors: dict[str, np.ndarray], message: str
) -> None:
    for task in TASKS:
        with pytest.raises(InvalidInput, match=message):
            task.from_tensors(tensors, CONFIG)


def test_a_classification_reads_plainly() -> None:
    assert TEXT_CLASSIFICATION.to_plain(classification(0.1, 0.9), CONFIG) == {
        "prediction": "good",
        "label": "good",
        "confidence": 0.9,
        "scores": {"bad": 0.1, "good": 0.9},
    }


def test_classifications_fill_tensors_row_by_row() -> None:
    outputs = [classification(0.25, 0.75), classification(1.0, 0.0)]
    tensors = TEXT_CLASSIFICATION.to_tensors(outputs, CONFIG)
    assert tensors["label"].tolist() == [b"good", b"bad"]
    assert tensors["scores"].dtype == np.float32
    assert tensors["scores"].tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert TEXT_CLASSIFICATION.to_tensors([], CONFIG)["scores"].shape == (0, 2)


def test_signatures_show_labels_and_dimensions() -> None:
    text = TensorSpec("text", "BYTES", (-1,))
    assert TEXT_CLASSIFICATION.signature(CONFIG).inputs == (text,)
    assert TEXT_CLASSIFICATION.signature(CONFIG).outputs[1] == TensorSpec("scores", "FP32", (-1, 2))
    embeddings = FEATURE_EXTRACTION.signature(TaskConfig(options={"dimensions": 384}))
    assert embeddings.outputs == (TensorSpec("embedding", "FP32", (-1, 384)),)
    assert FEATURE_EXTRACTION.signature(CONFIG).outputs[0].shape == (-1, -1)


def test_embeddings_are_rows() -> None:
    outputs = [Embedding(vector=np.array(row, dtype=np.float32)) for row in ([1, 2], [3, 4])]
    found = FEATURE_EXTRACTION.to_tensors(outputs, CONFIG)["embedding"]
    assert found.tolist() == [[1, 2], [3, 4]]
    assert FEATURE_EXTRACTION.to_plain(outputs[0], CONFIG) == {"embedding": [1.0, 2.0]}
    sized = TaskConfig(options={"dimensions": 2})
    assert FEATURE_EXTRACTION.to_tensors([], sized)["embedding"].shape == (0, 2)


def test_token_ids_are_an_input_of_embeddings() -> None:
    found = FEATURE_EXTRACTION.from_plain({"token_ids": [101, 7592]}, CONFIG)
    assert found == TextInput(token_ids=(101, 7592))


@pytest.mark.parametrize("value", [[], "a", [1.5], [True], [-1], [1 << 40], [[1]], [0] * 200_000])
def test_what_cannot_be_token_ids_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="token id"):
        FEATURE_EXTRACTION.from_plain({"token_ids": value}, CONFIG)


def test_short_floats_restore_every_float32() -> None:
    random = np.random.default_rng(0)
    magnitudes = 10.0 ** random.integers(-45, 38, 20_000)
    values = (random.normal(size=20_000) * magnitudes).astype(np.float32)
    assert np.array_equal(np.array(shortest_floats(values), dtype=np.float32), values)
    assert shortest_floats(np.array([0.1, 0.0, -0.9, 1.0], dtype=np.float32)) == [0.1, 0, -0.9, 1]
