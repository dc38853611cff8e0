import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidInput, WherryError
from wherry.models.codecs.codec import Call
from wherry.models.codecs.predict import PREDICT
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.tabular import TABULAR_CLASSIFICATION, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec
from wherry.models.tasks.tensor import TENSOR, TensorOutput

IRIS = TaskConfig(
    labels=("setosa", "versicolor", "virginica"),
    signature=Signature((TensorSpec("input", "FP32", (-1, 4)),)),
)
OPEN = TaskConfig(signature=Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),)))


def call(headers=None):
    return Call("predict", "r1", "iris", "3", 0, headers or {})


def decode(body, task=TABULAR_CLASSIFICATION, config=IRIS, headers=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return PREDICT.decode(memoryview(raw), call(headers), task, config)


def echo(body):
    decoded = decode(body, TENSOR, OPEN)
    output = TensorOutput(tensors=decoded.items[0].tensors)
    return json.loads(PREDICT.encode(decoded, [output], call(), TENSOR, OPEN).body)


def test_a_row_in_one_object_out():
    decoded = decode({"row": [5.1, 3.5, 1.4, 0.2]})
    output = TableOutput(
        classes=np.array([2]),
        probabilities=np.array([[0.25, 0.25, 0.5]], dtype=np.float32),
        many=decoded.items[0].many,
    )
    reply = PREDICT.encode(decoded, [output], call(), TABULAR_CLASSIFICATION, IRIS)
    assert reply.content_type == "application/json"
    assert json.loads(reply.body) == {
        "prediction": "virginica",
        "label": "virginica",
        "confidence": 0.5,
        "probabilities": {"setosa": 0.25, "versicolor": 0.25, "virginica": 0.5},
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"{",
        b"{} {}",
        b"{}",
        b'{"row":[NaN,1,1,1]}',
        b'{"row":[1e400,1,1,1]}',
        b'{"row":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"row":' + b"[" * 200_000,
        b'{"row":' * 200_000,
        b'{"row":[' + b"9" * 4400 + b",1,1,1]}",
    ],
)
def test_what_is_no_plain_object_is_refused(body):
    with pytest.raises(InvalidInput):
        decode(body)


def test_deep_lists_are_refused_and_not_followed():
    with pytest.raises(InvalidInput):
        decode(b'{"X":' + b"[" * 500 + b"]" * 500 + b"}", TENSOR, OPEN)


def test_plain_values_of_an_open_model_come_back():
    for value in ([1, 2], [[1.5, 2.0]], [True, False], ["a", "ü"], [], [[1], [2]], 3, "text"):
        assert echo({"X": value}) == {"X": value}


def test_nan_in_an_answer_is_an_error_and_not_null():
    decoded = decode({"X": [1.0]}, TENSOR, OPEN)
    for bad in (np.nan, np.inf):
        output = TensorOutput(tensors={"X": np.array([1.0, bad])})
        with pytest.raises(InvalidInput, match="NaN"):
            PREDICT.encode(decoded, [output], call(), TENSOR, OPEN)


def test_the_word_null_is_no_number():
    assert echo({"X": ["null"]}) == {"X": ["null"]}


def test_a_picture_as_body_reaches_a_model_that_takes_pictures():
    image = pytest.importorskip("PIL.Image")
    import io

    stream = io.BytesIO()
    image.new("RGB", (3, 2), "white").save(stream, "PNG")
    task = find_task("image-classification")
    for kind in ("image/png", "application/octet-stream", "image/png; x=1"):
        decoded = decode(stream.getvalue(), task, TaskConfig(), {"content-type": kind})
        assert decoded.items[0].pixels.shape == (2, 3, 3)


def test_a_picture_for_a_model_of_tables_is_refused():
    with pytest.raises(InvalidInput, match="takes no pictures"):
        decode(b"\x89PNG", headers={"content-type": "image/png"})
    body = b'{"row":[1,2,3,4]}'
    assert decode(body, headers={"content-type": "application/octet-stream"}).items


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["row", "rows", "features", "X", "a"]), json_values, max_size=2)
)
def test_hostile_objects_raise_nothing_but_our_errors(body):
    for task, config in ((TABULAR_CLASSIFICATION, IRIS), (TENSOR, OPEN)):
        try:
            decode(body, task, config)
        except WherryError:
            continue
