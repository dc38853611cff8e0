"""Server-sent events, split anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.client.sse import MAX_EVENT_BYTES, EventParser, ServerEvent
from wherry.errors import TooLarge

STREAM = (
    "\ufeff: comment\n\ndata: 你好\n\nid: 7\r\nevent: tell\r\ndata: a\r\ndata:b\r\n\r\n"
    "data\n\nretry: 5\rdata:  two spaces\r\rdata: unfinished"
).encode()
EVENTS = [
    ServerEvent("你好".encode()),
    ServerEvent(b"a\nb", "tell", "7"),
    ServerEvent(b"", "message", "7"),
    ServerEvent(b" two spaces", "message", "7"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_wherever_the_bytes_are_split(cuts: list[int]):
    parser = EventParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_byte_by_byte():
    parser = EventParser()
    found = [event for byte in STREAM for event in parser.feed(bytes([byte]))]
    assert found == EVENTS
    assert parser.last_id == "7"


def test_an_event_without_end_is_refused():
    parser = EventParser()
    for _ in range(MAX_EVENT_BYTES >> 20):
        assert parser.feed(b"x" * (1 << 20)) == []
    with pytest.raises(TooLarge):
        parser.feed(b"x")
