import base64
import json
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.codec import Call
from wherry.models.codecs.openai_embeddings import OPENAI_EMBEDDINGS
from wherry.models.tasks.task import TaskConfig, Usage
from wherry.models.tasks.text import FEATURE_EXTRACTION, Embedding, TextInput

CONFIG = TaskConfig(options={"dimensions": 4})
CALL = Call("openai.embeddings", "request", "minilm", "3", created=1_700_000_000)
VECTOR = np.array([0.1, -0.5, 0.7, 0.5], dtype=np.float32)


def decode(body: Any, config: TaskConfig = CONFIG) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OPENAI_EMBEDDINGS.decode(memoryview(data), CALL, FEATURE_EXTRACTION, config)


def answer(body: Any, *vectors: np.ndarray, config: TaskConfig = CONFIG) -> dict[str, Any]:
    decoded = decode(body, config)
    outputs = [Embedding(vector=each, usage=Usage(input_tokens=3, rows=1)) for each in vectors]
    reply = OPENAI_EMBEDDINGS.encode(decoded, outputs, CALL, FEATURE_EXTRACTION, config)
    assert reply.content_type == "application/json"
    return json.loads(bytes(reply.body))


def test_the_catalogue_knows_the_codec() -> None:
    assert find_codec("openai.embeddings") is OPENAI_EMBEDDINGS
    assert OPENAI_EMBEDDINGS.tasks == {"feature-extraction", "image-feature-extraction"}


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("hello", [TextInput("hello")]),
        (["a", "日本 👋"], [TextInput("a"), TextInput("日本 👋")]),
        ([101, 7592], [TextInput(token_ids=(101, 7592))]),
        ([[1, 2, 3], [4]], [TextInput(token_ids=(1, 2, 3)), TextInput(token_ids=(4,))]),
    ],
)
def test_texts_and_token_ids_are_items(given: Any, items: list[TextInput]) -> None:
    assert decode({"model": "minilm", "input": given}).items == items


def test_fields_of_others_are_tolerated() -> None:
    body = {"input": "a", "model": "m", "user": {"id": 7}, "encoding_format": None, "new": []}
    assert decode(body).items == [TextInput("a")]


def test_the_answer_has_openais_shape() -> None:
    assert answer({"input": ["a", "b"]}, VECTOR, -VECTOR) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.1, -0.5, 0.7, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [-0.1, 0.5, -0.7, -0.5]},
        ],
        "model": "minilm",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


def test_base64_is_little_endian_float32() -> None:
    found = answer({"input": "a", "encoding_format": "base64"}, VECTOR)["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(found), dtype="<f4"), VECTOR)


def test_floats_and_base64_are_the_same_numbers() -> None:
    vector = np.random.default_rng(0).normal(size=384).astype(np.float32)
    found = answer({"input": "a"}, vector, config=TaskConfig())["data"][0]["embedding"]
    assert np.array_equal(np.array(found, dtype=np.float32), vector)


@pytest.mark.parametrize("given", ["", [], ["a", ""], [[]], [[1], []], None, 7, {"a": 1}])
def test_an_empty_or_shapeless_input_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode({"input": given})
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    "given", [["a", 1], ["a", [1]], [1, [1]], [True], [1.5], [None], [[1.5]], [["a"]], [-1]]
)
def test_mixtures_and_wrong_elements_are_refused(given: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode({"input": given})
    assert (caught.value.param or "").startswith("input")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "missing required field `input`"),
        (b'{"input": "a"', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"input": "\\ud800"}', "not valid JSON|not valid Unicode"),
        (b'{"input": ' + b"[" * 100_000, "not valid JSON|input"),
        (b'{"input": "a", "encoding_format": "int8"}', "encoding_format"),
        (b'{"input": "a", "dimensions": 0}', "dimensions"),
        (b'{"input": "a", "dimensions": 1e999}', "dimensions|not valid JSON"),
    ],
)
def test_a_broken_body_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode(body)


def test_too_many_texts_are_refused() -> None:
    assert len(decode({"input": ["a"] * 2048}).items) == 2048
    with pytest.raises(InvalidInput, match="has 2049 texts, the limit is 2048"):
        decode({"input": ["a"] * 2049})


def test_other_dimensions_than_the_models_are_refused() -> None:
    assert decode({"input": "a", "dimensions": 4}).items
    with pytest.raises(InvalidInput, match="have 4 dimensions, not 2") as caught:
        decode({"input": "a", "dimensions": 2})
    assert caught.value.param == "dimensions"


def test_dimensions_that_the_bundle_does_not_state_are_checked_with_the_answer() -> None:
    unstated = TaskConfig()
    assert answer({"input": "a", "dimensions": 4}, VECTOR, config=unstated)["data"]
    with pytest.raises(InvalidInput, match="have 4 dimensions, not 2"):
        answer({"input": "a", "dimensions": 2}, VECTOR, config=unstated)


def test_vectors_of_a_matryoshka_model_are_cut_to_unit_length() -> None:
    config = TaskConfig(options={"dimensions": 4, "shortenable": True})
    found = answer({"input": "a", "dimensions": 2}, VECTOR, config=config)["data"][0]["embedding"]
    assert found == pytest.approx([0.1 / 0.26**0.5, -0.5 / 0.26**0.5], abs=1e-6)
    with pytest.raises(InvalidInput, match="have 4 dimensions, not 8"):
        decode({"input": "a", "dimensions": 8}, config)
