"""Boosted trees answer as their own library does, from files as it saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime

NAMES = ["age", "height", "weight"]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 3))


def xgboost() -> Any:
    return pytest.importorskip("xgboost", reason="pip install 'wherry[xgboost]'")


def lightgbm() -> Any:
    return pytest.importorskip("lightgbm", reason="pip install 'wherry[lightgbm]'")


def classes_of(rows: np.ndarray, count: int) -> np.ndarray:
    return np.digitize(rows[:, 0] + rows[:, 1] ** 2, [0.5, 1.5][: count - 1])


def answers(folder: Path, body: dict[str, Any], **wishes: Any) -> list[dict[str, Any]]:
    """As `/predict` gives them, of the model that the folder holds."""
    manifest = detect(folder, **wishes)
    runtime = create_runtime(manifest.runtime)
    runtime.load(Bundle(folder, manifest), "cpu")
    task, config = find_task(manifest.task), manifest.task_config()
    (output,) = runtime.run([runtime.prepare(task.from_plain(body, config))])
    return task.to_plain(output, config)["predictions"]


def probabilities(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(each["probabilities"].values()) for each in found])


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax"])
def test_xgboosts_classes_are_its_own_and_missing_values_are_known(
    tmp_path: Path, rows: np.ndarray, suffix: str, objective: str
):
    library = xgboost()
    table = library.DMatrix(rows, label=classes_of(rows, 3), feature_names=NAMES)
    settings = {"objective": objective, "num_class": 3}
    library.train(settings, table, 5).save_model(tmp_path / f"m.{suffix}")
    settings["objective"] = "multi:softprob"
    asked = rows[:8].copy()
    asked[0, 1] = np.nan
    expected = library.train(settings, table, 5).predict(
        library.DMatrix(asked, feature_names=NAMES)
    )
    named = [{NAMES[0]: row[0], NAMES[1]: row[1], NAMES[2]: row[2]} for row in asked.tolist()]
    named[0].pop(NAMES[1])
    found = answers(tmp_path, {"rows": named}, labels=["low", "middle", "high"])
    assert np.allclose(probabilities(found), expected, atol=1e-6)
    assert found[3]["label"] == ["low", "middle", "high"][int(expected[3].argmax())]


def test_xgboosts_best_iteration_answers(tmp_path: Path, rows: np.ndarray):
    library = xgboost()
    classes = classes_of(rows, 2)
    model = library.XGBClassifier(n_estimators=60, early_stopping_rounds=2, learning_rate=1.0)
    model.fit(rows[:100], classes[:100], eval_set=[(rows[100:], classes[100:])], verbose=False)
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    model.save_model(tmp_path / "m.ubj")
    found = answers(tmp_path, {"rows": rows[:8].tolist()})
    assert np.allclose(probabilities(found), model.predict_proba(rows[:8]), atol=1e-6)


def test_xgboosts_numbers_are_its_own(tmp_path: Path, rows: np.ndarray):
    model = xgboost().XGBRegressor(n_estimators=5).fit(rows, rows[:, 0] * 100)
    model.save_model(tmp_path / "m.json")
    found = answers(tmp_path, {"rows": rows[:8].tolist()})
    assert np.allclose([each["prediction"] for each in found], model.predict(rows[:8]), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_lightgbms_classes_are_its_own(tmp_path: Path, rows: np.ndarray, count: int):
    library = lightgbm()
    settings: dict[str, Any] = {"objective": "binary", "verbose": -1}
    if count == 3:
        settings |= {"objective": "multiclass", "num_class": 3}
    table = library.Dataset(rows, classes_of(rows, count), feature_name=NAMES)
    model = library.train(settings, table, 5)
    model.save_model(tmp_path / "m.txt")
    named = [dict(zip(NAMES, row, strict=True)) for row in rows[:8].tolist()]
    found = probabilities(answers(tmp_path, {"rows": named}))
    expected = model.predict(rows[:8])
    assert np.allclose(found if count == 3 else found[:, 1], expected, atol=1e-7)


def test_lightgbms_numbers_are_its_own_to_the_last_digits(tmp_path: Path, rows: np.ndarray):
    library = lightgbm()
    table = library.Dataset(rows, rows[:, 0] * 100)
    model = library.train({"objective": "regression", "verbose": -1}, table, 5)
    model.save_model(tmp_path / "m.txt")
    found = answers(tmp_path, {"rows": rows[:8].tolist()})
    assert [each["prediction"] for each in found] == pytest.approx(
        model.predict(rows[:8]).tolist(), rel=1e-12
    )


def test_trees_over_lags_forecast(tmp_path: Path):
    series = np.sin(np.arange(120) * np.pi / 6)
    windows = np.lib.stride_tricks.sliding_window_view(series, 13)
    model = xgboost().XGBRegressor(n_estimators=30).fit(windows[:, :12], windows[:, 12])
    model.save_model(tmp_path / "m.json")
    manifest = detect(tmp_path, task="time-series-forecasting", options={"scaling": "none"})
    runtime = create_runtime("xgboost")
    runtime.load(Bundle(tmp_path, manifest), "cpu")
    task, config = find_task(manifest.task), manifest.task_config()
    item = task.from_plain({"target": series[:48].tolist(), "horizon": 6}, config)
    (output,) = runtime.run([runtime.prepare(item)])
    assert np.allclose(task.to_plain(output, config)["mean"], series[48:54], atol=0.1)


def test_trees_do_no_other_tasks(tmp_path: Path, rows: np.ndarray):
    xgboost().XGBRegressor(n_estimators=2).fit(rows, rows[:, 0]).save_model(tmp_path / "m.json")
    manifest = detect(tmp_path, task="text-classification")
    with pytest.raises(InvalidInput, match="boosted trees"):
        create_runtime("xgboost").load(Bundle(tmp_path, manifest), "cpu")


def test_what_the_library_cannot_open_is_refused(tmp_path: Path, rows: np.ndarray):
    xgboost().XGBRegressor(n_estimators=2).fit(rows, rows[:, 0]).save_model(tmp_path / "m.ubj")
    manifest = detect(tmp_path)
    whole = (tmp_path / "m.ubj").read_bytes()
    (tmp_path / "m.ubj").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(FormatNotAllowed):
        create_runtime(manifest.runtime).load(Bundle(tmp_path, manifest), "cpu")


@pytest.mark.parametrize("part", [0.4, 0.7, 0.9])
def test_lightgbm_never_sees_a_file_that_is_cut_off(tmp_path: Path, rows: np.ndarray, part: float):
    library = lightgbm()
    library.train({"verbose": -1}, library.Dataset(rows, rows[:, 0]), 2).save_model(
        tmp_path / "m.txt"
    )
    whole = (tmp_path / "m.txt").read_bytes().partition(b"end of trees")[0]
    assert detect(tmp_path).runtime == "lightgbm"
    (tmp_path / "m.txt").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(FormatNotAllowed, match="damaged"):
        detect(tmp_path)
