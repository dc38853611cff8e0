"""Who calls: from a secret in the headers to a principal, without asking the database each time.

Verdicts are cached by a digest of the secret, so that no secret is compared or kept. A watcher
polls the revision of the keys and drops what changed: a revoked key is refused within a second.
While the database is down known keys go on for fifteen minutes; unknown ones are told to try later.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Any

from wherry.accounts import store
from wherry.accounts.keys import SECRET, Principal, hash_secret, to_principal
from wherry.errors import NotAuthenticated, QuotaExceeded, Unavailable
from wherry.storage.database import Database
from wherry.telemetry import get_logger

MAX_CACHED_KEYS = 100_000
MAX_CACHED_REFUSALS = 10_000
MAX_REVOKED = 10_000
MAX_CACHED_BY_ID = 256
"""Keys whose batches are at work."""
MAX_LOOKUPS = 64
"""Secrets looked up in the database at once."""
MAX_ADDRESSES = 10_000
REFUSAL_SECONDS = 2.0
LOOKUP_SECONDS = 5.0
POLL_SECONDS = 0.4
STALE_SECONDS = 900.0
"""How long verdicts are trusted without hearing from the database."""
FAILURES_PER_MINUTE = 300
"""Bad keys that one address may send; generous, as many callers may share one proxy."""

_HOW = "send `Authorization: Bearer KEY` or `x-api-key: KEY`"
_log = get_logger("authenticate")

Headers = Iterable[tuple[bytes, bytes]]
"""Names in lower case, as ASGI has them."""


class Authenticator:
    """Finds the principals of one gateway; for its loop's thread.

    Run `watch()` as a task as long as keys are checked: without it nobody is let in for long.
    """

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with an empty cache.

        Args:
            database: where keys are.
            pepper: HMAC key of the stored digests.
            clock: Unix seconds, for expiry.
            monotonic: seconds that never go back, for everything else.
        """
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._monotonic = monotonic
        # The cache's own digest is four times as fast as the stored one; the salt keeps it useless
        # outside this process.
        self._salt = secrets.token_bytes(32)
        self._principals: dict[bytes, Principal] = {}
        self._digest_by_key: dict[str, bytes] = {}
        self._by_key_id: dict[str, Principal] = {}
        self._refusals: dict[bytes, float] = {}
        self._revoked: dict[str, None] = {}
        self._lookups: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._failures = FailureBuckets(monotonic)
        self._revision: int | None = None
        self._heard_at = monotonic()
        # Two pools: look-ups that hang must not keep the watcher from hearing of revocations.
        self._lookup_threads = ThreadPoolExecutor(4, thread_name_prefix="keys")
        self._watch_thread = ThreadPoolExecutor(1, thread_name_prefix="keys-watch")

    def digest_of(self, secret: bytes) -> bytes:
        """What this process knows a secret by."""
        return sha256(self._salt + secret).digest()

    def find(self, secret: bytes) -> Principal | None:
        """As `find_digest`, for who has no digest yet."""
        return self.find_digest(self.digest_of(secret))

    def find_digest(self, digest: bytes) -> Principal | None:
        """The principal of a secret seen before; None if the database must be asked.

        This is the fast path: no I/O, and the same cost for one key and for a hundred thousand.

        Raises:
            NotAuthenticated: the key has expired.
            Unavailable: the database has been silent for too long to trust the verdict.
        """
        principal = self._principals.get(digest)
        if principal is None:
            return None
        if self._monotonic() - self._heard_at > STALE_SECONDS:
            raise Unavailable("keys cannot be checked: the database has been down for too long")
        if principal.expires_at is not None:
            self._check_expiry(principal)
        return principal

    async def authenticate(self, headers: Headers, address: str) -> Principal:
        """The principal of a request.

        Args:
            headers: all headers of the request.
            address: where it comes from; too many bad keys from there are told to wait.

        Raises:
            NotAuthenticated: no key, not one of ours, expired or revoked.
            QuotaExceeded: too many bad keys came from this address.
            Unavailable: the database cannot say.
        """
        secret = find_secret(headers)
        try:
            principal = self.find(secret)
            if principal is not None:
                return principal
            self._failures.check(address)
            return await self._look_up(secret)
        except NotAuthenticated:
            self._failures.count(address)
            raise

    async def find_key(self, team_id: str, key_id: str) -> Principal:
        """The principal of a key whose secret is not at hand: who made a batch.

        Raises:
            NotAuthenticated: it was revoked or has expired.
            Unavailable: the database cannot say.
        """
        principal = self._by_key_id.get(key_id)
        if principal is None:
            loop = asyncio.get_running_loop()
            principal = await loop.run_in_executor(
                self._lookup_threads, self._read_key_by_id, team_id, key_id
            )
            self._by_key_id[key_id] = principal
            _drop_oldest(self._by_key_id, MAX_CACHED_BY_ID)
        if key_id in self._revoked:
            raise NotAuthenticated("the key was revoked")
        self._check_expiry(principal)
        return principal

    def is_current(self, principal: Principal) -> bool:
        """Whether a principal found earlier still holds; streams ask now and then."""
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            return False
        return principal.key_id not in self._revoked

    async def watch(self) -> None:
        """Follow changes of keys until cancelled; an outage of the database is waited out."""
        is_down = False
        while True:
            try:
                await self._poll()
                is_down = False
            except Exception as error:  # noqa: BLE001  whatever failed, the next poll may succeed
                if not is_down:
                    _log.warning("changes of keys cannot be followed", error=error)
                is_down = True
            await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End the threads; a look-up that hangs is not waited for."""
        self._lookup_threads.shutdown(wait=False, cancel_futures=True)
        self._watch_thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ look-ups

    async def _look_up(self, secret: bytes) -> Principal:
        digest = self.digest_of(secret)
        principal = None
        if self._refusals.get(digest, -1.0) < self._monotonic():
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    # shielded: others may wait for the same answer when this client leaves
                    principal = await asyncio.shield(self._share_lookup(digest, secret))
            except (TimeoutError, Unavailable) as error:
                raise _cannot_check() from error
        if principal is None:
            raise NotAuthenticated("this is not a key of this server", hint="check the key")
        self._check_expiry(principal)
        return principal

    def _share_lookup(self, digest: bytes, secret: bytes) -> asyncio.Task[Principal | None]:
        """The look-up of a secret that runs already, or a new one."""
        task = self._lookups.get(digest)
        if task is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                raise _cannot_check()
            task = asyncio.create_task(self._fetch(digest, secret))
            self._lookups[digest] = task
            task.add_done_callback(lambda done: self._finish_lookup(digest, done))
        return task

    def _finish_lookup(self, digest: bytes, task: asyncio.Task[Principal | None]) -> None:
        self._lookups.pop(digest, None)
        if not task.cancelled():
            task.exception()  # taken note of, even if everyone who waited has left

    async def _fetch(self, digest: bytes, secret: bytes) -> Principal | None:
        loop = asyncio.get_running_loop()
        principal = None
        for _ in range(3):
            revision, principal = await loop.run_in_executor(
                self._lookup_threads, self._read_key, secret
            )
            if self._revision is None:
                self._revision = revision
            # An older verdict may be of before a revocation that the watcher has handled already.
            if revision >= self._revision:
                self._remember(digest, principal)
                break
        return principal

    def _read_key(self, secret: bytes) -> tuple[int, Principal | None]:
        with self._database.read() as connection:
            revision = store.read_keys_revision(connection)  # first, so that the row is not older
            row = store.find_key_by_digest(connection, hash_secret(self._pepper, secret))
        return revision, None if row is None or row.revoked_at else to_principal(row)

    def _read_key_by_id(self, team_id: str, key_id: str) -> Principal:
        with self._database.read() as connection:
            row = store.find_key(connection, team_id, key_id)
        if row is None or row.revoked_at:
            raise NotAuthenticated("the key was revoked")
        return to_principal(row)

    def _remember(self, digest: bytes, principal: Principal | None) -> None:
        if principal is None:
            self._refusals[digest] = self._monotonic() + REFUSAL_SECONDS
            _drop_oldest(self._refusals, MAX_CACHED_REFUSALS)
            return
        self._principals[digest] = principal
        self._digest_by_key[principal.key_id] = digest
        if len(self._principals) > MAX_CACHED_KEYS:
            self._drop(next(iter(self._principals.values())).key_id)

    def _drop(self, key_id: str) -> None:
        self._by_key_id.pop(key_id, None)
        digest = self._digest_by_key.pop(key_id, None)
        if digest is not None:
            self._principals.pop(digest, None)

    def _check_expiry(self, principal: Principal) -> None:
        if principal.expires_at is not None and principal.expires_at <= self._clock():
            raise NotAuthenticated("this key has expired", hint="ask your admin for a new one")

    # ------------------------------------------------------------------ changes

    async def _poll(self) -> None:
        started_at = self._monotonic()
        revision, changes = await asyncio.get_running_loop().run_in_executor(
            self._watch_thread, self._read_changes, self._revision
        )
        if self._revision is not None and revision < self._revision:
            # The database was restored from a backup: nothing that is cached can be trusted.
            self._principals.clear()
            self._digest_by_key.clear()
            self._by_key_id.clear()
        for key_id, is_revoked in changes:
            self._drop(key_id)
            if is_revoked:
                self._revoked[key_id] = None
        _drop_oldest(self._revoked, MAX_REVOKED)
        if revision != self._revision:
            self._refusals.clear()
        self._revision = revision
        self._heard_at = started_at

    def _read_changes(self, since: int | None) -> tuple[int, list[tuple[str, bool]]]:
        revision = self._database.revisions().get(store.KEYS, 0)
        if since is None or revision <= since:
            return revision, []
        with self._database.read() as connection:
            revision = store.read_keys_revision(connection)
            rows = store.list_changed_keys(connection, since)
        return revision, [(row.id, row.revoked_at is not None) for row in rows]


class FailureBuckets:
    """How many bad keys each address sent lately."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures: dict[str, tuple[float, float]] = {}

    def check(self, address: str) -> None:
        """Pass unless an address has failed too often.

        Raises:
            QuotaExceeded: it has.
        """
        if not self._failures:
            return
        failures = self._read(_find_network(address))
        if failures >= FAILURES_PER_MINUTE:
            raise QuotaExceeded(
                "too many bad keys came from your address",
                hint="check the key, then wait a little",
                retry_after_seconds=(failures - FAILURES_PER_MINUTE + 1) * 60 / FAILURES_PER_MINUTE,
            )

    def count(self, address: str) -> None:
        """Count a failure; it is forgotten bit by bit within a minute."""
        network = _find_network(address)
        failures = self._read(network) + 1
        self._failures.pop(network, None)  # so that the order is that of the last failure
        self._failures[network] = (failures, self._monotonic())
        _drop_oldest(self._failures, MAX_ADDRESSES)

    def _read(self, network: str) -> float:
        failures, at = self._failures.get(network, (0.0, 0.0))
        return max(0.0, failures - (self._monotonic() - at) * FAILURES_PER_MINUTE / 60)


