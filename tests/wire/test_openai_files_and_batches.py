"""Files, uploads and batches by the official OpenAI SDK: real models answer real files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.conftest import LiveServer, run_server

from wherry import Client
from wherry.accounts.keys import Keys, Principal
from wherry.accounts.teams import Teams
from wherry.client.schema import KeyLimits, KeyRequest
from wherry.storage.database import Database

ENDED = ("completed", "failed", "expired", "cancelled")
WAIT_SECONDS = 90.0
IRIS = "/predict/iris"
ROW: Any = {"row": [5.1, 3.5, 1.4, 0.2]}
SLOW_MODEL = """
import time
class Model:
    def predict(self, batch):
        time.sleep(sum(float(item["X"][0]) for item in batch))
        return batch
"""


def line(number: int, url: str, body: Any, **fields: Any) -> dict[str, Any]:
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body, **fields}


def write(lines: Sequence[Any]) -> bytes:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()


def send(sdk: openai.OpenAI, lines: Sequence[Any], purpose: Any = "batch") -> str:
    return sdk.files.create(file=("in.jsonl", write(lines)), purpose=purpose).id


def start(sdk: openai.OpenAI, lines: Sequence[Any], endpoint: str = IRIS, **fields: Any) -> Any:
    fields = {"completion_window": "24h", **fields}
    asked: Any = {"input_file_id": send(sdk, lines), "endpoint": endpoint, **fields}
    return sdk.batches.create(**asked)


def wait(
    sdk: openai.OpenAI, batch_id: str, until: Callable[[Any], bool] = lambda b: b.status in ENDED
) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        batch = sdk.batches.retrieve(batch_id)
        if until(batch):
            return batch
        time.sleep(0.1)
    raise AssertionError(f"the batch did not get there: {batch}")


def read(sdk: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in sdk.files.content(file_id).text.splitlines()]


@pytest.fixture
def stranger(live: LiveServer) -> Iterator[openai.OpenAI]:
    """A client of another team."""
    database = Database.for_folder(live.data)
    team = Teams(database).ensure_team("strangers")
    grantor = Principal("key_none", team.id, team.name, frozenset({"admin", "invoke"}))
    request = KeyRequest(name="stranger", scopes=["invoke"])
    key = Keys.for_folder(database, live.data).create_key(team.id, request, grantor)
    database.close()
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key.secret, max_retries=0) as client:
        yield client


# ------------------------------------------------------------------------------ files


def test_a_file_is_kept_told_and_deleted(sdk: openai.OpenAI):
    content = b"\r\n--x\x00\xff" * 200_000
    file = sdk.files.create(file=('报告 "1".bin', content), purpose="user_data")
    assert (file.bytes, file.purpose, file.status) == (len(content), "user_data", "processed")
    assert file.filename == '报告 "1".bin'
    assert file.expires_at is None, "kept until it is deleted"
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.content(file.id).read() == content
    assert sdk.files.delete(file.id).deleted
    for gone in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(file.id)


def test_files_are_listed_in_pages_by_age_and_purpose(sdk: openai.OpenAI):
    made = [send(sdk, [ROW]) for _ in range(5)]
    other = send(sdk, [ROW], "vision")
    assert [each.id for each in sdk.files.list(limit=2)][:6] == [other, *made[::-1]]
    page = sdk.files.list(limit=2, purpose="batch", after=made[3])
    assert ([each.id for each in page.data], page.has_more) == ([made[2], made[1]], True)
    ascending = [each.id for each in sdk.files.list(order="asc", limit=3)]
    assert ascending[-6:] == [*made, other]
    assert other not in [each.id for each in sdk.files.list(purpose="batch")]
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "x"}):
        with pytest.raises(openai.BadRequestError):
            sdk.files.list(**wrong)  # type: ignore[arg-type]
    for each in (*made, other):
        sdk.files.delete(each)


def test_a_file_says_when_it_expires(sdk: openai.OpenAI):
    days = sdk.files.create(file=("a", b"x"), purpose="batch")
    hour = sdk.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert days.expires_at == days.created_at + 30 * 86_400
    assert hour.expires_at == hour.created_at + 3600
    for wrong in ({"anchor": "created_at", "seconds": 5}, {"anchor": "x", "seconds": 3600}):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.files.create(file=("a", b"x"), purpose="batch", expires_after=wrong)  # type: ignore[arg-type]
        assert caught.value.param == "expires_after"


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({"purpose": "batch"}, {}, "file"),
        ({}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "nonsense"}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"other": ("a", b"x")}, None),
        ({"purpose": "batch"}, [("file", ("a", b"x")), ("file", ("b", b"x"))], None),
        ({"purpose": ["batch", "batch"]}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "batch"}, {"file": ("x" * 300, b"x")}, None),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(
    live: LiveServer, fields: Any, files: Any, param: str | None
):
    before = live.http.get("/v1/files").json()["data"]
    # httpx sends a form without files by another content type, which is refused, too
    answer = live.http.post("/v1/files", data=fields, files=files or {"x": (None, b"1")})
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["error"]["param"] == param
    assert live.http.get("/v1/files").json()["data"] == before
    assert not list((live.data / "files").glob("*/.in-*"))


def test_a_client_that_leaves_in_mid_file_leaves_nothing(live: LiveServer):
    def broken() -> Iterator[bytes]:
        yield (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"y" * 999
        )
        raise KeyError("the client breaks off")

    before = live.http.get("/v1/files").json()["data"]
    with pytest.raises(KeyError):
        httpx.post(
            f"{live.url}/v1/files",
            content=broken(),
            headers={
                "authorization": f"Bearer {live.key}",
                "content-type": "multipart/form-data; boundary=x",
            },
        )
    deadline = time.monotonic() + 10
    while list((live.data / "files").glob("*/.in-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list((live.data / "files").glob("*/.in-*"))
    assert live.http.get("/v1/files").json()["data"] == before


def test_other_teams_find_nothing_of_ours(sdk: openai.OpenAI, stranger: openai.OpenAI):
    file = send(sdk, [line(1, IRIS, ROW)])
    upload = sdk.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch")
    batch = sdk.batches.create(
        input_file_id=file,
        endpoint=IRIS,  # type: ignore[arg-type]
        completion_window="24h",
    )
    assert list(stranger.files.list()) == list(stranger.batches.list()) == []
    attempts: list[Callable[[], Any]] = [
        lambda: stranger.files.retrieve(file),
        lambda: stranger.files.content(file),
        lambda: stranger.files.delete(file),
        lambda: stranger.uploads.parts.create(upload.id, data=b"x"),
        lambda: stranger.uploads.complete(upload.id, part_ids=["x"]),
        lambda: stranger.uploads.cancel(upload.id),
        lambda: stranger.batches.retrieve(batch.id),
        lambda: stranger.batches.cancel(batch.id),
        lambda: stranger.batches.create(
            input_file_id=file,
            endpoint=IRIS,  # type: ignore[arg-type]
            completion_window="24h",
        ),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            attempt()
    assert wait(sdk, batch.id).status == "completed"


# ------------------------------------------------------------------------------ uploads


def test_parts_are_sent_at_once_and_joined_in_the_named_order(sdk: openai.OpenAI):
    pieces = [bytes([number]) * 300_000 for number in range(6)]
    content = b"".join(pieces)
    upload = sdk.uploads.create(
        bytes=len(content), filename="big.bin", mime_type="text/plain", purpose="user_data"
    )
    assert (upload.status, upload.bytes) == ("pending", len(content))
    with ThreadPoolExecutor(6) as threads:  # the last piece may well be the first to arrive
        parts = list(
            threads.map(lambda piece: sdk.uploads.parts.create(upload.id, data=piece), pieces)
        )
    spare = sdk.uploads.parts.create(upload.id, data=b"sent twice")
    found = sdk._client.get(f"uploads/{upload.id}", headers=sdk.auth_headers).json()
    assert {each["id"] for each in found["parts"]} == {each.id for each in (*parts, spare)}
    ids = [each.id for each in parts]
    for wrong in (ids[:-1], [*ids, ids[0]], [*ids[:-1], "part_none"], ids[::-1]):
        with pytest.raises(openai.BadRequestError):
            sdk.uploads.complete(upload.id, part_ids=wrong, md5=hashlib.md5(content).hexdigest())
    done = sdk.uploads.complete(upload.id, part_ids=ids, md5=hashlib.md5(content).hexdigest())
    assert done.status == "completed"
    assert done.file is not None
    assert sdk.files.content(done.file.id).read() == content
    for late in (
        lambda: sdk.uploads.parts.create(upload.id, data=b"x"),
        lambda: sdk.uploads.complete(upload.id, part_ids=ids),
        lambda: sdk.uploads.cancel(upload.id),
    ):
        with pytest.raises(openai.BadRequestError, match="completed"):
            late()
    sdk.files.delete(done.file.id)


def test_a_cancelled_upload_takes_nothing_more(sdk: openai.OpenAI, live: LiveServer):
    upload = sdk.uploads.create(bytes=9, filename="a", mime_type="text/plain", purpose="batch")
    part = sdk.uploads.parts.create(upload.id, data=b"123456789")
    assert sdk.uploads.cancel(upload.id).status == "cancelled"
    assert not list((live.data / "files").glob(f"*/{upload.id}"))
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        sdk.uploads.complete(upload.id, part_ids=[part.id])


# ------------------------------------------------------------------------------ batches


def test_a_batch_of_chats_is_answered_in_order_with_its_errors_apart(sdk: openai.OpenAI):
    hello = [{"role": "user", "content": "Say hello."}]
    chat = {"model": "chat", "messages": hello, "max_tokens": 4, "temperature": 0}
    url = "/v1/chat/completions"
    lines = [line(number, url, chat) for number in range(4)]
    lines.insert(2, line(90, url, {**chat, "messages": []}))
    lines.append(line(91, url, {**chat, "model": "nobody"}))
    lines.append(line(92, url, {**chat, "stream": True}))
    batch = start(sdk, lines, url, metadata={"run": "7"})
    assert batch.status in ("validating", "in_progress")
    batch = wait(sdk, batch.id)
    assert (batch.status, batch.metadata, batch.errors) == ("completed", {"run": "7"}, None)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 4, 3)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output = read(sdk, batch.output_file_id)
    assert [each["custom_id"] for each in output] == ["r0", "r1", "r2", "r3"]
    alone = sdk.chat.completions.create(**chat)
    for each in output:
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        assert each["response"]["body"]["object"] == "chat.completion"
        text = each["response"]["body"]["choices"][0]["message"]["content"]
        assert text == alone.choices[0].message.content
    assert len({each["response"]["request_id"] for each in output}) == 4
    refused = {each["custom_id"]: each for each in read(sdk, batch.error_file_id)}
    assert list(refused) == ["r90", "r91", "r92"]
    assert refused["r90"]["response"]["status_code"] == 400
    assert refused["r91"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert refused["r92"]["response"] is None
    assert "stream" in refused["r92"]["error"]["message"]
    made = sdk.files.retrieve(batch.output_file_id)
    assert (made.purpose, made.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert batch.id in [each.id for each in sdk.batches.list(limit=2)]


def test_lines_may_name_every_row_that_models_are_called_by(sdk: openai.OpenAI):
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}
    lines = [
        line(0, "/v1/embeddings", {"model": "embeddings", "input": ["a boat", "a wherry"]}),
        line(1, IRIS, ROW),
        line(2, "/v2/models/iris/infer", {"inputs": [tensor]}),
        line(3, "/v2/models/iris/versions/1/infer", {"inputs": [tensor]}),
        line(4, "/v1/completions", {"model": "chat", "prompt": "One, two,", "max_tokens": 2}),
        line(5, "/predict/topics", {"text": "The rocket reached orbit."}),
        line(6, "/v1/files", {}),
        line(7, "/platform/v1/models:pull", {"source": "minilm"}),
        line(8, "/v1/batches/x/cancel", {}),
        line(9, "/nowhere", {}),
    ]
    batch = wait(sdk, start(sdk, lines, "*").id)
    assert batch.status == "completed"
    output = read(sdk, batch.output_file_id)
    assert [each["custom_id"] for each in output] == [f"r{number}" for number in range(6)]
    bodies = [each["response"]["body"] for each in output]
    assert len(bodies[0]["data"]) == 2
    assert bodies[1]["label"] == "setosa"
    assert bodies[2]["outputs"] == bodies[3]["outputs"]
    refused = read(sdk, batch.error_file_id)
    assert [each["custom_id"] for each in refused] == ["r6", "r7", "r8", "r9"]
    assert {each["response"]["status_code"] for each in refused} == {404}


FAULTS: list[tuple[Any, str, str | None]] = [
    ("{not json", "invalid_json_line", None),
    ("[1]", "invalid_request", None),
    ('{"custom_id": "' + "\\ud800" + '", "method": "POST"}', "invalid_json_line", None),
    (line(2, IRIS, ROW, custom_id=""), "invalid_request", "custom_id"),
    (line(2, IRIS, ROW, custom_id=7), "invalid_request", "custom_id"),
    (line(1, IRIS, ROW), "duplicate_custom_id", "custom_id"),
    (line(2, IRIS, ROW, method="GET"), "invalid_request", "method"),
    (line(2, IRIS, [1]), "invalid_request", "body"),
    (line(2, "/predict/topics", ROW), "mismatched_endpoint", "url"),
    (line(2, "https://example.org/predict/iris", ROW), "invalid_request", "url"),
    ({"custom_id": "r2", "method": "POST", "url": IRIS}, "invalid_request", "body"),
    ('{"custom_id":"r2","method":"POST","url":"/x","body":' + "[" * 100_000, "invalid_json_line", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "code", "param"), FAULTS, ids=[str(n) for n in range(len(FAULTS))]
)
def test_a_wrong_line_fails_the_whole_file_and_is_named(
    sdk: openai.OpenAI, fault: Any, code: str, param: str | None
):
    batch = wait(sdk, start(sdk, [line(1, IRIS, ROW), "", fault, line(3, IRIS, ROW)]).id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    (found,) = batch.errors.data
    assert (found.code, found.line, found.param) == (code, 3, param), found
    assert found.message


def test_an_empty_file_fails(sdk: openai.OpenAI):
    batch = wait(sdk, start(sdk, ["", " "]).id)
    assert batch.status == "failed"
    assert batch.errors.data[0].code == "empty_file"


def test_what_cannot_be_a_batch_is_refused_at_once(sdk: openai.OpenAI):
    file, picture = send(sdk, [line(1, IRIS, ROW)]), send(sdk, ["x"], "vision")
    good: dict[str, Any] = {
        "input_file_id": file, "endpoint": IRIS, "completion_window": "24h"
    }  # fmt: skip
    for wrong, param in (
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"endpoint": "/v1/batches"}, "endpoint"),
        ({"endpoint": "/v1/models"}, "endpoint"),
        ({"endpoint": "predict/iris"}, "endpoint"),
        ({"completion_window": "25h"}, "completion_window"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"input_file_id": picture}, "input_file_id"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, None),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.batches.create(**{**good, **wrong})
        if param:
            assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        sdk.batches.create(**{**good, "input_file_id": "file-none"})


def test_the_input_may_be_deleted_while_the_batch_works(sdk: openai.OpenAI):
    batch = start(sdk, [line(number, IRIS, ROW) for number in range(50)])
    sdk.files.delete(batch.input_file_id)
    assert wait(sdk, batch.id).request_counts.completed == 50


def test_every_answer_is_metered_to_the_key_that_made_the_batch(
    sdk: openai.OpenAI, live: LiveServer
):
    with Client(live.url, live.key) as client:
        limits = KeyLimits(requests_per_minute=60_000, concurrency=2)
        key = client.keys.create("batches", deployments=["iris"], limits=limits)
        own = sdk.with_options(api_key=key.secret)
        lines = [line(number, IRIS, ROW) for number in range(40)]
        lines.append(line(99, "/predict/topics", {"text": "x"}))
        batch = wait(own, start(own, lines, "*").id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (40, 1)
        (refused,) = read(own, batch.error_file_id)
        assert refused["response"]["status_code"] == 403, "its deployments are its deployments"
        deadline = time.monotonic() + 15
        used: dict[str, int] = {}
        while used.get(key.id) != 40 and time.monotonic() < deadline:
            used = {row.key: row.requests - row.errors for row in client.usage(by=["key"])}
            time.sleep(0.2)
        assert used[key.id] == 40


# ------------------------------------------------------------------------------ slow models


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, openai.OpenAI]]:
    """A server with small limits and the model `slow`, which takes as many seconds as it is told."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "model").mkdir()
    (folder / "model" / "model.py").write_text(SLOW_MODEL)
    limits = {
        "WHERRY_MAX_FILE_BYTES": "2000000",
        "WHERRY_MAX_TEAM_FILES_BYTES": "5000000",
        "WHERRY_MAX_BATCH_BYTES": "1000000",
        "WHERRY_MAX_BATCH_LINES": "1000",
    }
    with run_server(folder, "--allow-code", **limits) as server:
        with Client(server.url, server.key) as client:
            client.models.import_model(folder / "model", name="slow")
            client.deployments.deploy("slow")
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=60
        ) as sdk:
            yield server, sdk


