"""Pipelines over the wire: one call, each step accounted for, whatever goes wrong or changes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.conftest import LiveServer, run_server
from tests.faults.checker import read_journal
from tests.pipelines import ask, records_of, step

from wherry import Client, errors
from wherry.client.schema import DeploymentSpec, Step, UsageRow
from wherry.storage.journal import OutcomeRecord

WORDS = """
import os, time

NAPS = {"sleep": 6, "rest": 3, "nap": 0.4}

class Model:
    task = "text-classification"

    def predict(self, batch):
        found = []
        for text in batch:
            time.sleep(NAPS.get(text, 0))
            if text == "break":
                raise RuntimeError("broken")
            if text == "die":
                os._exit(3)
            found.append({"long": float(len(text) > 5), "short": float(len(text) <= 5)})
        return found
"""
PURE = """
task = "text-classification"
runtime = "python_class"
files = ["model.py"]
labels = ["long", "short"]
idempotent = true

[options]
entry = "model.py:Model"
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with `words` (a class), `pure` (the same, safe to repeat) and `twice` (two calls)."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name in ("words", "pure"):
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(WORDS)
    (folder / "pure" / "wherry.toml").write_text(PURE)
    with (
        run_server(folder, "--allow-code", "--gateways", "2") as server,
        Client(server.url, server.key) as client,
    ):
        for name in ("words", "pure"):
            client.models.import_model(folder / name, name=name)
            client.deployments.deploy(name)
        client.deployments.apply(
            DeploymentSpec(
                name="twice",
                steps=[
                    step("first", "words", {"text": "$request.text"}),
                    step("second", "words", {"text": "$first.label"}),
                ],
                answer={"of": "$request.text", "first": "$first.label", "second": "$second"},
            )
        )
        yield server


def units_of(server: LiveServer) -> dict[str, UsageRow]:
    with Client(server.url, server.key) as client:
        return {row.deployment: row for row in client.usage(by=["deployment"])}


# ------------------------------------------------------------------------------ one call


def test_a_pipeline_is_called_like_a_model(house: LiveServer):
    answer = ask(house, "twice", {"text": "a long one"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["first"] == "long"
    assert answer.json()["of"] == "a long one"
    assert answer.json()["second"]["label"] == "short"
    assert "rows=2" in answer.headers["x-wherry-units"]
    timing = answer.headers["server-timing"]
    assert timing.startswith("first;dur=")
    assert "second;dur=" in timing
    assert 'desc="words@1"' in timing


def test_it_is_among_the_deployments_and_runs_no_worker(house: LiveServer):
    with Client(house.url, house.key) as client:
        (found,) = [each for each in client.deployments.list() if each.name == "twice"]
        assert (found.state, found.task, found.versions) == ("ready", "pipeline", {})
        assert [each.name for each in found.spec.steps] == ["first", "second"]
        assert {each.deployment for each in client.workers()} == {"words", "pure"}
    assert "twice" in house.run_cli("ps").stdout
    ran = house.run_cli("run", "twice", "hello", "-o", "json")
    assert json.loads(ran.stdout)["first"] == "short"


def test_commands_make_show_change_and_remove_pipelines(house: LiveServer, tmp_path: Path):
    def told(*arguments: str) -> str:
        return house.run_cli("pipeline", *arguments).stdout

    file = tmp_path / "sorted.toml"
    file.write_text(
        'name = "sorted"\n[[steps]]\nname = "each_text"\ndeployment = "words"\n'
        'each = "$request.texts"\ninput = { text = "$each" }\n'
    )
    assert "+ sorted: would create" in told("create", str(file), "--dry-run")
    assert "sorted" not in told("list")
    assert "+ sorted: created" in told("create", str(file))
    assert [each["label"] for each in ask(house, "sorted", {"texts": ["a", "b c d e"]}).json()] == [
        "short",
        "long",
    ]
    assert "words" in next(row for row in told("list").splitlines() if row.startswith("sorted"))
    assert json.loads(told("show", "twice", "-o", "json"))["spec"]["steps"][0]["name"] == "first"
    shown = told("show", "sorted")
    assert '$request.texts  {"text":"$each"}' in shown
    assert "answers $each_text" in shown
    file.write_text(file.read_text().replace("words", "pure"))
    assert "~ sorted: updated" in told("create", str(file))
    refused = house.run_cli("pipeline", "remove", "words", check=False)
    assert refused.returncode == 1
    assert "'words' is no pipeline" in refused.stderr
    assert "- sorted: deleted" in told("remove", "sorted")
    assert "sorted" not in told("list")


def test_each_step_is_metered_and_recorded_under_the_calls_id(house: LiveServer):
    records = records_of(house, ask(house, "twice", {"text": "count me"}))
    assert {name: each.rows for name, each in records.items()} == {"": 0, ".first": 1, ".second": 1}
    assert (records[""].door, records[""].task) == ("predict", "pipeline")
    assert records[".first"].door == records[".second"].door == "pipeline"
    deadline = time.monotonic() + 20
    while True:
        charged = {name: (row.requests, row.rows) for name, row in units_of(house).items()}
        if charged == charge_of(read_journal(house.data)):
            break
        assert time.monotonic() < deadline, charged
        time.sleep(0.1)
    assert charged["twice"][1] == 0


def charge_of(records: list[OutcomeRecord]) -> dict[str, tuple[int, int]]:
    """Requests and rows by deployment, as the journal has them."""
    names = {each.deployment for each in records}
    rows = {name: [each.rows for each in records if each.deployment == name] for name in names}
    return {name: (len(found), sum(found)) for name, found in rows.items()}


def test_other_doors_say_how_it_is_called(house: LiveServer):
    for path, body in (
        ("/v2/models/twice/infer", {"inputs": []}),
        (
            "/v1/chat/completions",
            {"model": "twice", "messages": [{"role": "user", "content": "x"}]},
        ),
        ("/v1/embeddings", {"model": "twice", "input": "x"}),
    ):
        answer = house.http.post(path, json=body)
        assert 400 <= answer.status_code < 500, answer.text
        assert "/predict/twice" in answer.text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "needs 'text' of the request"),
        ({"text": 5}, "step 'first'"),
        ([], "JSON object"),
    ],
)
def test_a_request_that_lacks_something_is_told_so(house: LiveServer, body: Any, told: str):
    answer = ask(house, "twice", body)
    assert answer.status_code == 400
    assert told in answer.text


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([step("a", "words", "$b"), step("b", "words", "$a")], "wait for each other"),
        ([step("a", "self", "$request")], "calls itself: self -> self"),
        ([step("a", "nobody", "$request")], "no such deployment"),
        ([step("a", "words", "$nowhere.text")], "which nothing gives"),
    ],
)
def test_what_cannot_run_is_refused_when_it_is_made(house: LiveServer, steps: Any, told: str):
    with Client(house.url, house.key) as client:
        with pytest.raises(errors.InvalidInput, match=told):
            client.deployments.apply(DeploymentSpec(name="self", steps=steps))
        assert "self" not in {each.name for each in client.deployments.list()}


