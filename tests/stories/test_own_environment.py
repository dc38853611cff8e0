"""A runtime that the server's environment lacks is installed beside it, and serves."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import LiveServer, run_server

import wherry
from wherry import Client, errors

pytestmark = pytest.mark.slow

ADDER = zlib.decompress(
    base64.b64decode(
        "eNp9TzEOwjAQc9oMlRpVDB3yDxZegBgYGDqywM6E2HkKT+EJvIjUlzgIIdSLLqfz2c4lApi2+zUwYMQKAR0Rzw7sgMjcOaBl"
        "dXkCPN8pOc3DR+V5F+xgnsyjNCMshlyN23/5M/qqi6n4NkpI/w+zfe7MjXZ6UBv0VhSXUGrEvd4uGaterwW+cc7CKr/80qLT"
        "Fj5rlzxOPx5Oap8PMAMtsyJe"
    )
)
"""A TensorFlow Lite model made by `write_adder` of test_tflite.py: a + b, FP32 of shape [-1, 2]."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server in a copy of our environment that has no LiteRT."""
    folder = tmp_path_factory.mktemp("own")
    python = copy_environment(folder / "server", without="ai_edge_litert")
    with run_server(folder, python=str(python)) as live:
        yield live


def copy_environment(target: Path, *, without: str) -> Path:
    """The interpreter of a copy that links to the same files, but for one package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(target)], check=True)
    (ours,) = (Path(sys.prefix) / "lib").glob("python*/site-packages")
    (theirs,) = (target / "lib").glob("python*/site-packages")
    shutil.rmtree(theirs)
    shutil.copytree(
        ours,
        theirs,
        copy_function=link_or_copy,
        ignore=shutil.ignore_patterns(f"{without}*", "torch*", "nvidia*"),
    )
    for path in theirs.glob("*.pth"):
        path.unlink()  # those of an editable installation may name other environments
    (theirs / "wherry.pth").write_text(str(Path(wherry.__file__).parents[1]))
    return target / "bin" / "python"


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    with Client(server.url, server.key) as made:
        yield made


def test_a_runtime_is_installed_serves_and_is_removed(
    client: Client, server: LiveServer, tmp_path: Path
):
    (tmp_path / "adder.tflite").write_bytes(ADDER)
    with pytest.raises(errors.MissingExtra) as refused:
        client.models.import_model(tmp_path, name="adder")
    assert "pip install 'wherry[tflite]'" in refused.value.hint
    assert "wherry runtime install tflite" in refused.value.hint

    told: list[str] = []
    try:
        client.runtimes.install("tflite", on_progress=lambda progress: told.append(progress.stage))
    except errors.InvalidInput as error:
        pytest.skip(f"no package index: {error.message}")
    assert any("making a virtual environment" in stage for stage in told)
    found = {each.name: each for each in client.runtimes.list()}["tflite"]
    assert (found.place, found.is_outdated) == ("own environment", False)
    assert found.packages["ai-edge-litert"]

    client.models.import_model(tmp_path, name="adder")
    client.deployments.deploy("adder", timeout=120)
    sums = {"a": [[1.0, 2.0]], "b": [[10.0, 20.0]]}
    assert client.predict("adder", sums)["sum"] == [[11.0, 22.0]]
    (worker,) = [each for each in client.workers() if each.deployment == "adder"]
    assert str(server.data / "environments") in read_maps(worker.pid), "it runs in there"

    with pytest.raises(errors.Conflict, match="'adder'"):
        client.runtimes.remove("tflite")
    client.deployments.remove("adder")
    client.runtimes.remove("tflite")
    assert list((server.data / "environments").glob("*/bin")) == []
    assert {each.name: each for each in client.runtimes.list()}["tflite"].place == "missing"


def read_maps(pid: int) -> str:
    """The files that a process has in its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_server_without_a_framework_says_how_to_get_it(server: LiveServer):
    doctor = server.run_cli("doctor").stdout
    assert "runtime tflite: its framework is not installed" in doctor
    assert "wherry runtime install tflite" in doctor