def find_secret(headers: Headers) -> bytes:
    """The secret of a request, the same way for every door.

    Raises:
        NotAuthenticated: there is none, or more than one, or its form is wrong.
    """
    bearer: bytes | None = None
    api_key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if bearer is not None:
                raise _malformed("the header authorization was sent twice")
            bearer = parse_bearer(value)
        elif name == b"x-api-key":
            if api_key is not None:
                raise _malformed("the header x-api-key was sent twice")
            if not SECRET.fullmatch(value):
                raise _malformed("the header x-api-key holds no key")
            api_key = value
    if bearer is None and api_key is None:
        raise NotAuthenticated("no key was sent", hint=_HOW)
    if bearer is not None and api_key is not None and bearer != api_key:
        raise _malformed("two different keys were sent")
    return bearer or api_key or b""


def parse_bearer(value: bytes) -> bytes:
    """The secret in a value of the header `authorization`.

    Raises:
        NotAuthenticated: it is not `Bearer` and one word of visible characters.
    """
    secret = value[7:]
    if value[:7].lower() != b"bearer " or not SECRET.fullmatch(secret):
        raise _malformed("the header authorization is not `Bearer KEY`")
    return secret


def _malformed(message: str) -> NotAuthenticated:
    return NotAuthenticated(message, hint=_HOW)


def _cannot_check() -> Unavailable:
    # What the database said may name hosts and files: it is for the log, not for strangers.
    return Unavailable("keys cannot be checked right now", hint="try again; see `wherry doctor`")


def _find_network(address: str) -> str:
    """What counts as one address: of IPv6 the /64 that every customer is given."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return address[:64]


def _drop_oldest(entries: dict[Any, Any], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]
