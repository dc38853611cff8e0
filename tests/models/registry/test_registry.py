"""Versions are numbered, immutable and of one team; files live as long as a version needs them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.storage.data_folder import make_data_folder

from wherry.errors import Conflict, InvalidInput, ModelNotFound, NotFound
from wherry.models.bundle import MANIFEST, Manifest, open_bundle
from wherry.models.registry.registry import Registry
from wherry.models.trust.materialise import materialise
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database, read_revisions
from wherry.storage.tables import events

TEAM, OTHER_TEAM = "team_1", "team_2"
MANIFEST_OF_ECHO = Manifest(task="tensor", runtime="onnx", files=("model.onnx",), source="test")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with two teams, made once and copied for each test."""
    folder = tmp_path_factory.mktemp("migrated")
    return make_data_folder(folder, **{TEAM: "default", OTHER_TEAM: "others"})


@pytest.fixture
def database(tmp_path: Path, migrated: Path):
    shutil.copytree(migrated, tmp_path / "data")
    database = Database.for_folder(tmp_path / "data")
    yield database
    database.close()


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "data" / "blobs")


@pytest.fixture
def registry(database: Database, blobs: LocalBlobs, tmp_path: Path) -> Registry:
    return Registry(database, blobs, tmp_path / "data")


class Maker:
    """Makes folders with models, each with its own bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, content: str = "one", **more: str) -> Path:
        folder = self.folder / content
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"model.onnx": content, **more}.items():
            (folder / name).write_text(text)
        return folder


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "models")


def add(registry: Registry, folder: Path, name: str = "echo", **keywords):
    return registry.add_version(TEAM, name, folder, MANIFEST_OF_ECHO, **keywords)


def test_versions_are_counted_from_one(registry: Registry, make: Maker):
    first = add(registry, make("one"), memory_mib=120, load_seconds=0.5)
    second = add(registry, make("two"))
    assert (first.number, second.number) == (1, 2)
    assert first.digest.startswith("sha256:")
    assert first.digest != second.digest
    assert (first.card.memory_mib, first.card.load_seconds) == (120, 0.5)
    model = registry.model(TEAM, "echo")
    assert (model.team, model.task, model.versions) == ("default", "tensor", [1, 2])
    assert model.latest is not None
    assert model.latest.number == 2


def test_the_same_files_are_the_same_version(registry: Registry, make: Maker, tmp_path: Path):
    first = add(registry, make("one"))
    (tmp_path / "models" / "one" / "notes.md").write_text("not named in files, so not stored")
    assert add(registry, make("one")) == first
    assert registry.model(TEAM, "echo").versions == [1]


def test_another_manifest_is_another_version(registry: Registry, make: Maker):
    first = add(registry, make("one"))
    changed = Manifest(
        task="tensor", runtime="onnx", files=("model.onnx",), source="test", labels=("a", "b")
    )
    second = registry.add_version(TEAM, "echo", make("one"), changed)
    assert (second.number, second.digest == first.digest) == (2, False)


def test_a_version_is_found_by_number_alias_and_as_the_newest(registry: Registry, make: Maker):
    add(registry, make("one"))
    add(registry, make("two"), alias="champion")
    add(registry, make("three"))
    numbers = {
        ref: registry.version(TEAM, ref).number for ref in ("echo", "echo@1", "echo@champion")
    }
    assert numbers == {"echo": 3, "echo@1": 1, "echo@champion": 2}
    registry.set_alias(TEAM, "echo", "champion", 1)
    assert registry.version(TEAM, "echo@champion").number == 1
    assert registry.describe(TEAM, "echo@1").aliases == ["champion"]
    assert registry.remove_alias(TEAM, "echo", "champion").aliases == {}
    with pytest.raises(ModelNotFound, match="champion"):
        registry.version(TEAM, "echo@champion")
    with pytest.raises(NotFound):
        registry.remove_alias(TEAM, "echo", "champion")


def test_what_is_resolved_can_be_loaded(
    registry: Registry, blobs: LocalBlobs, make: Maker, tmp_path: Path
):
    folder = make("one")
    digest = add(registry, folder, environment="abc").digest
    (folder / "model.onnx").write_text("changed afterwards")
    version = registry.version(TEAM, "echo@1")
    assert (version.digest, version.environment) == (digest, "abc")
    target = registry.bundle_folder(digest)
    materialise(blobs, version.files, target)
    bundle = open_bundle(target)
    assert bundle.manifest == version.manifest == MANIFEST_OF_ECHO
    assert bundle.main_file.read_text() == "one"
    assert sorted(path.name for path in target.iterdir()) == ["model.onnx", MANIFEST]


def test_other_teams_models_do_not_exist(registry: Registry, make: Maker):
    add(registry, make("one"), alias="champion")
    assert registry.models(OTHER_TEAM) == []
    calls = [
        lambda: registry.model(OTHER_TEAM, "echo"),
        lambda: registry.version(OTHER_TEAM, "echo@1"),
        lambda: registry.versions(OTHER_TEAM, "echo"),
        lambda: registry.set_alias(OTHER_TEAM, "echo", "mine", 1),
        lambda: registry.remove_alias(OTHER_TEAM, "echo", "champion"),
        lambda: registry.remove_version(OTHER_TEAM, "echo", 1),
        lambda: registry.remove_model(OTHER_TEAM, "echo"),
    ]
    for call in calls:
        with pytest.raises(ModelNotFound) as refused:
            call()
        assert refused.value.message == "no model 'echo'"
    assert registry.model(TEAM, "echo").aliases == {"champion": 1}


def test_teams_may_use_the_same_name(registry: Registry, make: Maker):
    add(registry, make("one"))
    theirs = registry.add_version(OTHER_TEAM, "echo", make("two"), MANIFEST_OF_ECHO)
    assert theirs.number == 1
    assert registry.version(TEAM, "echo").digest != theirs.digest


@pytest.mark.parametrize("ref", ["echo@2", "echo@nobody", "echo@99999999999999999999", "echo@0"])
def test_what_is_missing_is_named_with_what_there_is(registry: Registry, make: Maker, ref: str):
    add(registry, make("one"), alias="champion")
    with pytest.raises(ModelNotFound) as refused:
        registry.version(TEAM, ref)
    assert refused.value.hint == "it has: 1, champion"


@pytest.mark.parametrize(
    "ref", ["", "@", "@1", "echo@", "echo@1@2", "../x", "Echo", "echo\n", "a" * 64, "echo@１", "ｅ"]
)
def test_odd_references_are_refused(registry: Registry, make: Maker, ref: str):
    add(registry, make("one"))
    with pytest.raises((InvalidInput, ModelNotFound)):
        registry.version(TEAM, ref)


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a b", "-a", "a" * 64, "a\n", "ä"])
def test_odd_names_are_refused(registry: Registry, make: Maker, name: str):
    with pytest.raises(InvalidInput):
        add(registry, make("one"), name=name)
    with pytest.raises(InvalidInput):
        add(registry, make("one"), alias=name)
    assert registry.models(TEAM) == []


def test_an_alias_may_not_look_like_a_version(registry: Registry, make: Maker):
    with pytest.raises(InvalidInput, match="'7'"):
        add(registry, make("one"), alias="7")


def test_an_alias_cannot_point_to_nothing(registry: Registry, make: Maker):
    add(registry, make("one"))
    with pytest.raises(ModelNotFound, match="version 5"):
        registry.set_alias(TEAM, "echo", "champion", 5)


def test_versions_of_a_model_do_one_task(registry: Registry, make: Maker):
    add(registry, make("one"))
    other = Manifest(task="text-generation", runtime="llama_cpp", files=("model.onnx",))
    with pytest.raises(Conflict, match="text-generation"):
        registry.add_version(TEAM, "echo", make("two"), other)


def test_files_that_are_missing_or_outside_are_refused(registry: Registry, make: Maker):
    for path in ("missing.onnx", "../one/model.onnx", "/etc/passwd"):
        manifest = Manifest(task="tensor", runtime="onnx", files=(path,))
        with pytest.raises(InvalidInput):
            registry.add_version(TEAM, "echo", make("one"), manifest)
    assert registry.models(TEAM) == []


def test_a_number_is_never_given_out_twice(registry: Registry, make: Maker):
    add(registry, make("one"))
    add(registry, make("two"))
    assert registry.remove_version(TEAM, "echo", 2).number == 2
    assert add(registry, make("three")).number == 3
    assert registry.model(TEAM, "echo").versions == [1, 3]


def test_a_removed_version_takes_its_aliases_and_its_own_files(
    registry: Registry, blobs: LocalBlobs, make: Maker
):
    add(registry, make("one"))
    second = add(registry, make("two"), alias="champion")
    version = registry.version(TEAM, "echo@2")
    shared = {file.sha256 for file in registry.version(TEAM, "echo@1").files}
    materialise(blobs, version.files, registry.bundle_folder(second.digest))
    registry.remove_version(TEAM, "echo", 2)
    assert registry.model(TEAM, "echo").aliases == {}
    assert not registry.bundle_folder(second.digest).exists()
    assert set(blobs.digests()) == shared
    with pytest.raises(ModelNotFound):
        registry.version(TEAM, "echo@2")


def test_a_model_without_versions_is_still_there(registry: Registry, make: Maker):
    add(registry, make("one"))
    registry.remove_version(TEAM, "echo", 1)
    model = registry.model(TEAM, "echo")
    assert (model.versions, model.latest) == ([], None)
    with pytest.raises(ModelNotFound, match="has no version"):
        registry.version(TEAM, "echo")


def test_a_removed_model_takes_all_but_what_others_use(
    registry: Registry, blobs: LocalBlobs, make: Maker
):
    add(registry, make("one"))
    add(registry, make("one"), name="copy")
    add(registry, make("two"))
    registry.remove_model(TEAM, "echo")
    assert [model.name for model in registry.models(TEAM)] == ["copy"]
    kept = registry.version(TEAM, "copy")
    assert set(blobs.digests()) == {file.sha256 for file in kept.files}


def test_clean_up_takes_what_no_version_needs(
    registry: Registry, blobs: LocalBlobs, make: Maker, tmp_path: Path
):
    add(registry, make("one"))
    (tmp_path / "orphan").write_text("left by a killed import")
    orphan = blobs.put_file(tmp_path / "orphan")
    folder = registry.bundle_folder("sha256:" + "0" * 64)
    folder.mkdir(parents=True)
    assert registry.clean_up() == 0  # too young: an import may be about to use it
    assert registry.clean_up(older_than_seconds=0) == 1
    assert not blobs.has(orphan.sha256)
    assert not folder.exists()
    for file in registry.version(TEAM, "echo").files:
        blobs.verify(file.sha256)


def test_models_are_listed_by_name_in_pages(registry: Registry, make: Maker):
    for name in ("c", "a", "b"):
        add(registry, make(name), name=name)
    assert [model.name for model in registry.models(TEAM)] == ["a", "b", "c"]
    assert [model.name for model in registry.models(TEAM, limit=2)] == ["a", "b"]
    assert [model.name for model in registry.models(TEAM, after="b")] == ["c"]


def test_every_change_is_announced_in_its_own_transaction(
    registry: Registry, database: Database, make: Maker
):
    add(registry, make("one"), alias="champion")
    registry.remove_model(TEAM, "echo")
    with database.read() as connection:
        told = connection.execute(select(events.c.topic, events.c.subject, events.c.what)).all()
        assert read_revisions(connection)["models"] == len(told) == 3
    assert [row.what for row in told] == ["version added", "alias set", "model removed"]
    assert {(row.topic, row.subject) for row in told} == {("models", "echo")}


def test_many_may_add_at_once(registry: Registry, make: Maker):
    folders = [make(str(number)) for number in range(4)] * 2
    failures: list[Exception] = []

    def run(folder: Path) -> None:
        try:
            add(registry, folder)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert registry.model(TEAM, "echo").versions == [1, 2, 3, 4]


def test_adding_and_removing_at_once_never_loses_a_needed_file(
    registry: Registry, blobs: LocalBlobs, make: Maker
):
    """Both models share every blob, so each removal races the other model's addition."""
    folder = make("shared")
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            add(registry, folder, name="churned")
            registry.remove_model(TEAM, "churned")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            add(registry, folder)
            for file in registry.version(TEAM, "echo").files:
                blobs.verify(file.sha256)
            registry.remove_model(TEAM, "echo")
    finally:
        stop.set()
        thread.join()