def test_pipelines_may_call_pipelines_but_never_in_a_circle(house: LiveServer):
    with Client(house.url, house.key) as client:
        outer = DeploymentSpec(name="outer", steps=[step("inner", "twice", "$request")])
        client.deployments.apply(outer)
        answer = ask(house, "outer", {"text": "hi"})
        assert answer.json()["first"] == "short"
        assert "inner.second" in answer.headers["server-timing"]
        circle = DeploymentSpec(name="twice", steps=[step("back", "outer", "$request")])
        with pytest.raises(errors.InvalidInput, match="twice -> outer -> twice"):
            client.deployments.apply(circle)
        with pytest.raises(errors.Conflict, match="a step of outer"):
            client.deployments.remove("twice")
        client.deployments.remove("outer")


def test_a_model_does_not_become_a_pipeline_under_the_same_name(house: LiveServer):
    with Client(house.url, house.key) as client, pytest.raises(errors.Conflict):
        client.deployments.apply(
            DeploymentSpec(name="words", steps=[step("a", "twice", "$request")])
        )


def test_a_key_needs_every_step_and_nothing_runs_without(house: LiveServer):
    with Client(house.url, house.key) as client:
        half = client.keys.create("half", deployments=["twice"])
        whole = client.keys.create("whole", deployments=["twice", "words"])
    bearer = {"authorization": f"Bearer {half.secret}"}
    answer = ask(house, "twice", {"text": "hi"}, **bearer)
    assert answer.status_code == 403
    assert "step 'first'" in answer.text
    refused = answer.headers["x-request-id"]
    assert not [each for each in read_journal(house.data) if refused in each.request_id]
    assert (
        ask(house, "twice", {"text": "hi"}, authorization=f"Bearer {whole.secret}").status_code
        == 200
    )
    stranger = ask(house, "words", {"text": "hi"}, **bearer)
    assert stranger.status_code == 403


# ------------------------------------------------------------------------------ what goes wrong


def test_a_step_that_fails_is_named(house: LiveServer):
    answer = ask(house, "twice", {"text": "break"})
    assert answer.status_code == 500
    assert "step 'first'" in answer.text
    assert "model_failed" in answer.text


