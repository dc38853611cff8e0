"""Tables with names, categories and holes, and series, over the doors: real models, real answers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests import real_models
from tests.conftest import LiveServer, run_server

from wherry import Client

MODELS = ("penguins", "cars", "airline", "forecaster")
MALE = {"island": "Biscoe", "bill_length_mm": 50.0, "flipper_length_mm": 220, "sex": "male"}
CAR = {
    "cylinders": 4,
    "displacement_cubic_inches": 97,
    "weight_lb": 2130,
    "seconds_to_60_mph": 14.5,
    "year": 1970,
    "origin": "Japan",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the four models, pulled as a user would."""
    pytest.importorskip("skops")
    real_models.penguins_csv()  # skips where there is no registry
    with run_server(tmp_path_factory.mktemp("tables")) as server:
        with Client(server.url, server.key) as client:
            jobs = [client.models.pull(name, wait=False) for name in MODELS]
            for name, job in zip(MODELS, jobs, strict=True):
                client.jobs.wait(job.id, timeout=240)
                client.deployments.deploy(name, wait=False)
            for name in MODELS:
                client.deployments.wait(name, timeout=240)
        yield server


def ask(house: LiveServer, path: str, body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {house.key}"}
    return httpx.post(f"{house.url}{path}", json=body, headers=headers, timeout=60)


def test_a_penguin_with_holes_is_recognised_in_every_form(house: LiveServer):
    table = {name: [str(value)] for name, value in MALE.items()}
    for body in (
        MALE,
        {"row": {**MALE, "body_mass_g": None}},
        {"row": ["Biscoe", 50.0, None, 220, None, "male"]},
        {"rows": [MALE]},
        {"columns": {name: [value] for name, value in MALE.items()}},
        {"columns": list(MALE), "data": [list(MALE.values())]},
        {"inputs": None, "table": {**table, "body_mass_g": ["nan"]}, "parameters": {}},
    ):
        answer = ask(house, "/predict/penguins", body).json()
        (first,) = answer.get("predictions", [answer])
        assert first["label"] == "Gentoo", body
        assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_many_rows_are_what_each_is_alone(house: LiveServer):
    islands = ["Biscoe", "Dream", "Torgersen", None, "Atlantis"]
    rows = [
        {"island": islands[number % 5], "bill_length_mm": 33 + number % 27, "sex": "female"}
        for number in range(10_000)
    ]
    answers = ask(house, "/predict/penguins", {"rows": rows}).json()["predictions"]
    assert len(answers) == len(rows)
    for number in (0, 4, 777, 9999):
        alone = ask(house, "/predict/penguins", rows[number]).json()
        assert answers[number] == alone


def test_columns_travel_as_tensors_too(house: LiveServer):
    shown = httpx.get(
        f"{house.url}/v2/models/penguins", headers={"Authorization": f"Bearer {house.key}"}
    ).json()
    assert [(each["name"], each["datatype"]) for each in shown["inputs"]] == [
        ("island", "BYTES"),
        ("bill_length_mm", "FP64"),
        ("bill_depth_mm", "FP64"),
        ("flipper_length_mm", "FP64"),
        ("body_mass_g", "FP64"),
        ("sex", "BYTES"),
    ]
    values = {"island": ["Biscoe", ""], "sex": ["male", ""]}
    inputs = [
        {
            "name": each["name"],
            "datatype": each["datatype"],
            "shape": [2],
            "data": values.get(each["name"], [46.5, 17.9]),
        }
        for each in shown["inputs"]
    ]
    answer = ask(house, "/v2/models/penguins/infer", {"inputs": inputs})
    assert answer.status_code == 200, answer.text
    by_name = {each["name"]: each for each in answer.json()["outputs"]}
    assert by_name["probabilities"]["shape"] == [2, 3]
    inputs[-1]["data"] = ["male", "neither"]
    refused = ask(house, "/v2/models/penguins/infer", {"inputs": inputs})
    assert refused.status_code == 400
    assert "unknown category 'neither'" in refused.text


def test_triton_sends_holes_as_nan(house: LiveServer):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(house.url.removeprefix("http://"))
    inputs = []
    for name in (
        "island",
        "bill_length_mm",
        "bill_depth_mm",
        "flipper_length_mm",
        "body_mass_g",
        "sex",
    ):
        text = name in ("island", "sex")
        array = np.array([b""], dtype=object) if text else np.array([np.nan])
        tensor = http.InferInput(name, [1], "BYTES" if text else "FP64")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    answer = client.infer("penguins", inputs, headers={"Authorization": f"Bearer {house.key}"})
    assert answer.as_numpy("probabilities").sum() == pytest.approx(1, abs=1e-5)
    client.close()


def test_a_car_is_told_near_what_it_was(house: LiveServer):
    answer = ask(house, "/predict/cars", CAR).json()
    assert answer["prediction"] == pytest.approx(27, abs=3)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**CAR, "origin": "Mars"}, "unknown category 'Mars'"),
        ({**CAR, "weight_lb": "2130"}, "not a finite number"),
        ({**CAR, "weight_lb": None}, "the model needs it"),
        ({**CAR, "year": 1970.5}, "not a whole number"),
        ({**CAR, "colour": "red"}, "unknown feature 'colour'"),
        ({"cylinders": 4}, "missing feature"),
        ({**CAR, "weight_lb": 10**400}, ""),
        ({**CAR, "weight_lb": True}, "not a finite number"),
        ({**CAR, "weight_lb": [1]}, "a JSON list"),
        ({"rows": [CAR, [1, 2]]}, "a row must have 7 values"),
        ({"columns": {**{k: [v] for k, v in CAR.items()}, "year": [1, 2]}}, "values"),
        ({"columns": {k: [] for k in CAR}}, "no rows"),
        ({"rows": []}, ""),
        ({}, "empty"),
        ({"table": {**{k: [str(v)] for k, v in CAR.items()}, "year": ["soon"]}}, "'soon'"),
        ({"columns": ["year", "year"], "data": []}, "each of them once"),
        ({"rows": [{}] * 700_000}, "over"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_words(house: LiveServer, body: Any, said: str):
    answer = ask(house, "/predict/cars", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert ask(house, "/predict/cars", CAR).status_code == 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_what_is_no_number_in_json_is_refused(house: LiveServer, number: str):
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/json"}
    body = f'{{"row": {{"bill_length_mm": {number}}}}}'
    answer = httpx.post(f"{house.url}/predict/penguins", content=body, headers=headers)
    assert answer.status_code == 400


def test_what_a_model_takes_is_shown(house: LiveServer):
    shown = house.run_cli("show", "penguins").stdout
    flat = " ".join(shown.split())
    assert "island: category (Biscoe, Dream, Torgersen, or others), optional" in flat
    assert "sex: category (female, male), optional" in flat
    with Client(house.url, house.key) as client:
        card = client.models.get("cars").latest.card
    assert [column.kind for column in card.columns][-2:] == ["integer", "category"]


def test_rows_are_metered(house: LiveServer):
    with Client(house.url, house.key) as client:
        before = sum(each.rows for each in client.usage())
        ask(house, "/predict/cars", {"rows": [CAR] * 7})
        series = {"series": [{"target": [1, 2, 3]}] * 5, "horizon": 2}
        ask(house, "/predict/forecaster", series)
        # the ledger reads the journal a moment later
        for _ in range(200):
            if sum(each.rows for each in client.usage()) - before >= 12:
                return
            time.sleep(0.05)
    pytest.fail("the rows were not metered")


# ------------------------------------------------------------------------------ series


def season(length: int) -> list[float]:
    return [100 + month + 20 * math.sin(month * math.pi / 6) for month in range(length)]


@pytest.mark.parametrize("model", ["airline", "forecaster"])
def test_a_year_is_told_with_its_months(house: LiveServer, model: str):
    values = season(72)
    body = {
        "target": values[:60],
        "start": "2019-01",
        "freq": "M",
        "horizon": 12,
        "quantiles": [0.1, 0.9],
    }
    answer = ask(house, f"/predict/{model}", body).json()
    assert answer["timestamps"] == [f"2024-{month:02}" for month in range(1, 13)]
    error = np.abs(np.array(answer["mean"]) - values[60:]).mean()
    repeated = np.abs(np.array(values[48:60]) - values[60:]).mean()
    assert error < repeated
    low, high = answer["quantiles"]["0.1"], answer["quantiles"]["0.9"]
    assert all(a <= b <= c for a, b, c in zip(low, answer["mean"], high, strict=True))


def test_a_long_horizon_is_told_block_by_block(house: LiveServer):
    body = {"target": season(60), "horizon": 30, "quantiles": [0.1, 0.9]}
    answer = ask(house, "/predict/airline", body).json()
    assert len(answer["mean"]) == 30
    low, high = (np.array(answer["quantiles"][each]) for each in ("0.1", "0.9"))
    assert (high - low)[24:].mean() > (high - low)[:6].mean()


def test_several_series_are_what_each_is_alone(house: LiveServer):
    many = [
        {"target": season(40), "id": "a"},
        {"target": [5.0], "id": "b"},
        {"target": [1, None, 3, 4, None, 6, 7, 8], "id": "c"},
    ]
    answer = ask(house, "/predict/forecaster", {"series": many, "horizon": 3}).json()
    for one, found in zip(many, answer["forecasts"], strict=True):
        assert ask(house, "/predict/forecaster", {**one, "horizon": 3}).json() == found


def test_series_travel_as_tensors(house: LiveServer):
    tensor = {"name": "target", "datatype": "FP64", "shape": [2, 36], "data": season(36) * 2}
    answer = ask(house, "/v2/models/airline/infer", {"inputs": [tensor]}).json()
    shapes = {each["name"]: each["shape"] for each in answer["outputs"]}
    assert shapes == {"mean": [2, 12], "quantiles": [2, 12, 3]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"target": []},
        {"target": [None, None]},
        {"target": ["1", 2]},
        {"target": [True]},
        {"target": [1e200]},
        {"target": [1], "horizon": 0},
        {"target": [1], "horizon": 5000},
        {"target": [1], "quantiles": [0]},
        {"target": [1], "quantiles": [1.5]},
        {"target": [1, 2], "timestamps": ["2024-01-01"]},
        {"target": [1, 2, 3], "timestamps": ["2024-01-01", "2024-01-02", "2024-01-04"]},
        {"target": [1, 2], "start": "soon", "freq": "D"},
        {"target": [1, 2], "start": "2024-01-01"},
        {"target": [1, 2], "start": "2024-01-01", "freq": "fortnight"},
        {"target": [1, 2], "start": "9999-12-30", "freq": "D", "horizon": 10},
        {"target": [1, 2], "covariates": {"price": [1] * 14}, "horizon": 12},
        {"target": [1, 2], "season": -1},
        {"target": [1, 2], "more": 1},
        {"series": []},
        {"series": [{"target": [1]}] * 2000},
        {"series": [{"target": [1]}] * 1000, "horizon": 4096},
        {"target": [1] * 70_000},
    ],
    ids=lambda body: str(body)[:60],
)
def test_a_series_that_does_not_fit_is_refused_in_words(house: LiveServer, body: Any):
    answer = ask(house, "/predict/forecaster", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert ask(house, "/predict/forecaster", {"target": [1, 2, 3]}).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        [0.0] * 50,
        [7.0] * 3,
        [1e99, -1e99] * 20,
        [1e-300, 2e-300] * 10,
        [0, 0, 0, 9] * 12,
        list(range(2000)),
        [None, None, 4.0, None],
        [(-1.7) ** power for power in range(60)],
    ],
    ids=lambda target: str(target)[:30],
)
@pytest.mark.parametrize("model", ["airline", "forecaster"])
def test_odd_series_get_finite_answers(house: LiveServer, model: str, target: list[Any]):
    answer = ask(house, f"/predict/{model}", {"target": target, "horizon": 30})
    assert answer.status_code == 200, answer.text
    numbers = list(answer.json()["mean"])
    for column in answer.json()["quantiles"].values():
        numbers += column
    assert all(isinstance(each, float | int) and math.isfinite(each) for each in numbers)
