"""The same bytes in other pieces, and bytes that are slightly wrong: both paths stay alike."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from tests.conftest import LiveServer
from tests.wire.http_conformance.conftest import address_of
from tests.wire.http_conformance.exchange import (
    AUTHORIZATION,
    HOST,
    Connection,
    Reply,
    in_chunks,
    post,
    talk,
)
from tests.wire.http_conformance.table import (
    CHUNKED,
    CLOSE,
    CONTINUE,
    GOOD,
    GOOD_PLAIN,
    LIVE,
    PLAIN,
    PREDICT,
    SLOW,
    TENSOR,
    UPGRADE,
    chunked,
)
from tests.wire.probe import workers

SPLIT = {
    "a length": (GOOD, 1),
    "chunks": (chunked(in_chunks(TENSOR, b";a=b", b"X: y\r\n")), 1),
    "a pipeline": (GOOD + LIVE + b"\r\n" + GOOD_PLAIN, 3),
    "a fault behind": (GOOD_PLAIN + b"POST / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", 2),
}


@pytest.mark.parametrize("name", SPLIT)
def test_pieces_of_one_byte_are_the_whole(both: dict[str, LiveServer], name: str):
    data, count = SPLIT[name]
    pieces = [data[at : at + 1] for at in range(len(data))]
    for live in both.values():
        whole = talk(address_of(live), [data], count)
        assert talk(address_of(live), pieces, count) == whole


@pytest.mark.parametrize("name", SPLIT)
def test_a_cut_at_any_byte_changes_nothing(both: dict[str, LiveServer], name: str):
    """Each part must arrive alone, so the first waits for a byte's worth of the loop's turns."""
    data, count = SPLIT[name]
    for live in both.values():
        address = address_of(live)
        whole = talk(address, [data], count)

        def cut(at: int) -> None:
            outcome = talk(address, [data[:at], 0.005, data[at:]], count)  # noqa: B023
            assert outcome == whole, f"cut at byte {at}"  # noqa: B023

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(cut, range(1, len(data), 1 + len(data) // 150)))


# ------------------------------------------------------------------------------ fuzz

SEEDS: list[bytes] = [
    GOOD,
    GOOD_PLAIN,
    chunked(in_chunks(TENSOR, b";a=b", b"X: y\r\n")),
    chunked(in_chunks(PLAIN), path=PREDICT),
    GOOD_PLAIN + GOOD,
    post(PREDICT, SLOW.replace(b"0.3", b"0.01")) + GOOD_PLAIN,
    LIVE + b"\r\n" + GOOD,
    post(PREDICT, PLAIN, CONTINUE),
]
SPLICES: list[bytes] = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b"\xff",
    b"%2F",
    b"0\r\n\r\n",
    b"1.0",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    CHUNKED + b"\r\n",
    CLOSE + b"\r\n",
    HOST,
    AUTHORIZATION,
    b"\r\n".join(UPGRADE) + b"\r\n",
    b"Expect: 100-continue\r\n",
    b"Content-Encoding: identity\r\n",
    LIVE + b"\r\n",
]
LAST = LIVE + CLOSE + b"\r\n\r\n"


def mutate(seed: int) -> list[bytes]:
    """A request, or some, with a few faults, in a few pieces."""
    source = random.Random(seed)
    data = bytearray(source.choice(SEEDS))
    for _ in range(source.choice((0, 1, 1, 2, 3))):
        at = source.randrange(len(data))
        kind = source.randrange(4)
        if kind == 0:
            data[at] = source.randrange(256)
        elif kind == 1:
            del data[at : at + source.choice((1, 1, 2, 8))]
        elif kind == 2:
            ends = [each for each in range(len(data)) if data[each : each + 2] == b"\r\n"]
            at = source.choice(ends) + 2 if ends and source.random() < 0.7 else at
            data[at:at] = source.choice(SPLICES)
        else:
            length = source.choice((1, 4, 30))
            data[at:at] = data[at : at + length]
    cuts = sorted(source.sample(range(1, len(data)), source.choice((0, 0, 1, 3))))
    edges = [0, *cuts, len(data)]
    pieces = [bytes(data[a:b]) for a, b in pairwise(edges)]
    pieces[-1] += LAST
    return pieces


def last_words(live: LiveServer, pieces: list[bytes]) -> list[Reply]:
    """All answers until the server closes; what is asked last makes it close if nothing else."""
    with Connection(address_of(live)) as connection:
        for piece in pieces:
            connection.send(piece)
        connection.read_to_end()
        assert not connection.unread, connection.unread[:200]
        return connection.replies


def begins(data: bytes) -> int:
    """A bound of the requests in some bytes."""
    return data.count(b"HTTP/") + data.count(b"\n")


def check_seed(both: dict[str, LiveServer], seed: int) -> None:
    pieces = mutate(seed)
    lane, asgi = (last_words(live, pieces) for live in both.values())
    check_alike(steady(lane), steady(asgi), len(pieces) > 1, (seed, pieces))
    for replies in (lane, asgi):
        assert replies, (seed, pieces)
        assert len(replies) <= begins(b"".join(pieces)), (seed, pieces)
        assert all(each.status < 500 or each.status == 505 for each in replies), (seed, pieces)
        closing = [each.fields.get("connection") == "close" for each in replies]
        assert closing == [False] * (len(closing) - 1) + [True], (seed, pieces)


def steady(replies: list[Reply]) -> list[tuple[int, bytes]]:
    """Statuses and bodies."""
    return [(each.status, each.body) for each in replies]


def check_alike(
    lane: list[tuple[int, bytes]], asgi: list[tuple[int, bytes]], is_cut: bool, what: object
) -> None:
    """The same answers; but whether a refusal came before the rest of its request, and so ended
    the connection, hangs on how the pieces met. So does which of two faults is told: a head whose
    key is unknown is refused as it comes, unless a body that is not HTTP came in the same read.
    """
    shorter, longer = sorted((lane, asgi), key=len)
    if is_cut and shorter and is_refusal(shorter[-1]):
        assert is_refusal(longer[len(shorter) - 1]), what
        shorter, longer = shorter[:-1], longer[: len(shorter) - 1]
    assert shorter == longer, what


def is_refusal(reply: tuple[int, bytes]) -> bool:
    """Whether it was the client's fault."""
    return 400 <= reply[0] < 500


def fuzz(both: dict[str, LiveServer], seeds: range) -> None:
    """Try many at once: those that wait for the rest of a request take as long as a stall."""
    before = {path: {each.pid for each in workers(live)} for path, live in both.items()}
    with ThreadPoolExecutor(48) as pool:
        list(pool.map(lambda seed: check_seed(both, seed), seeds))
    for path, live in both.items():
        assert {each.pid for each in workers(live)} == before[path], "a worker was restarted"
        assert live.http.get("/livez").status_code == 200


def test_mutated_requests_are_answered_alike_and_by_the_letter(both: dict[str, LiveServer]):
    fuzz(both, range(120))


@pytest.mark.slow
def test_many_mutated_requests_are_answered_alike_and_by_the_letter(both: dict[str, LiveServer]):
    fuzz(both, range(1000, 2200))
