"""A worker dies at each frame's boundary, and inside each frame: the promise of its death holds.

Each request ends once, with its own answer or an error. What was not STARTED is executed elsewhere;
what was is executed once more only if its model is idempotent. No credit is lost. The model writes
down each execution, so that the test knows better than the gateway what happened.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import DataPlane, data_plane, decode, write_model
from tests.gateway.forge import Forge, forge

from wherry import errors
from wherry.frames import PREFIX
from wherry.gateway.exchange import Exchange
from wherry.models.bundle import Manifest, encode_manifest

LEDGER = """
import os
def record(value):
    ledger = os.open({ledger!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{{value}}\\n".encode())
    os.close(ledger)
"""
COUNTING = (
    LEDGER
    + """
class Model:
    def predict(self, batch):
        for item in batch:
            record(float(item["X"][0]))
        return [{{"X": item["X"] * 3 + 1}} for item in batch]
"""
)
TALKING = (
    LEDGER
    + """
class Model:
    def stream(self, request):
        text = request["messages"][0]["content"]
        record(float(text))
        for word in ("this", " is", " it: ", text):
            yield word
"""
)


class Case:
    """A gateway, a worker that lives and one that will die, and what both have executed."""

    def __init__(self, plane: DataPlane, maker: Forge, bundle: Path, ledger: Path) -> None:
        self.plane, self.maker, self.bundle, self.ledger = plane, maker, bundle, ledger
        self.count = 0
        self.dying: Any = None

    def predict(self, *, stream: bool = False) -> tuple[float, Exchange]:
        """Send a request that no other is like."""
        self.count += 1
        value = float(self.count)
        if stream:
            body = {
                "model": "model",
                "stream": True,
                "messages": [{"role": "user", "content": str(value)}],
            }
            inbound = self.plane.inbound(
                0, codec="openai.chat", stream=True, body=msgspec.json.encode(body)
            )
        else:
            # every other one travels with its like
            inbound = self.plane.inbound(value, is_direct=self.count % 2 == 0)
        return value, self.plane.gateway.predict(inbound)

    def executions(self) -> Counter[float]:
        """How often each request was executed, by anybody."""
        try:
            return Counter(map(float, self.ledger.read_text().split()))
        except FileNotFoundError:
            return Counter()


Scenario = Callable[[Case], Awaitable[list[tuple[float, Exchange]]]]


async def one_after_the_other(case: Case) -> list[tuple[float, Exchange]]:
    sent = [case.predict()]
    await asyncio.sleep(0)
    return [*sent, case.predict()]


async def many_at_once(case: Case) -> list[tuple[float, Exchange]]:
    return [case.predict() for _ in range(9)]


async def streams(case: Case) -> list[tuple[float, Exchange]]:
    return [case.predict(stream=True) for _ in range(3)]


async def cancelled(case: Case) -> list[tuple[float, Exchange]]:
    sent = [case.predict() for _ in range(4)]
    await asyncio.sleep(0.002)
    for _, exchange in sent[1::2]:
        case.plane.gateway.cancel(exchange)
    return [*sent, case.predict()]


async def draining(case: Case) -> list[tuple[float, Exchange]]:
    sent = [case.predict() for _ in range(2)]
    try:
        os.kill(case.dying.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    await asyncio.sleep(0.002)
    return sent + [case.predict() for _ in range(4)]


SCENARIOS: dict[str, tuple[Scenario, bool, int]] = {
    # the story, whether its model is idempotent, credits
    "idempotent": (one_after_the_other, True, 64),
    "not idempotent": (one_after_the_other, False, 64),
    "many, few credits": (many_at_once, False, 2),
    "many, batched": (many_at_once, True, 64),
    "streams": (streams, False, 64),
    "cancelled": (cancelled, False, 64),
    "draining": (draining, False, 64),
}


def write_bundle(folder: Path, ledger: Path, scenario: Scenario, idempotent: bool) -> Path:
    if scenario is not streams:
        source = COUNTING.format(ledger=str(ledger))
        return write_model(folder, source, idempotent=idempotent)
    folder.mkdir()
    manifest = Manifest(
        task="text-generation", runtime="python_stream", files=("model.py",), idempotent=False
    )
    (folder / "model.py").write_text(TALKING.format(ledger=str(ledger)))
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


async def outcome_of(exchange: Exchange) -> str:
    """Its answer as text, or the code of its error."""
    try:
        if not exchange.call.stream:
            return str(decode(await exchange.answer()))
        await exchange.first()
        events = b"".join([bytes(chunk) async for chunk in exchange.chunks()])
    except errors.WherryError as error:
        return error.code
    words = [
        msgspec.json.decode(line[6:])["choices"]
        for line in events.splitlines()
        if line.startswith(b"data: {")
    ]
    return "".join(each[0]["delta"].get("content") or "" for each in words if each)


async def play_one(case: Case, budget: int, dies_late: bool, scenario: str) -> Counter[str]:
    """One death; tells how the requests ended."""
    story, idempotent, credits_ = SCENARIOS[scenario]
    plane, maker = case.plane, case.maker
    before = case.executions()
    dying = case.dying = await maker.start(
        case.bundle, budget=budget, dies_late=dies_late, credits_=credits_
    )
    healthy = await maker.start(case.bundle, credits_=credits_)
    plane.route(dying, healthy, idempotent=idempotent)
    (queue,) = plane.gateway._queues.values()
    for _ in range(1000):
        links = [queue.links.get(each.id) for each in (dying, healthy)]
        reached = links[0] is None or links[0].is_ready
        if reached and links[1] is not None and links[1].is_ready:
            break
        await asyncio.sleep(0.002)
    sent = await story(case)
    ends = await asyncio.gather(*(outcome_of(exchange) for _, exchange in sent))
    executed = case.executions() - before
    for (value, exchange), end in zip(sent, ends, strict=True):
        expected = f"this is it: {value}" if story is streams else str([value * 3 + 1])
        allowed = {expected}
        if story is cancelled:
            allowed.add("cancelled")
        if not idempotent:
            allowed.add("worker_lost")
        assert end in allowed, f"request {value} ended with {end!r}"
        assert exchange.is_done
        assert executed[value] <= (2 if idempotent else 1), "it was executed too often"
        if end == expected:
            assert executed[value] >= 1
    (link,) = [link for name, link in queue.links.items() if name == healthy.id]
    for _ in range(500):  # what was cancelled may still be at work: its credit comes back then
        if link.load == 0:
            break
        await asyncio.sleep(0.002)
    assert (link.load, link._outstanding_bytes, queue.waiting) == (0, 0, 0), "a credit is lost"
    plane.route(idempotent=idempotent)
    maker.kill(dying)
    maker.kill(healthy)
    return Counter("ok" if end.startswith(("[", "this")) else end for end in ends)


def cuts_of(ends: list[int], *, every_byte: bool) -> list[tuple[int, bool]]:
    """After how many bytes to die; whether with the last byte or before the next."""
    boundaries = [0, *ends]
    if every_byte:
        inner = [size for size in range(1, ends[-1] + 1) if size not in boundaries]
    else:  # in the prefix, behind it, and before the last byte
        starts = zip(boundaries, ends, strict=False)
        inner = [
            size
            for start, end in starts
            for size in (start + 3, start + PREFIX.size, end - 1)
            if start < size < end
        ]
    cuts = [(size, False) for size in sorted({*boundaries[1:], *inner})]
    return cuts + [(size, True) for size in boundaries]


async def count_frames(case: Case, scenario: str) -> list[int]:
    """Where the frames end that a worker sends which nobody kills."""
    for _ in range(20):
        ends = await count_once(case, scenario)
        if len(ends) >= 4:  # one that was told to stop may be gone before it has read anything
            return ends
    raise AssertionError("never a challenge, ready, started and an answer")


async def count_once(case: Case, scenario: str) -> list[int]:
    """The same for one worker."""
    story, idempotent, credits_ = SCENARIOS[scenario]
    case.dying = await case.maker.start(case.bundle, keeps=True, credits_=credits_)
    case.plane.route(case.dying, idempotent=idempotent)
    await case.plane.wait_for_links(1)
    sent = [exchange for _, exchange in await story(case)]
    await asyncio.wait([asyncio.ensure_future(outcome_of(each)) for each in sent], timeout=3)
    for exchange in sent:  # what came when the only worker was draining waits for another one
        case.plane.gateway.cancel(exchange)
    await asyncio.sleep(0.05)
    ends = case.maker.ends_of_frames()
    case.plane.route(idempotent=idempotent)
    case.maker.kill(case.dying)
    return ends


@pytest.mark.parametrize("every_byte", [False, pytest.param(True, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_worker_that_dies_after_any_byte(tmp_path: Path, scenario: str, every_byte: bool):
    story, idempotent, _ = SCENARIOS[scenario]
    bundle = write_bundle(tmp_path / "bundle", tmp_path / "ledger", story, idempotent)
    ends: Counter[str] = Counter()

    async def run() -> list[Any]:
        async with data_plane(tmp_path) as plane, forge() as maker:
            case = Case(plane, maker, bundle, tmp_path / "ledger")
            frames_end = await count_frames(case, scenario)
            for size, dies_late in cuts_of(frames_end[:9], every_byte=every_byte):
                try:
                    ends.update(await play_one(case, size, dies_late, scenario))
                except AssertionError as error:
                    raise AssertionError(f"dead after {size} bytes, late: {dies_late}") from error
            return [case.count, await plane.records()]

    count, records = asyncio.run(run())
    assert len(records) == count
    assert len({record.request_id for record in records}) == count
    assert ends["ok"] > sum(ends.values()) / 3
    if not idempotent and story is not draining:
        assert ends["worker_lost"], "no death came between STARTED and the answer"