SLOW = "/predict/slow"


def slow_lines(count: int, seconds: float) -> list[dict[str, Any]]:
    return [line(number, SLOW, {"X": [seconds]}) for number in range(count)]


def check_rest(sdk: openai.OpenAI, batch: Any, total: int, code: str) -> None:
    """Each line is in exactly one of the files; what had no answer says why."""
    output = read(sdk, batch.output_file_id) if batch.output_file_id else []
    refused = read(sdk, batch.error_file_id)
    numbers = [int(each["custom_id"][1:]) for each in (*output, *refused)]
    assert sorted(numbers) == list(range(total))
    assert {each["error"]["code"] for each in refused} == {code}
    assert (batch.request_counts.completed, batch.request_counts.failed) == (
        len(output),
        len(refused),
    )


def test_a_cancelled_batch_keeps_what_it_has(slow: tuple[LiveServer, openai.OpenAI]):
    _, sdk = slow
    batch = start(sdk, slow_lines(900, 0.05), SLOW)
    wait(sdk, batch.id, lambda b: b.request_counts.completed > 3)
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = wait(sdk, batch.id)
    assert batch.status == "cancelled"
    assert 3 < batch.request_counts.completed < 800
    assert batch.cancelled_at >= batch.cancelling_at
    check_rest(sdk, batch, 900, "batch_cancelled")
    with pytest.raises(openai.BadRequestError, match="nothing to cancel"):
        sdk.batches.cancel(batch.id)


