"""Whole user journeys through SDK, CLI and plain HTTP, against real servers and real models."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tests.conftest import LiveServer, clean_environment, run_server

from wherry import Client, errors
from wherry.client.schema import DeploymentSpec, KeyLimits, Replicas, Rollout, Target

DOUBLE = """
import six

class Model:
    def load(self, folder):
        print("six", six.__version__)

    def predict(self, batch):
        return [{"X": item["X"] * 2} for item in batch]
"""
FAULTY = """
class Model:
    def predict(self, batch):
        raise RuntimeError("the-inner-secret")
"""


@pytest.fixture
def client(server: LiveServer):
    with Client(server.url, server.key) as made:
        yield made


def write_model(folder: Path, source: str, requirements: str = "") -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(source)
    if requirements:
        (folder / "requirements.txt").write_text(requirements)
    return folder


def test_a_scikit_learn_pipeline_from_a_notebook_becomes_an_api(client: Client, server: LiveServer):
    pytest.importorskip("skops")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good boat", "fine river", "lovely water", "bad storm", "awful leak", "sad wreck"]
    moods = ["glad", "glad", "glad", "sad", "sad", "sad"]
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, moods)
    version = client.models.import_model(pipeline, name="mood")
    assert version.number == 1
    assert version.card.task == "text-classification"
    assert version.card.memory_mib > 0
    client.deployments.deploy("mood")
    response = httpx.post(
        f"{server.url}/predict/mood",
        json={"text": "a lovely boat"},
        headers={"Authorization": f"Bearer {server.key}"},
    )
    assert response.json()["prediction"] == "glad"
    assert response.headers["x-wherry-version"] == "mood@1"


def test_a_new_version_follows_its_alias_without_a_failed_request(client: Client, tmp_path: Path):
    first = write_model(
        tmp_path / "one", DOUBLE.replace("import six", "six = type('s', (), {'__version__': '0'})")
    )
    second = tmp_path / "two"
    second.mkdir()
    (second / "model.py").write_text((first / "model.py").read_text().replace("* 2", "* 3"))
    client.models.import_model(first, name="factor", alias="champion")
    client.models.import_model(second, name="factor")
    client.deployments.deploy(
        "factor@champion", name="factor", rollout=Rollout(keep_warm_seconds=0)
    )
    seen = {tuple(client.predict("factor", X=[1.0])["X"])}
    assert seen == {(2.0,)}
    client.models.set_alias("factor", "champion", 2)
    deadline = time.monotonic() + 30
    while (3.0,) not in seen and time.monotonic() < deadline:
        seen.add(tuple(client.predict("factor", X=[1.0])["X"]))
    assert seen == {(2.0,), (3.0,)}
    with pytest.raises(errors.NotFound):
        client.predict("factor@1", X=[1.0])
    with pytest.raises(errors.Conflict):
        client.models.remove("factor", 2)


def test_two_versions_share_traffic_and_can_be_called_by_number(client: Client, tmp_path: Path):
    for number in (2, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.py").write_text(
            f"class Model:\n    def predict(self, batch):\n"
            f"        return [{{'X': item['X'] * {number}}} for item in batch]\n"
        )
        client.models.import_model(folder, name="split")
    targets = [Target(model="split@1", weight=50), Target(model="split@2", weight=50)]
    client.deployments.apply([DeploymentSpec(name="split", targets=targets)])
    client.deployments.wait("split", timeout=60)
    assert client.predict("split@1", X=[1.0])["X"] == [2.0]
    assert client.predict("split@2", X=[1.0])["X"] == [3.0]
    answers = {client.predict("split", X=[1.0])["X"][0] for _ in range(10)}
    assert len(answers) == 1, "one key stays with one version"
    others = set()
    for number in range(12):
        key = client.keys.create(f"split {number}")
        with Client(client.url, key.secret) as other:
            others.add(other.predict("split", X=[1.0])["X"][0])
    assert others == {2.0, 3.0}


def test_a_python_class_brings_its_own_requirements(client: Client, tmp_path: Path):
    folder = write_model(tmp_path / "double", DOUBLE, "six==1.17.0\n")
    version = client.models.import_model(folder, name="double")
    assert version.card.runtime == "python_class"
    client.deployments.deploy("double")
    assert client.predict("double", X=[4.0])["X"] == [8.0]
    lines = [line.text for line in client.deployments.logs("double")]
    assert "six 1.17.0" in lines


def test_a_models_error_is_in_the_log_and_not_in_the_answer(client: Client, tmp_path: Path):
    with pytest.raises(errors.WherryError) as refused:
        client.models.import_model(write_model(tmp_path / "faulty", FAULTY), name="faulty")
    assert "the-inner-secret" in refused.value.text, "its publisher may see what it said"
    late = "class Model:\n    def predict(self, batch):\n        return [self.answer(i) for i in batch]\n    def answer(self, item):\n        if item['X'][0] > 5:\n            raise RuntimeError('the-inner-secret')\n        return item\n"
    client.models.import_model(write_model(tmp_path / "late", late), name="late")
    client.deployments.deploy("late")
    with pytest.raises(errors.ModelFailed) as failed:
        client.predict("late", X=[9.0])
    assert "secret" not in failed.value.text
    assert any("the-inner-secret" in line.text for line in client.deployments.logs("late"))
    assert client.predict("late", X=[1.0])["X"] == [1.0]


def test_an_idle_model_is_unloaded_and_wakes_for_a_request(client: Client, server: LiveServer):
    client.models.train("iris", "sleepy")
    client.deployments.deploy(
        "sleepy", replicas=Replicas(min=0, max=1), idle_seconds=1.0, wait=False
    )
    row = {"row": [5.1, 3.5, 1.4, 0.2]}
    assert client.predict("sleepy", row)["label"] == "setosa"
    deadline = time.monotonic() + 20
    while client.deployments.get("sleepy").state != "idle" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.deployments.get("sleepy").state == "idle"
    impatient = server.http.post("/predict/sleepy", json=row, headers={"prefer": "wait=0"})
    assert impatient.status_code == 503
    assert int(impatient.headers["retry-after"]) >= 1
    assert client.predict("sleepy", row)["label"] == "setosa"


def test_a_stopped_model_is_not_woken_and_says_how_to_start_it(client: Client, server: LiveServer):
    client.models.train("iris", "still")
    client.deployments.deploy("still")
    client.deployments.stop("still")
    deadline = time.monotonic() + 20
    while client.deployments.get("still").state != "stopped" and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(3):
        response = server.http.post("/predict/still", json={"row": [5.1, 3.5, 1.4, 0.2]})
        assert response.status_code == 503
        assert "stopped" in response.json()["error"]["message"]
    assert server.http.get("/v2/models/still/ready").status_code == 503
    client.deployments.start("still")
    client.deployments.wait("still", timeout=60)
    assert client.predict("still", row=[5.1, 3.5, 1.4, 0.2])["label"] == "setosa"


def test_a_revoked_key_is_refused_within_a_second(client: Client):
    client.models.train("iris", "guarded")
    client.deployments.deploy("guarded")
    key = client.keys.create("short-lived", deployments=["guarded"])
    with Client(client.url, key.secret, max_retries=0) as other:
        assert other.predict("guarded", row=[5.1, 3.5, 1.4, 0.2])["label"] == "setosa"
        with pytest.raises(errors.NotPermitted):
            other.keys.list()
        client.keys.revoke(key.id)
        time.sleep(1.0)
        with pytest.raises(errors.NotAuthenticated):
            other.predict("guarded", row=[5.1, 3.5, 1.4, 0.2])


def test_limits_of_a_key_are_told_in_headers(client: Client, server: LiveServer):
    client.models.train("iris", "metered")
    client.deployments.deploy("metered")
    key = client.keys.create("limited", limits=KeyLimits(requests_per_minute=3))
    body = {"row": [5.1, 3.5, 1.4, 0.2]}
    headers = {"authorization": f"Bearer {key.secret}"}
    left = []
    for _ in range(3):
        response = httpx.post(f"{server.url}/predict/metered", json=body, headers=headers)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "3"
        left.append(int(response.headers["x-ratelimit-remaining-requests"]))
    assert left == sorted(left, reverse=True)
    refused = httpx.post(f"{server.url}/predict/metered", json=body, headers=headers)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_usage_counts_every_answer_once(client: Client):
    client.models.train("iris", "counted")
    client.deployments.deploy("counted")
    key = client.keys.create("counter")
    with Client(client.url, key.secret) as other:
        for _ in range(7):
            other.predict("counted", rows=[[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]])
        with pytest.raises(errors.InvalidInput):
            other.predict("counted", row=[1.0])
    deadline = time.monotonic() + 15
    rows = []
    while time.monotonic() < deadline:
        rows = [row for row in client.usage(by=["key", "model"]) if row.key == key.id]
        if rows and rows[0].requests == 8:
            break
        time.sleep(0.2)
    assert [(row.model, row.requests, row.errors, row.rows) for row in rows] == [
        ("counted", 8, 1, 14)
    ]


def test_the_command_line_tells_the_whole_story(server: LiveServer, tmp_path: Path):
    def cli(*arguments: str) -> object:
        return json.loads(server.run_cli(*arguments, "-o", "json").stdout)

    cli("train", "iris", "--name", "story")
    spec = tmp_path / "deployments.toml"
    spec.write_text('[[deployments]]\nname = "story"\nmodel = "story"\n')
    planned = server.run_cli("apply", "-f", str(spec), "--dry-run")
    assert "story" in planned.stdout + planned.stderr
    assert "story" not in server.run_cli("ps").stdout
    server.run_cli("apply", "-f", str(spec), "--yes")
    with Client(server.url, server.key) as client:
        client.deployments.wait("story", timeout=60)
    assert "story" in server.run_cli("ps").stdout
    said = server.run_cli("run", "story", '{"row": [5.1, 3.5, 1.4, 0.2]}', check=False)
    assert "setosa" in said.stdout, said.stderr
    environment = server.run_cli("env").stdout
    assert f"OPENAI_BASE_URL={server.url}/v1" in environment.replace('"', "").replace("'", "")
    refused = server.run_cli("deploy", "ghost", check=False)
    assert refused.returncode == 1
    assert "ghost" in refused.stderr
    assert "Traceback" not in refused.stderr
    server.run_cli("undeploy", "story", "--yes", check=False)


def test_a_server_without_permission_refuses_code_and_names_the_setting(tmp_path: Path):
    with run_server(tmp_path) as server, Client(server.url, server.key) as client:
        with pytest.raises(errors.NotPermitted) as refused:
            client.models.import_model(write_model(tmp_path / "model", FAULTY), name="code")
        assert "WHERRY_ALLOW_CODE" in refused.value.text
        assert client.models.list() == []


def test_a_taken_port_is_said_plainly_with_a_free_one(server: LiveServer, tmp_path: Path):
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "serve", "--data", str(tmp_path / "data"), "--port", port],
        env={**clean_environment(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "wherry serve --port" in done.stderr
    assert "Traceback" not in done.stderr
