"""Tests of authentication: forms, caching, revocation, outages and brute force."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from wherry.accounts.keys import Keys, Principal
from wherry.accounts.secret_files import load_pepper
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyLimits, KeyRequest, NewKey
from wherry.errors import NotAuthenticated, QuotaExceeded, Unavailable
from wherry.gateway import authenticate
from wherry.gateway.authenticate import Authenticator, find_secret, parse_bearer
from wherry.storage.database import Database


class Clock:
    """Seconds that a test can move; otherwise the real ones."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.ahead = 0.0
        self._read = read

    def __call__(self) -> float:
        return self._read() + self.ahead


class House:
    """A database with a team, and what a gateway needs of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database.for_folder(folder)
        self.database.migrate()
        self.keys = Keys.for_folder(self.database, folder)
        self.team = Teams(self.database).ensure_team("default")
        self.wall = Clock(time.time)
        self.monotonic = Clock(time.monotonic)
        self.queries = 0
        event.listen(self.database.engine, "before_cursor_execute", self._count_query)
        self.grantor = Principal("root", self.team.id, "default", frozenset({"invoke", "admin"}))

    def _count_query(self, *_: object) -> None:
        self.queries += 1

    def make_key(self, **fields: Any) -> NewKey:
        return self.keys.create_key(
            self.team.id, KeyRequest(**({"name": "k"} | fields)), self.grantor
        )

    def make_authenticator(self) -> Authenticator:
        return Authenticator(
            self.database,
            load_pepper(self.folder / "secrets"),
            clock=self.wall,
            monotonic=self.monotonic,
        )

    def break_database(self) -> None:
        """Put something else where the file was: nothing can be read until it is mended."""
        self.database.close()
        for file in self.folder.glob("wherry.db*"):
            file.rename(file.with_name(f"moved-{file.name}"))
        (self.folder / "wherry.db").write_bytes(b"no database " * 1000)

    def mend_database(self) -> None:
        self.database.close()
        for file in self.folder.glob("wherry.db*"):
            file.unlink()
        for file in self.folder.glob("moved-*"):
            file.rename(file.with_name(file.name.removeprefix("moved-")))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "data")
    yield house
    house.database.close()


def bearer(secret: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {secret}".encode())]


def run(house: House, story: Callable[[Authenticator], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        authenticator = house.make_authenticator()
        watcher = asyncio.create_task(authenticator.watch())
        try:
            await story(authenticator)
            assert not watcher.done()
        finally:
            watcher.cancel()
            authenticator.close()

    asyncio.run(play())


async def wait_until_refused(authenticator: Authenticator, secret: str) -> float:
    started = time.monotonic()
    async with asyncio.timeout(5):
        while True:
            try:
                await authenticator.authenticate(bearer(secret), "10.0.0.1")
            except NotAuthenticated:
                return time.monotonic() - started
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------ forms


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer wh-good")],
        [(b"authorization", b"bearer wh-good")],
        [(b"x-api-key", b"wh-good")],
        [(b"host", b"x"), (b"x-api-key", b"wh-good"), (b"authorization", b"BEARER wh-good")],
    ],
)
def test_a_key_is_found_in_either_header(headers: list[tuple[bytes, bytes]]) -> None:
    assert find_secret(headers) == b"wh-good"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer  wh-good")],
        [(b"authorization", b"Bearer wh-good ")],
        [(b"authorization", b"Bearer wh-good extra")],
        [(b"authorization", b"Bearer\twh-good")],
        [(b"authorization", b"Bearer wh-good\x00")],
        [(b"authorization", b"Bearer wh-good\n")],
        [(b"authorization", b"Bearer wh-g\xc3\xb6\xc3\xb6d")],
        [(b"authorization", b"Basic d2gtZ29vZA==")],
        [(b"authorization", b"wh-good")],
        [(b"authorization", b"Bearer " + b"a" * 1_000_000)],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"wh good")],
        [(b"x-api-key", b"wh-good"), (b"x-api-key", b"wh-good")],
        [(b"authorization", b"Bearer wh-good"), (b"authorization", b"Bearer wh-good")],
        [(b"authorization", b"Bearer wh-good"), (b"authorization", b"Bearer wh-bad")],
        [(b"authorization", b"Bearer wh-good"), (b"x-api-key", b"wh-bad")],
        [(b"authorization", b"Basic wh-good"), (b"x-api-key", b"wh-good")],
        [(b"authorization", b""), (b"x-api-key", b"wh-good")],
        [(b"api-key", b"wh-good"), (b"cookie", b"key=wh-good")],
    ],
)
def test_other_forms_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotAuthenticated):
        find_secret(headers)


@given(st.binary(max_size=300))
def test_what_is_found_is_always_the_visible_word_after_bearer(value: bytes) -> None:
    try:
        secret = parse_bearer(value)
    except NotAuthenticated:
        return
    assert value[:7].lower() + secret == b"bearer " + value[7:]
    assert all(0x21 <= byte <= 0x7E for byte in secret)


@given(
    st.binary(min_size=1, max_size=256).filter(lambda value: all(0x21 <= b <= 0x7E for b in value))
)
def test_every_visible_word_can_be_a_key(word: bytes) -> None:
    assert parse_bearer(b"Bearer " + word) == word


# ------------------------------------------------------------------------------ verdicts


def test_a_key_makes_its_principal(house: House) -> None:
    new = house.make_key(deployments=["a"], expires_at=4e9, limits=KeyLimits(concurrency=3))

    async def story(authenticator: Authenticator) -> None:
        found = await authenticator.authenticate([(b"x-api-key", new.secret.encode())], "::1")
        assert found == Principal(
            new.id,
            house.team.id,
            "default",
            frozenset({"invoke"}),
            frozenset({"a"}),
            KeyLimits(concurrency=3),
            4e9,
        )

    run(house, story)


def test_a_known_key_costs_no_query(house: House) -> None:
    secret = house.make_key().secret

    async def story(authenticator: Authenticator) -> None:
        assert authenticator.find(secret.encode()) is None  # the first time the database is asked
        first = await authenticator.authenticate(bearer(secret), "::1")
        await asyncio.sleep(0.05)
        before = house.queries
        for _ in range(1000):
            assert await authenticator.authenticate(bearer(secret), "::1") is first
        assert authenticator.find(secret.encode()) is first
        assert house.queries - before < 20  # the watcher's, not ours

    run(house, story)


def test_many_requests_with_a_new_key_share_one_look_up(house: House) -> None:
    secret = house.make_key().secret

    async def story(authenticator: Authenticator) -> None:
        await asyncio.sleep(0.05)
        before = house.queries
        found = await asyncio.gather(
            *(authenticator.authenticate(bearer(secret), "::1") for _ in range(100))
        )
        assert len({id(principal) for principal in found}) == 1
        assert house.queries - before < 20

    run(house, story)


@pytest.mark.parametrize(
    "change", [str.upper, lambda s: s[:-1], lambda s: s + "x", lambda s: "wh-" + "A" * 43]
)
def test_what_only_resembles_a_key_is_refused(house: House, change: Callable[[str], str]) -> None:
    secret = change(house.make_key().secret)

    async def story(authenticator: Authenticator) -> None:
        for _ in range(3):
            with pytest.raises(NotAuthenticated, match="not a key"):
                await authenticator.authenticate(bearer(secret), "::1")

    run(house, story)


def test_sql_in_a_key_is_only_a_wrong_key(house: House) -> None:
    async def story(authenticator: Authenticator) -> None:
        for secret in ("'OR'1'='1", "';DROP/**/TABLE/**/keys;--", "%27"):
            with pytest.raises(NotAuthenticated):
                await authenticator.authenticate(bearer(secret), "::1")

    run(house, story)
    assert house.keys.list_keys(house.team.id) == []


def test_a_wrong_key_is_not_looked_up_again_at_once(house: House) -> None:
    async def story(authenticator: Authenticator) -> None:
        await asyncio.sleep(0.05)
        before = house.queries
        for _ in range(50):
            with pytest.raises(NotAuthenticated):
                await authenticator.authenticate(bearer("wh-wrong"), "::1")
        assert house.queries - before < 20

    run(house, story)


def test_a_client_that_leaves_does_not_end_the_look_up_of_others(house: House) -> None:
    secret = house.make_key().secret

    async def story(authenticator: Authenticator) -> None:
        leaving = asyncio.create_task(authenticator.authenticate(bearer(secret), "::1"))
        staying = asyncio.create_task(authenticator.authenticate(bearer(secret), "::1"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).team == "default"

    run(house, story)


def test_an_expired_key_is_refused_by_the_wall_clock(house: House) -> None:
    secret = house.make_key(expires_at=time.time() + 60).secret

    async def story(authenticator: Authenticator) -> None:
        principal = await authenticator.authenticate(bearer(secret), "::1")
        assert authenticator.is_current(principal)
        house.wall.ahead = 61
        with pytest.raises(NotAuthenticated, match="expired"):
            authenticator.find(secret.encode())
        with pytest.raises(NotAuthenticated, match="expired"):
            await authenticator.authenticate(bearer(secret), "::1")
        assert not authenticator.is_current(principal)
        assert not house.make_authenticator().find(secret.encode())

    run(house, story)


# ------------------------------------------------------------------------------ revocation


def test_a_revoked_key_is_refused_within_a_second(house: House) -> None:
    new, other = house.make_key(), house.make_key()

    async def story(authenticator: Authenticator) -> None:
        principal = await authenticator.authenticate(bearer(new.secret), "::1")
        kept = await authenticator.authenticate(bearer(other.secret), "::1")
        await asyncio.to_thread(house.keys.revoke_key, house.team.id, new.id)
        assert await wait_until_refused(authenticator, new.secret) < 1.0
        assert not authenticator.is_current(principal)
        assert authenticator.is_current(kept)
        assert authenticator.find(other.secret.encode()) is kept

    run(house, story)


def test_a_key_revoked_while_it_is_looked_up_is_not_cached(house: House) -> None:
    new = house.make_key()

    async def story(authenticator: Authenticator) -> None:
        read_key = authenticator._read_key
        turns = 0

        def read_then_revoke(secret: bytes) -> Any:
            nonlocal turns
            answer = read_key(secret)
            turns += 1
            if turns == 1:  # the answer is old when it arrives
                house.keys.revoke_key(house.team.id, new.id)
                time.sleep(0.05)
                asyncio.run_coroutine_threadsafe(authenticator._poll(), loop).result(5)
            return answer

        loop = asyncio.get_running_loop()
        await authenticator._poll()
        authenticator._read_key = read_then_revoke  # type: ignore[method-assign]
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(bearer(new.secret), "::1")
        assert turns == 2

    run(house, story)


def test_a_new_key_works_at_once_even_if_it_was_tried_before(house: House) -> None:
    secret = "an-admin-key-from-the-settings-0123456789"

    async def story(authenticator: Authenticator) -> None:
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(bearer(secret), "::1")
        await asyncio.to_thread(house.keys.ensure_bootstrap, house.folder / "secrets", secret)
        async with asyncio.timeout(1.0):
            while True:
                try:
                    principal = await authenticator.authenticate(bearer(secret), "::1")
                    break
                except NotAuthenticated:
                    await asyncio.sleep(0.05)
        assert "operate" in principal.scopes

    run(house, story)


def test_a_database_restored_from_a_backup_empties_the_cache(house: House) -> None:
    new = house.make_key()

    async def story(authenticator: Authenticator) -> None:
        await authenticator.authenticate(bearer(new.secret), "::1")
        with house.database.write() as connection:
            connection.exec_driver_sql("DELETE FROM keys")
            connection.exec_driver_sql("UPDATE revisions SET value = 0")
        assert await wait_until_refused(authenticator, new.secret) < 1.0

    run(house, story)


# ------------------------------------------------------------------------------ outages


def test_while_the_database_is_down_known_keys_go_on_and_others_wait(house: House) -> None:
    known, unknown, revoked = house.make_key(), house.make_key(), house.make_key()

    async def story(authenticator: Authenticator) -> None:
        await authenticator.authenticate(bearer(known.secret), "::1")
        await authenticator.authenticate(bearer(revoked.secret), "::1")
        await asyncio.to_thread(house.keys.revoke_key, house.team.id, revoked.id)
        await wait_until_refused(authenticator, revoked.secret)
        house.break_database()
        assert (await authenticator.authenticate(bearer(known.secret), "::1")).key_id == known.id
        with pytest.raises(NotAuthenticated):  # refused a moment ago, and still
            await authenticator.authenticate(bearer(revoked.secret), "::1")
        for secret in (unknown.secret, "wh-wrong"):
            with pytest.raises(Unavailable) as refused:
                await authenticator.authenticate(bearer(secret), "::1")
            assert "wherry.db" not in refused.value.text
        house.monotonic.ahead = authenticate.STALE_SECONDS - 60
        assert authenticator.find(known.secret.encode()) is not None
        house.monotonic.ahead = authenticate.STALE_SECONDS + 60
        with pytest.raises(Unavailable):
            authenticator.find(known.secret.encode())
        house.mend_database()
        async with asyncio.timeout(2):
            while True:
                try:
                    await authenticator.authenticate(bearer(known.secret), "::1")
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        assert (
            await authenticator.authenticate(bearer(unknown.secret), "::1")
        ).key_id == unknown.id

    run(house, story)


# ------------------------------------------------------------------------------ floods


def test_an_address_that_sends_many_bad_keys_is_told_to_wait(house: House) -> None:
    good, fresh = house.make_key(), house.make_key()

    async def story(authenticator: Authenticator) -> None:
        await authenticator.authenticate(bearer(good.secret), "10.0.0.1")
        refusals = 0
        for number in range(authenticate.FAILURES_PER_MINUTE + 50):
            try:
                await authenticator.authenticate(bearer(f"wh-{number % 7}"), "10.0.0.1")
            except NotAuthenticated:
                refusals += 1
            except QuotaExceeded:
                break
        assert authenticate.FAILURES_PER_MINUTE <= refusals < authenticate.FAILURES_PER_MINUTE + 50
        await authenticator.authenticate(bearer(good.secret), "10.0.0.1")  # known: not hindered
        with pytest.raises(QuotaExceeded):
            await authenticator.authenticate(bearer(fresh.secret), "10.0.0.1")
        await authenticator.authenticate(bearer(fresh.secret), "10.0.0.2")
        house.monotonic.ahead = 30.0
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(bearer("wh-wrong"), "10.0.0.1")

    run(house, story)


def test_requests_without_a_key_are_not_counted_as_attacks(house: House) -> None:
    async def story(authenticator: Authenticator) -> None:
        for _ in range(authenticate.FAILURES_PER_MINUTE + 10):
            with pytest.raises(NotAuthenticated, match="no key was sent"):
                await authenticator.authenticate([], "10.0.0.1")

    run(house, story)


def test_an_ipv6_customer_is_one_address() -> None:
    buckets = authenticate.FailureBuckets(lambda: 1.0)
    for number in range(authenticate.FAILURES_PER_MINUTE):
        buckets.count(f"2001:db8:1:2::{number:x}")
    with pytest.raises(QuotaExceeded):
        buckets.check("2001:db8:1:2:ffff::1")
    buckets.check("2001:db8:1:3::1")


def test_caches_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticate, "MAX_CACHED_KEYS", 5)
    monkeypatch.setattr(authenticate, "MAX_CACHED_REFUSALS", 5)
    monkeypatch.setattr(authenticate, "MAX_ADDRESSES", 5)
    secrets = [house.make_key().secret for _ in range(12)]

    async def story(authenticator: Authenticator) -> None:
        for number, secret in enumerate(secrets):
            await authenticator.authenticate(bearer(secret), "::1")
            with pytest.raises(NotAuthenticated):
                await authenticator.authenticate(bearer(f"wh-bad-{number}"), f"10.0.0.{number}")
        assert len(authenticator._principals) == len(authenticator._digest_by_key) == 5
        assert len(authenticator._refusals) <= 5
        assert len(authenticator._failures._failures) <= 5
        for secret in secrets:  # the forgotten are found again
            await authenticator.authenticate(bearer(secret), "::1")

    run(house, story)


def test_no_secret_is_kept_in_the_cache(house: House) -> None:
    secret = house.make_key().secret

    async def story(authenticator: Authenticator) -> None:
        await authenticator.authenticate(bearer(secret), "::1")
        kept = repr((authenticator._principals, authenticator._digest_by_key))
        assert secret not in kept
        assert secret[3:] not in kept

    run(house, story)


def test_a_cached_look_up_does_not_slow_down_with_the_number_of_keys(house: House) -> None:
    secret = house.make_key().secret

    async def story(authenticator: Authenticator) -> None:
        principal = await authenticator.authenticate(bearer(secret), "::1")

        def measure() -> float:
            started = time.perf_counter()
            for _ in range(2000):
                authenticator.find(secret.encode())
            return time.perf_counter() - started

        few = min(measure() for _ in range(5))
        for number in range(50_000):
            authenticator._remember(number.to_bytes(32, "big"), principal)
        many = min(measure() for _ in range(5))
        assert many < 5 * few

    run(house, story)
