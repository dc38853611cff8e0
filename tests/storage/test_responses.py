"""Responses that are kept: whose they are, how long, and that what is deleted is gone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.storage.data_folder import make_data_folder

from wherry.errors import InvalidInput, NotFound, TooLarge
from wherry.storage import responses
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database
from wherry.storage.responses import ResponseStore, StoredResponse
from wherry.storage.tables import stored_responses

DAY = 86_400.0


class House:
    """A data folder with two teams, and the store in it."""

    def __init__(self, folder: Path, max_team_bytes: int = 1 << 20) -> None:
        self.database = Database.for_folder(folder)
        self.blobs = LocalBlobs(folder / "responses")
        self.store = ResponseStore(self.database, self.blobs, 30 * DAY, max_team_bytes)
        self.mine, self.theirs = "mine", "theirs"

    def add(self, name: str, previous: str = "", state: str = "completed", size: int = 10) -> str:
        """Keep a response whose record is its name, filled up."""
        record = name.encode().ljust(size, b".")
        kept = StoredResponse(name, "chat", previous, state, state == "in_progress", "", record)
        self.store.add(self.mine, kept)
        return name

    def change(self, name: str, **fields: Any) -> None:
        """Let time pass for a response."""
        with self.database.write() as connection:
            connection.execute(
                update(stored_responses).where(stored_responses.c.id == name).values(**fields)
            )

    def files(self) -> set[bytes]:
        """What lies on the disk."""
        return {
            self.blobs.path(digest).read_bytes().rstrip(b".") for digest in self.blobs.digests()
        }

    def state(self, name: str) -> str:
        return self.store.find(self.mine, name).state


@pytest.fixture
def house(tmp_path: Path):
    house = House(make_data_folder(tmp_path, mine="mine", theirs="theirs"))
    yield house
    house.database.close()


def test_a_response_is_read_as_it_was_kept_by_its_team_alone(house: House):
    house.add("resp_1")
    found = house.store.find(house.mine, "resp_1")
    assert (found.id, found.deployment, found.state) == ("resp_1", "chat", "completed")
    assert found.record.startswith(b"resp_1")
    for team, name in ((house.theirs, "resp_1"), (house.mine, "resp_2"), (house.mine, "")):
        with pytest.raises(NotFound):
            house.store.find(team, name)
        with pytest.raises(NotFound):
            house.store.history(team, name)
        with pytest.raises(NotFound):
            house.store.delete(team, name)


def test_another_process_reads_it_too(house: House, tmp_path: Path):
    house.add("resp_1")
    other = House(tmp_path)
    assert other.store.find(other.mine, "resp_1").record == b"resp_1...."
    other.database.close()


def test_a_conversation_is_told_from_its_beginning(house: House):
    house.add("a")
    house.add("b", "a")
    house.add("c", "b")
    house.add("fork", "a")
    assert [each.id for each in house.store.history(house.mine, "c")] == ["a", "b", "c"]
    assert [each.id for each in house.store.history(house.mine, "fork")] == ["a", "fork"]


def test_what_is_deleted_is_gone_and_cannot_be_gone_on_from(house: House):
    house.add("a")
    house.add("b", "a")
    house.store.delete(house.mine, "a")
    assert house.files() == {b"b"}
    assert house.state("b") == "completed"
    with pytest.raises(NotFound, match="'a'") as caught:
        house.store.history(house.mine, "b")
    assert caught.value.param == "previous_response_id"


def test_a_conversation_has_a_largest_number_of_turns(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(responses, "MAX_TURNS", 3)
    for name, previous in ("a", ""), ("b", "a"), ("c", "b"), ("d", "c"):
        house.add(name, previous)
    assert len(house.store.history(house.mine, "c")) == 3
    with pytest.raises(InvalidInput, match="more than 3 turns"):
        house.store.history(house.mine, "d")


def test_what_has_expired_is_not_there_and_then_deleted(house: House):
    house.add("old")
    house.add("new")
    house.change("old", expires_at=1.0)
    with pytest.raises(NotFound):
        house.store.find(house.mine, "old")
    assert house.store.sweep() == 1
    assert house.files() == {b"new"}


def test_a_conversation_lives_as_long_as_its_last_turn(house: House):
    house.add("a")
    house.change("a", expires_at=2e9)
    before = house.store.find(house.mine, "a")
    house.add("b", "a")
    with house.database.read() as connection:
        rows = connection.execute(select(stored_responses.c.expires_at)).scalars().all()
    assert len(set(rows)) == 1
    assert before.record == house.store.find(house.mine, "a").record


def test_a_team_keeps_no_more_than_it_may_and_loses_what_rested_longest(tmp_path: Path):
    house = House(make_data_folder(tmp_path, mine="mine", theirs="theirs"), max_team_bytes=6400)
    for number in range(5):
        house.add(f"r{number}", size=1000)
        house.change(f"r{number}", expires_at=time.time() + 100 + number)
    house.change("r0", expires_at=time.time() + 40 * DAY)  # somebody went on from it
    house.add("r5", size=2000)
    with house.database.read() as connection:
        kept = set(connection.execute(select(stored_responses.c.id)).scalars())
    assert {"r0", "r4"} <= kept
    assert "r1" not in kept
    assert house.files() == {name.encode() for name in kept}
    with pytest.raises(TooLarge):
        house.add("r6", size=6401)
    house.database.close()


def test_a_run_ends_once(house: House):
    house.add("run", state="in_progress")
    assert house.store.finish("run", "completed", b"whole")
    assert house.store.find(house.mine, "run").record == b"whole"
    assert not house.store.finish("run", "failed", b"late")
    assert house.state("run") == "completed"
    assert house.files() == {b"whole"}


def test_a_run_that_was_deleted_leaves_nothing(house: House):
    house.add("run", state="in_progress")
    house.store.delete(house.mine, "run")
    assert house.store.renew(["run"]) == {"run"}
    assert not house.store.finish("run", "completed", b"whole")
    assert house.files() == set()


def test_a_run_goes_on_while_its_gateway_says_so_and_fails_when_it_does_not(house: House):
    for name in ("alive", "read", "swept"):
        house.add(name, state="in_progress")
        house.change(name, lease_until=1.0)
    assert house.store.renew(["alive"]) == set()
    found = house.store.find(house.mine, "read")
    assert found.state == "failed"
    assert "server_error" in found.error
    house.store.sweep()
    with house.database.read() as connection:
        states = dict(
            connection.execute(select(stored_responses.c.id, stored_responses.c.state)).all()
        )
    assert states == {"alive": "in_progress", "read": "failed", "swept": "failed"}
    assert house.store.renew(["read"]) == {"read"}, "whoever still runs it shall stop"


def test_a_run_is_told_that_it_is_cancelled(house: House):
    house.add("run", state="in_progress")
    house.store.ask_cancel(house.theirs, "run")
    assert house.store.renew(["run"]) == set(), "by its own team only"
    house.store.ask_cancel(house.mine, "run")
    assert house.store.renew(["run"]) == {"run"}


def test_files_that_nothing_refers_to_are_swept(house: House, monkeypatch: pytest.MonkeyPatch):
    house.add("kept")
    house.blobs.put_file(_written(house, b"lost"))
    house.store.sweep()
    assert house.files() == {b"kept", b"lost"}, "it may be on its way into the table"
    monkeypatch.setattr(responses, "ORPHAN_SECONDS", 0.0)
    house.store.sweep()
    assert house.files() == {b"kept"}


def _written(house: House, content: bytes) -> Path:
    assert house.database.file is not None
    path = house.database.file.with_name("loose")
    path.write_bytes(content)
    return path
