"""The platform API against a running server: every row, its permissions, its refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.conftest import LiveServer

from wherry.accounts.keys import Keys, Principal
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyRequest
from wherry.storage.database import Database

P = "/platform/v1"
ECHO = b"""
class Model:
    def load(self, folder):
        print("hello from the echo")
    def predict(self, batch):
        return [{"X": item["X"]} for item in batch]
"""
ECHO_TOML = b"""
task = "tensor"
runtime = "python_class"
files = ["model.py"]
[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1]}]
outputs = [{name = "X", datatype = "FP32", shape = [-1]}]
"""


def client_of(server: LiveServer, key: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def make_key(server: LiveServer, **fields: Any) -> dict[str, Any]:
    answer = server.http.post(P + "/keys", json={"name": "test", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def upload(http: httpx.Client, files: dict[str, bytes]) -> str:
    upload_id = http.post(P + "/uploads").json()["id"]
    for path, content in files.items():
        answer = http.put(f"{P}/uploads/{upload_id}/files/{path}?offset=0", content=content)
        assert answer.status_code == 200, answer.text
    return upload_id


def wait_for(look: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def finished(http: httpx.Client, job_id: str) -> Any:
    def look() -> Any:
        job = http.get(f"{P}/jobs/{job_id}").json()
        return job if job["finished_at"] else None

    return wait_for(look)


def import_echo(http: httpx.Client, name: str, **wish: Any) -> Any:
    upload_id = upload(http, {"model.py": ECHO, "wherry.toml": ECHO_TOML})
    answer = http.post(P + "/models:import", json={"upload": upload_id, "name": name, **wish})
    assert answer.status_code == 202, answer.text
    job = finished(http, answer.json()["id"])
    assert job["state"] == "succeeded", job
    return job


@pytest.fixture(scope="module")
def echo(server: LiveServer) -> str:
    """A model `platform-echo` with a version."""
    import_echo(server.http, "platform-echo", alias="champion", description="says it again")
    return "platform-echo"


@pytest.fixture(scope="module")
def deployment(server: LiveServer, echo: str) -> str:
    """It, deployed under its name, and ready."""
    answer = server.http.post(
        P + "/deployments:apply", json={"deployments": [{"name": echo, "model": echo}]}
    )
    assert answer.status_code == 200, answer.text
    wait_for(lambda: state_of(server.http, echo) == "ready")
    return echo


@pytest.fixture(scope="module")
def stranger(server: LiveServer) -> Iterator[httpx.Client]:
    """An admin of another team."""
    database = Database.for_folder(server.data)
    team = Teams(database).ensure_team("strangers")
    grantor = Principal("key_none", team.id, team.name, frozenset({"admin", "publish", "operate"}))
    request = KeyRequest(name="stranger", scopes=["admin"])
    key = Keys.for_folder(database, server.data).create_key(team.id, request, grantor)
    with client_of(server, key.secret) as http:
        yield http
    database.close()


def state_of(http: httpx.Client, name: str) -> str:
    return http.get(f"{P}/deployments/{name}").json()["state"]


def code_of(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


# ------------------------------------------------------------------------------ models


def test_a_version_shows_what_it_is_and_what_it_needs(server: LiveServer, echo: str) -> None:
    model = server.http.get(f"{P}/models/{echo}").json()
    version = server.http.get(f"{P}/models/{echo}/versions/1").json()
    assert model["latest"] == version
    assert model["aliases"] == {"champion": 1}
    assert version["card"]["description"] == "says it again"
    assert version["card"]["memory_mib"] > 10
    assert version["card"]["sample"] == {"X": [0.0]}
    assert [each["name"] for each in server.http.get(f"{P}/models").json()["items"]] == [echo]
    assert server.http.get(f"{P}/models/{echo}/versions").json()["items"] == [version]


def test_an_alias_is_set_tried_and_removed(server: LiveServer, echo: str) -> None:
    path = f"{P}/models/{echo}/aliases/tried"
    assert (
        server.http.put(path, json={"version": 1, "dry_run": True}).json()["aliases"]["tried"] == 1
    )
    assert "tried" not in server.http.get(f"{P}/models/{echo}").json()["aliases"]
    assert server.http.put(path, json={"version": 1}).json()["aliases"]["tried"] == 1
    assert server.http.put(path, json={"version": 7}).status_code == 404
    assert "tried" not in server.http.delete(path).json()["aliases"]
    assert server.http.delete(path).status_code == 404


def test_what_is_served_cannot_be_removed(server: LiveServer, deployment: str) -> None:
    for path in (f"{P}/models/{deployment}", f"{P}/models/{deployment}/versions/1"):
        answer = server.http.delete(path)
        assert (answer.status_code, code_of(answer)) == (409, "conflict")
        assert deployment in answer.json()["error"]["message"]
    assert server.http.get(f"{P}/models/{deployment}").status_code == 200


def test_an_alias_that_a_deployment_follows_cannot_be_removed(
    server: LiveServer, echo: str
) -> None:
    specs = [{"name": "follower", "model": f"{echo}@champion", "stopped": True}]
    assert server.http.post(P + "/deployments:apply", json={"deployments": specs}).is_success
    answer = server.http.delete(f"{P}/models/{echo}/aliases/champion")
    assert (answer.status_code, code_of(answer)) == (409, "conflict")
    assert server.http.delete(f"{P}/deployments/follower").is_success


def test_a_model_is_removed_only_without_dry_run(server: LiveServer) -> None:
    import_echo(server.http, "doomed")
    assert server.http.delete(f"{P}/models/doomed?dry_run=true").json()["name"] == "doomed"
    assert server.http.get(f"{P}/models/doomed").status_code == 200
    assert server.http.delete(f"{P}/models/doomed/versions/1").json()["number"] == 1
    assert server.http.delete(f"{P}/models/doomed").json()["versions"] == []
    assert server.http.get(f"{P}/models/doomed").status_code == 404


def test_a_mistyped_dry_run_does_nothing(server: LiveServer, echo: str) -> None:
    answer = server.http.delete(f"{P}/models/{echo}?dryrun=true")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dryrun")


def test_the_catalogue_says_what_fits_and_why(server: LiveServer) -> None:
    first = server.http.get(P + "/catalog", params={"limit": 1}).json()
    assert len(first["items"]) == 1
    assert "MiB free" in first["items"][0]["fit_reason"]
    rest = server.http.get(P + "/catalog", params={"cursor": first["next"]}).json()
    assert rest["next"] is None
    names = [each["name"] for each in first["items"] + rest["items"]]
    assert len(names) == len(set(names)) > 3
    assert {"smollm2", "iris"} <= set(names)


def test_dry_runs_of_jobs_make_none(server: LiveServer, echo: str) -> None:
    before = server.http.get(P + "/jobs").json()["items"]
    upload_id = upload(server.http, {"model.py": ECHO})
    for verb, body in (
        ("pull", {"source": "iris"}),
        ("import", {"upload": upload_id, "name": "m"}),
    ):
        answer = server.http.post(f"{P}/models:{verb}", json={**body, "dry_run": True})
        assert (answer.status_code, answer.json()["id"]) == (200, "")
        assert answer.json()["kind"] == verb
    assert server.http.get(P + "/jobs").json()["items"] == before
    assert server.http.delete(f"{P}/uploads/{upload_id}").status_code == 200


def test_wrong_parameters_of_a_recipe_are_refused_at_once(server: LiveServer) -> None:
    pytest.importorskip("sklearn")
    body = {"recipe": "iris", "name": "m", "parameters": {"seed": -1}}
    answer = server.http.post(P + "/models:train", json=body)
    assert answer.status_code == 400
    assert "seed" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"source": "no-such-model"}, 404),
        ({"source": "gopher:place"}, 400),
        ({"source": "pypi:x==1", "sha256": "abc"}, 400),
        ({"source": "iris", "task": "flying"}, 400),
        ({"source": "iris", "name": "../x"}, 400),
        ({"source": "iris", "colour": "red"}, 400),
        ({}, 400),
        ([], 400),
    ],
)
def test_wrong_pulls_are_refused(server: LiveServer, body: Any, status: int) -> None:
    assert server.http.post(P + "/models:pull", json=body).status_code == status


def test_a_wrong_body_names_its_field(server: LiveServer) -> None:
    answer = server.http.post(P + "/models:pull", json={"source": "iris", "colour": "red"})
    assert answer.json()["error"]["param"] == "colour"
    answer = server.http.post(P + "/models:pull", json={"source": 3})
    assert answer.json()["error"]["param"] == "source"
    answer = server.http.post(
        P + "/models:pull", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400


# ------------------------------------------------------------------------------ uploads, jobs


def test_an_upload_goes_on_where_it_broke_off(server: LiveServer) -> None:
    upload_id = server.http.post(P + "/uploads").json()["id"]
    path = f"{P}/uploads/{upload_id}/files/folder/a.bin"
    assert server.http.put(f"{path}?offset=0", content=b"abc").json()["files"] == {
        "folder/a.bin": 3
    }
    answer = server.http.put(f"{path}?offset=0", content=b"abc")
    assert (answer.status_code, code_of(answer)) == (409, "conflict")
    assert "has 3 bytes" in answer.json()["error"]["message"]
    assert server.http.put(f"{path}?offset=3", content=b"defg").json()["files"] == {
        "folder/a.bin": 7
    }
    assert server.http.get(f"{P}/uploads/{upload_id}").json()["files"] == {"folder/a.bin": 7}
    assert server.http.delete(f"{P}/uploads/{upload_id}").status_code == 200
    assert server.http.get(f"{P}/uploads/{upload_id}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fx", "%2fetc%2fpasswd", "a%2f..%2f..%2fb", "a%5cb", ".hidden", "a%00b", "x" * 300],
)
def test_files_stay_inside_their_upload(server: LiveServer, path: str) -> None:
    upload_id = server.http.post(P + "/uploads").json()["id"]
    answer = server.http.put(f"{P}/uploads/{upload_id}/files/{path}?offset=0", content=b"x")
    assert answer.status_code == 400
    assert server.http.get(f"{P}/uploads/{upload_id}").json()["files"] == {}
    server.http.delete(f"{P}/uploads/{upload_id}")


def test_the_events_of_a_job_end_with_its_last_state(server: LiveServer) -> None:
    upload_id = upload(server.http, {"model.py": ECHO, "wherry.toml": ECHO_TOML})
    body = {"upload": upload_id, "name": "watched"}
    job_id = server.http.post(P + "/models:import", json=body).json()["id"]
    with server.http.stream("GET", f"{P}/jobs/{job_id}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert events[-1]["state"] == "succeeded"
    assert events[-1]["result"]["model"] == "watched"
    assert "trying one answer" in [each["progress"]["stage"] for each in events]
    assert server.http.delete(f"{P}/models/watched").is_success


def test_a_job_is_cancelled(server: LiveServer) -> None:
    slow = b"import time\nclass Model:\n    def predict(self, batch): time.sleep(600)\n"
    upload_id = upload(server.http, {"model.py": slow, "wherry.toml": ECHO_TOML})
    body = {"upload": upload_id, "name": "slow"}
    job_id = server.http.post(P + "/models:import", json=body).json()["id"]
    wait_for(lambda: server.http.get(f"{P}/jobs/{job_id}").json()["state"] == "running")
    assert server.http.post(f"{P}/jobs/{job_id}:cancel").status_code == 200
    assert finished(server.http, job_id)["state"] == "cancelled"
    assert server.http.get(P + "/jobs", params={"limit": 1}).json()["items"][0]["id"] == job_id


# ------------------------------------------------------------------------------ deployments


def test_a_deployment_is_scaled_stopped_and_started(server: LiveServer, deployment: str) -> None:
    path = f"{P}/deployments/{deployment}"
    tried = server.http.post(path + ":scale", json={"min": 2, "dry_run": True}).json()
    assert tried["spec"]["replicas"] == {"min": 2, "max": 2, "target": 0.75}
    assert server.http.get(path).json()["spec"]["replicas"] == {"min": 1, "max": 1, "target": 0.75}
    assert server.http.post(path + ":stop").json()["state"] == "stopped"
    wait_for(lambda: not server.http.get(P + "/workers").json()["items"])
    assert server.http.post(path + ":start").json()["state"] in ("starting", "ready")
    wait_for(lambda: state_of(server.http, deployment) == "ready")
    (worker,) = server.http.get(P + "/workers").json()["items"]
    assert (worker["deployment"], worker["state"]) == (deployment, "ready")


def test_a_change_is_shown_before_it_is_made(server: LiveServer, deployment: str) -> None:
    spec = {"name": deployment, "model": deployment, "idle_seconds": 9, "replicas": {"min": 0}}
    body = {"deployments": [spec], "dry_run": True}
    (change,) = server.http.post(P + "/deployments:apply", json=body).json()["changes"]
    assert change["action"] == "update"
    assert change["fields"] == {"idle_seconds": [0.0, 9.0], "replicas.min": [1, 0]}
    (change,) = server.http.delete(f"{P}/deployments/{deployment}?dry_run=true").json()["changes"]
    assert change["action"] == "delete"
    assert server.http.get(f"{P}/deployments/{deployment}").json()["spec"]["idle_seconds"] == 0


def test_one_wrong_spec_leaves_all_as_they_are(server: LiveServer, echo: str) -> None:
    specs = [{"name": "good", "model": echo}, {"name": "bad", "model": "missing"}]
    answer = server.http.post(P + "/deployments:apply", json={"deployments": specs})
    assert answer.status_code == 404
    assert server.http.get(f"{P}/deployments/good").status_code == 404


def test_a_deployment_is_there_as_soon_as_it_was_applied(server: LiveServer, echo: str) -> None:
    for turn in range(5):
        name = f"quick-{turn}"
        specs = [{"name": name, "model": echo, "stopped": True}]
        assert server.http.post(P + "/deployments:apply", json={"deployments": specs}).is_success
        assert server.http.get(f"{P}/deployments/{name}").json()["state"] == "stopped"
        assert server.http.delete(f"{P}/deployments/{name}").is_success
        assert server.http.get(f"{P}/deployments/{name}").status_code == 404


def test_secrets_are_hidden_and_kept(server: LiveServer, echo: str) -> None:
    spec = {
        "name": "secretive",
        "model": echo,
        "stopped": True,
        "secrets": {"api_key": "s3cr3t-value"},
    }
    answer = server.http.post(P + "/deployments:apply", json={"deployments": [spec]})
    assert "s3cr3t" not in answer.text
    shown = server.http.get(f"{P}/deployments/secretive")
    assert shown.json()["spec"]["secrets"] == {"api_key": "***"}
    body = {"deployments": [shown.json()["spec"]]}
    (change,) = server.http.post(P + "/deployments:apply", json=body).json()["changes"]
    assert change["action"] == "none"
    spec = {"name": "other", "model": echo, "secrets": {"api_key": "***"}}
    answer = server.http.post(P + "/deployments:apply", json={"deployments": [spec]})
    assert answer.status_code == 400
    server.http.delete(f"{P}/deployments/secretive")


def test_logs_show_what_the_model_printed_and_follow_it(
    server: LiveServer, deployment: str
) -> None:
    path = f"{P}/deployments/{deployment}/logs"
    lines = server.http.get(path, params={"lines": 50}).json()["items"]
    assert "hello from the echo" in [each["text"] for each in lines]
    with server.http.stream("GET", path, params={"follow": "true", "lines": 1}) as stream:
        events = (line for line in stream.iter_lines() if line.startswith(("data: ", "id: ")))
        position = next(events).removeprefix("id: ")
        assert json.loads(next(events)[6:])["text"] == lines[-1]["text"]
        server.http.post(f"{P}/deployments/{deployment}:stop")
        server.http.post(f"{P}/deployments/{deployment}:start")
        assert "wherry: ended" in [next(events), next(events)][1]
    headers = {"last-event-id": position}
    with server.http.stream("GET", path, params={"follow": "true"}, headers=headers) as stream:
        events = (line for line in stream.iter_lines() if line.startswith("data: "))
        assert "wherry: ended" in next(events)
    wait_for(lambda: state_of(server.http, deployment) == "ready")


def test_requests_show_in_metrics_and_usage(server: LiveServer, deployment: str) -> None:
    caller = make_key(server, name="caller")
    with client_of(server, caller["secret"]) as http:
        for _ in range(3):
            answer = http.post(f"/predict/{deployment}", json={"X": [1.5]})
            assert answer.json() == {"X": [1.5]}

        def look() -> Any:
            params = {"by": "deployment"}
            rows = http.get(P + "/usage", params=params).json()["items"]
            return rows and rows[0]["requests"] == 3 and rows

        (row,) = wait_for(look, 10)
        assert (row["deployment"], row["key"]) == (deployment, "")
    params = {"by": "key"}
    rows = server.http.get(P + "/usage", params=params).json()["items"]
    assert 3 in [each["requests"] for each in rows if each["key"] == caller["id"]]
    assert server.http.get(P + "/usage", params={"by": "colour"}).status_code == 400
    assert server.http.get(P + "/usage", params={"from": "yesterday"}).status_code == 400

    def points() -> Any:
        params = {"deployment": deployment, "window_seconds": 600, "points": 10}
        found = server.http.get(P + "/metrics", params=params).json()["points"]
        return found and sum(each["requests"] for each in found) >= 3

    wait_for(points, 15)


# ------------------------------------------------------------------------------ the server


def test_the_overview_tells_who_you_are_and_what_is_wrong(
    server: LiveServer, deployment: str
) -> None:
    overview = server.http.get(P + "/overview").json()
    assert overview["team"] == "default"
    assert overview["scopes"] == ["admin", "download", "invoke", "operate", "publish"]
    assert deployment in [each["name"] for each in overview["deployments"]]
    assert 0 < overview["memory_used_mib"] < overview["memory_limit_mib"]
    assert "allow_code" in [each["subject"] for each in overview["problems"]]
    problems = server.http.get(P + "/doctor").json()["items"]
    assert problems[-1]["severity"] == "info"
    assert "only this machine can connect" in problems[-1]["what"]


def test_a_deployment_that_fails_says_why_and_what_to_do(server: LiveServer) -> None:
    code = (
        b"import pathlib\nclass Model:\n    def load(self, folder):\n"
        # all it can see of whether it is tried or serves: how its worker is called
        b"        if pathlib.Path.cwd().name.startswith('w-'): raise RuntimeError('no more')\n"
        b"    def predict(self, batch): return [{'X': each['X']} for each in batch]\n"
    )
    upload_id = upload(server.http, {"model.py": code, "wherry.toml": ECHO_TOML})
    body = {"upload": upload_id, "name": "breaks"}
    job = server.http.post(P + "/models:import", json=body).json()
    assert finished(server.http, job["id"])["state"] == "succeeded"
    specs = [{"name": "breaks", "model": "breaks"}]
    assert server.http.post(P + "/deployments:apply", json={"deployments": specs}).is_success
    wait_for(lambda: state_of(server.http, "breaks") == "failing")
    problems = server.http.get(P + "/overview").json()["problems"]
    assert problems[0]["severity"] == "error"
    assert problems[0]["subject"] == "breaks"
    assert "no more" in problems[0]["cause"]
    assert "wherry logs" in problems[0]["remedy"]
    assert server.http.delete(f"{P}/deployments/breaks").is_success
    assert server.http.delete(f"{P}/models/breaks").is_success


def test_events_go_on_after_the_last_one_seen(server: LiveServer, echo: str) -> None:
    def apply(name: str) -> None:
        specs = [{"name": name, "model": echo, "stopped": True}]
        assert server.http.post(P + "/deployments:apply", json={"deployments": specs}).is_success
        assert server.http.delete(f"{P}/deployments/{name}").is_success

    params = {"topics": "deployments"}
    with server.http.stream("GET", P + "/events", params=params) as stream:
        lines = stream.iter_lines()
        start = next(line for line in lines if line.startswith("id: "))
        timer = threading.Timer(0.1, apply, ["first"])
        timer.start()
        event = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
        timer.join()
    assert (event["subject"], event["what"]) == ("first", "changed")
    apply("second")
    headers = {"last-event-id": start.removeprefix("id: ")}
    with server.http.stream("GET", P + "/events", params=params, headers=headers) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        told = [json.loads(next(lines)[6:]) for _ in range(4)]
    assert [each["subject"] for each in told] == ["first", "first", "second", "second"]
    assert told[0]["id"] == event["id"]
    assert server.http.get(P + "/events", params={"topics": "birds"}).status_code == 400
    headers = {"last-event-id": "x"}
    assert server.http.get(P + "/events", headers=headers).status_code == 400


# ------------------------------------------------------------------------------ keys and rights


def test_a_key_is_made_used_and_revoked_with_its_streams(server: LiveServer) -> None:
    tried = server.http.post(P + "/keys", json={"name": "k", "dry_run": True})
    assert (tried.status_code, tried.json()["secret"]) == (200, "")
    made = make_key(server, name="short lived", scopes=["operate"])
    listed = server.http.get(P + "/keys").json()["items"]
    assert made["secret"] not in json.dumps(listed)
    assert listed[0]["id"] == made["id"]
    with client_of(server, made["secret"]) as http, http.stream("GET", P + "/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        assert server.http.delete(f"{P}/keys/{made['id']}?dry_run=true").is_success
        assert server.http.delete(f"{P}/keys/{made['id']}").json()["revoked_at"] is not None
        begun = time.monotonic()
        assert not [line for line in lines if line.startswith('data: {"error')]
        assert time.monotonic() - begun < 5
        assert http.get(P + "/overview").status_code == 401
    assert server.http.delete(f"{P}/keys/key_none").status_code == 404


def test_every_row_needs_its_scope(server: LiveServer, deployment: str) -> None:
    rows = [
        ("GET", "/overview", set[str]()),
        ("GET", "/models", set[str]()),
        ("GET", "/jobs", set[str]()),
        ("GET", "/deployments", set[str]()),
        ("GET", "/usage", set[str]()),
        ("POST", "/models:pull", {"publish"}),
        ("POST", "/models:import", {"publish"}),
        ("POST", "/models:train", {"publish"}),
        ("DELETE", "/models/missing", {"publish"}),
        ("DELETE", "/models/missing/versions/1", {"publish"}),
        ("PUT", "/models/missing/aliases/a", {"publish"}),
        ("DELETE", "/models/missing/aliases/a", {"publish"}),
        ("GET", "/uploads/up_none", {"publish"}),
        ("DELETE", "/uploads/up_none", {"publish"}),
        ("PUT", "/uploads/up_none/files/x", {"publish"}),
        ("POST", "/jobs/job_none:cancel", {"publish"}),
        ("POST", "/deployments:apply", {"operate"}),
        ("POST", "/deployments/missing:scale", {"operate"}),
        ("POST", "/deployments/missing:start", {"operate"}),
        ("POST", "/deployments/missing:stop", {"operate"}),
        ("DELETE", "/deployments/missing", {"operate"}),
        ("GET", "/deployments/missing/logs", {"operate"}),
        ("GET", "/workers", {"operate"}),
        ("GET", "/doctor", {"operate"}),
        ("GET", "/runtimes", set[str]()),
        ("POST", "/runtimes/missing:install", {"operate"}),
        ("DELETE", "/runtimes/missing", {"operate"}),
        ("GET", "/keys", {"admin"}),
        ("POST", "/keys", {"admin"}),
        ("DELETE", "/keys/key_none", {"admin"}),
    ]
    for scope in ("invoke", "download", "publish", "operate"):
        with client_of(server, make_key(server, scopes=[scope])["secret"]) as http:
            for method, path, needed in rows:
                status = http.request(method, P + path).status_code
                assert (status == 403) == bool(needed - {scope}), (scope, method, path, status)
    with client_of(server, "wh-" + "x" * 43) as http:
        for method, path, _ in rows:
            assert http.request(method, P + path).status_code == 401


def test_a_path_of_the_servers_machine_needs_an_admin(server: LiveServer) -> None:
    with client_of(server, make_key(server, scopes=["publish"])["secret"]) as http:
        answer = http.post(P + "/models:pull", json={"source": "file:/etc", "dry_run": True})
        assert (answer.status_code, code_of(answer)) == (403, "not_permitted")
    body = {"source": "file:/models/Some Model", "dry_run": True}
    assert server.http.post(P + "/models:pull", json=body).status_code == 200


def test_a_key_for_one_deployment_sees_no_other(server: LiveServer, deployment: str) -> None:
    made = make_key(server, scopes=["operate"], deployments=["something-else"])
    with client_of(server, made["secret"]) as http:
        assert http.get(P + "/deployments").json()["items"] == []
        assert http.get(P + "/workers").json()["items"] == []
        assert http.get(f"{P}/deployments/{deployment}").status_code == 404
        assert http.get(f"{P}/deployments/{deployment}/logs").status_code == 404
        assert http.post(f"{P}/deployments/{deployment}:stop").status_code == 404
        assert http.delete(f"{P}/deployments/{deployment}").status_code == 404
        specs = [{"name": deployment, "model": deployment}]
        assert http.post(P + "/deployments:apply", json={"deployments": specs}).status_code == 403
    assert state_of(server.http, deployment) == "ready"


def test_what_belongs_to_another_team_is_not_there(
    server: LiveServer, deployment: str, stranger: httpx.Client
) -> None:
    upload_id = upload(server.http, {"model.py": ECHO})
    job_id = server.http.get(P + "/jobs").json()["items"][0]["id"]
    key_id = server.http.get(P + "/keys").json()["items"][0]["id"]
    for method, path in (
        ("GET", f"/models/{deployment}"),
        ("DELETE", f"/models/{deployment}"),
        ("GET", f"/models/{deployment}/versions/1"),
        ("PUT", f"/uploads/{upload_id}/files/x?offset=0"),
        ("GET", f"/uploads/{upload_id}"),
        ("DELETE", f"/uploads/{upload_id}"),
        ("GET", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/events"),
        ("POST", f"/jobs/{job_id}:cancel"),
        ("GET", f"/deployments/{deployment}"),
        ("DELETE", f"/deployments/{deployment}"),
        ("GET", f"/deployments/{deployment}/logs"),
        ("GET", f"/metrics?deployment={deployment}"),
        ("DELETE", f"/keys/{key_id}"),
    ):
        assert stranger.request(method, P + path).status_code == 404, path
    body = {"upload": upload_id, "name": "stolen"}
    assert stranger.post(P + "/models:import", json=body).status_code == 404
    for path in ("/models", "/jobs", "/deployments", "/workers", "/usage"):
        assert stranger.get(P + path).json()["items"] == []
    for path in ("/overview", "/doctor", "/catalog", "/keys"):
        assert deployment not in stranger.get(P + path).text
    server.http.delete(f"{P}/uploads/{upload_id}")


def test_runtimes_say_where_they_are_installed(server: LiveServer) -> None:
    found = {each["name"]: each for each in server.http.get(P + "/runtimes").json()["items"]}
    assert found["python_class"]["place"] == "server"
    assert {"onnx", "torch", "keras", "tensorflow"} <= found.keys()
    refused = server.http.post(P + "/runtimes/python_class:install")
    assert (refused.status_code, code_of(refused)) == (400, "invalid_input")
    for method, path in (
        ("POST", "/runtimes/nothing:install"),
        ("DELETE", "/runtimes/nothing"),
        ("DELETE", "/runtimes/python_class"),
    ):
        assert server.http.request(method, P + path).status_code == 404, path


def test_pages_follow_each_other(server: LiveServer) -> None:
    for _ in range(3):
        make_key(server, name="page")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = server.http.get(P + "/keys", params=params).json()
        seen += [each["id"] for each in page["items"]]
        cursor = page["next"]
    assert len(seen) == len(set(seen)) >= 4
    for params in (
        {"limit": "201"},
        {"limit": "0"},
        {"limit": "x"},
        {"cursor": "???"},
        {"cursor": "MQ=="},
    ):
        assert server.http.get(P + "/keys", params=params).status_code == 400, params


def test_the_api_is_described(server: LiveServer) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    assert paths[P + "/models:pull"]["post"]["x-permission"] == "publish"
    assert "/platform/v1/uploads/{id}/files/{path}" in paths


@pytest.mark.parametrize("query", ["dry_run", "dry_run=", "dryrun", "dry_run=true&dryrun"])
def test_a_parameter_without_a_value_does_nothing(
    server: LiveServer, echo: str, query: str
) -> None:
    assert server.http.put(f"{P}/models/{echo}/aliases/kept", json={"version": 1}).is_success
    answer = server.http.delete(f"{P}/models/{echo}/aliases/kept?{query}")
    assert (answer.status_code, code_of(answer)) == (400, "invalid_input")
    assert server.http.delete(f"{P}/models/{echo}/aliases/kept").is_success


@pytest.mark.parametrize("number", [1 << 31, 1 << 63, 1 << 70])
def test_an_alias_to_a_version_beyond_all_numbers_is_refused(
    server: LiveServer, echo: str, number: int
) -> None:
    body = json.dumps({"version": number})
    answer = server.http.put(f"{P}/models/{echo}/aliases/far", content=body)
    assert answer.status_code == 404, answer.text


def test_usage_of_other_deployments_is_not_for_a_key_of_one(
    server: LiveServer, deployment: str
) -> None:
    server.http.post(f"/predict/{deployment}", json={"X": [1.0]})

    def of(http: httpx.Client) -> set[str]:
        rows = http.get(P + "/usage?by=deployment").json()["items"]
        return {row["deployment"] for row in rows}

    wait_for(lambda: deployment in of(server.http))
    for scopes in (["operate"], ["admin"]):
        made = make_key(server, scopes=scopes, deployments=["something-else"])
        with client_of(server, made["secret"]) as http:
            assert of(http) == set()
    made = make_key(server, scopes=["operate"], deployments=[deployment])
    with client_of(server, made["secret"]) as http:
        assert of(http) == {deployment}


def test_a_team_has_a_largest_number_of_deployments(server: LiveServer, echo: str) -> None:
    def specs(start: int, count: int) -> dict[str, Any]:
        numbers = range(start, start + count)
        listed = [{"name": f"many-{n}", "model": echo, "stopped": True} for n in numbers]
        return {"deployments": listed, "dry_run": True}

    assert server.http.post(P + "/deployments:apply", json=specs(0, 900)).status_code == 200
    answer = server.http.post(P + "/deployments:apply", json=specs(0, 1000))
    assert (answer.status_code, code_of(answer)) == (409, "conflict")


UPSTREAM = b"""
task = "text-generation"
runtime = "upstream"
[options]
base_url = "http://127.0.0.1:9/v1"
model = "any"
"""


def test_only_who_may_operate_all_deployments_says_where_their_secrets_go(
    server: LiveServer,
) -> None:
    """A deployment follows its model's newest version, and gives it the operator's secret."""

    def publish(**rights: Any) -> Any:
        made = make_key(server, **rights)
        with client_of(server, made["secret"]) as http:
            upload_id = upload(http, {"wherry.toml": UPSTREAM})
            body = {"upload": upload_id, "name": "relay"}
            return finished(http, http.post(P + "/models:import", json=body).json()["id"])

    for rights in (
        {"scopes": ["publish"]},
        {"scopes": ["publish", "operate"], "deployments": ["mine"]},
    ):
        job = publish(**rights)
        assert (job["state"], job["result"]) == ("failed", {"code": "not_permitted"})
    assert publish(scopes=["publish", "operate"])["state"] == "succeeded"


def test_models_follow_each_other_in_pages(server: LiveServer, echo: str) -> None:
    for name in ("page-a", "page-b"):
        import_echo(server.http, name)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": "1", **({"cursor": cursor} if cursor else {})}
        page = server.http.get(P + "/models", params=params).json()
        assert len(page["items"]) == 1
        seen += [each["name"] for each in page["items"]]
        cursor = page["next"]
    assert seen == sorted(seen)
    assert {echo, "page-a", "page-b"} <= set(seen)
    assert server.http.get(P + "/models?cursor=MQ==").status_code == 400
