"""Triton's gRPC clients against the gRPC door of two gateways: data, streams, errors, limits, ends."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from tests.certificates import make_certificate
from tests.conftest import LiveServer, clean_environment, run_server
from tests.faults.oracle import Command, expected_answer, write_oracle

from wherry import Client

grpc = pytest.importorskip("grpc", reason="pip install 'wherry[grpc]'")
triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")

from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402 - only if it is there
from tritonclient.utils import (  # noqa: E402
    InferenceServerException,
    np_to_triton_dtype,
    triton_to_np_dtype,
)

SERVICE = "/inference.GRPCInferenceService/"
MAX_BODY_BYTES = 16 << 20
FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)
SECONDS = 30
VALUES = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "INT8": [-128, 127],
    "UINT16": [0, 2**16 - 1],
    "INT16": [-(2**15), 2**15 - 1],
    "UINT32": [0, 2**32 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, 65504],
    "FP32": [1e-30, 3.4e38],
    "FP64": [1e-300, 1e300],
    "BYTES": [b"", "naïve 😀".encode()],
}
CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two gateways that serve `iris`, `echo` and `oracle`, which can be told to sleep."""
    pytest.importorskip("skops")
    folder = tmp_path_factory.mktemp("grpc")
    arguments = ["--allow-code", "--grpc-port", "0", "--gateways", "2"]
    arguments += ["--max-body-bytes", str(MAX_BODY_BYTES), "--client-stall-seconds", "2"]
    with run_server(folder, *arguments) as server:
        with Client(server.url, server.key) as client:
            client.models.train("iris", "iris")
            echo = Path(str(files("wherry.learning") / "examples" / "echo"))
            client.models.import_model(echo, name="echo")
            client.models.import_model(write_oracle(folder / "oracle"), name="oracle")
            for name in ("iris", "echo", "oracle"):
                client.deployments.deploy(name, wait=False)
            for name in ("iris", "echo", "oracle"):
                client.deployments.wait(name, timeout=60)
        yield server


class Caller:
    """Triton's client, sending a key each time."""

    def __init__(self, address: str, key: str, **fields: Any) -> None:
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = triton.InferenceServerClient(address, **fields)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *arguments, **fields: method(*arguments, headers=self.headers, **fields)


@pytest.fixture
def caller(house: LiveServer) -> Iterator[Caller]:
    made = Caller(house.grpc, house.key)
    yield made
    made.client.close()


@pytest.fixture
def channel(house: LiveServer) -> Iterator[Any]:
    with grpc.insecure_channel(house.grpc) as made:
        yield made


def key_of(house: LiveServer) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {house.key}"),)


def tensor(name: str, values: np.ndarray) -> Any:
    """An input for Triton's client."""
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def command(nonce: int, what: Command = Command.ANSWER, argument: int = 0) -> list[Any]:
    """A request for the oracle."""
    return [tensor("X", np.array([nonce, what, argument], dtype=np.int64))]


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """Status and text of the error that a call ends with."""
    with pytest.raises((InferenceServerException, grpc.RpcError)) as caught:
        call()
    error: Any = caught.value
    if isinstance(error, grpc.RpcError):
        return error.code().name, error.details()
    return error.status().removeprefix("StatusCode."), error.message()