def test_a_batch_whose_window_has_passed_keeps_what_it_has(
    slow: tuple[LiveServer, openai.OpenAI],
):
    _, sdk = slow
    batch = wait(sdk, start(sdk, slow_lines(900, 0.05), SLOW, completion_window="4s").id)
    assert batch.status == "expired"
    assert batch.expired_at >= batch.expires_at
    check_rest(sdk, batch, 900, "batch_expired")


def test_a_batch_ends_when_its_key_is_revoked(slow: tuple[LiveServer, openai.OpenAI]):
    server, sdk = slow
    with Client(server.url, server.key) as client:
        key = client.keys.create("to be revoked")
        batch = start(sdk.with_options(api_key=key.secret), slow_lines(900, 0.05), SLOW)
        wait(sdk, batch.id, lambda b: b.request_counts.completed > 3)
        client.keys.revoke(key.id)
    batch = wait(sdk, batch.id)
    assert batch.status == "failed"
    assert "revoked" in batch.errors.data[0].message
    check_rest(sdk, batch, 900, "batch_failed")


def test_a_batch_makes_room_for_live_requests_and_takes_it_back(
    slow: tuple[LiveServer, openai.OpenAI],
):
    server, sdk = slow

    def done() -> int:
        return sdk.batches.retrieve(batch.id).request_counts.completed

    batch = start(sdk, slow_lines(1000, 0.05), SLOW)
    wait(sdk, batch.id, lambda b: b.request_counts.completed > 3)
    with Client(server.url, server.key) as client, ThreadPoolExecutor(8) as threads:
        assert max(each.in_flight for each in client.workers()) <= 24
        before = done()
        answers = list(threads.map(lambda _: client.predict("slow", X=[0.05]), range(80)))
        assert len(answers) == 80
        # what it had in hand at first, what was told late, and one for every few live requests
        assert done() - before < 60, "eight clients alone get far more than half of the worker"
    before = done()
    wait(sdk, batch.id, lambda b: b.request_counts.completed > before + 40)
    sdk.batches.cancel(batch.id)
    wait(sdk, batch.id)


