"""Triton's HTTP client against the `/v2` door: JSON, binary, async, versions, repository."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tests.conftest import LiveServer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], dtype=np.float32)
ALL_OUTPUTS = {"label", "class", "probabilities"}
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
    "BYTES": ["", "naïve 😀 \x00"],
}


class Caller:
    """Triton's client, sending the key each time; the client changes the headers it is given."""

    def __init__(self, live: LiveServer) -> None:
        self._key = live.key
        self.client = triton.InferenceServerClient(live.url.removeprefix("http://"), concurrency=4)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*arguments: Any, **fields: Any) -> Any:
            headers = {"Authorization": f"Bearer {self._key}"}
            return method(*arguments, headers=headers, **fields)

        return call


@pytest.fixture
def caller(live: LiveServer) -> Iterator[Caller]:
    made = Caller(live)
    yield made
    made.client.close()


def tensor(name: str, values: np.ndarray, *, binary: bool) -> triton.InferInput:
    """An input for Triton's client."""
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def requested(*names: str, binary: bool) -> list[triton.InferRequestedOutput]:
    """Outputs for Triton's client."""
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def as_text(values: np.ndarray) -> list[str]:
    """Strings of a BYTES tensor, which are bytes if they travelled as binary data."""
    return [each.decode() if isinstance(each, bytes) else each for each in values.tolist()]


def plain(**fields: Any) -> dict[str, Any]:
    """A plain request for one flower."""
    flower = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}
    return {"inputs": [flower | fields]}


def post(live: LiveServer, body: Any, model: str = "iris", **fields: Any) -> httpx.Response:
    """A request without a client library."""
    return live.http.post(f"/v2/models/{model}/infer", json=body, **fields)


# ------------------------------------------------------------------------------ about


def test_health_needs_no_key_and_has_a_body(live: LiveServer):
    assert httpx.get(f"{live.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{live.url}/v2/health/ready").json() == {"ready": True}


def test_readiness_of_server_models_and_versions(caller: Caller):
    assert caller.is_server_live()
    assert caller.is_server_ready()
    assert caller.is_model_ready("iris")
    assert caller.is_model_ready("iris", "1")
    assert not caller.is_model_ready("iris", "99")
    assert not caller.is_model_ready("nobody")


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_says_what_it_can(live: LiveServer, path: str):
    answer = live.http.get(path).json()
    assert answer["name"] == "wherry"
    assert {"binary_tensor_data", "model_repository"} <= set(answer["extensions"])


def test_metadata_describe_tensors(caller: Caller):
    found = caller.get_model_metadata("iris")
    assert found["name"] == "iris"
    assert found["versions"] == ["1"]
    assert found["platform"]
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert {each["name"] for each in found["outputs"]} == ALL_OUTPUTS
    assert caller.get_model_metadata("iris", "1") == found
    assert caller.get_model_config("iris")["name"] == "iris"
    assert caller.get_inference_statistics("iris")["model_stats"][0]["name"] == "iris"


def test_an_unknown_model_is_an_error_that_the_client_can_read(caller: Caller):
    for call in (caller.get_model_metadata, caller.load_model, caller.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call("nobody")
        assert caught.value.status() == "404"
        assert "nobody" in caught.value.message()


# ------------------------------------------------------------------------------ inference


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_answers_are_the_same_in_json_and_binary(caller: Caller, binary_in: bool, binary_out: bool):
    result = caller.infer(
        "iris",
        [tensor("input", FLOWERS, binary=binary_in)],
        outputs=requested("label", "probabilities", binary=binary_out),
        request_id="req-42",
    )
    answer = result.get_response()
    assert answer["id"] == "req-42"
    assert answer["model_name"] == "iris"
    assert answer["model_version"] == "1"
    assert ("parameters" in answer["outputs"][0]) == binary_out
    assert as_text(result.as_numpy("label")) == ["setosa", "virginica"]
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (2, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_all_outputs_come_when_none_is_named(caller: Caller, live: LiveServer):
    result = caller.infer("iris", [tensor("input", FLOWERS, binary=True)])
    assert all(result.as_numpy(name) is not None for name in ALL_OUTPUTS)
    assert {each["name"] for each in post(live, plain()).json()["outputs"]} == ALL_OUTPUTS


def test_the_id_is_given_back_only_if_there_was_one(live: LiveServer):
    assert "id" not in post(live, plain()).json()
    assert post(live, plain() | {"id": "7"}).json()["id"] == "7"


def test_binary_sizes_add_up(live: LiveServer):
    answer = post(live, plain() | {"parameters": {"binary_data_output": True}})
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    sizes = [
        each["parameters"]["binary_data_size"]
        for each in json.loads(answer.content[:length])["outputs"]
    ]
    assert sum(sizes) == len(answer.content) - length


def test_nested_data_and_compressed_bodies_are_read(live: LiveServer):
    nested = plain(data=[[5.1, 3.5, 1.4, 0.2]])
    expected = post(live, plain()).json()
    assert post(live, nested).json() == expected
    packed = live.http.post(
        "/v2/models/iris/infer",
        content=gzip.compress(json.dumps(nested).encode()),
        headers={"content-encoding": "gzip"},
    )
    assert packed.json() == expected


def test_a_version_can_be_named_in_the_path(caller: Caller):
    inputs = [tensor("input", FLOWERS, binary=True)]
    result = caller.infer("iris", inputs, model_version="1")
    assert result.get_response()["model_version"] == "1"
    with pytest.raises(InferenceServerException, match="version '99'"):
        caller.infer("iris", inputs, model_version="99")


def test_requests_in_parallel_get_their_own_answers(caller: Caller):
    rows = np.random.default_rng(0).uniform(0, 8, (16, 1, 4)).astype(np.float32)
    outputs = requested("class", "probabilities", binary=True)
    waiting = [
        caller.async_infer(
            "iris", [tensor("input", row, binary=True)], outputs=outputs, request_id=str(number)
        )
        for number, row in enumerate(rows)
    ]
    results = [each.get_result() for each in waiting]
    assert [each.get_response()["id"] for each in results] == [str(number) for number in range(16)]
    together = caller.infer("iris", [tensor("input", rows[:, 0], binary=True)], outputs=outputs)
    apart = np.concatenate([each.as_numpy("probabilities") for each in results])
    assert np.allclose(apart, together.as_numpy("probabilities"), atol=1e-6)


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("binary", [False, True])
def test_every_datatype_comes_back_as_it_went(caller: Caller, datatype: str, binary: bool):
    if datatype == "FP16" and not binary:
        pytest.skip("the client cannot send FP16 as JSON")
    given = VALUES[datatype]
    kind: Any = object if datatype == "BYTES" else triton.triton_to_np_dtype(datatype)
    values = np.array(given, dtype=kind)
    result = caller.infer(
        "echo", [tensor("X", values, binary=binary)], outputs=requested("X", binary=binary)
    )
    found = result.as_numpy("X")
    assert (as_text(found) if datatype == "BYTES" else found.tolist()) == values.tolist()


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (1,), (2, 3, 4), (2_000_000,)])
def test_every_shape_comes_back_as_it_went(caller: Caller, shape: tuple[int, ...]):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    result = caller.infer("echo", [tensor("X", values, binary=True)])
    assert np.array_equal(result.as_numpy("X"), values)


