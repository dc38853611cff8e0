"""Requests that are admitted together: with what each of them would get by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.data_plane import PRINCIPAL, DataPlane, limited, play, write_model

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.gateway.exchange import Exchange
from wherry.gateway.quarantine import digest_of
from wherry.gateway.track import Track

ECHO = """
class Model:
    def predict(self, batch):
        return [{"X": item["X"] * 2} for item in batch]
"""


class Together:
    """Requests of one track, handed over at once."""

    def __init__(self, plane: DataPlane, principal: Principal = PRINCIPAL) -> None:
        self.plane = plane
        self.ends: dict[int, errors.WherryError | None] = {}
        self.exchanges: list[Exchange] | None = None
        self.track: Track = plane.gateway.find_track(
            plane.inbound(0.0, principal=principal, is_direct=True)
        )

    def ask(self, values: list[float]) -> bool:
        """Whether they were admitted."""
        bodies = [self.plane.inbound(value).body for value in values]
        asked = [
            (f"req-{index}", body, lambda error, index=index: self.ends.update({index: error}))
            for index, body in enumerate(bodies)
        ]
        self.exchanges = self.plane.gateway.follow_many(self.track, asked)
        return self.exchanges is not None

    async def end(self) -> None:
        """Return when all have ended."""
        assert self.exchanges is not None
        async with asyncio.timeout(20):
            while len(self.ends) < len(self.exchanges):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_gets_its_own_answer_and_one_record(tmp_path: Path, workers: int):
    async def story(plane: DataPlane) -> None:
        bundle = write_model(tmp_path / "bundle", ECHO)
        plane.route(*[await plane.start_worker(bundle) for _ in range(workers)])
        await plane.wait_for_links(workers)
        together = Together(plane)
        values = [float(each) for each in range(40)]
        assert together.ask(values)
        await together.end()
        assert together.exchanges is not None
        for value, exchange in zip(values, together.exchanges, strict=True):
            assert b'"data":[%.1f]' % (value * 2) in bytes(exchange.body)
        assert not any(together.ends.values())
        guard = plane.gateway.guard
        assert not guard.held_bytes
        assert not guard.running()
        assert len({record.request_id for record in await plane.records()}) == 40

    play(tmp_path, story)


def test_they_wait_for_a_worker_that_comes_later(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route()
        together = Together(plane)
        assert together.ask([1.0, 2.0, 3.0])
        assert plane.woken
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", ECHO)))
        await together.end()
        assert together.ends == {0: None, 1: None, 2: None}

    play(tmp_path, story)


def test_more_than_a_worker_takes_at_once_are_all_answered(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", ECHO)))
        await plane.wait_for_links(1)
        together = Together(plane)
        assert together.ask([float(each) for each in range(1000)])
        await together.end()
        assert not any(together.ends.values())

    play(tmp_path, story)


@pytest.mark.parametrize(
    "limits", [{"requests_per_minute": 10}, {"concurrency": 10}, {"tokens_per_minute": 10}]
)
def test_a_key_is_not_let_in_beyond_its_limits(tmp_path: Path, limits: dict[str, int]):
    async def story(plane: DataPlane) -> None:
        plane.route()
        together = Together(plane, limited(**limits))
        meter = together.track.meter
        assert meter is not None
        if "tokens_per_minute" in limits:
            assert meter.tokens is not None
            meter.tokens.level = -1.0  # in debt
            assert not together.ask([1.0, 2.0])
            return
        assert not together.ask([float(each) for each in range(11)])
        assert meter.in_flight == 0, "one that may be refused takes nothing"
        assert not plane.gateway.guard.running()
        assert together.ask([float(each) for each in range(10)])
        assert meter.in_flight == 10
        assert not together.ask([1.0])

    play(tmp_path, story)


def test_a_deployment_is_not_given_more_than_it_may_have(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(concurrency=4)
        assert not Together(plane).ask([1.0] * 5)
        plane.route(body_bytes=100)
        assert not Together(plane).ask([1.0] * 2)
        plane.route()
        plane.gateway.guard._max_bytes = 100
        assert not Together(plane).ask([1.0] * 2)
        assert not plane.gateway.guard.held_bytes

    play(tmp_path, story)


def test_an_input_in_quarantine_is_refused_and_the_others_are_not(tmp_path: Path):
    async def story(plane: DataPlane) -> None:
        plane.route(await plane.start_worker(write_model(tmp_path / "bundle", ECHO)))
        await plane.wait_for_links(1)
        together = Together(plane)
        assert together.ask([1.0, 2.0, 3.0])
        await together.end()
        again = Together(plane)
        poison = plane.gateway.predict(plane.inbound(2.0, is_direct=True))
        plane.gateway.quarantine.ban(digest_of(poison))
        assert again.ask([1.0, 2.0, 3.0])
        await again.end()
        assert [again.ends[each] is None for each in range(3)] == [True, False, True]
        assert isinstance(again.ends[1], errors.Quarantined)

    play(tmp_path, story)
