"""Versions over HTTP with two gateways: a flip reaches all of them, and the reason is told."""

from __future__ import annotations

import time

import httpx
import pytest
from tests.conftest import LiveServer, run_server

from wherry import Client, errors
from wherry.client.schema import DeploymentSpec, Rollout, Target

ROW = {"row": [5.1, 3.5, 1.4, 0.2]}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("house")
    with run_server(folder, "--gateways", "2") as server, Client(server.url, server.key) as client:
        for seed in (1, 2):
            client.models.train("iris", "flowers", parameters={"regularisation": float(seed)})
        client.deployments.deploy("flowers@1", "flowers")
        yield server, client


def versions_now(server: LiveServer, count: int = 20, **headers: str) -> set[str]:
    """Which versions answer, each time over a new connection: to either gateway."""
    found: set[str] = set()
    for _ in range(count):
        answer = httpx.post(
            f"{server.url}/predict/flowers",
            json=ROW,
            headers={"authorization": f"Bearer {server.key}", **headers},
        )
        assert answer.status_code == 200, answer.text
        found.add(answer.headers["x-wherry-version"])
    return found


def test_a_roll_back_is_in_force_at_every_gateway_when_the_call_returns(
    house: tuple[LiveServer, Client],
):
    server, client = house
    rollout = Rollout(keep_warm_seconds=600.0)
    client.deployments.deploy("flowers@2", "flowers", rollout=rollout)
    deadline = time.monotonic() + 30
    while client.deployments.get("flowers").rollout.serving != ["flowers@2"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert versions_now(server) == {"flowers@2"}
    took: list[float] = []
    for expected in ("flowers@1", "flowers@2", "flowers@1"):
        begun = time.monotonic()
        answer = client.deployments.roll_back("flowers")
        took.append(time.monotonic() - begun)
        assert list(answer.versions) == [expected]
        assert versions_now(server) == {expected}
    print(f"the call took {[round(each * 1000) for each in took]} ms")
    assert min(took) < 1.0
    (problem,) = [each for each in client.problems() if each.subject == "flowers"]
    assert "by an operator" in problem.cause
    client.deployments.promote("flowers")
    assert versions_now(server) == {"flowers@2"}
    with pytest.raises(errors.Conflict):
        client.deployments.promote("flowers")


def test_a_clients_word_keeps_its_version(house: tuple[LiveServer, Client]):
    server, client = house
    targets = [Target(model="flowers@1", weight=50), Target(model="flowers@2", weight=50)]
    client.deployments.apply(DeploymentSpec(name="flowers", targets=targets))
    client.deployments.wait("flowers", just_changed=True)
    time.sleep(1.2)  # longer than a state may be that of before
    deadline = time.monotonic() + 30
    while len(client.deployments.get("flowers").versions) < 2:
        assert time.monotonic() < deadline
    assert len(versions_now(server)) == 1, "one key, one version"
    chosen = {
        word: versions_now(server, 3, **{"x-wherry-sticky": word}) for word in map(str, range(30))
    }
    assert all(len(each) == 1 for each in chosen.values())
    assert set.union(*chosen.values()) == {"flowers@1", "flowers@2"}
    long = httpx.post(
        f"{server.url}/predict/flowers",
        json=ROW,
        headers={"authorization": f"Bearer {server.key}", "x-wherry-sticky": "x" * 300},
    )
    assert long.status_code == 400


def test_what_happened_is_in_the_stream_of_events(house: tuple[LiveServer, Client]):
    _, client = house
    told = []
    for event in client.events(after=0):
        if event.subject == "flowers" and event.topic == "deployments":
            told.append(event.what)
        if told[-3:] and "promoted" in told:
            break
    assert "changed version" in told
    assert "rolled back" in told
