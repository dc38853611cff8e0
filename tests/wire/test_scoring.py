"""MLflow's scoring and KServe v1 over the wire, as their clients send it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.conftest import LiveServer
from tests.wire.probe import check_error_shape

FLOWERS = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]
NAMES = ["sepal length", "sepal width", "petal length", "petal width"]
KINDS = ["setosa", "virginica"]


def post(live: LiveServer, path: str, body: Any) -> httpx.Response:
    return live.http.post(path, json=body)


@pytest.fixture
def only_iris(live: LiveServer) -> Iterator[httpx.Client]:
    """A client whose key may call one deployment."""
    fields = {"name": "scoring", "deployments": ["iris"]}
    secret = live.http.post("/platform/v1/keys", json=fields).json()["secret"]
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


def test_a_data_frame_is_scored(live: LiveServer):
    frame = {"data": FLOWERS}
    answer = post(live, "/mlflow/iris/invocations", {"dataframe_split": frame})
    assert answer.json() == {"predictions": KINDS}
    turned = {"columns": NAMES[::-1], "data": [row[::-1] for row in FLOWERS]}
    by_name = post(live, "/mlflow/default/iris/invocations", {"dataframe_split": turned})
    assert by_name.json() == {"predictions": KINDS}


def test_csv_is_scored(live: LiveServer):
    lines = [",".join(NAMES)]
    lines += [",".join(map(str, row)) for row in FLOWERS]
    answer = live.http.post(
        "/mlflow/iris/invocations",
        content="\n".join(lines).encode(),
        headers={"content-type": "text/csv; charset=utf-8"},
    )
    assert answer.json() == {"predictions": KINDS}


@pytest.mark.parametrize(
    ("deployment", "instances"),
    [
        ("topics", ["a fine film", "the battery is weak"]),
        ("embeddings", ["a cat", "a dog"]),
        ("chat", [{"text": "Say hello.", "max_tokens": 4, "temperature": 0}]),
        ("digits", [[[0.0] * 28] * 28]),
        ("echo", [[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_both_protocols_serve_every_task(live: LiveServer, deployment: str, instances: Any):
    body = {"instances": instances}
    kserve = post(live, f"/v1/models/{deployment}:predict", body)
    mlflow = post(live, f"/mlflow/{deployment}/invocations", body)
    assert kserve.status_code == 200, kserve.text
    assert kserve.json() == mlflow.json()
    predictions = kserve.json()["predictions"]
    assert len(predictions) == len(instances)
    if deployment == "embeddings":
        theirs = post(live, "/v1/embeddings", {"model": deployment, "input": instances}).json()
        assert predictions == [each["embedding"] for each in theirs["data"]]
    if deployment == "echo":
        assert predictions == instances


def test_kserve_asks_for_readiness_and_predicts(live: LiveServer):
    assert live.http.get("/v1/models/iris").status_code == 200
    assert live.http.get("/v1/models/nobody").status_code == 404
    answer = post(live, "/v1/models/iris:predict", {"instances": FLOWERS})
    assert answer.json() == {"predictions": KINDS}
    assert answer.headers["x-wherry-version"].startswith("iris@")
    assert post(live, "/v1/models/default/iris:predict", {"instances": FLOWERS}).status_code == 200


def test_a_deployment_says_that_it_is_there(live: LiveServer):
    for path in ("/mlflow/iris/ping", "/mlflow/default/iris/health"):
        assert live.http.get(path).status_code == 200
    assert live.http.get("/mlflow/nobody/ping").status_code == 404
    assert live.http.get("/mlflow/iris/version").text == live.http.get("/version").text


def test_the_bare_paths_are_for_a_key_of_one_deployment(live: LiveServer, only_iris: httpx.Client):
    answer = only_iris.post("/invocations", json={"instances": FLOWERS})
    assert answer.json() == {"predictions": KINDS}
    assert only_iris.get("/ping").status_code == 200
    for refused in (
        live.http.post("/invocations", json={"instances": FLOWERS}),
        live.http.get("/ping"),
    ):
        assert refused.status_code == 400
        assert "/mlflow/NAME/" in refused.json()["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "INVALID_PARAMETER_VALUE"),
        (b'{"instances": [[1, 2]]}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"instances": "' + b"x" * 100 + b'"}', 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_refusals_have_the_protocols_shape(live: LiveServer, body: bytes, status: int, code: str):
    headers = {"content-type": "application/json"}
    mlflow = live.http.post("/mlflow/iris/invocations", content=body, headers=headers)
    assert (mlflow.status_code, mlflow.json()["error_code"]) == (status, code)
    kserve = live.http.post("/v1/models/iris:predict", content=body, headers=headers)
    assert kserve.status_code == status
    for path, answer in (("/mlflow/", mlflow), ("/v1/models/x:predict", kserve)):
        check_error_shape(path, answer)
    xml = live.http.post(
        "/mlflow/iris/invocations", content=body, headers={"content-type": "text/xml"}
    )
    assert xml.status_code == 400


def test_the_batcher_joins_them_without_mixing(live: LiveServer):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> list[str]:
        body = {"instances": [FLOWERS[number % 2]]}
        path = ("/v1/models/iris:predict", "/mlflow/iris/invocations")[number % 3 == 0]
        return live.http.post(path, json=body).json()["predictions"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(60))) == [[KINDS[number % 2]] for number in range(60)]
