"""Keys: made, listed and revoked; and the principal that a key makes of a caller.

A secret is 256 random bits and shown once. Only its HMAC under the pepper is stored, and keys are
found by that digest, so secrets are never compared and a copy of the database opens nothing.
Scopes are independent of each other, except that `admin` includes them all.
"""

from __future__ import annotations

import hmac
import math
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec

from wherry.accounts import store
from wherry.accounts.secret_files import (
    load_pepper,
    lock_folder,
    read_secret_file,
    replace_secret_file,
)
from wherry.accounts.teams import DEFAULT_TEAM, Teams
from wherry.client.schema import Key, KeyLimits, KeyRequest, NewKey, Scope
from wherry.errors import Conflict, InvalidInput, NotFound, NotPermitted
from wherry.storage.database import Database, new_id
from wherry.telemetry import get_logger, register_secret

ALL_SCOPES: frozenset[str] = frozenset(get_args(Scope))
MAX_KEYS_PER_TEAM = 10_000
MAX_DEPLOYMENTS_PER_KEY = 1_000
MIN_ADMIN_KEY_CHARACTERS = 32
MAX_SECRET_CHARACTERS = 256
MAX_TIME = 253_402_300_799.0  # the end of the year 9999
SECRET = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_SECRET_CHARACTERS)
"""What can be a secret at all: visible ASCII, as it must fit into a header."""

_LIST_OF_TEXT = msgspec.json.Decoder(list[str])
_LIST_OF_SCOPES = msgspec.json.Decoder(list[Scope])
_LIMITS = msgspec.json.Decoder(KeyLimits)
_log = get_logger("keys")


class Principal(msgspec.Struct, frozen=True):
    """Who calls: what one key may do. It travels with the request instead of the secret."""

    key_id: str
    team_id: str
    team: str
    scopes: frozenset[str]
    """What it may do, all spelled out: with `admin` it holds every scope."""
    deployments: frozenset[str] | None = None
    """Names of the deployments it may call; None = all of its team."""
    limits: KeyLimits = KeyLimits()
    expires_at: float | None = None

    def require(self, scope: Scope) -> None:
        """Pass if the key has `scope`.

        Raises:
            NotPermitted: it has not.
        """
        if scope not in self.scopes:
            raise NotPermitted(
                f"this key lacks the scope {scope!r}",
                hint=f"ask an admin of team {self.team!r} for a key with scope {scope!r}",
            )

    def can_call(self, deployment: str) -> bool:
        """Whether it may call a deployment of its team."""
        return self.deployments is None or deployment in self.deployments