def counted(house: LiveServer, code: str) -> float:
    """Requests through this door that ended so."""
    lines = house.http.get("/metrics").text.splitlines()
    found = [
        line
        for line in lines
        if line.startswith("wherry_requests_total{")
        and 'door="grpc"' in line
        and f'code="{code}"' in line
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------------------ about


def test_health_needs_no_key(house: LiveServer):
    stranger = Caller(house.grpc, "")
    assert stranger.is_server_live()
    assert stranger.is_server_ready()


def test_readiness_of_models_and_versions(caller: Caller):
    assert caller.is_model_ready("iris")
    assert caller.is_model_ready("iris", "1")
    assert refused(lambda: caller.is_model_ready("iris", "99"))[0] == "NOT_FOUND"
    assert refused(lambda: caller.is_model_ready("nobody"))[0] == "NOT_FOUND"


def test_the_server_says_what_it_can(caller: Caller):
    found = caller.get_server_metadata()
    assert found.name == "wherry"
    assert found.version
    assert {"model_repository", "statistics"} <= set(found.extensions)


@pytest.mark.parametrize("model", ["iris", "echo", "oracle"])
def test_both_protocols_tell_the_same_of_a_model(house: LiveServer, caller: Caller, model: str):
    for version in ("", "1"):
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        metadata = caller.get_model_metadata(model, version, as_json=True)
        over_http = house.http.get(path).json()
        for each in [*metadata["inputs"], *metadata["outputs"]]:
            each["shape"] = [int(size) for size in each["shape"]]
        assert metadata == over_http
        config = caller.get_model_config(model, version, as_json=True)["config"]
        over_http = house.http.get(path + "/config").json()
        for each in [*config["input"], *config["output"]]:
            each["dims"] = [int(size) for size in each["dims"]]
        assert {**config, "max_batch_size": 0} == over_http


def test_statistics_count_answers(caller: Caller):
    caller.infer("iris", [tensor("input", FLOWERS)])
    (found,) = caller.get_inference_statistics("iris").model_stats
    assert (found.name, found.version) == ("iris", "1")
    everything = caller.get_inference_statistics().model_stats
    assert {each.name for each in everything} == {"iris", "echo", "oracle"}
    status, _ = refused(lambda: caller.get_inference_statistics("nobody"))
    assert status == "NOT_FOUND"


def test_a_method_that_is_not_served_is_said_to_be_so(caller: Caller, channel: Any):
    assert refused(caller.get_system_shared_memory_status)[0] == "UNIMPLEMENTED"
    assert refused(caller.get_trace_settings)[0] == "UNIMPLEMENTED"
    assert refused(caller.get_log_settings)[0] == "UNIMPLEMENTED"
    nothing = channel.unary_unary(SERVICE + "Nothing")
    assert refused(lambda: nothing(b""))[0] == "UNIMPLEMENTED"


# ------------------------------------------------------------------------------ inference


def test_answers_are_those_of_http(house: LiveServer, caller: Caller):
    outputs = [triton.InferRequestedOutput(each) for each in ("label", "probabilities")]
    result = caller.infer("iris", [tensor("input", FLOWERS)], outputs=outputs, request_id="req-42")
    answer = result.get_response()
    assert (answer.id, answer.model_name, answer.model_version) == ("req-42", "iris", "1")
    assert [each.name for each in answer.outputs] == ["label", "probabilities"]
    sent = {"name": "input", "datatype": "FP32", "shape": [2, 4], "data": FLOWERS.ravel().tolist()}
    over_http = house.http.post("/v2/models/iris/infer", json={"inputs": [sent]}).json()
    http_data = {each["name"]: each["data"] for each in over_http["outputs"]}
    assert [each.decode() for each in result.as_numpy("label")] == http_data["label"]
    found = result.as_numpy("probabilities").ravel()
    assert np.array_equal(found, np.array(http_data["probabilities"], dtype=found.dtype))


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_comes_back_as_it_went(caller: Caller, datatype: str):
    kind: Any = object if datatype == "BYTES" else triton_to_np_dtype(datatype)
    values = np.array(VALUES[datatype], dtype=kind)
    found = caller.infer("echo", [tensor("X", values)]).as_numpy("X")
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_are_understood(house: LiveServer, channel: Any, datatype: str):
    request = service_pb2.ModelInferRequest(model_name="echo", id="t-1")
    made = request.inputs.add(name="X", datatype=datatype, shape=[2])
    getattr(made.contents, CONTENTS[datatype]).extend(VALUES[datatype])
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(request, metadata=key_of(house), timeout=SECONDS)
    kind: Any = object if datatype == "BYTES" else triton_to_np_dtype(datatype)
    expected = np.array(VALUES[datatype], dtype=kind).tolist()
    assert answer.id == "t-1"
    assert triton.InferResult(answer).as_numpy("X").tolist() == expected


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (1,), (2, 3, 4), (2_000_000,)])
def test_every_shape_comes_back_as_it_went(caller: Caller, shape: tuple[int, ...]):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = caller.infer("echo", [tensor("X", values)])
    assert list(found.get_response().outputs[0].shape) == list(shape)
    assert np.array_equal(found.as_numpy("X").reshape(shape), values)


