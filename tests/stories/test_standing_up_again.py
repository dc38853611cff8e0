"""What dies comes back by itself, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tests.certificates import make_certificate
from tests.conftest import LiveServer, clean_environment, run_server

from wherry import Client, errors
from wherry.app.http_server import STOP_SECONDS
from wherry.client.schema import DeploymentSpec

ROW = {"row": [5.1, 3.5, 1.4, 0.2]}


def processes_of(server: LiveServer) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def titled(server: LiveServer, title: str) -> list[psutil.Process]:
    found = []
    for process in processes_of(server):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def deploy_iris(client: Client, name: str = "iris") -> None:
    client.models.train("iris", name)
    client.deployments.deploy(name)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory):
    with (
        run_server(tmp_path_factory.mktemp("house"), "--gateways", "2") as server,
        Client(server.url, server.key) as client,
    ):
        deploy_iris(client)
        yield server, client


def test_processes_say_what_they_are(house):
    server, _ = house
    titles = [" ".join(each.cmdline()) for each in processes_of(server)]
    assert any("wherry: gateway 0" in title for title in titles)
    assert any("wherry: gateway 1" in title for title in titles)
    assert any("wherry: worker iris@1 #0" in title for title in titles)
    assert "wherry: supervisor" in " ".join(psutil.Process(server.process.pid).cmdline())


def test_workers_get_no_secret_and_no_setting_in_their_environment(house):
    server, _ = house
    (worker,) = titled(server, "worker iris@1")
    environment = worker.environ()
    assert not [name for name in environment if name.startswith("WHERRY_")]
    assert server.key not in str(environment)
    assert str(server.home) not in environment.get("HOME", "")


def test_a_killed_worker_is_replaced_and_calls_go_on(house):
    server, client = house
    (worker,) = titled(server, "worker iris@1")
    os.kill(worker.pid, signal.SIGKILL)
    assert client.predict("iris", ROW)["label"] == "setosa"
    (fresh,) = titled(server, "worker iris@1")
    assert fresh.pid != worker.pid


def test_a_killed_gateway_is_replaced_and_models_stay_loaded(house):
    server, _client = house
    (worker,) = titled(server, "worker iris@1")
    for gateway in titled(server, "gateway"):
        os.kill(gateway.pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    answers = 0
    while time.monotonic() < deadline and answers < 3:
        try:
            with httpx.Client(base_url=server.url, timeout=5) as http:
                reply = http.post(
                    "/predict/iris", json=ROW, headers={"authorization": f"Bearer {server.key}"}
                )
            answers += reply.status_code == 200
        except httpx.TransportError:
            time.sleep(0.1)
    assert answers == 3
    assert [each.pid for each in titled(server, "worker iris@1")] == [worker.pid]


def test_a_killed_supervisor_leaves_no_orphan_and_its_restart_serves_again(tmp_path: Path):
    with run_server(tmp_path) as server:
        with Client(server.url, server.key) as client:
            deploy_iris(client)
            assert client.predict("iris", ROW)["label"] == "setosa"
        children = processes_of(server)
        assert len(children) >= 2
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(children, timeout=3)
        assert alive == []
        for file in (server.home / ".wherry" / "servers").glob("*.json"):
            file.unlink()
        with run_server(tmp_path) as again, Client(again.url, again.key) as client:
            assert again.key == server.key, "the local key survives a restart"
            client.deployments.wait("iris", timeout=60)
            assert client.predict("iris", ROW)["label"] == "setosa"
            rows = _wait_for_usage(client, 2)
            assert sum(row.requests for row in rows) == 2
        server.process = again.process  # it has ended as it should


def _wait_for_usage(client: Client, count: int):
    deadline = time.monotonic() + 15
    rows = []
    while time.monotonic() < deadline:
        rows = client.usage(by=["model"])
        if sum(row.requests for row in rows) >= count:
            break
        time.sleep(0.2)
    return rows


def deploy_sleeper(client: Client, folder: Path) -> None:
    """`slow`: sleeps as many seconds as it is told."""
    slow = folder / "slow"
    slow.mkdir()
    (slow / "model.py").write_text(
        "import time\nclass Model:\n    def predict(self, batch):\n"
        "        time.sleep(float(batch[0]['X'][0]))\n        return batch\n"
    )
    client.models.import_model(slow, name="slow")
    client.deployments.deploy("slow")


def wait_for_line(server: LiveServer, words: str) -> str:
    """The line of the server's log that has these words."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        for line in server.log().splitlines():
            if words in line:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no line has {words!r}:\n{server.log()}")


def test_a_gateway_that_is_told_to_stop_cleans_up_to_the_end(tmp_path: Path):
    with run_server(tmp_path) as server:
        for gateway in titled(server, "gateway"):
            gateway.send_signal(signal.SIGTERM)
        assert '"status":0' in wait_for_line(server, "gateway ended")


