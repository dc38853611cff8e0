"""Environments of Python models: what may be asked for, and one that is really built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from wherry import errors
from wherry.jobs.environments import (
    MARKER,
    Environments,
    digest_of,
    link_package,
    normalise_requirements,
)


def test_requirements_have_one_spelling() -> None:
    first = normalise_requirements(["b >= 1, <2", "a==1 ; python_version > '3'"])
    second = normalise_requirements(["a == 1", "b<2,>=1", "c ; python_version < '3'"])
    assert first == second == ["a==1", "b<2,>=1"]
    assert digest_of(first) == digest_of(second) != digest_of(["a==1"])


@pytest.mark.parametrize(
    "line",
    ["-r other.txt", "--index-url=x", "-e .", "../x", "a @ file:///x", "a b", "$(touch x)", "a;"],
)
def test_what_is_no_requirement_is_refused(line: str) -> None:
    with pytest.raises(errors.InvalidInput):
        normalise_requirements([line])


def test_nothing_is_installed_unless_the_operator_allows_code(tmp_path: Path) -> None:
    environments = Environments(tmp_path, allow_code=False)
    assert environments.ensure([], print) == ""
    with pytest.raises(errors.CodeNotAllowed):
        environments.ensure(["a==1"], print)
    assert list(tmp_path.iterdir()) == []


def make_folder(folder: Path, *, whole: bool) -> Path:
    (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    if whole:
        (folder / MARKER).write_text("{}")
    return folder


def test_at_start_unfinished_ones_go_and_whole_ones_find_our_package(tmp_path: Path) -> None:
    whole = make_folder(tmp_path / "aa", whole=True)
    unfinished = make_folder(tmp_path / "bb", whole=False)
    environments = Environments(tmp_path, allow_code=True)
    environments.prepare()
    assert not unfinished.exists()
    link = whole / "lib/python3.11/site-packages/wherry"
    assert (link / "errors.py").is_file()
    link.unlink()
    link.symlink_to(tmp_path / "moved away")
    link_package(whole)
    assert (link / "errors.py").is_file()


def test_old_ones_that_no_version_needs_are_removed(tmp_path: Path) -> None:
    names = ("used", "old", "young")
    for name in names:
        marker = make_folder(tmp_path / name, whole=True) / MARKER
        os.utime(marker, None if name == "young" else (0, 0))
    assert Environments(tmp_path, allow_code=True).remove_unused({"used"}) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["used", "young"]


@pytest.mark.slow
def test_an_environment_has_its_requirements_and_nothing_of_ours(tmp_path: Path) -> None:
    environments = Environments(tmp_path, allow_code=True)
    lines: list[str] = []
    try:
        digest = environments.ensure(["iniconfig==2.0.0"], lines.append)
    except errors.InvalidInput as error:
        pytest.skip(f"no registry: {error.message}")
    assert any("iniconfig" in line for line in lines)
    python = tmp_path / digest / "bin" / "python"
    code = "import iniconfig, wherry.worker.__main__; import numpy, msgspec, uvloop; print('ok')"
    run = [str(python), "-I", "-c", code]
    assert subprocess.run(run, capture_output=True, check=True).stdout == b"ok\n"
    run = [str(python), "-I", "-c", "import sqlalchemy"]
    assert b"ModuleNotFoundError" in subprocess.run(run, capture_output=True, check=False).stderr
    lines.clear()
    assert environments.ensure(["iniconfig == 2.0.0"], lines.append) == digest
    assert lines == []
    with pytest.raises(errors.InvalidInput, match="cannot be installed"):
        environments.ensure(["iniconfig==999"], lines.append)
    environments.prepare()
    assert environments.is_whole(digest)