def test_a_version_can_be_named(caller: Caller):
    inputs = [tensor("input", FLOWERS)]
    assert caller.infer("iris", inputs, model_version="1").get_response().model_version == "1"
    status, text = refused(lambda: caller.infer("iris", inputs, model_version="99"))
    assert (status, "version '99'" in text) == ("NOT_FOUND", True)


def test_a_compressed_request_is_read(caller: Caller):
    values = np.zeros(100_000, dtype=np.float32)
    result = caller.infer("echo", [tensor("X", values)], compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("X"), values)


def test_an_answer_tells_its_request_and_what_it_cost(house: LiveServer, channel: Any):
    request = service_pb2.ModelInferRequest(model_name="iris")
    request.inputs.add(name="input", datatype="FP32", shape=[2, 4])
    request.raw_input_contents.append(FLOWERS.tobytes())
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    _, call = stub.ModelInfer.with_call(request, metadata=key_of(house), timeout=SECONDS)
    begin, end = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert begin["x-request-id"] == end["x-request-id"]
    assert end["x-wherry-units"] == "input_tokens=0, output_tokens=0, rows=2"
    assert end["x-wherry-version"] == "iris@1"
    _, call = stub.ServerLive.with_call(service_pb2.ServerLiveRequest(), timeout=SECONDS)
    assert dict(call.initial_metadata())["x-request-id"] != begin["x-request-id"]