def test_a_batch_waits_for_a_model_that_is_stopped(slow: tuple[LiveServer, openai.OpenAI]):
    server, sdk = slow
    with Client(server.url, server.key) as client:
        client.deployments.scale("slow", 0)
        batch = start(sdk, slow_lines(5, 0.0), SLOW)
        wait(sdk, batch.id, lambda b: b.status == "in_progress")
        time.sleep(1.0)
        assert sdk.batches.retrieve(batch.id).request_counts.completed == 0
        client.deployments.scale("slow", 1)
    assert wait(sdk, batch.id).request_counts.completed == 5


def test_a_batch_is_no_job_to_be_cancelled_behind_its_back(
    slow: tuple[LiveServer, openai.OpenAI],
):
    server, sdk = slow
    batch = start(sdk, slow_lines(900, 0.05), SLOW)
    (job,) = [
        each
        for each in server.http.get("/platform/v1/jobs").json()["items"]
        if each["kind"] == "batch" and each["state"] in ("queued", "running")
    ]
    answer = server.http.post(f"/platform/v1/jobs/{job['id']}:cancel")
    assert answer.status_code == 409
    sdk.batches.cancel(batch.id)
    assert wait(sdk, batch.id).status == "cancelled"


def test_batches_beyond_those_at_work_wait_and_are_cancelled_at_once(
    slow: tuple[LiveServer, openai.OpenAI],
):
    _, sdk = slow
    batches = [start(sdk, slow_lines(100, 0.2), SLOW) for _ in range(6)]
    last = sdk.batches.cancel(batches[-1].id)
    assert last.status == "cancelled", "it had not begun"
    check_rest(sdk, last, 100, "batch_cancelled")
    for batch in batches[:-1]:
        sdk.batches.cancel(batch.id)
    assert {wait(sdk, each.id).status for each in batches} == {"cancelled"}