class Keys:
    """The keys of one database."""

    def __init__(self, database: Database, pepper: bytes) -> None:
        self._database = database
        self._pepper = pepper

    @classmethod
    def for_folder(cls, database: Database, folder: Path) -> Keys:
        """The keys of a data folder, whose pepper is made on first use."""
        return cls(database, load_pepper(folder / "secrets"))

    def create_key(self, team_id: str, request: KeyRequest, grantor: Principal) -> NewKey:
        """Make a key; with `dry_run` only check, and answer without id and secret.

        Raises:
            InvalidInput: the name, the deployments or the expiry cannot be.
            NotFound: the team is not the grantor's.
            NotPermitted: the key would be able to do more than the grantor.
        """
        if team_id != grantor.team_id:
            raise NotFound("no such team")
        _check_request(request)
        _check_grants(request, grantor)
        secret = "" if request.dry_run else make_secret()
        key = NewKey(
            id="" if request.dry_run else new_id("key"),
            name=request.name,
            team=grantor.team,
            prefix=show_prefix(secret),
            scopes=sorted(set(request.scopes)),
            deployments=sorted(set(request.deployments)),
            limits=request.limits,
            created_at=time.time(),
            expires_at=request.expires_at,
            secret=secret,
        )
        if not request.dry_run:
            with self._database.write() as connection:
                if store.count_active_keys(connection, team_id) >= MAX_KEYS_PER_TEAM:
                    raise Conflict(
                        f"the team has {MAX_KEYS_PER_TEAM} keys", hint="revoke some: wherry keys"
                    )
                store.add_key(connection, self._to_row(team_id, key, secret))
        return key

    def list_keys(self, team_id: str) -> list[Key]:
        """All keys of a team, revoked ones too, the newest first."""
        with self._database.read() as connection:
            return [_to_key(row) for row in store.list_keys(connection, team_id)]

    def revoke_key(self, team_id: str, key_id: str, *, dry_run: bool = False) -> Key:
        """Make a key useless for ever; every gateway knows within a second.

        Raises:
            NotFound: the team has no such key.
            Conflict: it is the team's last admin key, without which nobody could make another.
        """
        with self._database.write() as connection:
            row = store.find_key(connection, team_id, key_id)
            if row is None:
                raise NotFound(f"no key {key_id!r}", hint="`wherry keys list` shows them by id")
            key = _to_key(row)
            if key.revoked_at is None:
                others = (_to_key(each) for each in store.list_keys(connection, team_id))
                if _is_admin(key) and not any(_is_admin(each, key_id) for each in others):
                    raise Conflict(
                        "it is the last admin key of the team",
                        hint="make another first: wherry keys create NAME --scope admin",
                    )
                key.revoked_at = time.time()
                if not dry_run:
                    store.revoke_key(connection, key_id, key.revoked_at)
        return key

    def ensure_bootstrap(self, secrets_folder: Path, admin_key: str | None = None) -> str:
        """The secret of a working admin key of team `default`; makes what is missing.

        With `admin_key` (`WHERRY_ADMIN_KEY`) it is that one, added if it is new; admin keys of
        earlier starts go on working until they are revoked. Otherwise it is the key in
        `local.key`, made on the first start and again if it was revoked. Many processes may start
        at once: they all get the same secret.

        Raises:
            InvalidInput: `admin_key` is too short or cannot be sent in a header.
            Conflict: `admin_key` was revoked.
        """
        if admin_key:
            _check_admin_key(admin_key)
        with lock_folder(secrets_folder):
            if admin_key:
                register_secret(admin_key)
                if not self._ensure_admin_key(admin_key, "admin key of the settings"):
                    raise Conflict(
                        "the key in WHERRY_ADMIN_KEY has been revoked", hint="set another one"
                    )
                return admin_key
            return self._ensure_local_key(secrets_folder / "local.key")

    def _ensure_local_key(self, path: Path) -> str:
        secret = (read_secret_file(path) or b"").decode("ascii", "replace").strip()
        if not SECRET.fullmatch(secret.encode()) or len(secret) < MIN_ADMIN_KEY_CHARACTERS:
            secret = ""
        if not secret or not self._ensure_admin_key(secret, "local admin key"):
            secret = make_secret()
            # The file comes first: a crash before the row is mended by the next start.
            replace_secret_file(path, f"{secret}\n".encode())
            self._ensure_admin_key(secret, "local admin key")
            _log.info("a local admin key was made", path=path)
        register_secret(secret)
        return secret

    def _ensure_admin_key(self, secret: str, name: str) -> bool:
        """Add an admin key unless it is there; False if it was revoked."""
        team = Teams(self._database).ensure_team(DEFAULT_TEAM)
        digest = hash_secret(self._pepper, secret.encode())
        with self._database.write() as connection:
            row = store.find_key_by_digest(connection, digest)
            if row is None:
                key = Key(
                    id=new_id("key"),
                    name=name,
                    team=team.name,
                    prefix=show_prefix(secret),
                    scopes=["admin"],
                    created_at=time.time(),
                )
                store.add_key(connection, self._to_row(team.id, key, secret))
        return row is None or row.revoked_at is None

    def _to_row(self, team_id: str, key: Key, secret: str) -> dict[str, Any]:
        return {
            "id": key.id,
            "team_id": team_id,
            "name": key.name,
            "prefix": key.prefix,
            "digest": hash_secret(self._pepper, secret.encode()),
            "scopes": msgspec.json.encode(key.scopes).decode(),
            "deployments": msgspec.json.encode(key.deployments).decode(),
            "limits": msgspec.json.encode(key.limits).decode(),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
        }


def make_secret() -> str:
    """A new secret: `wh-` and 43 characters that carry 256 random bits."""
    return f"wh-{secrets.token_urlsafe(32)}"


