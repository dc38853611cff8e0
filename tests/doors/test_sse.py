"""Long streams of events: woken by changes, bounded, ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from wherry import errors
from wherry.accounts.keys import Keys, Principal
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyRequest
from wherry.doors import sse
from wherry.doors.route import Inquiry
from wherry.doors.sse import Streams, format_event
from wherry.gateway.authenticate import Authenticator
from wherry.storage.database import Database, bump_revision

ADMIN = Principal("key_admin", "", "default", frozenset({"admin", "invoke"}))


class Visitor:
    """A client's side of one request; leaves when told to."""

    def __init__(self, principal: Principal, method: str = "GET") -> None:
        self.left = asyncio.Event()
        scope: dict[str, Any] = {"type": "http", "method": method, "path": "/", "headers": []}
        self.inquiry = Inquiry(scope, self._receive, {})
        self.inquiry.caller = principal

    async def _receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.for_folder(tmp_path)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def keys(database: Database, tmp_path: Path) -> Keys:
    return Keys.for_folder(database, tmp_path)


def make_principal(database: Database, keys: Keys) -> Principal:
    team = Teams(database).ensure_team("default")
    grantor = Principal("key_0", team.id, team.name, frozenset({"admin", "invoke"}))
    key = keys.create_key(team.id, KeyRequest(name="k"), grantor)
    return Principal(key.id, team.id, team.name, frozenset({"invoke"}))


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Streams]:
    authenticator = Authenticator(database, b"p" * 32)
    watching = asyncio.create_task(authenticator.watch())
    try:
        yield Streams(authenticator, database)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        authenticator.close()


def body_of(streams: Streams, visitor: Visitor, produce: sse.Produce) -> Any:
    return streams.respond(visitor.inquiry, produce).body


def test_a_change_in_the_database_wakes_a_stream(database: Database) -> None:
    async def story() -> list[bytes]:
        async with opened(database) as streams:
            seen = -2

            async def produce() -> tuple[list[bytes], bool]:
                nonlocal seen
                revision = streams.revisions.value("jobs")
                if revision in (seen, -1):
                    return [], False
                seen = revision
                return [format_event(b"%d" % revision, revision)], False

            found: list[bytes] = []
            async with aclosing(body_of(streams, Visitor(ADMIN), produce)) as body:
                async for piece in body:
                    found.append(piece)
                    if len(found) == 2:
                        with database.write() as connection:
                            bump_revision(connection, "jobs")
                    if len(found) == 3:
                        return found
        raise AssertionError

    found = asyncio.run(story())
    assert found == [b"retry: 1000\n\n", b"id: 0\ndata: 0\n\n", b"id: 1\ndata: 1\n\n"]


async def silent() -> tuple[list[bytes], bool]:
    return [], False