def test_files_lines_and_teams_have_their_limits(slow: tuple[LiveServer, openai.OpenAI]):
    _, sdk = slow
    batch = wait(sdk, start(sdk, slow_lines(1001, 0.0), SLOW).id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "too_many_requests")
    large = sdk.files.create(file=("a", b"x" * 1_000_001), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="several batches"):
        sdk.batches.create(
            input_file_id=large.id, endpoint="/v1/embeddings", completion_window="24h"
        )
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.files.create(file=("a", b"x" * 2_000_001), purpose="batch")
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError):
        sdk.uploads.create(bytes=2_000_001, filename="a", mime_type="x", purpose="batch")
    made: list[Any] = []

    def fill() -> None:
        while len(made) < 5:
            made.append(sdk.files.create(file=("a", b"x" * 1_500_000), purpose="user_data"))

    with pytest.raises(openai.APIStatusError, match="max_team_files_bytes"):
        fill()
    with pytest.raises(openai.BadRequestError, match="delete some"):
        sdk.uploads.create(bytes=1_999_999, filename="a", mime_type="x", purpose="batch")
    for each in (large, *made):
        sdk.files.delete(each.id)
    sdk.files.delete(sdk.files.create(file=("a", b"x" * 1_500_000), purpose="user_data").id)


def test_nothing_is_left_of_batches_that_have_ended(slow: tuple[LiveServer, openai.OpenAI]):
    server, sdk = slow
    batch = wait(sdk, start(sdk, slow_lines(3, 0.0), SLOW).id)
    assert batch.status == "completed"
    deadline = time.monotonic() + 10
    while list(folders(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(folders(server)) == []


def folders(server: LiveServer) -> Iterator[Path]:
    return (server.data / "batches").iterdir()
