"""The one codec that every task has: what its structs hold, crosses and stays the same."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contracts.struct_values import are_equal, values_of

from wherry.errors import InvalidInput, TooLarge
from wherry.frames import Call, Usage
from wherry.models.codecs.native import (
    MAX_ITEMS,
    NATIVE,
    NativeReader,
    decode_outputs,
    encode_items,
)
from wherry.models.tasks.catalog import BUILT_IN, find_task
from wherry.models.tasks.packing import FrameReader, frame, pack, unpack
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.tensor import TensorInput

CALL = Call("native", "req-1", "name", "1")
STREAMING = [name for name in BUILT_IN if hasattr(find_task(name), "join")]
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def decode(task: Any, body: bytes) -> list[Any]:
    return list(NATIVE.decode(memoryview(body), CALL, task, TaskConfig()).items)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@few
@given(data=st.data())
def test_inputs_arrive_as_they_left(name: str, data: st.DataObject):
    task = find_task(name)
    items = data.draw(st.lists(values_of(task.input_type), min_size=1, max_size=2))
    assert are_equal(decode(task, encode_items(items)), items)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@few
@given(data=st.data())
def test_outputs_arrive_as_they_left(name: str, data: st.DataObject):
    task = find_task(name)
    outputs = data.draw(st.lists(values_of(task.output_type), max_size=2))
    reply = NATIVE.encode(None, outputs, CALL, task, TaskConfig())  # type: ignore[arg-type]
    assert are_equal(decode_outputs(reply.body, task), outputs)


@pytest.mark.parametrize("name", STREAMING)
@few
@given(data=st.data())
def test_a_stream_is_read_however_it_was_cut(name: str, data: st.DataObject):
    task: Any = find_task(name)
    deltas = data.draw(
        st.lists(st.tuples(st.integers(0, 7), values_of(task.delta_type)), max_size=4)
    )
    encoder = NATIVE.stream(None, CALL)  # type: ignore[arg-type]
    sent = b"".join(encoder.event(*each) for each in deltas) + encoder.end(Usage())
    cut = data.draw(st.integers(1, 50))
    reader = NativeReader(task)
    read = [each for at in range(0, len(sent), cut) for each in reader.feed(sent[at : at + cut])]
    assert are_equal(read, deltas)


@few
@given(body=st.binary(max_size=200))
def test_anything_else_is_refused_in_words(body: bytes):
    for name in BUILT_IN:
        with pytest.raises(InvalidInput):
            decode(find_task(name), body)


def test_no_item_and_too_many_are_refused():
    task = find_task("text-classification")
    for count in (0, MAX_ITEMS + 1):
        with pytest.raises(InvalidInput, match="length"):
            decode(task, pack([{"text": "x"}] * count))


def test_a_task_that_does_not_say_its_types_is_refused_in_words():
    plugin: Any = SimpleNamespace(name="smell")
    with pytest.raises(InvalidInput, match="'smell' has no input_type") as refused:
        decode(plugin, b"")
    assert "input_type" in refused.value.hint


@pytest.mark.parametrize(
    "packed",
    [
        ["n", "<f4", [2], b"1234"],
        ["n", "<f4", [1], b"123"],
        ["n", "O", [1], b"12345678"],
        ["n", "<f4", [-1], b""],
        ["n", "<f4", [2**62, 2**62], b""],
        ["n", "<f4", [1] * 40, b"1234"],
        ["o", [2], [b"a"]],
        ["o", [1], [{"a": 1}]],
        ["x", [1], []],
    ],
    ids=str,
)
def test_an_array_that_is_none_is_refused(packed: Any):
    import msgspec

    ext = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(packed))
    body = msgspec.msgpack.encode([{"tensors": {"X": ext}}])
    with pytest.raises(InvalidInput):
        decode(find_task("tensor"), body)


def test_arrays_of_any_layout_and_byte_order_arrive_in_one_form():
    given = np.arange(6, dtype=">f4").reshape(2, 3).T[::-1]
    (item,) = decode(find_task("tensor"), encode_items([TensorInput({"X": given})]))
    (array,) = item.tensors.values()
    assert array.tolist() == given.tolist()
    assert array.dtype == np.dtype("<f4")
    assert array.flags.aligned
    assert array.flags.c_contiguous


def test_what_no_task_may_hold_is_not_packed():
    for value in (threading.Lock(), np.array([1 + 2j]), np.array(["a"])):
        with pytest.raises(TypeError, match="no task may hold"):
            pack(value)


def test_a_type_that_was_not_asked_for_is_not_unpacked():
    with pytest.raises(InvalidInput):
        unpack(pack(TensorInput({"X": np.ones(2)})), list[TensorInput])
    with pytest.raises(InvalidInput, match="expected an array"):
        unpack(pack({"tensors": {"X": [1, 2]}}), TensorInput)


def test_a_message_over_the_limit_is_refused_before_it_has_come():
    reader = FrameReader(max_bytes=10)
    with pytest.raises(TooLarge):
        reader.feed(frame(b"x" * 11)[:6])
    with pytest.raises(InvalidInput):
        FrameReader().feed(b"data: {}\n\n")
