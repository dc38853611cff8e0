"""Desired state: specs are checked, compared, saved together or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wherry import errors
from wherry.accounts.teams import Teams
from wherry.client.schema import DeploymentSpec, Limits, Replicas, Step, Target
from wherry.control.deployments import Deployments, scaled, targets_of
from wherry.control.memory import MemoryBudget
from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.registry.registry import Registry
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database, read_revisions


class House:
    def __init__(self, folder: Path) -> None:
        self.database = Database.for_folder(folder)
        self.database.migrate()
        self.team = Teams(self.database).ensure_team("default").id
        self.other = Teams(self.database).ensure_team("other").id
        self.registry = Registry(self.database, LocalBlobs(folder / "blobs"), folder)
        self.deployments = Deployments(self.database, self.registry, MemoryBudget(1000))
        self._folder = folder

    def add(self, name: str, memory_mib: int = 100, text: str = "") -> None:
        bundle = self._folder / "bundle"
        bundle.mkdir(exist_ok=True)
        any_tensor = (TensorSpec("X", "", ()),)
        manifest = Manifest(
            task="tensor",
            runtime="python_class",
            files=("model.py",),
            signature=Signature(any_tensor, any_tensor),
        )
        (bundle / "model.py").write_text(f"# {name} {text}\n")
        (bundle / "wherry.toml").write_text(encode_manifest(manifest))
        self.registry.add_version(
            self.team, name, bundle, manifest, memory_mib=memory_mib, load_seconds=0.1
        )


@pytest.fixture
def house(tmp_path: Path):
    made = House(tmp_path)
    yield made
    made.database.close()


def test_applying_tells_what_changes_and_twice_changes_nothing(house: House):
    house.add("iris")
    spec = DeploymentSpec(name="iris", model="iris")
    (created,) = house.deployments.apply(house.team, [spec])
    assert created.action == "create"
    (same,) = house.deployments.apply(house.team, [spec])
    assert same.action == "none"
    changed = DeploymentSpec(name="iris", model="iris", limits=Limits(concurrency=5))
    (update,) = house.deployments.apply(house.team, [changed])
    assert update.action == "update"
    assert update.fields == {"limits.concurrency": [0, 5]}


def test_a_dry_run_changes_nothing(house: House):
    house.add("iris")
    spec = DeploymentSpec(name="iris", model="iris")
    (change,) = house.deployments.apply(house.team, [spec], dry_run=True)
    assert change.action == "create"
    assert house.deployments.load() == []


def test_one_wrong_spec_leaves_all_as_they_were(house: House):
    house.add("iris")
    good = DeploymentSpec(name="iris", model="iris")
    wrong = DeploymentSpec(name="ghost", model="ghost")
    with pytest.raises(errors.ModelNotFound):
        house.deployments.apply(house.team, [good, wrong])
    assert house.deployments.load() == []


@pytest.mark.parametrize(
    "spec",
    [
        DeploymentSpec(name="m"),
        DeploymentSpec(name="m", model="iris", targets=[Target(model="iris")]),
        DeploymentSpec(name="m", targets=[Target(model="iris"), Target(model="iris")]),
        DeploymentSpec(name="m", model="iris", replicas=Replicas(3, 2)),
        DeploymentSpec(name="m", model="iris", replicas=Replicas(1, 1), idle_seconds=5.0),
    ],
    ids=["no model", "both forms", "a model twice", "max below min", "idle with a minimum"],
)
def test_specs_that_contradict_themselves_are_refused(house: House, spec: DeploymentSpec):
    house.add("iris")
    with pytest.raises(errors.InvalidInput):
        house.deployments.apply(house.team, [spec])


def test_a_pipeline_that_could_only_make_too_many_calls_is_refused(house: House):
    """Calls of inner pipelines, and those that these make, are counted in all places."""
    house.add("iris")

    def times(count: int, name: str) -> list[Step]:
        return [Step(name=f"s{number}", deployment=name) for number in range(count)]

    specs = [
        DeploymentSpec(name="iris", model="iris"),
        DeploymentSpec(name="inner", steps=times(31, "iris")),
        DeploymentSpec(name="middle", steps=times(2, "inner")),
        DeploymentSpec(name="most", steps=times(31, "middle")),
    ]
    assert len(house.deployments.apply(house.team, specs)) == 4  # 31 * (1 + 2 * (1 + 31)) = 2015
    with pytest.raises(errors.InvalidInput, match=r"at least 2080 calls.* limit is 2048"):
        house.deployments.apply(
            house.team, [DeploymentSpec(name="more", steps=times(32, "middle"))]
        )


PAUSE_SECONDS = 0.5
"""More than changes need to come as far as the database lets them; less only makes a test weaker."""


def at_once(house: House, *changes: Callable[[], object]) -> list[BaseException | None]:
    """Begin all changes while another transaction keeps them from writing; how each ends."""
    with ThreadPoolExecutor(len(changes)) as pool:
        with house.database.write():
            begun = [pool.submit(change) for change in changes]
            time.sleep(PAUSE_SECONDS)
        return [each.exception() for each in begun]


def calls(name: str, deployment: str) -> DeploymentSpec:
    return DeploymentSpec(name=name, steps=[Step(name="a", deployment=deployment)])


def test_of_two_pipelines_that_would_make_a_circle_at_once_one_is_refused(house: House):
    house.add("iris")
    left, right = calls("left", "iris"), calls("right", "iris")
    house.deployments.apply(house.team, [DeploymentSpec(name="iris", model="iris"), left, right])
    ends = at_once(
        house,
        lambda: house.deployments.apply(house.team, [calls("left", "right")]),
        lambda: house.deployments.apply(house.team, [calls("right", "left")]),
    )
    assert [type(end) for end in ends if end] == [errors.InvalidInput]
    called = [each.spec.steps[0].deployment for each in house.deployments.load(house.team)[1:]]
    assert "iris" in called


def test_a_deployment_is_not_removed_while_a_pipeline_that_calls_it_is_made(house: House):
    house.add("iris")
    house.deployments.apply(house.team, [DeploymentSpec(name="iris", model="iris")])
    ends = at_once(
        house,
        lambda: house.deployments.apply(house.team, [calls("left", "iris")]),
        lambda: house.deployments.remove(house.team, "iris"),
    )
    assert [type(end) for end in ends if end] in ([errors.InvalidInput], [errors.Conflict])
    names = {each.spec.name for each in house.deployments.load(house.team)}
    assert names in (set(), {"iris", "left"})


def test_of_two_that_remove_a_deployment_one_is_told_that_it_is_gone(house: House):
    house.add("iris")
    house.deployments.apply(house.team, [DeploymentSpec(name="iris", model="iris")])
    ends = at_once(house, *[lambda: house.deployments.remove(house.team, "iris")] * 2)
    assert [type(end) for end in ends if end] == [errors.ModelNotFound]


def test_models_that_do_not_fit_together_are_refused_and_stopped_ones_count_nothing(house: House):
    house.add("big", 700)
    house.add("other", 400)
    house.deployments.apply(house.team, [DeploymentSpec(name="big", model="big")])
    other = DeploymentSpec(name="other", model="other")
    with pytest.raises(errors.DoesNotFit, match="big 700"):
        house.deployments.apply(house.team, [other])
    house.deployments.change(house.team, "big", stopped=True)
    house.deployments.apply(house.team, [other])
    with pytest.raises(errors.DoesNotFit):
        house.deployments.change(house.team, "big", stopped=False)


def test_an_alias_is_followed_live(house: House):
    house.add("iris")
    house.add("iris", text="second")
    house.registry.set_alias(house.team, "iris", "champion", 1)
    spec = DeploymentSpec(name="iris", model="iris@champion")
    house.deployments.apply(house.team, [spec])
    desired = house.deployments.find(house.team, "iris")
    assert [each.number for each, _ in house.deployments.resolve(desired)] == [1]
    assert house.deployments.users_of(house.team, "iris", 1) == ["iris"]
    house.registry.set_alias(house.team, "iris", "champion", 2)
    assert [each.number for each, _ in house.deployments.resolve(desired)] == [2]
    assert house.deployments.users_of(house.team, "iris", 1) == []


def test_another_team_sees_nothing(house: House):
    house.add("iris")
    house.deployments.apply(house.team, [DeploymentSpec(name="iris", model="iris")])
    with pytest.raises(errors.ModelNotFound):
        house.deployments.find(house.other, "iris")
    with pytest.raises(errors.ModelNotFound):
        house.deployments.apply(house.other, [DeploymentSpec(name="iris", model="iris")])
    with pytest.raises(errors.ModelNotFound):
        house.deployments.remove(house.other, "iris")


def test_every_change_can_be_noticed_cheaply(house: House):
    house.add("iris")

    def revision() -> int:
        with house.database.read() as connection:
            return read_revisions(connection).get("deployments", 0)

    before = revision()
    house.deployments.apply(house.team, [DeploymentSpec(name="iris", model="iris")])
    created = revision()
    house.deployments.remove(house.team, "iris")
    assert before < created < revision()


def test_scaling_to_zero_stops_and_up_again_starts():
    spec = DeploymentSpec(name="m", model="m")
    assert scaled(spec, 0, None) == {"stopped": True}
    assert scaled(spec, 3, None) == {"stopped": False, "replicas": Replicas(min=3, max=3)}
    assert scaled(spec, 0, 2) == {"stopped": False, "replicas": Replicas(min=0, max=2)}


def test_targets_may_be_written_short_or_long():
    short = DeploymentSpec(name="m", model="a@1")
    assert targets_of(short) == [Target(model="a@1", weight=100)]
