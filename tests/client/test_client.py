"""The blocking client against a working server."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.client.twin import KEY, Twin

from wherry import Client, errors
from wherry.client.schema import DeploymentSpec, Job, LogLine, Progress


def test_a_model_is_pulled_deployed_and_called(client: Client):
    seen: list[Progress] = []
    job = client.models.pull("sentiment", on_progress=seen.append)
    assert job.state == "succeeded"
    assert job.result["model"] == "sentiment"
    assert seen[-1].done == 100
    deployment = client.deployments.deploy("sentiment")
    assert (deployment.name, deployment.state) == ("sentiment", "ready")
    assert client.predict("sentiment", text="what a lovely day")["label"] == "positive"
    assert client.predict("sentiment", {"text": "rain"})["label"] == "negative"


def test_a_list_is_followed_over_all_its_pages(client: Client, twin: Twin):
    for number in range(5):
        twin.add_version(f"model{number}", "text-classification")
    assert [model.name for model in client.models.list()] == [f"model{n}" for n in range(5)]
    assert len(client.catalog()) == 3


def test_versions_and_aliases(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    twin.add_version("sentiment", "text-classification")
    assert [version.number for version in client.models.versions("sentiment")] == [1, 2]
    assert client.models.version("sentiment", 2).number == 2
    assert client.models.set_alias("sentiment", "champion", 1, dry_run=True).aliases
    assert twin.models["sentiment"].aliases == {}
    client.models.set_alias("sentiment", "champion", 1)
    assert client.models.get("sentiment").aliases == {"champion": 1}
    client.models.remove_alias("sentiment", "champion")
    client.models.remove("sentiment", 1)
    assert client.models.get("sentiment").versions == [2]
    client.models.remove("sentiment", dry_run=True)
    assert "sentiment" in twin.models
    client.models.remove("sentiment")
    assert client.models.list() == []


def test_a_failed_job_raises_its_cause(client: Client, twin: Twin):
    twin.fail_jobs = "the package index does not answer"
    with pytest.raises(errors.WherryError, match="the package index does not answer") as caught:
        client.models.pull("sentiment")
    assert caught.value.hint == "check the network"


def test_a_pull_that_is_not_waited_for_can_be_cancelled(client: Client):
    job = client.models.pull("sentiment", wait=False)
    assert isinstance(job, Job)
    assert client.jobs.cancel(job.id).state == "cancelled"
    with pytest.raises(errors.Cancelled):
        client.jobs.wait(job.id)


def test_a_dry_run_changes_nothing(client: Client, twin: Twin):
    client.models.pull("sentiment", dry_run=True)
    assert twin.jobs == {}
    twin.add_version("sentiment", "text-classification")
    spec = DeploymentSpec(name="mood", model="sentiment")
    answer = client.deployments.apply(spec, dry_run=True)
    assert [change.action for change in answer.changes] == ["create"]
    assert twin.deployments == {}


def test_waiting_for_a_job_survives_a_stream_that_breaks(client: Client, twin: Twin):
    twin.break_streams = 1
    assert client.models.pull("sentiment").state == "succeeded"
    watched = [path for _, path in twin.requests if path.endswith("/events")]
    assert len(watched) == 2


def test_a_deployment_that_fails_raises_cause_and_remedy(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    client.deployments.deploy("sentiment")
    deployment = twin.deployments["sentiment"]
    deployment.state, deployment.cause, deployment.remedy = "failing", "no memory", "free some"
    with pytest.raises(errors.NotReady, match="no memory") as caught:
        client.deployments.wait("sentiment")
    assert caught.value.hint == "free some"


def test_scale_stop_start_remove(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    client.deployments.deploy("sentiment", "mood", replicas=2)
    assert twin.deployments["mood"].spec.replicas.max == 2
    assert client.deployments.scale("mood", 0, 4).spec.replicas.max == 4
    assert client.deployments.roll_back("mood").rollout.phase == "rolled_back"
    assert client.deployments.promote("mood").rollout.phase == "steady"
    assert client.deployments.stop("mood").state == "stopped"
    with pytest.raises(errors.NotReady):
        Client(client.url, KEY, max_retries=0).predict("mood", text="x")
    assert client.deployments.start("mood").state == "starting"
    assert client.workers()[0].deployment == "mood"
    assert client.deployments.remove("mood").changes[0].action == "delete"
    assert client.deployments.list() == []


def test_logs_are_listed_and_followed(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    client.deployments.deploy("sentiment")
    listed = list(client.deployments.logs("sentiment", lines=2))
    assert [line.text for line in listed] == ["line 1", "line 2"]
    followed = list(client.deployments.logs("sentiment", follow=True))
    assert isinstance(followed[0], LogLine)
    assert len(followed) == 3


def test_chat_answers_whole_or_in_pieces(client: Client):
    client.models.pull("smollm2")
    client.deployments.deploy("smollm2")
    answer = client.chat("smollm2", "abc", temperature=0)
    assert str(answer) == "cba"
    assert answer.finish_reason == "stop"
    assert answer.usage.output_tokens == 3
    pieces = list(client.chat("smollm2", [{"role": "user", "content": "好的, 你"}], stream=True))
    assert "".join(pieces) == "你 ,的好"
    assert len(pieces) == 5


def test_a_stream_that_ends_with_an_error_raises_it(client: Client):
    client.models.pull("smollm2")
    client.deployments.deploy("smollm2")
    with pytest.raises(errors.WorkerLost, match="the worker died"):
        list(client.chat("smollm2", "crash", stream=True))


def test_a_stream_that_breaks_off_is_no_answer(client: Client, twin: Twin):
    client.models.pull("smollm2")
    client.deployments.deploy("smollm2")
    twin.break_streams = 1
    with pytest.raises(errors.WorkerLost):
        list(client.chat("smollm2", "a long question", stream=True))


def test_embeddings_come_in_the_order_of_the_texts(client: Client, twin: Twin):
    twin.add_version("minilm", "feature-extraction")
    client.deployments.deploy("minilm")
    assert client.embed("minilm", ["a", "bbb"]) == [[1.0, 0.5], [3.0, 0.5]]
    assert client.embed("minilm", []) == []


@pytest.mark.parametrize("binary", [True, False])
def test_arrays_go_and_come_back_as_they_were(client: Client, twin: Twin, binary: bool):
    twin.add_version("echo", "tensor")
    client.deployments.deploy("echo")
    inputs = {
        "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big_endian": np.array([1, 2], dtype=">i4"),
        "flags": np.array([True, False]),
        "texts": np.array(["ab", "", "你好"]),
        "nothing": np.zeros((0, 4), dtype=np.int64),
    }
    outputs = client.infer("echo", inputs, binary=binary)
    np.testing.assert_array_equal(outputs["out_numbers"], inputs["numbers"])
    np.testing.assert_array_equal(outputs["out_big_endian"], [1, 2])
    np.testing.assert_array_equal(outputs["out_flags"], [True, False])
    assert outputs["out_texts"].tolist() == [b"ab", b"", "你好".encode()]
    assert outputs["out_nothing"].shape == (0, 4)


def test_an_array_without_a_tensor_type_is_refused(client: Client):
    with pytest.raises(errors.InvalidInput, match="complex128"):
        client.infer("echo", {"x": np.array([1j])})


def test_arrays_and_pictures_are_sent_as_json(client: Client, twin: Twin, tmp_path: Path):
    twin.add_version("any", "tabular-classification")
    client.deployments.deploy("any")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    answer = client.predict(
        "any", features=np.array([1.5, 2.0]), image=tmp_path / "photo.jpg", raw=b"\x00"
    )
    assert answer["echo"] == {"features": [1.5, 2.0], "image": "/9g=", "raw": "AA=="}
    with pytest.raises(errors.InvalidInput, match="'object'"):
        client.predict("any", x=object())


def test_keys_and_usage(client: Client, twin: Twin):
    key = client.keys.create("ci", deployments=["sentiment"])
    assert key.secret == "wk-abc-secret"
    assert [each.id for each in client.keys.list()] == [key.id]
    assert client.keys.revoke(key.id, dry_run=True).revoked_at
    assert twin.keys[key.id].revoked_at is None
    client.keys.revoke(key.id)
    assert client.keys.list()[0].revoked_at is not None
    rows = client.usage(by=["key", "day"])
    assert (rows[0].key, rows[0].day, rows[0].model) == ("ci", "2026-01-02", "")


def test_overview_metrics_doctor(client: Client):
    assert client.overview().team == "default"
    assert client.metrics("sentiment")[0].requests == 2
    assert client.problems() == []
    assert client.is_ready()


def test_events_continue_after_the_last_seen_one(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    for name in ("one", "two", "three"):
        client.deployments.deploy("sentiment", name, wait=False)
    twin.break_streams = 1
    events = client.events(["deployments"])
    assert [next(events).subject for _ in range(3)] == ["one", "two", "three"]
    events.close()
    assert next(client.events(after=2)).subject == "three"


# ------------------------------------------------------------------------------ errors


def test_an_error_has_its_class_and_its_hint(client: Client):
    with pytest.raises(errors.NotFound, match="no model 'nothing'") as caught:
        client.models.get("nothing")
    assert caught.value.hint == "see the list of every model"


def test_a_fault_of_the_server_has_the_request_id_for_its_operator(client: Client, twin: Twin):
    twin.refusals = [errors.Internal("an unexpected error")]
    with pytest.raises(errors.Internal) as caught:
        client.models.import_upload("none", "name")
    assert caught.value.hint == "request req_7"


def test_a_wrong_key_is_told(twin: Twin):
    with pytest.raises(errors.NotAuthenticated):
        Client(twin.url, "wrong").models.list()


def test_no_server_is_told_with_the_command_that_starts_one():
    with pytest.raises(errors.Unavailable, match="no server answers at") as caught:
        Client("http://127.0.0.1:9", max_retries=0).models.list()
    assert "wherry serve" in caught.value.hint
    assert not Client("http://127.0.0.1:9").is_ready()


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(twin: Twin, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert Client(twin.url, KEY).models.list() == []


@pytest.mark.parametrize("name", ["", "../keys", "a/../b", "."])
def test_a_name_cannot_lead_to_another_place(client: Client, twin: Twin, name: str):
    with pytest.raises(errors.InvalidInput, match="is not a name"):
        client.models.get(name)
    assert twin.requests == []


def test_a_page_of_something_else_is_told(twin: Twin):
    with pytest.raises(errors.NotFound, match="answered 404"):
        Client(twin.url + "/elsewhere", KEY).models.list()


# ------------------------------------------------------------------------------ repeating


def test_a_refused_post_is_sent_again(client: Client, twin: Twin):
    client.models.pull("sentiment")
    client.deployments.deploy("sentiment")
    twin.requests.clear()
    twin.refusals = [errors.QuotaExceeded("slow down", retry_after_seconds=0.01)]
    assert client.predict("sentiment", text="lovely")["label"] == "positive"
    assert len(twin.requests) == 2


def test_a_refusal_is_told_when_it_lasts(client: Client, twin: Twin):
    twin.refusals = [errors.Overloaded("full", retry_after_seconds=0.01) for _ in range(5)]
    with pytest.raises(errors.Overloaded):
        client.models.list()
    assert len(twin.requests) == 3


def test_a_refusal_that_asks_for_a_long_wait_is_told_at_once(client: Client, twin: Twin):
    twin.refusals = [errors.QuotaExceeded("tomorrow", retry_after_seconds=3600)]
    with pytest.raises(errors.QuotaExceeded) as caught:
        client.models.list()
    assert caught.value.retry_after_seconds == 3600
    assert len(twin.requests) == 1


def test_a_get_whose_connection_broke_is_sent_again(client: Client, twin: Twin):
    twin.break_next = 1
    assert client.models.list() == []
    assert len(twin.requests) == 2


def test_a_post_that_may_have_run_is_not_sent_again(client: Client, twin: Twin):
    twin.break_next = 1
    with pytest.raises(errors.WherryError):
        client.predict("sentiment", text="x")
    assert len(twin.requests) == 1


# ------------------------------------------------------------------------------ use


def test_threads_share_a_client(client: Client, twin: Twin):
    twin.add_version("sentiment", "text-classification")
    client.deployments.deploy("sentiment")
    answers: list[str] = []

    def call(text: str) -> None:
        answers.append(client.predict("sentiment", text=text)["label"])

    texts = ["lovely", "rain"] * 4
    threads = [threading.Thread(target=call, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["negative"] * 4 + ["positive"] * 4


def test_a_method_shows_the_words_and_parameters_of_its_call():
    pull = Client("http://127.0.0.1:9").models.pull
    signature = inspect.signature(pull)
    assert list(signature.parameters)[:2] == ["source", "name"]
    assert signature.return_annotation == "Job"
    assert (pull.__doc__ or "").startswith("Get a model from the catalogue")


def test_a_client_that_nobody_closes_ends_quietly(twin: Twin):
    script = (
        "import sys; from wherry import Client\n"
        "client = Client(*sys.argv[1:]); client.models.list()"
    )
    command = [sys.executable, "-W", "error", "-c", script, twin.url, KEY]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_the_key_is_in_no_repr():
    client = Client("http://127.0.0.1:9", "wk-secret")
    assert "secret" not in repr(client) + repr(client.transport.address)


def test_importing_the_sdk_is_quick_and_brings_no_server_and_no_framework():
    script = (
        "import sys, time; start = time.process_time()\n"
        "from wherry import Client, AsyncClient, import_model\n"
        "print(time.process_time() - start)\n"
        "print(*sorted(name for name in sys.modules))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(3)
    ]
    modules = set(runs[0][1].split())
    heavy = {"numpy", "httpx", "starlette", "uvicorn", "sqlalchemy", "asyncio", "rich"}
    assert not modules & heavy
    ours = {name for name in modules if name.startswith("wherry.")}
    assert all(
        name.startswith(("wherry.client", "wherry.settings", "wherry.errors")) for name in ours
    )
    assert min(float(seconds) for seconds, _ in runs) < 0.15
