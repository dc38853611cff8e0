"""Graphs of tables answer as the scikit-learn models that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from onnx import TensorProto, helper  # noqa: E402 - after importorskip
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.datasets import load_diabetes, load_iris  # noqa: E402
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression, Ridge  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: E402

from wherry.errors import FormatNotAllowed, InvalidInput  # noqa: E402
from wherry.models.bundle import MANIFEST, encode_manifest, open_bundle  # noqa: E402
from wherry.models.registry.detect import detect  # noqa: E402
from wherry.models.tasks.catalog import find_task  # noqa: E402
from wherry.worker.runtimes.catalog import create_runtime  # noqa: E402

IRIS, SPECIES = load_iris(return_X_y=True)
IRIS32 = IRIS.astype(np.float32)
CLOSE = 2e-6
"""Probabilities in float32 against float64."""


class Served:
    """A graph, found out and opened as an import does it, asked in plain JSON."""

    def __init__(self, folder: Path, model: Any, **wishes: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        self.manifest = detect(folder, **wishes)
        (folder / MANIFEST).write_text(encode_manifest(self.manifest))
        self.task = find_task(self.manifest.task)
        self.config = self.manifest.task_config()
        self.runtime: Any = create_runtime("onnx")
        self.runtime.load(open_bundle(folder), "cpu")

    def ask(self, *bodies: Any) -> list[Any]:
        items = [self.task.from_plain(body, self.config) for body in bodies]
        return self.runtime.run([self.runtime.prepare(item) for item in items])

    def plain(self, body: Any) -> Any:
        (output,) = self.ask(body)
        return self.task.to_plain(output, self.config)


def model_of(nodes: Any, inputs: Any, outputs: Any) -> Any:
    graph = helper.make_graph(nodes, "table", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def info(name: str, kind: int, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def classifier(fitted: LogisticRegression, **classes: Any) -> Any:
    """A linear classifier as skl2onnx writes it, by hand."""
    node = helper.make_node(
        "LinearClassifier",
        ["X"],
        ["label", "raw"],
        domain="ai.onnx.ml",
        coefficients=fitted.coef_.ravel().tolist(),
        intercepts=fitted.intercept_.tolist(),
        post_transform="SOFTMAX",
        multi_class=1,
        **classes,
    )
    same = helper.make_node("Identity", ["raw"], ["probabilities"])
    kind = TensorProto.STRING if "classlabels_strings" in classes else TensorProto.INT64
    return model_of(
        [node, same],
        [info("X", TensorProto.FLOAT, None, 4)],
        [info("label", kind, None), info("probabilities", TensorProto.FLOAT, None, 3)],
    )


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ({"classlabels_ints": [0, 1, 2]}, ["0", "1", "2"]),
        ({"classlabels_ints": [7, 8, 9]}, ["7", "8", "9"]),
        ({"classlabels_strings": ["a", "b", "c"]}, ["a", "b", "c"]),
    ],
)
def test_a_classifier_is_found_out_and_answers_as_the_model(
    tmp_path: Path, classes: Any, names: Any
):
    fitted = LogisticRegression(max_iter=500).fit(IRIS, np.array(names)[SPECIES])
    served = Served(tmp_path, classifier(fitted, **classes))
    assert served.manifest.task == "tabular-classification"
    assert list(served.manifest.labels) == names
    (output,) = served.ask({"rows": IRIS32.tolist()})
    assert [names[each] for each in output.classes] == fitted.predict(IRIS32).tolist()
    assert np.abs(output.probabilities - fitted.predict_proba(IRIS32)).max() < CLOSE
    assert output.usage.rows == 150


def test_labels_of_the_importer_name_numbers(tmp_path: Path):
    fitted = LogisticRegression(max_iter=500).fit(IRIS, SPECIES)
    names = ("setosa", "versicolor", "virginica")
    served = Served(tmp_path, classifier(fitted, classlabels_ints=[0, 1, 2]), labels=names)
    assert served.plain({"row": IRIS32[149].tolist()})["label"] == "virginica"
    with pytest.raises(InvalidInput, match="labels"):
        Served(tmp_path / "two", classifier(fitted, classlabels_ints=[0, 1, 2]), labels=("a", "b"))


def test_a_batch_gives_each_request_its_rows(tmp_path: Path):
    fitted = LogisticRegression(max_iter=500).fit(IRIS, SPECIES)
    served = Served(tmp_path, classifier(fitted, classlabels_ints=[0, 1, 2]))
    assert served.runtime.joins_rows
    bodies = [{"rows": IRIS32[start : start + 7].tolist()} for start in range(0, 147, 7)]
    for body, together in zip(bodies, served.ask(*bodies), strict=True):
        (alone,) = served.ask(body)
        assert np.array_equal(alone.classes, together.classes)
        assert np.allclose(alone.probabilities, together.probabilities, atol=1e-7)


@pytest.mark.parametrize(
    "body",
    [
        {"row": [1, 2, 3]},
        {"row": [1, 2, 3, None]},
        {"row": [1, 2, 3, "4"]},
        {"row": [1, 2, 3, 1e39]},
        {"rows": [[1, 2, 3, 4], [1]]},
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused_before_the_model(tmp_path: Path, body: Any):
    fitted = LogisticRegression(max_iter=500).fit(IRIS, SPECIES)
    served = Served(tmp_path, classifier(fitted, classlabels_ints=[0, 1, 2]))
    with pytest.raises(InvalidInput):
        served.ask(body)


def columns_graph() -> Any:
    """3 * size + 10 where the colour is red, + 20 where it is blue; 0 for other colours."""
    encode = helper.make_node(
        "OneHotEncoder",
        ["colour"],
        ["hot"],
        domain="ai.onnx.ml",
        cats_strings=["red", "blue"],
        zeros=1,
    )
    nodes = [
        encode,
        helper.make_node("Reshape", ["hot", "flat"], ["wide"]),
        helper.make_node("MatMul", ["wide", "weights"], ["bonus"]),
        helper.make_node("Mul", ["size", "three"], ["triple"]),
        helper.make_node("Add", ["triple", "bonus"], ["variable"]),
    ]
    graph = helper.make_graph(
        nodes,
        "columns",
        [info("colour", TensorProto.STRING, None, 1), info("size", TensorProto.FLOAT, None, 1)],
        [info("variable", TensorProto.FLOAT, None, 1)],
        initializer=[
            helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 2]),
            helper.make_tensor("weights", TensorProto.FLOAT, [2, 1], [10, 20]),
            helper.make_tensor("three", TensorProto.FLOAT, [1], [3]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_an_input_a_column_takes_texts_and_numbers(tmp_path: Path):
    served = Served(tmp_path, columns_graph())
    assert served.manifest.task == "tabular-regression"
    body = {"columns": {"size": [1, 2.5, 3], "colour": ["red", "blue", "Grün"]}}
    answers = served.plain(body)["predictions"]
    assert [each["prediction"] for each in answers] == [13.0, 27.5, 9.0]
    assert served.plain({"size": 1, "colour": "red"}) == {"prediction": 13.0}
    with pytest.raises(InvalidInput, match="unknown feature"):
        served.plain({"size": 1, "color": "red"})
    with pytest.raises(InvalidInput, match="no missing values"):
        served.plain({"size": None, "colour": "red"})


def test_declared_columns_hold_for_a_graph(tmp_path: Path):
    columns = [
        {"name": "colour", "kind": "category", "categories": ["red", "blue"]},
        {"name": "size", "kind": "number"},
    ]
    served = Served(tmp_path, columns_graph(), options={"columns": columns})
    assert served.plain({"size": 1, "colour": "red"}) == {"prediction": 13.0}
    with pytest.raises(InvalidInput, match="unknown category 'green'"):
        served.plain({"size": 1, "colour": "green"})


def test_an_answer_that_is_not_finite_is_refused(tmp_path: Path):
    model = model_of(
        [helper.make_node("Log", ["X"], ["variable"])],
        [info("X", TensorProto.FLOAT, None, 1)],
        [info("variable", TensorProto.FLOAT, None, 1)],
    )
    served = Served(tmp_path, model)
    assert served.plain({"row": [1.0]}) == {"prediction": 0.0}
    with pytest.raises(InvalidInput, match="not finite"):
        served.plain({"row": [-1.0]})


def test_the_probability_of_one_class_is_that_of_the_second(tmp_path: Path):
    model = model_of(
        [helper.make_node("Sigmoid", ["X"], ["p"])],
        [info("X", TensorProto.FLOAT, None, 1)],
        [info("p", TensorProto.FLOAT, None, 1)],
    )
    served = Served(tmp_path, model, task="tabular-classification", labels=("no", "yes"))
    answer = served.plain({"row": [2.0]})
    assert answer["label"] == "yes"
    assert answer["probabilities"]["yes"] == pytest.approx(1 / (1 + np.exp(-2.0)))


# ------------------------------------------------------------------------------ skl2onnx


@pytest.fixture
def skl2onnx() -> Any:
    return pytest.importorskip("skl2onnx", reason="pip install skl2onnx")


@pytest.mark.parametrize("kind", ["forest", "pipeline"])
def test_what_skl2onnx_makes_of_a_classifier(tmp_path: Path, skl2onnx: Any, kind: str):
    names = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model = {"forest": RandomForestClassifier(20, random_state=0), "pipeline": linear}[kind]
    model.fit(IRIS32, names)
    made = skl2onnx.to_onnx(model, IRIS32[:1], options={"zipmap": False}, target_opset=17)
    (output,) = Served(tmp_path, made).ask({"rows": IRIS32.tolist()})
    assert [output.labels[each] for each in output.classes] == model.predict(IRIS32).tolist()
    assert np.abs(output.probabilities - model.predict_proba(IRIS32)).max() < CLOSE


@pytest.mark.parametrize("kind", ["linear", "trees"])
def test_what_skl2onnx_makes_of_a_regressor(tmp_path: Path, skl2onnx: Any, kind: str):
    rows, values = load_diabetes(return_X_y=True)
    rows = rows.astype(np.float32)
    model = Ridge() if kind == "linear" else HistGradientBoostingRegressor(max_iter=10)
    model.fit(rows, values)
    made = skl2onnx.to_onnx(model, rows[:1], target_opset=17)
    (output,) = Served(tmp_path, made).ask({"rows": rows.tolist()})
    assert np.allclose(output.values, model.predict(rows), rtol=1e-5)


def test_what_skl2onnx_makes_of_columns(tmp_path: Path, skl2onnx: Any):
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    rows = np.array([["red", 1.0], ["blue", 2.0], ["red", 3.0], ["blue", 4.0]] * 5, dtype=object)
    encode = ColumnTransformer(
        [("colour", OneHotEncoder(handle_unknown="ignore"), [0])], remainder="passthrough"
    )
    model = make_pipeline(encode, LogisticRegression()).fit(rows, [0, 1, 0, 1] * 5)
    types = [("colour", StringTensorType([None, 1])), ("size", FloatTensorType([None, 1]))]
    made = skl2onnx.to_onnx(model, initial_types=types, options={"zipmap": False}, target_opset=17)
    (output,) = Served(tmp_path, made).ask({"rows": rows.tolist()})
    assert np.abs(output.probabilities - model.predict_proba(rows)).max() < CLOSE


def test_a_zip_map_is_refused_with_the_way_out(tmp_path: Path, skl2onnx: Any):
    model = LogisticRegression(max_iter=500).fit(IRIS32, SPECIES)
    made = skl2onnx.to_onnx(model, IRIS32[:1], target_opset=17)
    with pytest.raises(FormatNotAllowed) as refused:
        Served(tmp_path, made, task="tabular-classification")
    assert "zipmap" in refused.value.hint