def test_a_silent_stream_beats(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(sse, "CHECK_SECONDS", 0.02)

    async def story() -> bytes:
        async with (
            opened(database) as streams,
            aclosing(body_of(streams, Visitor(ADMIN), silent)) as body,
        ):
            await anext(body)
            return await anext(body)

    assert asyncio.run(story()) == sse.HEARTBEAT


def test_a_stream_ends_when_its_client_leaves(database: Database) -> None:
    async def story() -> float:
        async with opened(database) as streams:
            visitor = Visitor(ADMIN)
            begun = time.monotonic()
            asyncio.get_running_loop().call_later(0.05, visitor.left.set)
            _ = [piece async for piece in body_of(streams, visitor, silent)]
            assert streams._by_key.total() == 0
            return time.monotonic() - begun

    assert asyncio.run(story()) < 0.4


def test_a_stream_ends_when_its_key_is_revoked(database: Database, keys: Keys) -> None:
    principal = make_principal(database, keys)

    async def story() -> None:
        async with opened(database) as streams:
            body = body_of(streams, Visitor(principal), silent)
            await anext(body)
            while streams._authenticator._revision is None:  # it has looked once
                await asyncio.sleep(0.01)
            keys.revoke_key(principal.team_id, principal.key_id)
            async with asyncio.timeout(3):
                assert [piece async for piece in body] == []

    asyncio.run(story())


def test_streams_end_with_the_gateway(database: Database) -> None:
    async def story() -> None:
        async with opened(database) as streams:
            body = body_of(streams, Visitor(ADMIN), silent)
            await anext(body)
            streams.close()
            async with asyncio.timeout(1):
                assert [piece async for piece in body] == []
            with pytest.raises(errors.Overloaded):
                streams.respond(Visitor(ADMIN).inquiry, silent)

    asyncio.run(story())


def test_one_key_cannot_hold_all_streams(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_STREAMS_PER_KEY", 2)
    monkeypatch.setattr(sse, "MAX_STREAMS", 3)

    async def story() -> None:
        async with opened(database) as streams:
            others = [Principal(f"key_{n}", "", "t", frozenset({"invoke"})) for n in range(2)]
            bodies = [body_of(streams, Visitor(ADMIN), silent) for _ in range(2)]
            for body in bodies:
                await anext(body)
            with pytest.raises(errors.Overloaded):
                streams.respond(Visitor(ADMIN).inquiry, silent)
            last = body_of(streams, Visitor(others[0]), silent)
            await anext(last)
            with pytest.raises(errors.Overloaded):
                streams.respond(Visitor(others[1]).inquiry, silent)
            for body in (*bodies, last):
                await body.aclose()
            assert streams._by_key.total() == 0
            await anext(again := body_of(streams, Visitor(ADMIN), silent))
            await again.aclose()

    asyncio.run(story())


def test_nobody_polls_while_nobody_listens(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sse, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)

    async def story() -> None:
        async with opened(database) as streams:
            body = body_of(streams, Visitor(ADMIN), silent)
            assert streams.revisions._task is None
            await anext(body)
            await anext(body)
            polling = streams.revisions._task
            assert polling is not None
            assert not polling.done()
            await body.aclose()
            async with asyncio.timeout(1):
                await polling
            again = body_of(streams, Visitor(ADMIN), silent)
            await anext(again)
            await anext(again)
            assert streams.revisions._task is not polling
            await again.aclose()

    asyncio.run(story())


def test_an_outage_of_what_a_stream_tells_is_waited_out(database: Database) -> None:
    async def story() -> list[bytes]:
        answers: list[Any] = [errors.Unavailable("away"), ([b"data: 1\n\n"], True)]

        async def produce() -> tuple[list[bytes], bool]:
            answer = answers.pop(0)
            if isinstance(answer, errors.WherryError):
                raise answer
            return answer

        async with opened(database) as streams:
            return [piece async for piece in body_of(streams, Visitor(ADMIN), produce)]

    assert asyncio.run(story()) == [b"retry: 1000\n\n", b"data: 1\n\n"]


def test_a_head_request_gets_no_stream(database: Database) -> None:
    async def story() -> Any:
        async with opened(database) as streams:
            return streams.respond(Visitor(ADMIN, "HEAD").inquiry, silent).body

    assert asyncio.run(story()) == b""


def test_one_team_cannot_hold_all_streams(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_STREAMS_PER_TEAM", 2)

    async def story() -> None:
        async with opened(database) as streams:
            ours = [Principal(f"key_{n}", "team_a", "a", frozenset({"invoke"})) for n in range(3)]
            bodies = [body_of(streams, Visitor(each), silent) for each in ours[:2]]
            for body in bodies:
                await anext(body)
            with pytest.raises(errors.Overloaded):
                streams.respond(Visitor(ours[2]).inquiry, silent)
            other = Principal("key_x", "team_b", "b", frozenset({"invoke"}))
            await anext(theirs := body_of(streams, Visitor(other), silent))
            for body in (*bodies, theirs):
                await body.aclose()
            assert streams._by_key.total() == 0

    asyncio.run(story())
