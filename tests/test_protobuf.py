"""Our protobuf against the real one: what it writes is read by that, and the other way round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry import protobuf
from wherry.doors.inference_models import (
    Duration,
    InferenceStats,
    Metadata,
    ModelStats,
    Tensor,
)
from wherry.errors import InvalidInput
from wherry.protobuf import Budget, Field, Message

service_pb2 = pytest.importorskip(
    "tritonclient.grpc.service_pb2", reason="pip install 'tritonclient[grpc]'"
)
inference_grpc = pytest.importorskip(
    "wherry.doors.inference_grpc", reason="pip install 'wherry[grpc]'"
)

signed = st.integers(-(2**63), 2**63 - 1)
counts = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tensors = st.builds(Tensor, texts, texts, st.lists(signed, max_size=5))
durations = st.builds(Duration, counts, counts)


def message_in(body: bytes, fields: int = 1000) -> Message:
    return Message(memoryview(body), 0, len(body), Budget(fields))


def fields_of(body: bytes) -> list[Field]:
    return list(message_in(body).fields())


@given(
    st.builds(
        Metadata,
        texts,
        st.lists(texts, max_size=3),
        texts,
        st.lists(tensors, max_size=3),
        st.lists(tensors, max_size=3),
    )
)
def test_metadata_are_written_as_the_real_one_writes_them(metadata: Metadata):
    real = service_pb2.ModelMetadataResponse(
        name=metadata.name, versions=metadata.versions, platform=metadata.platform
    )
    for mine, theirs in ((metadata.inputs, real.inputs), (metadata.outputs, real.outputs)):
        for each in mine:
            theirs.add(name=each.name, datatype=each.datatype, shape=each.shape)
    assert protobuf.message_of(metadata, inference_grpc.NUMBERS) == real.SerializeToString()


@given(
    st.builds(
        ModelStats, texts, texts, counts, counts, st.builds(InferenceStats, durations, durations)
    )
)
def test_statistics_are_read_by_the_real_one(stats: ModelStats):
    written = protobuf.message_of(stats, inference_grpc.NUMBERS)
    real = service_pb2.ModelStatistics.FromString(written)
    assert (real.name, real.version, real.inference_count) == (
        stats.name,
        stats.version,
        stats.inference_count,
    )
    for mine, theirs in (
        (stats.inference_stats.success, real.inference_stats.success),
        (stats.inference_stats.fail, real.inference_stats.fail),
    ):
        assert (theirs.count, theirs.ns) == (mine.count, mine.ns)


@given(signed, st.integers(1, 2**29 - 1))
def test_numbers_come_back_with_their_sign(value: int, number: int):
    body = protobuf.integer_field(number, value)
    (field,) = fields_of(body)
    assert field.number == number
    assert message_in(body).integer(field) == value


@given(st.lists(signed, max_size=30))
def test_packed_numbers_come_back(values: list[int]):
    body = protobuf.integers_field(3, values)
    assert [each for field in fields_of(body) for each in message_in(body).integers(field)] == (
        values
    )


@pytest.mark.parametrize(
    "body",
    [
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0d\0\0\0",
        b"\x09\0\0\0\0",
        b"\x0b\x0c",
        b"\x00\x00",
    ],
    ids=["cut", "long", "short", "huge", "32 bits", "64 bits", "group", "number 0"],
)
def test_damaged_bytes_are_refused(body: bytes):
    with pytest.raises(InvalidInput, match="no protobuf"):
        fields_of(body)


def test_a_walk_ends_after_so_many_fields_in_all():
    inner = protobuf.integer_field(1, 1) * 10
    body = protobuf.bytes_field(2, inner) * 10

    def walk(fields: int) -> None:
        message = message_in(body, fields)
        for field in message.fields():
            list(message.inner(field).fields())

    walk(110)
    with pytest.raises(InvalidInput, match="too many fields"):
        walk(109)


def test_a_text_that_is_none_is_refused():
    for body, told in (
        (protobuf.bytes_field(1, b"\xff"), "no protobuf"),
        (protobuf.integer_field(1, 5), "no protobuf"),
        (protobuf.bytes_field(1, b"x" * 5000), "over 4096 bytes"),
    ):
        message = message_in(body)
        with pytest.raises(InvalidInput, match=told):
            message.text(fields_of(body)[0])
