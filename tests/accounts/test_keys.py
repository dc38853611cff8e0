"""Tests of keys: what is stored, what may be granted, and the first start."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wherry.accounts import store
from wherry.accounts.keys import ALL_SCOPES, Keys, Principal
from wherry.accounts.secret_files import load_pepper, replace_secret_file
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyLimits, KeyRequest
from wherry.errors import Conflict, InvalidInput, NotFound, NotPermitted
from wherry.storage.database import Database

ADMIN_KEY = "an-admin-key-of-at-least-32-characters"


def read_revision(database: Database) -> int:
    with database.read() as connection:
        return store.read_keys_revision(connection)


def make_principal(**fields: Any) -> Principal:
    known: dict[str, Any] = {
        "key_id": "key_1",
        "team_id": "team_1",
        "team": "default",
        "scopes": frozenset({"invoke"}),
    }
    return Principal(**(known | fields))


# ------------------------------------------------------------------------------ create, list, revoke


def test_a_new_key_is_shown_once_and_stored_as_a_digest(
    database: Database, keys: Keys, admin: Principal, tmp_path: Path
) -> None:
    new = keys.create_key(admin.team_id, KeyRequest(name="laptop"), admin)
    assert new.secret.startswith("wh-")
    assert len(new.secret) == 46
    assert new.secret.startswith(new.prefix)
    assert len(new.prefix) == 9
    listed = keys.list_keys(admin.team_id)[0]
    assert (listed.id, listed.name, listed.scopes) == (new.id, "laptop", ["invoke"])
    assert not hasattr(listed, "secret")
    database.close()
    for file in (tmp_path / "data").glob("wherry.db*"):
        assert new.secret.encode() not in file.read_bytes()
        assert new.secret[3:].encode() not in file.read_bytes()


def test_secrets_never_repeat(keys: Keys, admin: Principal) -> None:
    made = [keys.create_key(admin.team_id, KeyRequest(name="k"), admin).secret for _ in range(20)]
    assert len(set(made)) == 20


def test_each_change_has_its_own_revision(database: Database, keys: Keys, admin: Principal) -> None:
    before = read_revision(database)
    new = keys.create_key(admin.team_id, KeyRequest(name="k"), admin)
    assert read_revision(database) == before + 1
    keys.revoke_key(admin.team_id, new.id)
    assert read_revision(database) == before + 2
    with database.read() as connection:
        changed = store.list_changed_keys(connection, before + 1)
    assert [(row.id, row.changed_revision) for row in changed] == [(new.id, before + 2)]


def test_a_dry_run_changes_nothing(database: Database, keys: Keys, admin: Principal) -> None:
    new = keys.create_key(admin.team_id, KeyRequest(name="k"), admin)
    before = (read_revision(database), len(keys.list_keys(admin.team_id)))
    planned = keys.create_key(admin.team_id, KeyRequest(name="k2", dry_run=True), admin)
    assert (planned.id, planned.secret) == ("", "")
    assert keys.revoke_key(admin.team_id, new.id, dry_run=True).revoked_at is not None
    assert (read_revision(database), len(keys.list_keys(admin.team_id))) == before
    assert keys.list_keys(admin.team_id)[0].revoked_at is None


def test_revoking_twice_keeps_the_first_time(keys: Keys, admin: Principal) -> None:
    new = keys.create_key(admin.team_id, KeyRequest(name="k"), admin)
    first = keys.revoke_key(admin.team_id, new.id)
    assert first.revoked_at is not None
    assert keys.revoke_key(admin.team_id, new.id).revoked_at == first.revoked_at


def test_keys_of_another_team_do_not_exist(
    database: Database, keys: Keys, admin: Principal
) -> None:
    other = Teams(database).ensure_team("other")
    mine = keys.create_key(admin.team_id, KeyRequest(name="k"), admin)
    with pytest.raises(NotFound):
        keys.revoke_key(other.id, mine.id)
    with pytest.raises(NotFound):
        keys.create_key(other.id, KeyRequest(name="k"), admin)
    assert keys.list_keys(other.id) == []
    assert keys.list_keys(admin.team_id)[0].revoked_at is None


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "line\nbreak"},
        {"name": "\x1b[31mred"},
        {"name": "   "},
        {"scopes": []},
        {"expires_at": 1.0},
        {"expires_at": float("nan")},
        {"expires_at": float("inf")},
        {"expires_at": 1e15},
        {"deployments": ["d"] * 1001},
    ],
)
def test_requests_that_make_no_sense_are_refused(
    keys: Keys, admin: Principal, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        keys.create_key(admin.team_id, KeyRequest(**({"name": "k"} | fields)), admin)
    assert len(keys.list_keys(admin.team_id)) == 1


def test_unknown_fields_cannot_be_smuggled_in() -> None:
    for field in ("team_id", "is_admin", "digest", "revoked_at"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"name": "k", field: "x"}, KeyRequest)


# ------------------------------------------------------------------------------ grants


@pytest.mark.parametrize(
    ("grantor", "request_fields"),
    [
        ({"scopes": frozenset({"invoke"})}, {"scopes": ["admin"]}),
        ({"scopes": frozenset({"operate"})}, {"scopes": ["invoke"]}),
        ({"scopes": frozenset({"invoke", "publish"})}, {"scopes": ["invoke", "operate"]}),
        ({"deployments": frozenset({"a"})}, {"deployments": ["a", "b"]}),
        ({"deployments": frozenset({"a"})}, {"deployments": []}),
        ({"expires_at": 4e9}, {"expires_at": None}),
        ({"expires_at": 4e9}, {"expires_at": 4e9 + 1}),
        ({"limits": KeyLimits(requests_per_minute=5)}, {}),
        (
            {"limits": KeyLimits(tokens_per_minute=5)},
            {"limits": KeyLimits(tokens_per_minute=6)},
        ),
    ],
)
def test_a_key_cannot_grant_more_than_it_has(
    keys: Keys, grantor: dict[str, Any], request_fields: dict[str, Any]
) -> None:
    request = KeyRequest(**({"name": "k"} | request_fields))
    for dry_run in (True, False):
        with pytest.raises(NotPermitted):
            keys.create_key(
                "team_1",
                msgspec.structs.replace(request, dry_run=dry_run),
                make_principal(**grantor),
            )
    assert keys.list_keys("team_1") == []


def test_a_key_can_grant_what_it_has(database: Database, keys: Keys) -> None:
    team = Teams(database).ensure_team("default")
    grantor = make_principal(
        team_id=team.id,
        scopes=frozenset({"invoke", "publish"}),
        deployments=frozenset({"a", "b"}),
        expires_at=4e9,
        limits=KeyLimits(concurrency=4),
    )
    request = KeyRequest(
        name="k",
        scopes=["publish", "invoke", "invoke"],
        deployments=["b"],
        expires_at=3.9e9,
        limits=KeyLimits(concurrency=4, requests_per_minute=100),
    )
    keys.create_key(team.id, request, grantor)
    listed = keys.list_keys(team.id)[0]
    assert listed.scopes == ["invoke", "publish"]
    assert listed.deployments == ["b"]
    assert listed.expires_at == 3.9e9
    assert listed.limits == KeyLimits(concurrency=4, requests_per_minute=100)


def test_admin_includes_every_scope_and_others_include_none(admin: Principal) -> None:
    assert admin.scopes == ALL_SCOPES == {"invoke", "download", "publish", "operate", "admin"}
    operator = make_principal(scopes=frozenset({"operate"}))
    operator.require("operate")
    for scope in ("invoke", "publish", "admin"):
        with pytest.raises(NotPermitted, match=scope):
            operator.require(scope)


def test_a_principal_calls_only_its_deployments() -> None:
    assert make_principal().can_call("anything")
    limited = make_principal(deployments=frozenset({"a"}))
    assert limited.can_call("a")
    assert not limited.can_call("b")


# ------------------------------------------------------------------------------ the first start


def test_the_first_start_makes_one_private_admin_key(keys: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "secrets"
    secret = keys.ensure_bootstrap(folder)
    assert keys.ensure_bootstrap(folder) == secret
    assert (folder / "local.key").read_text() == f"{secret}\n"
    for name in ("local.key", "pepper"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_given_admin_key_is_added_and_the_local_one_goes_on(
    database: Database, keys: Keys, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "secrets"
    local = keys.ensure_bootstrap(folder)
    assert keys.ensure_bootstrap(folder, ADMIN_KEY) == ADMIN_KEY
    assert keys.ensure_bootstrap(folder, ADMIN_KEY) == ADMIN_KEY
    assert keys.ensure_bootstrap(folder, ADMIN_KEY + "-new") == ADMIN_KEY + "-new"
    assert keys.ensure_bootstrap(folder) == local
    team = Teams(database).get_team("default")
    listed = keys.list_keys(team.id)
    assert len(listed) == 3
    assert all(key.scopes == ["admin"] and key.revoked_at is None for key in listed)
    assert ADMIN_KEY[:9] not in [key.prefix for key in listed]


@pytest.mark.parametrize(
    "key", ["short", "x" * 40, "a key with spaces in it, long enough", "ключ" * 10, "k\n" * 20]
)
def test_a_weak_or_unsendable_admin_key_is_refused(keys: Keys, tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput):
        keys.ensure_bootstrap(tmp_path / "data" / "secrets", key)


def test_a_revoked_admin_key_does_not_come_back(
    database: Database, keys: Keys, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "secrets"
    keys.ensure_bootstrap(folder, ADMIN_KEY)
    team = Teams(database).get_team("default")
    first = keys.list_keys(team.id)[0].id
    keys.ensure_bootstrap(folder)
    keys.revoke_key(team.id, first)
    with pytest.raises(Conflict):
        keys.ensure_bootstrap(folder, ADMIN_KEY)


def test_the_last_admin_key_cannot_be_revoked(
    database: Database, keys: Keys, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "secrets"
    keys.ensure_bootstrap(folder)
    team = Teams(database).get_team("default")
    (only,) = keys.list_keys(team.id)
    for dry_run in (True, False):
        with pytest.raises(Conflict, match="last admin key"):
            keys.revoke_key(team.id, only.id, dry_run=dry_run)
    keys.ensure_bootstrap(folder, ADMIN_KEY)
    keys.revoke_key(team.id, only.id)


def test_a_revoked_local_key_is_replaced_by_another(
    database: Database, keys: Keys, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "secrets"
    first = keys.ensure_bootstrap(folder)
    team = Teams(database).get_team("default")
    revoked = keys.list_keys(team.id)[0].id
    keys.ensure_bootstrap(folder, ADMIN_KEY)
    keys.revoke_key(team.id, revoked)
    second = keys.ensure_bootstrap(folder)
    assert second != first
    assert {key.id for key in keys.list_keys(team.id) if key.revoked_at is not None} == {revoked}


def test_a_half_made_first_start_is_mended(keys: Keys, database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "secrets"
    secret = "wh-" + "a1B2c3D4" * 5 + "xyz"
    replace_secret_file(folder / "local.key", secret.encode())  # killed before the row was written
    assert keys.ensure_bootstrap(folder) == secret
    assert len(keys.list_keys(Teams(database).get_team("default").id)) == 1


def test_many_starts_at_once_make_one_key(tmp_path: Path, database: Database) -> None:
    folder = tmp_path / "data"
    script = (
        "import sys; from pathlib import Path; from wherry.accounts.keys import Keys;"
        "from wherry.storage.database import Database; folder = Path(sys.argv[1]);"
        "database = Database.for_folder(folder);"
        "print(Keys.for_folder(database, folder).ensure_bootstrap(folder / 'secrets'))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    printed = {process.communicate(timeout=60)[0] for process in processes}
    assert len(printed) == 1
    assert printed.pop().startswith(b"wh-")
    assert (
        len(Keys.for_folder(database, folder).list_keys(Teams(database).get_team("default").id))
        == 1
    )


def test_the_pepper_is_made_once_however_many_ask(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        peppers = set(threads.map(load_pepper, [tmp_path / "secrets"] * 16))
    assert len(peppers) == 1
    assert [file.name for file in (tmp_path / "secrets").iterdir()] == ["pepper"]


def test_secrets_that_others_may_read_are_refused(keys: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "secrets"
    (folder / "pepper").chmod(0o640)
    with pytest.raises(Conflict, match="may read"):
        load_pepper(folder)


def test_a_damaged_pepper_is_told_and_not_replaced(tmp_path: Path) -> None:
    replace_secret_file(tmp_path / "secrets" / "pepper", b"too short")
    with pytest.raises(Conflict, match="damaged"):
        load_pepper(tmp_path / "secrets")


def test_created_at_is_now(keys: Keys, admin: Principal) -> None:
    before = time.time()
    new = keys.create_key(admin.team_id, KeyRequest(name="k"), admin)
    assert before <= new.created_at <= time.time()


@pytest.mark.parametrize("part", ["", "secrets"])
def test_a_folder_that_everybody_may_change_holds_no_secrets(
    keys: Keys, tmp_path: Path, part: str
) -> None:
    data = tmp_path / "data"
    keys.ensure_bootstrap(data / "secrets")
    (data / part).chmod(0o777)
    with pytest.raises(Conflict, match="everybody"):
        keys.ensure_bootstrap(data / "secrets")