def test_a_text_model_can_be_called_with_tensors(caller: Caller):
    texts = np.array(["a film with a fine plot", "the battery lasts long"], dtype=object)
    result = caller.infer("topics", [tensor("text", texts, binary=True)])
    assert len(result.as_numpy("label")) == 2
    vectors = caller.infer("embeddings", [tensor("text", texts, binary=True)]).get_response()
    assert vectors["outputs"][0]["shape"] == [2, 384]


# ------------------------------------------------------------------------------ mistakes


def request_with(**fields: Any) -> dict[str, Any]:
    return {**plain(), **fields}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ([], "array"),
        (plain(name="nobody"), "nobody"),
        (plain(shape=[7, 13]), "less data"),
        (plain(shape=[-1, 4]), "shape"),
        (plain(shape=[2**32, 2**32]), ""),
        (plain(shape=[10**30]), ""),
        (plain(shape=[1] * 100_000), "shape"),
        (plain(shape=["1", "4"]), "shape"),
        (plain(datatype="FP128"), "FP128"),
        (plain(data=["1", "2", "3", "4"]), ""),
        (plain(data=[None] * 4), ""),
        (plain(data=[1e300] * 4), ""),
        (plain(data=[[1, 2], [3]]), ""),
        (plain(parameters={"binary_data_size": 16}), "two kinds"),
        (plain(parameters={"shared_memory_region": "x"}), "shared memory"),
        ({"inputs": plain()["inputs"] * 2}, "twice"),
        (request_with(outputs=[{"name": "nobody"}]), "nobody"),
        (request_with(outputs=[{"name": "label"}] * 2), "twice"),
        (request_with(id=5), "id"),
    ],
    ids=str,
)
def test_a_wrong_request_is_explained(live: LiveServer, body: Any, told: str):
    answer = post(live, body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert told in answer.json()["error"]
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("length", "body"),
    [
        ("999", b"{}"),
        ("-1", b"{}"),
        ("0x2", b"{}"),
        ("9" * 30, b"{}"),
        ("2", b"{}" + b"\0" * 16),
        ("0", json.dumps(plain()).encode()),
    ],
)
def test_a_binary_part_that_does_not_fit_is_refused(live: LiveServer, length: str, body: bytes):
    answer = live.http.post(
        "/v2/models/iris/infer",
        content=body,
        headers={"inference-header-content-length": length},
    )
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("size", [0, 3, 15, 17, 64, 2**40])
def test_a_binary_tensor_of_another_size_is_refused(live: LiveServer, size: int):
    flower = {"name": "input", "datatype": "FP32", "shape": [1, 4]}
    head = json.dumps({"inputs": [flower | {"parameters": {"binary_data_size": size}}]}).encode()
    answer = live.http.post(
        "/v2/models/iris/infer",
        content=head + b"\0" * 16,
        headers={"inference-header-content-length": str(len(head))},
    )
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


# ------------------------------------------------------------------------------ repository


def test_the_index_lists_what_is_served(caller: Caller, live: LiveServer):
    found = {each["name"]: each for each in caller.get_model_repository_index()}
    assert found["iris"] == {"name": "iris", "version": "1", "state": "READY", "reason": ""}
    assert live.http.post("/v2/repository/index").json() == list(found.values())


def test_unload_means_stopped_and_load_waits_until_it_answers(caller: Caller, live: LiveServer):
    caller.unload_model("iris")
    try:
        assert not caller.is_model_ready("iris")
        refused = post(live, plain())
        assert refused.status_code == 503
        assert "stopped" in refused.json()["error"]
        index = {each["name"]: each["state"] for each in caller.get_model_repository_index()}
        assert index["iris"] == "UNAVAILABLE"
    finally:
        caller.load_model("iris")
    assert caller.is_model_ready("iris")
    assert post(live, plain()).status_code == 200
