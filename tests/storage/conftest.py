"""What the tests of a failing disk and of power cuts begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.storage.data_folder import make_data_folder
from tests.storage.disk import build_shim


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a team, as the disk has had it for long."""
    return make_data_folder(tmp_path_factory.mktemp("migrated"), team_1="default")