@pytest.mark.slow
def test_a_request_that_outlasts_its_gateway_is_told_and_recorded(tmp_path: Path):
    with (
        run_server(tmp_path, "--allow-code") as server,
        Client(server.url, server.key) as client,
    ):
        deploy_sleeper(client, tmp_path)
        body = {"X": [STOP_SECONDS + 15.0]}
        replies: list[httpx.Response] = []
        call = threading.Thread(
            target=lambda: replies.append(server.http.post("/predict/slow", json=body))
        )
        call.start()
        while [each.in_flight for each in client.workers()] != [1]:
            time.sleep(0.05)
        (gateway,) = titled(server, "gateway")
        gateway.send_signal(signal.SIGTERM)
        call.join(STOP_SECONDS + 10)
        assert replies[0].status_code == 503
        assert replies[0].json()["error"]["message"] == "the gateway is stopping"
        assert '"status":0' in wait_for_line(server, "gateway ended")
        (row,) = _wait_for_usage(client, 1)
        assert (row.requests, row.errors) == (1, 1)


def test_sigterm_finishes_what_runs_and_leaves_nothing(tmp_path: Path):
    with run_server(tmp_path, "--allow-code") as server:
        with Client(server.url, server.key) as client:
            deploy_sleeper(client, tmp_path)
            answers: list[object] = []
            call = threading.Thread(
                target=lambda: answers.append(client.predict("slow", X=[2.5])["X"])
            )
            call.start()
            time.sleep(1.2)
            assert [each.in_flight for each in client.workers()] == [1]
            children = processes_of(server)
            server.process.send_signal(signal.SIGTERM)
            call.join(20)
        assert answers == [[2.5]]
        assert server.process.wait(30) == 0
        assert psutil.wait_procs(children, timeout=3)[1] == []
        assert not list((server.home / ".wherry" / "servers").glob("*.json"))
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url + "/livez")


def test_two_servers_never_share_a_data_folder(tmp_path: Path):
    with run_server(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, "-m", "wherry", "serve", "--data", str(server.data), "--port", "0"],
            env={**clean_environment(), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "another server uses the data folder" in done.stderr


def test_a_public_address_needs_tls(tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "wherry",
            "serve",
            "--data",
            str(tmp_path / "d"),
            "--port",
            "0",
            "--host",
            "0.0.0.0",
        ],
        env={**clean_environment(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "TLS" in done.stderr


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command: apt-get install openssl"
)
def test_tls_serves_https_only(tmp_path: Path):
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "wherry",
                "serve",
                "--data",
                str(tmp_path / "d"),
                "--port",
                str(port),
                *arguments,
            ],
            env={**clean_environment(), "HOME": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 20
        live = None
        while live is None and time.monotonic() < deadline:
            try:
                live = httpx.get(f"https://127.0.0.1:{port}/livez", verify=trust)
            except httpx.TransportError:
                time.sleep(0.1)
        assert live is not None, (tmp_path / "log").read_text()
        assert live.status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez")
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_the_admin_key_of_the_environment_opens_the_server(tmp_path: Path):
    chosen = "operator-chosen-key-of-more-than-32-characters"
    with run_server(tmp_path, WHERRY_ADMIN_KEY=chosen) as server:
        with Client(server.url, chosen) as client:
            assert client.overview().scopes
        assert chosen not in server.log()
    with pytest.raises(AssertionError, match="32"), run_server(tmp_path, WHERRY_ADMIN_KEY="short"):
        pass


def test_a_model_that_does_not_load_tells_its_cause_and_the_others_serve(house):
    server, client = house
    broken = server.home / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(errors.WherryError) as refused:
        client.models.import_model(broken, name="broken")
    assert "ONNX" in refused.value.text or "onnx" in refused.value.text
    assert client.predict("iris", ROW)["label"] == "setosa"
    with pytest.raises(errors.ModelNotFound):
        client.deployments.apply([DeploymentSpec(name="broken", model="broken")])


def test_one_deployment_that_cannot_start_does_not_stop_the_others(house):
    _, client = house
    client.deployments.apply(
        [
            DeploymentSpec(
                name="secretive", model="iris", secrets={"api_key": "env:WHERRY_SECRET_NOTHING"}
            )
        ]
    )
    client.deployments.deploy("iris", name="beside")
    assert client.predict("beside", ROW)["label"] == "setosa"
    secretive = client.deployments.get("secretive")
    assert secretive.state == "failing"
    assert "WHERRY_SECRET_NOTHING" in secretive.cause
    problems = [each for each in client.overview().problems if "secretive" in each.subject]
    assert problems
    client.deployments.remove("secretive")
    client.deployments.remove("beside")