def test_a_worker_that_dies_in_a_step_fails_that_call_only(house: LiveServer):
    answer = ask(house, "twice", {"text": "die"})
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["code"] == "worker_lost"
    assert "step 'first'" in answer.text
    records = records_of(house, answer)
    assert {name: (each.code, each.rows) for name, each in records.items()} == {
        "": ("worker_lost", 0),
        ".first": ("worker_lost", 0),
    }
    assert ask(house, "twice", {"text": "hi"}).json()["first"] == "short"


def ask_and_kill(server: LiveServer, name: str, body: Any, deployment: str) -> httpx.Response:
    """A call during which the one worker of a deployment is killed while it has a request."""
    with ThreadPoolExecutor(1) as pool, Client(server.url, server.key) as client:
        answer = pool.submit(ask, server, name, body)
        while True:
            assert not answer.done(), "it ended before its worker could be killed"
            busy = [
                each
                for each in client.workers()
                if each.deployment == deployment and each.in_flight
            ]
            if busy:
                os.kill(busy[0].pid, signal.SIGKILL)
                return answer.result()
            time.sleep(0.02)


def middle(deployment: str) -> DeploymentSpec:
    """Three steps, of which the second takes seconds."""
    return DeploymentSpec(
        name=f"middle-{deployment}",
        steps=[
            step("first", "twice", {"text": "$request.text"}),
            step("rest", deployment, {"text": "rest", "after": "$first.nothing?"}),
            step("last", "words", {"text": "$rest.label"}),
        ],
        answer={"first": "$first.first", "rest": "$rest.label", "last": "$last.label"},
    )


def test_a_step_whose_worker_is_killed_in_it_is_repeated_if_that_is_safe(house: LiveServer):
    with Client(house.url, house.key) as client:
        client.deployments.apply(middle("pure"))
    answer = ask_and_kill(house, "middle-pure", {"text": "a long one"}, "pure")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"first": "long", "rest": "short", "last": "short"}
    assert "rows=4" in answer.headers["x-wherry-units"]
    records = records_of(house, answer)
    assert {name: each.rows for name, each in records.items()} == {
        "": 0, ".first.first": 1, ".first.second": 1, ".rest": 1, ".last": 1,
    }  # fmt: skip
    assert {each.code for each in records.values()} == {""}
    assert records[".rest"].attempts == 2


def test_a_step_that_is_not_safe_to_repeat_ends_the_call_by_its_name(house: LiveServer):
    with Client(house.url, house.key) as client:
        client.deployments.apply(middle("words"))
    answer = ask_and_kill(house, "middle-words", {"text": "a long one"}, "words")
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["code"] == "worker_lost"
    assert "step 'rest'" in answer.text
    records = records_of(house, answer)
    assert {name: (each.code, each.rows) for name, each in records.items()} == {
        "": ("worker_lost", 0),
        ".first.first": ("", 1),
        ".first.second": ("", 1),
        ".rest": ("worker_lost", 0),
    }


def test_all_steps_share_one_deadline(house: LiveServer):
    """Each of them is well within it, all together are not."""
    naps = DeploymentSpec(
        name="naps",
        steps=[
            step("a", "words", {"text": "nap"}),
            step("b", "words", {"text": "nap", "after": "$a.nothing?"}),
            step("c", "words", {"text": "nap", "after": "$b.nothing?"}),
        ],
        answer={"labels": ["$a.label", "$b.label", "$c.label"]},
    )
    with Client(house.url, house.key) as client:
        client.deployments.apply(naps)
    answer = ask(house, "naps", {}, **{"x-request-timeout-seconds": "1.1"})
    assert answer.status_code == 504, answer.text
    assert records_of(house, answer)[""].code == "timed_out"
    assert ask(house, "naps", {}).json() == {"labels": ["short"] * 3}


def test_a_client_that_leaves_takes_its_steps_along(house: LiveServer):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{house.url}/predict/twice",
            json={"text": "sleep"},
            headers={"authorization": f"Bearer {house.key}"},
            timeout=1,
        )
    deadline = time.monotonic() + 30
    while True:
        codes = {
            each.code for each in read_journal(house.data) if each.request_id.endswith(".first")
        }
        if "cancelled" in codes:
            return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def odd_and_even() -> dict[str, list[DeploymentSpec]]:
    """Two definitions of `word` and of `part`, which it calls, that share no step."""

    def defined(word: str, steps: list[Step], part: list[Step], label: str) -> list[DeploymentSpec]:
        return [
            DeploymentSpec(
                name="part",
                steps=part,
                answer={"part": word, "label": label, "got": "$request.got"},
            ),
            DeploymentSpec(name="word", steps=steps, answer={"word": word, "part": "$then"}),
        ]

    return {
        "odd": defined(
            "odd",
            [
                step("sort", "words", {"text": "$request.text"}),
                step("then", "part", {"got": "$sort.label"}),
            ],
            [step("x", "words", {"text": "$request.got"})],
            "$x.label",
        ),
        "even": defined(
            "even",
            [
                step("all", "pure", {"text": "$each"}, "$request.texts"),
                step("then", "part", {"got": "$all.1.label"}),
            ],
            [
                step("y", "pure", {"text": "$request.got"}),
                step("z", "words", {"text": "$y.label"}),
            ],
            "$z.label",
        ),
    }


