"""Recipes are checked in a process that trusts no folder it happens to be in."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.errors import MissingExtra
from wherry.jobs.recipes import check_parameters


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "msgspec.py").write_text(f"open({str(canary)!r}, 'w')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtra):
        check_parameters("no_such_module:RECIPE", {})
    assert not canary.exists()
