"""What every codec must do: refuse anything that is not its protocol, and nothing but refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import WherryError
from wherry.frames import Call
from wherry.models.codecs.catalog import BUILT_IN, find_codec
from wherry.models.tasks.catalog import find_task, task_names
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec

CONFIG = TaskConfig(
    labels=("a", "b"),
    signature=Signature((TensorSpec("X", "FP32", (-1, 2)),), (TensorSpec("Y", "FP32", (-1, 2)),)),
    options={"flagged_labels": ["b"]},
)
PAIRS = [
    (codec, task)
    for codec in BUILT_IN
    for task in task_names()
    if not find_codec(codec).tasks or task in find_codec(codec).tasks
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                [
                    "model",
                    "messages",
                    "role",
                    "content",
                    "input",
                    "prompt",
                    "inputs",
                    "name",
                    "shape",
                    "datatype",
                    "data",
                    "text",
                    "query",
                    "documents",
                    "texts",
                    "source_sentence",
                    "sentences",
                    "candidate_labels",
                    "image",
                    "row",
                    "X",
                    "n",
                    "stop",
                    "tools",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


def call_for(codec: str) -> Call:
    return Call(codec, "req-1", "name", "1", 0)


def attempt(codec: str, task: str, body: bytes) -> None:
    """Decode; anything but a `WherryError` is a fault of the codec."""
    try:
        find_codec(codec).decode(memoryview(body), call_for(codec), find_task(task), CONFIG)
    except WherryError as refusal:
        told = refusal.text
    else:
        return
    assert told
    assert "Traceback" not in told


@pytest.mark.parametrize(("codec", "task"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(body=st.binary(max_size=200))
def test_random_bytes_are_refused_in_words(codec: str, task: str, body: bytes):
    attempt(codec, task, body)


@pytest.mark.parametrize(("codec", "task"), PAIRS)
@settings(max_examples=60, deadline=None)
@given(body=values)
def test_random_json_is_refused_in_words(codec: str, task: str, body: Any):
    attempt(codec, task, json.dumps(body).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(("codec", "task"), PAIRS)
@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' + b"9" * 5000 + b"}", b"\xff\xfe{\x00}\x00", b""],
    ids=["lists", "objects", "digits", "utf-16", "empty"],
)
def test_bombs_are_refused_in_words(codec: str, task: str, body: bytes):
    with pytest.raises(WherryError):
        find_codec(codec).decode(memoryview(body), call_for(codec), find_task(task), CONFIG)


def test_every_codec_names_tasks_that_exist():
    known = set(task_names())
    for name in BUILT_IN:
        assert find_codec(name).tasks <= known