STEPS = {
    "odd": {"", ".sort", ".then.x"},
    "even": {"", ".all.0", ".all.1", ".all.2", ".then.y", ".then.z"},
}


def test_a_changed_graph_is_never_mixed_with_the_one_before(house: LiveServer):
    """Under load, also with the pipeline that is called: answers and journal are of one of both."""
    body = {"text": "a long one", "texts": ["a", "another long one", "b"]}
    found: list[httpx.Response] = []
    stop = threading.Event()

    def call() -> None:
        with httpx.Client(headers={"authorization": f"Bearer {house.key}"}) as http:
            while not stop.is_set():
                found.append(http.post(f"{house.url}/predict/word", json=body, timeout=30))

    specs = odd_and_even()
    with Client(house.url, house.key) as client:
        client.deployments.apply(specs["even"])
        assert ask(house, "word", body).json()["word"] == "even"
        callers = [threading.Thread(target=call) for _ in range(4)]
        for each in callers:
            each.start()
        for _ in range(6):
            for name in ("odd", "even"):
                client.deployments.apply(specs[name])
                seen = len(found)
                while len(found) < seen + 20 and callers[0].is_alive():
                    time.sleep(0.01)
        stop.set()
        for each in callers:
            each.join()
        client.deployments.remove("word")
        client.deployments.remove("part")
    assert {each.status_code for each in found} == {200}
    part = {"label": "short", "got": "long"}
    whole = [{"word": word, "part": {"part": word, **part}} for word in STEPS]
    assert not [each.json() for each in found if each.json() not in whole]
    assert {each.json()["word"] for each in found} == {"odd", "even"}
    taken: dict[str, set[str]] = {each.headers["x-request-id"]: set() for each in found}
    for record in read_journal(house.data):
        number, dot, name = record.request_id.partition(".")
        taken.get(number, set()).add(dot + name)
    assert all(taken[each.headers["x-request-id"]] == STEPS[each.json()["word"]] for each in found)


def test_a_batch_answers_lines_for_a_pipeline(house: LiveServer):
    import openai

    line = {"custom_id": "a", "method": "POST", "url": "/predict/twice", "body": {"text": "hi"}}
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=house.key) as sdk:
        file = sdk.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = sdk.batches.create(
            input_file_id=file.id,
            endpoint="/predict/twice",  # type: ignore[arg-type]
            completion_window="24h",
        )
        deadline = time.monotonic() + 60
        while batch.status not in ("completed", "failed"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
            batch = sdk.batches.retrieve(batch.id)
        assert batch.output_file_id, batch
        told = json.loads(sdk.files.content(batch.output_file_id).text)
    assert told["response"]["body"]["first"] == "short"


def highest_mib(server: LiveServer) -> float:
    """Most memory that a gateway has had so far."""
    found = 0
    for process in psutil.Process(server.process.pid).children(recursive=True):
        if "wherry: gateway" in " ".join(process.cmdline()):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = max(found, int(status.partition("VmHWM:")[2].split()[0]))
    return found / 1024


def test_a_step_for_each_of_many_makes_only_a_few_bodies_at_once(house: LiveServer):
    with Client(house.url, house.key) as client:
        client.deployments.apply(
            DeploymentSpec(
                name="wide",
                steps=[
                    step(
                        "all", "words", {"text": "$each", "note": "$request.note"}, "$request.texts"
                    )
                ],
                answer={"labels": "$all.*.label"},
            )
        )
        before = highest_mib(house)
        body = {"texts": ["hi"] * 64, "note": "x" * (6 << 20)}
        answer = ask(house, "wide", body)
        assert answer.json()["labels"] == ["short"] * 64
        assert highest_mib(house) - before < 64 * 6 / 2
        client.deployments.remove("wide")


def test_many_at_once_get_their_own_answers_from_both_gateways(house: LiveServer):
    def call(number: int) -> None:
        text = f"{number:09}" if number % 2 else "x"
        answer = ask(house, "twice", {"text": text}).json()
        found.append((answer["of"], answer["first"]) == (text, "long" if number % 2 else "short"))

    found: list[bool] = []
    callers = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert found == [True] * 64
