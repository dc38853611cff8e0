"""What a hostile model can do in a real worker: nothing, and what it needs still works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.worker.sandbox import landlock

REPOSITORY = Path(__file__).parents[2]
ATTACKS = re.findall(
    r"^def (\w+)\(\):$", Path(__file__).with_name("hostile_model.py").read_text(), re.MULTILINE
)
NOBODY = 65534
REAL = (
    "read_passwd", "read_data_folder", "list_data_folder", "read_other_bundle",
    "read_through_proc_root", "read_through_a_link", "hard_link_a_secret",
    "read_supervisors_environment", "read_neighbours_memory", "look_into_home", "look_into_tmp",
    "write_outside", "write_into_own_bundle", "empty_a_file_outside", "open_a_file_outside_to_all",
    "tcp", "udp", "listen_on_tcp", "netlink", "neighbours_socket", "a_socket_of_the_machine",
    "an_abstract_socket", "a_datagram_from_a_pair", "subprocess_run", "shell", "spawn", "fork",
    "fork_by_number", "kill_by_descriptor", "slow_neighbour_down", "map_shared_memory", "memory_file",
)  # fmt: skip
"""Attacks that harm nobody here, and that any process without a sandbox succeeds with."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not pytest's own: others may not enter that."""
    made = Path(tempfile.mkdtemp(prefix="wherry-siege-"))
    yield made
    shutil.rmtree(made)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(each) for each in command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def besiege(folder: Path, *, user: int | None = None, attacks: tuple[str, ...] = (), mode="auto"):
    folder.mkdir()
    as_user = [sys.executable, "-m", "tests.sandbox.as_user", str(user), folder] if user else []
    siege = [sys.executable, "-m", "tests.sandbox.siege", folder, mode, *attacks]
    done = run(*as_user, *siege)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["as we are", "as an ordinary user"])
def siege(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    if request.param == "as we are":
        return besiege(folder / "own")
    if os.geteuid():
        pytest.skip("the tests are an ordinary user's already")
    return besiege(folder / "user", user=NOBODY)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_from_inside_fails(siege: dict[str, Any], attack: str):
    result = siege["attacks"][attack]
    assert result["got"] is None, f"{attack} got {result['got']}"


def test_the_attacked_stand_untouched(siege: dict[str, Any]):
    assert siege["neighbour_serves"]
    assert siege["neighbour_pid_unchanged"]
    assert siege["victim"] == "whole"
    assert siege["outside"] == ["victim"]
    assert siege["bundle_unchanged"]
    assert not siege["got_a_datagram"]


def test_the_attacker_lives_to_serve_requests(siege: dict[str, Any]):
    assert siege["still_serves"], "running out of memory fails a call, not the worker"
    assert siege["scratch_came_and_went"]


def test_what_is_in_force_is_what_is_told(siege: dict[str, Any]):
    parts, status = siege["sandbox"]["parts"], siege["status"]
    assert parts["files"] == f"Landlock ABI {landlock.version()}"
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert parts["memory"] == "700 MiB"
    if "user" in parts:
        assert parts["user"] == str(siege["user"])
        assert siege["user"] >= 0x7000_0000
    else:
        assert "root" in siege["sandbox"]["missing"]["user"]


def test_without_a_sandbox_the_same_attacks_succeed(folder: Path):
    result = besiege(folder / "none", mode="off", attacks=REAL)
    failed = {name: each["how"] for name, each in result["attacks"].items() if each["got"] is None}
    assert not failed, "an attack that cannot succeed proves nothing"


@pytest.mark.parametrize("part", ["landlock", "seccomp"])
def test_a_kernel_without_a_part_is_told_of_and_required_refuses(folder: Path, part: str):
    absent = [sys.executable, "-m", "tests.sandbox.without", part]
    siege = [sys.executable, "-m", "tests.sandbox.siege"]
    (folder / part).mkdir()
    done = run(*absent, *siege, folder / part, "auto", "read_passwd", "tcp", "udp")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lost, kept = ("files", "calls") if part == "landlock" else ("calls", "files")
    assert lost in found["sandbox"]["missing"]
    assert kept in found["sandbox"]["parts"], "the other part holds alone"
    got = {name for name, each in found["attacks"].items() if each["got"] is not None}
    # Landlock holds TCP, too, where it is new enough
    network = {"udp"} if landlock.version() >= 4 else {"tcp", "udp"}
    assert got == ({"read_passwd"} if part == "landlock" else network)
    (folder / f"{part}-required").mkdir()
    done = run(*absent, *siege, folder / f"{part}-required", "required", "read_passwd")
    assert done.returncode != 0
    assert "sandbox_missing" in done.stderr