def test_every_client_gets_its_own_answer(house: LiveServer):
    """Threads with channels of their own, and tasks on one channel, over both gateways."""

    def ask(client: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        mine = Caller(house.grpc, house.key, channel_args=options)
        for number in range(40):
            nonce = client * 1000 + number
            answer = mine.infer("oracle", command(nonce), request_id=str(nonce))
            assert answer.get_response().id == str(nonce)
            assert answer.as_numpy("X").tolist() == [expected_answer(nonce, 1), 1]
        mine.client.close()

    async def ask_together() -> None:
        headers = dict(key_of(house))
        async with triton_aio.InferenceServerClient(house.grpc) as client:
            nonces = range(50_000, 50_100)
            answers = await asyncio.gather(
                *(client.infer("oracle", command(nonce), headers=headers) for nonce in nonces)
            )
        found = [int(each.as_numpy("X")[0]) for each in answers]
        assert found == [expected_answer(nonce, 1) for nonce in nonces]

    with ThreadPoolExecutor(7) as threads:
        running = [threads.submit(ask, client) for client in range(6)]
        running.append(threads.submit(asyncio.run, ask_together()))
        for each in running:
            each.result(SECONDS * 2)


# ------------------------------------------------------------------------------ streams


class Talk:
    """A stream of Triton's client and what comes out of it."""

    def __init__(self, house: LiveServer, key: str = "") -> None:
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client = triton.InferenceServerClient(house.grpc)
        headers = {"authorization": f"Bearer {key or house.key}"}
        self.client.start_stream(
            lambda result, error: self.answers.put((result, error)), headers=headers
        )

    def ask(self, model: str, inputs: list[Any], number: object, **fields: Any) -> None:
        self.client.async_stream_infer(model, inputs, request_id=str(number), **fields)

    def next(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=SECONDS)

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


def test_a_stream_is_answered_in_its_order(house: LiveServer):
    talk = Talk(house)
    talk.ask("oracle", command(7, Command.SLEEP, 300), "slow")
    for number in range(100):
        talk.ask("echo", [tensor("X", np.array([number]))], number)
    found = [talk.next() for _ in range(101)]
    talk.close()
    assert [error for _, error in found] == [None] * 101
    assert [each.get_response().id for each, _ in found] == ["slow", *map(str, range(100))]
    assert found[0][0].as_numpy("X")[0] == expected_answer(7, 1)
    assert [each.as_numpy("X")[0] for each, _ in found[1:]] == list(range(100))


def test_what_is_wrong_with_one_request_does_not_end_its_stream(house: LiveServer, channel: Any):
    good = service_pb2.ModelInferRequest(model_name="echo", id="good")
    good.inputs.add(name="X", datatype="INT8", shape=[1])
    good.raw_input_contents.append(b"\x07")
    unknown = service_pb2.ModelInferRequest(model_name="nobody", id="unknown")
    empty = service_pb2.ModelInferRequest(model_name="echo", id="empty")
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    answers = list(
        stub.ModelStreamInfer(
            iter([good, unknown, empty, good]), metadata=key_of(house), timeout=SECONDS
        )
    )
    assert [each.infer_response.id for each in answers] == ["good", "unknown", "empty", "good"]
    assert [bool(each.error_message) for each in answers] == [False, True, True, False]
    assert "nobody" in answers[1].error_message
    assert "no inputs" in answers[2].error_message


def test_a_stream_whose_client_leaves_is_stopped(house: LiveServer):
    before = counted(house, "cancelled")
    talk = Talk(house)
    talk.ask("oracle", command(1, Command.SLEEP, 1500), "late")
    talk.ask("oracle", command(2, Command.SLEEP, 1500), "later")
    time.sleep(0.5)
    talk.client.stop_stream(cancel_requests=True)
    talk.client.close()
    wait_until(lambda: counted(house, "cancelled") >= before + 2)


def test_a_stream_ends_with_the_key_that_opened_it(house: LiveServer):
    with Client(house.url, house.key) as client:
        key = client.keys.create("short", scopes=["invoke"])
        talk = Talk(house, key.secret)
        talk.ask("oracle", command(1), 0)
        assert talk.next()[1] is None
        client.keys.revoke(key.id)
        deadline = time.monotonic() + SECONDS
        error = None
        while error is None and time.monotonic() < deadline:
            talk.ask("oracle", command(2), 1)
            _, error = talk.next()
            time.sleep(0.05)
    assert error is not None
    assert "UNAUTHENTICATED" in error.status()
    talk.close()


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "call",
    [
        lambda caller: caller.get_model_metadata("nobody"),
        lambda caller: caller.get_model_config("nobody"),
        lambda caller: caller.infer("nobody", [tensor("X", FLOWERS)]),
        lambda caller: caller.load_model("nobody"),
        lambda caller: caller.unload_model("nobody"),
    ],
)
def test_an_unknown_model_is_not_found(caller: Caller, call: Callable[[Caller], Any]):
    status, text = refused(lambda: call(caller))
    assert (status, "'nobody'" in text) == ("NOT_FOUND", True)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([tensor("nope", FLOWERS)], "nope"),
        ([tensor("input", FLOWERS.astype(np.float64))], "FP64"),
        ([tensor("input", FLOWERS[:, :3])], "shape"),
        ([], "no inputs"),
    ],
    ids=["name", "datatype", "shape", "none"],
)
def test_a_wrong_request_is_explained(caller: Caller, inputs: list[Any], told: str):
    status, text = refused(lambda: caller.infer("iris", inputs))
    assert (status, told in text) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryIndex"])
@pytest.mark.parametrize("body", [b"\xff" * 50, b"\x0a\x7f", b"\x0b" * 9, b"\x18\x01" * 20_000])
def test_bytes_that_are_no_message_are_refused(
    house: LiveServer, channel: Any, method: str, body: bytes
):
    ask = channel.unary_unary(SERVICE + method)
    status, text = refused(lambda: ask(body, metadata=key_of(house), timeout=SECONDS))
    assert status == "INVALID_ARGUMENT"
    assert "protobuf" in text or "fields" in text