def hash_secret(pepper: bytes, secret: bytes) -> str:
    """The only form in which a secret is stored."""
    return hmac.digest(pepper, secret, "sha256").hex()


def show_prefix(secret: str) -> str:
    """So much of a secret that its owner recognises it: of a chosen one less, it may be weaker."""
    return secret[:9] if secret.startswith("wh-") else secret[:3]


def to_principal(row: Any) -> Principal:
    """The principal of a row of `store`."""
    scopes = frozenset(_LIST_OF_TEXT.decode(row.scopes))
    return Principal(
        key_id=row.id,
        team_id=row.team_id,
        team=row.team,
        scopes=ALL_SCOPES if "admin" in scopes else scopes,
        deployments=frozenset(_LIST_OF_TEXT.decode(row.deployments)) or None,
        limits=_LIMITS.decode(row.limits),
        expires_at=row.expires_at,
    )


def _to_key(row: Any) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        team=row.team,
        prefix=row.prefix,
        scopes=_LIST_OF_SCOPES.decode(row.scopes),
        deployments=_LIST_OF_TEXT.decode(row.deployments),
        limits=_LIMITS.decode(row.limits),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _is_admin(key: Key, other_than: str = "") -> bool:
    """Whether it is a key that can make keys now."""
    if key.id == other_than or "admin" not in key.scopes or key.revoked_at is not None:
        return False
    return key.expires_at is None or key.expires_at > time.time()


def _check_admin_key(admin_key: str) -> None:
    if len(admin_key) < MIN_ADMIN_KEY_CHARACTERS:
        raise InvalidInput(
            f"WHERRY_ADMIN_KEY has {len(admin_key)} characters",
            hint=f"use at least {MIN_ADMIN_KEY_CHARACTERS}, e.g. from: openssl rand -hex 32",
        )
    if not SECRET.fullmatch(admin_key.encode("utf-8", "replace")):
        raise InvalidInput(
            "WHERRY_ADMIN_KEY cannot be sent in a header",
            hint=f"use up to {MAX_SECRET_CHARACTERS} visible ASCII characters without spaces",
        )
    if len(set(admin_key)) < 8:
        raise InvalidInput(
            "WHERRY_ADMIN_KEY repeats a few characters only", hint="openssl rand -hex 32"
        )


def _check_request(request: KeyRequest) -> None:
    if not request.name.isprintable() or not request.name.strip():
        raise InvalidInput("a key's name is made of visible characters", param="name")
    if not request.scopes:
        raise InvalidInput("a key without scopes could do nothing", param="scopes")
    if len(request.deployments) > MAX_DEPLOYMENTS_PER_KEY:
        raise InvalidInput(
            f"a key can name {MAX_DEPLOYMENTS_PER_KEY} deployments",
            hint="leave the list empty for all of the team",
            param="deployments",
        )
    expiry = request.expires_at
    if expiry is not None and (not math.isfinite(expiry) or not time.time() < expiry < MAX_TIME):
        raise InvalidInput(
            f"expires_at={expiry!r} is not a time to come",
            hint="send Unix seconds, or leave it out",
            param="expires_at",
        )


def _check_grants(request: KeyRequest, grantor: Principal) -> None:
    if not grantor.scopes.issuperset(request.scopes):
        _refuse("scopes", set(request.scopes) - grantor.scopes)
    if grantor.deployments is not None:
        wanted = set(request.deployments)
        if not wanted or not grantor.deployments.issuperset(wanted):
            _refuse("deployments", wanted - grantor.deployments or {"all of the team"})
    if grantor.expires_at is not None and (
        request.expires_at is None or request.expires_at > grantor.expires_at
    ):
        _refuse("expiry", {"later than your own"})
    for field in KeyLimits.__struct_fields__:
        own: int = getattr(grantor.limits, field)
        wanted_limit: int = getattr(request.limits, field)
        if own and not 0 < wanted_limit <= own:
            _refuse("limits", {f"{field} above your {own}"})


def _refuse(grant: str, excess: Iterable[str]) -> None:
    names = ", ".join(sorted(excess))
    raise NotPermitted(
        f"a key cannot grant more than it has: {grant}: {names}",
        hint="ask for less, or let a key with wider rights make it",
    )
