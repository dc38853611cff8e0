"""Graphs that tell the future: scaling, padding, blocks and quantiles around a known function."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after importorskip

from wherry.errors import FormatNotAllowed, InvalidInput  # noqa: E402
from wherry.models.bundle import MANIFEST, encode_manifest, open_bundle  # noqa: E402
from wherry.models.registry.detect import detect  # noqa: E402
from wherry.models.tasks.catalog import find_task  # noqa: E402
from wherry.worker.runtimes.catalog import create_runtime  # noqa: E402

CONTEXT, BLOCK = 6, 3
WEIGHTS = np.random.default_rng(0).normal(size=(CONTEXT, BLOCK)).astype(np.float32) / CONTEXT


def graph_of(nodes: Any, inputs: Any, outputs: Any, constants: dict[str, np.ndarray]) -> Any:
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "forecast", inputs, outputs, initializer=held)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def info(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def linear() -> Any:
    node = helper.make_node("MatMul", ["past", "weights"], ["told"])
    return graph_of(
        [node], [info("past", "n", CONTEXT)], [info("told", "n", BLOCK)], {"weights": WEIGHTS}
    )


class Served:
    """A graph in its runtime, asked in plain JSON."""

    def __init__(self, folder: Path, model: Any, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        manifest = detect(folder, task="time-series-forecasting", options=options)
        (folder / MANIFEST).write_text(encode_manifest(manifest))
        self.task, self.config = find_task(manifest.task), manifest.task_config()
        self.runtime: Any = create_runtime("onnx")
        self.runtime.load(open_bundle(folder), "cpu")

    def ask(self, *bodies: Any) -> list[Any]:
        items = [self.task.from_plain(body, self.config) for body in bodies]
        outputs = self.runtime.run([self.runtime.prepare(item) for item in items])
        return [self.task.to_plain(output, self.config) for output in outputs]

    def mean(self, target: Any, horizon: int = BLOCK) -> Any:
        return self.ask({"target": target, "horizon": horizon})[0]["mean"]


def scaled(window: np.ndarray, scaling: str) -> tuple[float, float]:
    match scaling:
        case "standard":
            return window.mean(), window.std()
        case "mean":
            return 0.0, np.abs(window).mean()
        case "last":
            return window[-1], np.abs(np.diff(window)).mean()
    return 0.0, 1.0


@pytest.mark.parametrize("scaling", ["standard", "mean", "last", "none"])
def test_the_window_is_scaled_and_the_answer_scaled_back(tmp_path: Path, scaling: str):
    served = Served(tmp_path, linear(), scaling=scaling)
    values = np.array([900.0, 3, 5, 4, 8, 7, 9, 12])
    past = values[-CONTEXT:]
    shift, scale = scaled(past, scaling)
    wanted = shift + scale * (((past - shift) / scale) @ WEIGHTS)
    assert np.allclose(served.mean(values.tolist()), wanted, rtol=1e-5)


def test_sizes_do_not_matter_where_the_window_is_scaled(tmp_path: Path):
    served = Served(tmp_path, linear())
    values = np.array([3.0, 5, 4, 8, 7, 9])
    told = np.array(served.mean(values.tolist()))
    assert np.allclose(served.mean((values * 1e6 + 5e6).tolist()), told * 1e6 + 5e6, rtol=1e-5)


def test_a_short_past_begins_with_its_first_value_again(tmp_path: Path):
    served = Served(tmp_path, linear(), scaling="none")
    assert np.allclose(served.mean([2.0, 3.0]), np.array([2, 2, 2, 2, 2, 3]) @ WEIGHTS, rtol=1e-5)


def test_holes_are_filled_by_a_line(tmp_path: Path):
    served = Served(tmp_path, linear(), scaling="none")
    assert served.mean([1, None, 3, 4, None, 6]) == served.mean([1, 2, 3, 4, 5, 6])


def test_a_longer_horizon_is_told_from_what_was_told(tmp_path: Path):
    served = Served(tmp_path, linear(), scaling="none")
    values = [3.0, 5, 4, 8, 7, 9]
    first = served.mean(values)
    second = served.mean(values + first)
    assert np.allclose(served.mean(values, 5), (first + second)[:5], rtol=1e-5)


def test_errors_make_quantiles_that_widen_from_block_to_block(tmp_path: Path):
    served = Served(tmp_path, linear(), scaling="none", errors=[1.0, 2.0, 3.0])
    (answer,) = served.ask({"target": [1, 2, 3, 4, 5, 6], "horizon": 6, "quantiles": [0.9]})
    above = np.array(answer["quantiles"]["0.9"]) - answer["mean"]
    bend = NormalDist().inv_cdf(0.9)
    wanted = [1, 2, 3, np.hypot(1, 3), np.hypot(2, 3), np.hypot(3, 3)]
    assert np.allclose(above, bend * np.array(wanted), rtol=1e-5)


def test_quantiles_of_the_graph_are_told_and_read_between(tmp_path: Path):
    spread = np.array([-1.0, 0.0, 2.0], np.float32)
    nodes = [
        helper.make_node("MatMul", ["past", "weights"], ["middle"]),
        helper.make_node("Unsqueeze", ["middle", "last"], ["column"]),
        helper.make_node("Add", ["column", "spread"], ["told"]),
    ]
    constants = {"weights": WEIGHTS, "spread": spread, "last": np.array([2])}
    model = graph_of(nodes, [info("past", "n", CONTEXT)], [info("told", "n", BLOCK, 3)], constants)
    served = Served(tmp_path, model, scaling="none", levels=[0.1, 0.5, 0.9])
    values = [3.0, 5, 4, 8, 7, 9]
    (answer,) = served.ask({"target": values, "horizon": 3, "quantiles": [0.1, 0.3, 0.9]})
    middle = np.array(values) @ WEIGHTS
    assert np.allclose(answer["mean"], middle, rtol=1e-5)
    for level, offset in (("0.1", -1), ("0.3", -0.5), ("0.9", 2)):
        assert np.allclose(answer["quantiles"][level], middle + offset, rtol=1e-5)
    with pytest.raises(InvalidInput, match="3 numbers a step"):
        Served(tmp_path / "two", model, levels=[0.1, 0.9])


def covariate_graph() -> Any:
    """Tells the last value plus what is known of the future price, for two steps."""
    nodes = [
        helper.make_node("Slice", ["past", "from", "to", "axes"], ["last"]),
        helper.make_node("Squeeze", ["last", "two"], ["level"]),
        helper.make_node("Squeeze", ["future", "two"], ["price"]),
        helper.make_node("Add", ["level", "price"], ["told"]),
    ]
    constants = {
        "from": np.array([CONTEXT - 1, 0]),
        "to": np.array([CONTEXT, 1]),
        "axes": np.array([1, 2]),
        "two": np.array([2]),
    }
    inputs = [info("past", "n", CONTEXT, 2), info("future", "n", 2, 1)]
    return graph_of(nodes, inputs, [info("told", "n", 2)], constants)


def test_what_is_known_of_the_future_reaches_the_graph(tmp_path: Path):
    served = Served(tmp_path, covariate_graph(), scaling="none", covariates=["price"])
    body = {
        "target": [1, 2, 3, 4, 5, 6, 7],
        "horizon": 4,
        "covariates": {"price": [0] * 7 + [10, 20, 30, 40]},
    }
    (answer,) = served.ask(body)
    assert answer["mean"] == [17, 27, 27 + 30, 27 + 40]
    with pytest.raises(InvalidInput, match="the covariates: price"):
        served.ask({"target": [1, 2], "horizon": 2})
    with pytest.raises(InvalidInput, match="the horizon 9"):
        served.ask({"target": [1] * 7, "horizon": 2, "covariates": {"price": [1, 2]}})


def test_a_batch_is_what_each_is_alone(tmp_path: Path):
    served = Served(tmp_path, linear())
    random = np.random.default_rng(1)
    bodies = [
        {"target": random.normal(size=size).tolist(), "horizon": horizon}
        for size, horizon in ((3, 2), (6, 3), (50, 7), (1, 1))
    ]
    for body, together in zip(bodies, served.ask(*bodies), strict=True):
        (alone,) = served.ask(body)
        assert np.allclose(alone["mean"], together["mean"], rtol=1e-5, atol=1e-6)


def test_graphs_that_tell_no_future_are_refused(tmp_path: Path):
    flat = graph_of(
        [helper.make_node("Identity", ["past"], ["told"])], [info("past", 4)], [info("told", 4)], {}
    )
    with pytest.raises(FormatNotAllowed, match="no window"):
        Served(tmp_path / "flat", flat)
    open_window = graph_of(
        [helper.make_node("Identity", ["past"], ["told"])],
        [info("past", "n", "t")],
        [info("told", "n", "t")],
        {},
    )
    with pytest.raises(InvalidInput, match="context"):
        Served(tmp_path / "open", open_window)
    said = Served(tmp_path / "said", open_window, context=4)
    assert np.allclose(said.mean([1, 2, 3, 4], 4), [1, 2, 3, 4], rtol=1e-6)
    strange = graph_of(
        [helper.make_node("Add", ["past", "weather"], ["told"])],
        [info("past", "n", 4), info("weather", "n", 4)],
        [info("told", "n", 4)],
        {},
    )
    with pytest.raises(FormatNotAllowed, match="'weather'"):
        Served(tmp_path / "strange", strange)