def test_random_bytes_harm_no_worker(house: LiveServer, channel: Any, caller: Caller):
    workers = {each.pid for each in workers_of(house)}
    ask = channel.unary_unary(SERVICE + "ModelInfer")
    chance = np.random.default_rng(5)
    for _ in range(100):
        body = b"\x0a\x04iris" + chance.bytes(int(chance.integers(0, 60)))
        with pytest.raises(grpc.RpcError) as caught:
            ask(body, metadata=key_of(house), timeout=SECONDS)
        assert caught.value.code().name in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert caller.infer("iris", [tensor("input", FLOWERS)]).as_numpy("label") is not None
    assert {each.pid for each in workers_of(house)} == workers


def test_a_message_over_the_limit_is_refused_before_it_is_unpacked(
    house: LiveServer, caller: Caller
):
    too_large = np.zeros(MAX_BODY_BYTES // 4 + 65_536, dtype=np.float32)
    status, _ = refused(lambda: caller.infer("echo", [tensor("X", too_large)]))
    assert status == "RESOURCE_EXHAUSTED"
    peaks = {process.pid: peak_mib(process.pid) for process in gateways_of(house)}
    bomb = np.zeros(60 << 20, dtype=np.float32)
    bombs = [tensor("X", bomb)]
    status, _ = refused(lambda: caller.infer("echo", bombs, compression_algorithm="gzip"))
    assert status == "RESOURCE_EXHAUSTED"
    for pid, peak in peaks.items():
        assert peak_mib(pid) < peak + 100


def test_a_caller_that_sends_nothing_is_cut_off(house: LiveServer, channel: Any):
    never = threading.Event()
    ask = channel.stream_unary(SERVICE + "ModelReady")

    def nothing() -> Iterator[bytes]:
        never.wait(SECONDS)
        yield b""

    try:
        status, text = refused(lambda: ask(nothing(), metadata=key_of(house), timeout=SECONDS))
    finally:
        never.set()
    assert (status, "did not come" in text) == ("DEADLINE_EXCEEDED", True)


# ------------------------------------------------------------------------------ keys


def test_every_method_but_health_needs_a_key(house: LiveServer, channel: Any):
    names = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    statuses: dict[str, str] = {}
    for name in names:
        ask = channel.unary_unary(SERVICE + name)
        try:
            ask(b"", timeout=SECONDS)
            statuses[name] = "OK"
        except grpc.RpcError as error:
            statuses[name] = error.code().name
    assert {each for each, status in statuses.items() if status == "OK"} == {
        "ServerLive",
        "ServerReady",
    }
    shared_memory = {each for each in names if "SharedMemory" in each}
    unserved = {each for each, status in statuses.items() if status == "UNIMPLEMENTED"}
    assert unserved == {*shared_memory, "TraceSetting", "LogSettings"}
    assert set(statuses.values()) == {"OK", "UNIMPLEMENTED", "UNAUTHENTICATED"}


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Bearer wrong"),),
        (("authorization", "Basic x"),),
        (("x-api-key", "wrong"),),
        (("authorization", "Bearer a"), ("x-api-key", "b")),
        (("authorization", "Bearer a"), ("authorization", "Bearer a")),
    ],
)
def test_a_bad_key_is_refused(channel: Any, metadata: Any):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ServerMetadataRequest()
    status, text = refused(lambda: stub.ServerMetadata(request, metadata=metadata, timeout=SECONDS))
    assert status == "UNAUTHENTICATED"
    assert "key" in text


def test_a_key_reaches_what_its_scopes_and_deployments_allow(house: LiveServer, channel: Any):
    with Client(house.url, house.key) as client:
        key = client.keys.create("narrow", scopes=["invoke"], deployments=["iris"])
    metadata = (("x-api-key", key.secret),)
    narrow = Caller(house.grpc, key.secret)
    assert narrow.infer("iris", [tensor("input", FLOWERS)]).as_numpy("label") is not None
    assert {each.name for each in narrow.get_model_repository_index().models} == {"iris"}
    for call in (
        lambda: narrow.infer("echo", [tensor("X", FLOWERS)]),
        lambda: narrow.unload_model("iris"),
        lambda: narrow.load_model("iris"),
    ):
        assert refused(call)[0] == "PERMISSION_DENIED"
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.RepositoryModelUnloadRequest(model_name="iris")
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelUnload(request, metadata=metadata, timeout=SECONDS)
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["x-request-id"].startswith("req-")
    assert trailers["x-wherry-code"] == "not_permitted"


