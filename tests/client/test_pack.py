import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("skops")

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from wherry.client.pack import pack
from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import MANIFEST, open_bundle
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime

ROWS, SPECIES = load_iris(return_X_y=True)


class Mystery(TransformerMixin, BaseEstimator):
    def fit(self, rows, labels=None):
        self.fitted_ = True
        return self

    def transform(self, rows):
        return rows


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """`pack`, with its temporary folders where pytest deletes them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return pack


def serve(folder, body=None):
    """The plain answer of a packed model to its own sample."""
    bundle = open_bundle(folder)
    runtime = create_runtime(bundle.manifest.runtime)
    runtime.load(bundle, "cpu")
    task, config = find_task(bundle.manifest.task), bundle.manifest.task_config()
    item = task.from_plain(bundle.manifest.sample if body is None else body, config)
    (output,) = runtime.run([runtime.prepare(item)])
    tensors = task.to_tensors([output], config)
    assert list(tensors) == [spec.name for spec in task.signature(config).outputs]
    return task.to_plain(output, config)


def test_a_classifier_is_packed_with_labels_signature_and_sample(packed):
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, SPECIES)
    folder = packed(model, name="iris", labels=["a", "b", "c"], sample=ROWS[0], licence="MIT")
    manifest = open_bundle(folder).manifest
    assert (manifest.task, manifest.runtime) == ("tabular-classification", "sklearn")
    assert manifest.labels == ("a", "b", "c")
    assert manifest.licence == "MIT"
    assert manifest.sample == {"row": ROWS[0].tolist()}
    assert [(each.datatype, each.shape) for each in manifest.signature.inputs] == [
        ("FP64", (-1, 4))
    ]
    answer = serve(folder)
    assert answer["label"] == "a"
    expected = model.predict_proba(ROWS[:1])[0]
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)


def test_labels_are_the_models_classes(packed):
    model = RandomForestClassifier(3).fit(ROWS, np.array(["x", "y", "z"])[SPECIES])
    assert open_bundle(packed(model)).manifest.labels == ("x", "y", "z")


def test_a_sample_of_zeros_stands_in(packed):
    folder = packed(LogisticRegression(max_iter=500).fit(ROWS, SPECIES))
    assert open_bundle(folder).manifest.sample == {"row": [0.0] * 4}
    assert serve(folder)["label"] in ("0", "1", "2")


def test_a_model_without_probabilities_declares_none(packed):
    folder = packed(LinearSVC().fit(ROWS, SPECIES))
    outputs = [spec.name for spec in open_bundle(folder).manifest.signature.outputs]
    assert outputs == ["label", "class"]
    assert "confidence" not in serve(folder)


@pytest.mark.parametrize(("targets", "shape"), [(1, (-1,)), (2, (-1, 2))])
def test_a_regressor(packed, targets, shape):
    model = LinearRegression().fit(ROWS[:, :2], ROWS[:, 2 : 2 + targets])
    folder = packed(model, sample=ROWS[:5, :2])
    manifest = open_bundle(folder).manifest
    assert manifest.task == "tabular-regression"
    assert manifest.signature.outputs[0].shape == shape
    expected = model.predict(ROWS[:1, :2])[0]
    assert serve(folder)["prediction"] == pytest.approx(expected[0] if targets == 1 else expected)


@pytest.mark.parametrize(
    "first",
    [TfidfVectorizer(), FeatureUnion([("a", CountVectorizer()), ("b", TfidfVectorizer())])],
    ids=["vectorizer", "union"],
)
@pytest.mark.parametrize("sample", [None, "good", ["good"], {"text": "good"}])
def test_a_text_pipeline(packed, first, sample):
    model = make_pipeline(first, LogisticRegression()).fit(["good", "bad"], ["pos", "neg"])
    folder = packed(model, sample=sample)
    manifest = open_bundle(folder).manifest
    assert manifest.task == "text-classification"
    assert manifest.labels == ("neg", "pos")
    assert serve(folder, {"text": "good"})["label"] == "pos"
    assert serve(folder)["label"] in ("neg", "pos")


def test_columns_of_text_and_numbers(packed):
    rows = np.array([["red", 1.0], ["blue", 2.0]] * 2, dtype=object)
    encode = ColumnTransformer([("colour", OneHotEncoder(), [0])], remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(rows, [0, 1, 0, 1])
    folder = packed(model, sample=["blue", 2])
    inputs = open_bundle(folder).manifest.signature.inputs
    assert [(spec.name, spec.datatype) for spec in inputs] == [
        ("feature_0", "BYTES"),
        ("feature_1", "FP64"),
    ]
    assert serve(folder)["label"] == "1"
    assert serve(folder, {"feature_0": "red", "feature_1": 1})["label"] == "0"
    with pytest.raises(InvalidInput, match="sample") as caught:
        packed(model)
    assert "pass sample=" in caught.value.hint


def test_a_data_frame_tells_names_kinds_categories_and_holes(packed):
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    frame = pandas.DataFrame(
        {
            "size": [1.0, None, 3.0, 4.0],
            "colour": ["red", "blue", None, "blue"],
            "new": [True, False, True, False],
            "rooms": [1, 2, 3, 4],
        }
    )
    encode = ColumnTransformer(
        [
            ("size", SimpleImputer(), ["size"]),
            ("colour", OneHotEncoder(handle_unknown="ignore"), ["colour"]),
        ],
        remainder="passthrough",
    )
    model = make_pipeline(encode, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    folder = packed(model, sample=frame)
    bundle = open_bundle(folder)
    assert bundle.manifest.options["columns"] == [
        {"name": "size", "required": False},
        {
            "name": "colour",
            "kind": "category",
            "required": False,
            "categories": ["blue", "red"],
            "accepts_unknown": True,
        },
        {"name": "new", "kind": "boolean"},
        {"name": "rooms"},
    ]
    assert bundle.manifest.sample == {
        "row": {"size": 1.0, "colour": "red", "new": True, "rooms": 1}
    }
    for index in range(4):
        row = {k: None if v != v else v for k, v in frame.iloc[index].to_dict().items()}
        expected = model.predict_proba(frame.iloc[[index]])[0].max()
        assert serve(folder, row)["confidence"] == pytest.approx(expected, abs=1e-6)


def test_types_that_are_not_trusted_are_named_with_the_way_out(packed):
    model = make_pipeline(Mystery(), LogisticRegression(max_iter=500)).fit(ROWS, SPECIES)
    with pytest.raises(FormatNotAllowed, match="Mystery") as caught:
        packed(model, sample=ROWS[0])
    assert "WHERRY_TRUSTED_SKLEARN_TYPES" in caught.value.hint
    assert "Python class" in caught.value.hint
    name = f"{Mystery.__module__}.Mystery"
    assert (packed(model, sample=ROWS[0], trusted_types=[name]) / "model.skops").is_file()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (LogisticRegression(), "not fitted"),
        (KMeans(2, n_init=1).fit(ROWS), "neither a classifier nor a regressor"),
        (object(), "cannot be packed"),
        (3, "cannot be packed"),
        (RandomForestClassifier(2).fit(ROWS, np.stack([SPECIES] * 2, 1)), "several targets"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_way_out(packed, model, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        packed(model)
    assert caught.value.hint


@pytest.mark.parametrize(
    "more",
    [{"labels": ["a"]}, {"sample": [1, 2]}, {"sample": [1, 2, 3, None]}, {"sample": {"a": 1}}],
)
def test_labels_and_samples_that_do_not_fit_are_refused(packed, more):
    with pytest.raises(InvalidInput):
        packed(LogisticRegression(max_iter=500).fit(ROWS, SPECIES), **more)


# ---------------------------------------------------------------------------------- paths


def test_a_bundle_folder_comes_back_as_it_is(packed, tmp_path):
    folder = packed(LogisticRegression(max_iter=500).fit(ROWS, SPECIES))
    assert packed(str(folder)) == folder
    (folder / "model.skops").unlink()
    with pytest.raises(InvalidInput, match="has no file"):
        packed(folder)


def test_a_model_file_comes_back_as_it_is(packed, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(b"x")
    assert packed(file) == file
    for name in ("m.pth", "m.bin", "m"):
        other = tmp_path / name
        other.write_bytes(b"x")
        with pytest.raises(FormatNotAllowed, match="not a model file"):
            packed(other)


def test_a_path_that_is_not_there_is_refused(packed, tmp_path):
    with pytest.raises(InvalidInput, match="no file or folder"):
        packed(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="is empty"):
        packed(tmp_path / "empty")


CODE = "class Model:\n    def predict(self, batch): return batch\n"


def test_a_python_class_is_sent_as_it_is_for_the_server_to_look_at(packed, tmp_path):
    (tmp_path / "model.py").write_text(CODE)
    assert packed(tmp_path) == tmp_path
    assert packed(tmp_path / "model.py") == tmp_path / "model.py"
    assert not (tmp_path / MANIFEST).exists()


def test_importing_the_packer_imports_no_framework():
    code = "import sys, wherry.client.pack; print([m for m in ('numpy', 'sklearn', 'skops', 'httpx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
