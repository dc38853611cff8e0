"""Runtimes in environments of their own: where each is found, and what may remove it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from tests.jobs.conftest import Site

from wherry import errors
from wherry.client.schema import Job
from wherry.jobs import environments
from wherry.jobs.environments import MARKER, Environments, Marker, normalise_requirements
from wherry.jobs.runtime_environments import RuntimeEnvironments, explain
from wherry.jobs.work import InstallWork
from wherry.worker.runtimes.catalog import BUILT_IN
from wherry.worker.runtimes.extras import core_requirements, requirements_of, versions_of
from wherry.worker.runtimes.own_environment import find_own_environment, pointer_of

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def missing_runtime() -> str:
    """A runtime whose framework this environment does not have."""
    for name in ("tensorflow", "keras", "torch", "tflite"):
        if not versions_of(BUILT_IN[name][1]):
            return name
    pytest.skip("every framework is installed here")


def install_by_hand(folder: Path, runtime: str, digest: str = "", **packages: str) -> Path:
    """What `install` leaves, without an hour of downloads."""
    requirements = normalise_requirements(requirements_of(BUILT_IN[runtime][1]))
    target = folder / (digest or environments.digest_of(requirements))
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "python").touch()
    marker = Marker("3.11", requirements, packages, 5)
    (target / MARKER).write_bytes(msgspec.json.encode(marker))
    pointer_of(folder, runtime).write_text(target.name)
    return target


def spell(line: str) -> str:
    requirement = Requirement(line)
    requirement.marker = None
    return str(requirement)


def test_what_is_installed_is_what_pyproject_says():
    listed = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

    def whole(extra: str) -> set[str]:
        found: set[str] = set()
        for line in listed[extra]:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            inner = requirement.extras if requirement.name == "wherry" else ()
            found |= {each for name in inner for each in whole(name)} or {spell(line)}
        return found

    for extra in {extra for _, extra in BUILT_IN.values() if extra}:
        assert {spell(line) for line in requirements_of(extra)} == whole(extra)


def test_a_framework_may_hold_numpy_back():
    # torch and TensorFlow need other versions of it than the server may have
    wanted = environments._worker_requirements(["torch"])
    assert [line for line in wanted if line.startswith("numpy")] == [
        line for line in core_requirements() if line.startswith("numpy")
    ]
    assert any(re.fullmatch(r"msgspec==[\d.]+", line) for line in wanted)


def test_every_runtime_says_where_it_is(tmp_path: Path):
    found = {each.name: each for each in RuntimeEnvironments(tmp_path).list()}
    assert found.keys() == BUILT_IN.keys()
    assert found["upstream"].place == "server"
    missing = found[missing_runtime()]
    assert missing.place == "missing"
    problem = explain(missing)
    assert problem is not None
    assert f"pip install 'wherry[{missing.extra}]'" in problem.remedy
    assert f"wherry runtime install {missing.name}" in problem.remedy


def test_an_own_environment_is_used_by_its_runtime_alone(tmp_path: Path):
    name = missing_runtime()
    target = install_by_hand(tmp_path, name, pillow="12.1")
    assert find_own_environment(tmp_path, name) == target
    assert find_own_environment(tmp_path, "python_class") is None
    found = RuntimeEnvironments(tmp_path).find(name)
    assert (found.place, found.size_bytes, found.is_outdated) == ("own environment", 5, False)
    assert found.packages == {"pillow": "12.1"}


def test_the_servers_own_environment_is_used_first(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    install_by_hand(tmp_path, "onnx")
    assert find_own_environment(tmp_path, "onnx") is None
    assert RuntimeEnvironments(tmp_path).find("onnx").place == "server"


def test_an_environment_of_another_list_of_packages_goes_on_and_is_told(tmp_path: Path):
    name = missing_runtime()
    target = install_by_hand(tmp_path, name, digest="0" * 64)
    assert find_own_environment(tmp_path, name) == target
    found = RuntimeEnvironments(tmp_path).find(name)
    assert found.is_outdated
    problem = explain(found)
    assert problem is not None
    assert (problem.severity, problem.remedy) == ("warning", f"wherry runtime install {name}")


def test_a_removed_environment_is_gone_unless_a_version_needs_it(tmp_path: Path):
    name, runtimes = missing_runtime(), RuntimeEnvironments(tmp_path)
    target = install_by_hand(tmp_path, name)
    runtimes.remove(name, {target.name})
    assert target.exists()
    assert runtimes.find(name).place == "missing"
    pointer_of(tmp_path, name).write_text(target.name)
    runtimes.remove(name, set())
    assert not target.exists()
    with pytest.raises(errors.NotFound):
        runtimes.remove(name, set())


def test_what_an_interrupted_installation_left_is_removed_but_not_what_goes_on(tmp_path: Path):
    for each in ("left", "busy", "whole"):
        (tmp_path / each).mkdir()
    (tmp_path / "whole" / MARKER).write_text("{}")
    descriptor = os.open(tmp_path / "busy.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    Environments(tmp_path, allow_code=False).remove_unfinished()
    os.close(descriptor)
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"busy", "whole"}


def test_an_environment_that_a_runtime_has_is_never_swept_away(tmp_path: Path):
    target = install_by_hand(tmp_path, "onnx")
    os.utime(target / MARKER, (0, 0))
    used = RuntimeEnvironments(tmp_path).used()
    assert Environments(tmp_path, allow_code=False).remove_unused(used) == 0


@pytest.mark.slow
def test_a_cancelled_installation_leaves_nothing(site: Site):
    name = missing_runtime()
    folder = site.folder / "environments"

    def is_building(job: Job) -> bool:
        return job.state in ("failed", "succeeded") or any(folder.glob("*/pyvenv.cfg"))

    async def story() -> Job:
        job = site.jobs.submit(site.team_id, InstallWork(runtime=name))
        async with site.running():
            await site.wait(job.id, is_building)
            site.jobs.cancel(site.team_id, job.id)
            return await site.wait(job.id)

    ended = asyncio.run(story())
    assert ended.state == "cancelled"
    assert [each for each in folder.iterdir() if each.is_dir()] == []
    assert RuntimeEnvironments(folder).find(name).place == "missing"