def test_a_key_over_its_limit_is_told_when_to_come_back(house: LiveServer, channel: Any):
    limits = {"name": "slow", "limits": {"requests_per_minute": 2}}
    key = house.http.post("/platform/v1/keys", json=limits).json()
    request = service_pb2.ModelInferRequest(model_name="iris")
    request.inputs.add(name="input", datatype="FP32", shape=[2, 4])
    request.raw_input_contents.append(FLOWERS.tobytes())
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def ask_often() -> None:
        for _ in range(20):
            stub.ModelInfer(request, metadata=(("x-api-key", key["secret"]),), timeout=SECONDS)

    with pytest.raises(grpc.RpcError) as caught:
        ask_often()
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    trailers = dict(caught.value.trailing_metadata())
    assert int(trailers["retry-after"]) > 0
    assert trailers["x-ratelimit-limit-requests"]


# ------------------------------------------------------------------------------ time


def test_a_deadline_ends_the_wait_and_the_work(house: LiveServer, caller: Caller):
    before = counted(house, "cancelled") + counted(house, "timed_out")
    request = command(3, Command.SLEEP, 1500)
    status, _ = refused(lambda: caller.infer("oracle", request, client_timeout=0.3))
    assert status == "DEADLINE_EXCEEDED"
    wait_until(lambda: counted(house, "cancelled") + counted(house, "timed_out") > before)
    assert caller.infer("oracle", command(4)).as_numpy("X")[0] == expected_answer(4, 1)


def test_the_servers_own_deadline_is_told(house: LiveServer, channel: Any):
    request = service_pb2.ModelInferRequest(model_name="oracle")
    request.inputs.add(name="X", datatype="INT64", shape=[3])
    request.raw_input_contents.append(np.array([1, Command.SLEEP, 1500]).tobytes())
    metadata = (*key_of(house), ("x-request-timeout-seconds", "0.2"))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    status, text = refused(lambda: stub.ModelInfer(request, metadata=metadata, timeout=SECONDS))
    assert (status, "in time" in text) == ("DEADLINE_EXCEEDED", True)


def test_a_cancelled_call_is_stopped(house: LiveServer, caller: Caller):
    before = counted(house, "cancelled")
    ended: queue.Queue[Any] = queue.Queue()
    request = command(5, Command.SLEEP, 1500)
    call = caller.async_infer("oracle", request, lambda result, error: ended.put(error))
    time.sleep(0.3)
    call.cancel()
    assert ended.get(timeout=SECONDS) is not None
    wait_until(lambda: counted(house, "cancelled") > before)
    assert caller.infer("oracle", command(6)).as_numpy("X")[0] == expected_answer(6, 1)


# ------------------------------------------------------------------------------ repository


def test_the_index_lists_what_is_served(house: LiveServer, caller: Caller):
    found = caller.get_model_repository_index(as_json=True)["models"]
    over_http = house.http.post("/v2/repository/index").json()
    assert [{**each, "reason": ""} for each in found] == over_http


def test_unload_means_stopped_and_load_waits_until_it_answers(house: LiveServer, caller: Caller):
    caller.unload_model("iris")
    try:
        assert not caller.is_model_ready("iris")
        status, text = refused(lambda: caller.infer("iris", [tensor("input", FLOWERS)]))
        assert (status, "stopped" in text) == ("UNAVAILABLE", True)
        index = {each.name: each.state for each in caller.get_model_repository_index().models}
        assert index["iris"] == "UNAVAILABLE"
    finally:
        caller.load_model("iris")
    wait_until(lambda: caller.is_model_ready("iris"))
    assert caller.infer("iris", [tensor("input", FLOWERS)]).as_numpy("label") is not None


# ------------------------------------------------------------------------------ processes


def workers_of(house: LiveServer) -> list[psutil.Process]:
    return processes_of(house, "wherry: worker")


def gateways_of(house: LiveServer) -> list[psutil.Process]:
    return processes_of(house, "wherry: gateway")


def processes_of(house: LiveServer, title: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.Process(house.process.pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_a_gateway_that_is_killed_is_replaced(house: LiveServer):
    for process in gateways_of(house):
        process.kill()
    answer = caller_that_waits(house).infer("oracle", command(8))
    assert answer.as_numpy("X")[0] == expected_answer(8, 1)
    wait_until(lambda: len(gateways_of(house)) == 2)


def caller_that_waits(house: LiveServer) -> Caller:
    """One whose channel is ready again."""
    deadline = time.monotonic() + SECONDS
    while True:
        made = Caller(house.grpc, house.key, channel_args=[("grpc.use_local_subchannel_pool", 1)])
        with contextlib.suppress(InferenceServerException):
            if made.is_model_ready("oracle"):
                return made
        made.client.close()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_stops_lets_calls_and_streams_end(tmp_path: Path):
    with run_server(tmp_path, "--allow-code", "--grpc-port", "0") as server:
        with Client(server.url, server.key) as client:
            client.models.import_model(write_oracle(tmp_path / "oracle"), name="oracle")
            client.deployments.deploy("oracle", timeout=60)
        caller = Caller(server.grpc, server.key)
        talk = Talk(server)
        talk.ask("oracle", command(1, Command.SLEEP, 500), "in hand")
        called: queue.Queue[Any] = queue.Queue()
        caller.async_infer(
            "oracle",
            command(2, Command.SLEEP, 500),
            lambda result, error: called.put((result, error)),
        )
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        result, error = called.get(timeout=SECONDS)
        assert error is None
        assert result.as_numpy("X")[0] == expected_answer(2, 1)
        result, error = talk.next()
        assert error is None
        assert result.as_numpy("X")[0] == expected_answer(1, 1)
        _, error = talk.next()
        assert "UNAVAILABLE" in error.status()
        talk.close()
        caller.client.close()
        assert server.process.wait(SECONDS) == 0


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command: apt-get install openssl"
)
def test_tls_shows_the_servers_certificate_and_takes_nothing_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    arguments = ["--tls-cert", str(certificate), "--tls-key", str(key), "--grpc-port", "0"]
    with run_server(tmp_path, *arguments) as server:
        caller = Caller(server.grpc, server.key, ssl=True, root_certificates=str(certificate))
        assert caller.is_server_live()
        assert caller.get_model_repository_index().models == []
        assert refused(Caller(server.grpc, server.key).is_server_live)[0] == "UNAVAILABLE"
        stranger = Caller(server.grpc, server.key, ssl=True)
        assert refused(stranger.is_server_live)[0] == "UNAVAILABLE"


# ------------------------------------------------------------------------------ start


def start(folder: Path, *arguments: str, prologue: str = "") -> subprocess.CompletedProcess[str]:
    """A start that fails."""
    code = f"import sys\n{prologue}\nfrom wherry.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "serve", "--data", str(folder), "--port", "0", *arguments],
        env={**clean_environment(), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path):
    ended = start(tmp_path, "--grpc-port", "0", prologue="sys.modules['grpc'] = None")
    assert ended.returncode == 1
    assert "pip install 'wherry[grpc]'" in ended.stderr


def test_a_taken_port_is_said_plainly(tmp_path: Path, house: LiveServer):
    taken_by_another_wherry = house.grpc.rsplit(":", 1)[1]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for port in (taken_by_another_wherry, str(listener.getsockname()[1])):
            ended = start(tmp_path, "--grpc-port", port)
            assert ended.returncode == 1
            assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
            assert "wherry serve --grpc-port" in ended.stderr


def test_without_the_setting_there_is_no_door(server: LiveServer):
    assert server.grpc == ""
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
