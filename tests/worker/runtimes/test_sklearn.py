import logging
import os
import pickle
import zipfile

import numpy as np
import pytest

pytest.importorskip("skops")
pytest.importorskip("sklearn")

import joblib
import skops.io
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from wherry.errors import CodeNotAllowed, FormatNotAllowed, InvalidInput
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest, open_bundle
from wherry.models.tasks.forecasting import TIME_SERIES_FORECASTING
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.sklearn_types import TRUSTED_SKLEARN_TYPES
from wherry.models.tasks.tabular import TABULAR_CLASSIFICATION, Rows
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.runtime import BatchRuntime
from wherry.worker.runtimes.sklearn import SklearnRuntime

IRIS_ROWS, IRIS_SPECIES = load_iris(return_X_y=True)
CLASSES_ONLY = Signature(
    (TensorSpec("input", "FP64", (-1, 4)),),
    (TensorSpec("label", "BYTES", (-1,)), TensorSpec("class", "INT64", (-1,))),
)


class Doubler(TransformerMixin, BaseEstimator):
    """A type that skops does not know."""

    def fit(self, rows, labels=None):
        self.fitted_ = True
        return self

    def transform(self, rows):
        return rows * 2


class Evil:
    def __reduce__(self):
        return (os.mkdir, (CANARY,))


CANARY = ""


def write_bundle(folder, model, file="model.skops", **manifest):
    folder.mkdir(exist_ok=True)
    if file.endswith(".skops"):
        skops.io.dump(model, folder / file)
    elif file.endswith(".joblib"):
        joblib.dump(model, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(model))
    options = {"task": "tabular-classification", "runtime": "sklearn", "files": (file,)}
    text = encode_manifest(Manifest(**{**options, **manifest}))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return open_bundle(folder)


def load(bundle, **options):
    runtime = SklearnRuntime()
    runtime.configure(secrets={}, options=options)
    runtime.load(bundle, "cpu")
    return runtime


def run(runtime, *items):
    return runtime.run([runtime.prepare(item) for item in items])


def rows_of(matrix, **more):
    return Rows({"input": np.asarray(matrix)}, **more)


@pytest.fixture(scope="module")
def iris():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS_ROWS, IRIS_SPECIES)


@pytest.fixture
def iris_runtime(iris, tmp_path):
    return load(write_bundle(tmp_path / "iris", iris, labels=("setosa", "versicolor", "virginica")))


def test_it_is_a_batch_runtime():
    assert isinstance(SklearnRuntime(), BatchRuntime)


# ---------------------------------------------------------------------------------- tables


def test_answers_are_those_of_the_model_itself(iris, iris_runtime):
    (output,) = run(iris_runtime, rows_of(IRIS_ROWS))
    assert output.classes.tolist() == iris.predict(IRIS_ROWS).tolist()
    assert np.allclose(output.probabilities, iris.predict_proba(IRIS_ROWS), atol=1e-6)
    assert output.usage.rows == 150
    assert output.labels[0] == "setosa"


def test_requests_in_one_batch_get_their_own_rows(iris_runtime):
    items = [rows_of(IRIS_ROWS[:3]), rows_of(IRIS_ROWS[0:0]), rows_of(IRIS_ROWS[60:61], many=False)]
    together = run(iris_runtime, *items)
    for item, output in zip(items, together, strict=True):
        (alone,) = run(iris_runtime, item)
        assert np.allclose(alone.probabilities, output.probabilities, atol=1e-7)
        assert output.classes.tolist() == alone.classes.tolist()
        assert output.many == item.many
    assert [len(output.classes) for output in together] == [3, 0, 1]


def test_no_rows_at_all_are_answered_by_none(iris_runtime):
    (output,) = run(iris_runtime, rows_of(np.empty((0, 4), dtype=np.float32)))
    assert output.probabilities.shape == (0, 3)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((1, 3)),
        np.zeros((1, 5)),
        np.zeros((1, 1, 4)),
        [[1, 2, 3, np.nan]],
        [[1, 2, 3, np.inf]],
    ],
)
def test_rows_that_the_model_cannot_take_are_refused_before_they_join_a_batch(iris_runtime, matrix):
    with pytest.raises(InvalidInput):
        iris_runtime.prepare(rows_of(matrix))


def test_a_model_that_takes_nan_gets_it(tmp_path):
    model = HistGradientBoostingClassifier(max_iter=2).fit(IRIS_ROWS, IRIS_SPECIES)
    runtime = load(write_bundle(tmp_path / "hist", model))
    (output,) = run(runtime, rows_of([[5.0, np.nan, 1.0, 0.1]]))
    assert output.labels[output.classes[0]] == "0"
    with pytest.raises(InvalidInput):
        runtime.prepare(rows_of([[5.0, np.inf, 1.0, 0.1]]))


def test_classes_are_named_by_the_model_where_the_bundle_has_no_labels(tmp_path):
    names = np.array(["b", "a", "c"])[IRIS_SPECIES]
    model = LogisticRegression(max_iter=500).fit(IRIS_ROWS, names)
    (output,) = run(load(write_bundle(tmp_path / "m", model)), rows_of(IRIS_ROWS[:1]))
    assert output.labels[output.classes[0]] == "b"


def test_a_model_without_probabilities_gives_classes(tmp_path):
    model = LinearSVC().fit(IRIS_ROWS, IRIS_SPECIES)
    runtime = load(write_bundle(tmp_path / "svc", model, signature=CLASSES_ONLY))
    (output,) = run(runtime, rows_of(IRIS_ROWS))
    assert output.probabilities is None
    assert output.classes.tolist() == model.predict(IRIS_ROWS).tolist()


def test_a_declared_output_that_the_model_does_not_give_is_refused_at_load(tmp_path):
    model = LinearSVC().fit(IRIS_ROWS, IRIS_SPECIES)
    signature = Signature((), (TensorSpec("probabilities", "FP32", (-1, 3)),))
    bundle = write_bundle(tmp_path / "svc", model, signature=signature)
    with pytest.raises(InvalidInput, match="'probabilities'"):
        load(bundle)


def test_a_model_without_probabilities_needs_no_signature(tmp_path):
    model = LinearSVC().fit(IRIS_ROWS, IRIS_SPECIES)
    bundle = write_bundle(tmp_path / "svc", model)
    outputs = run(load(bundle), rows_of(IRIS_ROWS[::50]))
    found = TABULAR_CLASSIFICATION.to_tensors(outputs, bundle.manifest.task_config())
    assert found["probabilities"].tolist() == np.eye(3).tolist()
    assert found["label"].tolist() == [b"0", b"1", b"2"]


def test_labels_must_be_as_many_as_classes(iris, tmp_path):
    with pytest.raises(InvalidInput, match="2 labels, the model has 3 classes"):
        load(write_bundle(tmp_path / "m", iris, labels=("a", "b")))


def test_a_classifier_of_several_targets_is_refused(tmp_path):
    targets = np.stack([IRIS_SPECIES, IRIS_SPECIES], axis=1)
    model = MultiOutputClassifier(LogisticRegression(max_iter=500)).fit(IRIS_ROWS, targets)
    with pytest.raises(InvalidInput, match="one target"):
        load(write_bundle(tmp_path / "m", model))


def test_columns_of_text_and_numbers(tmp_path):
    rows = np.array([["red", 1.0], ["blue", 2.0], ["red", 3.0], ["blue", 4.0]], dtype=object)
    encode = ColumnTransformer([("colour", OneHotEncoder(), [0])], remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(rows, [0, 1, 0, 1])
    signature = Signature(
        (TensorSpec("colour", "BYTES", (-1,)), TensorSpec("size", "FP64", (-1, 1)))
    )
    runtime = load(write_bundle(tmp_path / "m", model, signature=signature))
    colours = np.array([b"blue", b"red"], dtype=object)
    sizes = np.array([[1.5], [1.5]])
    (output,) = run(runtime, Rows({"size": sizes, "colour": colours}))
    assert output.classes.tolist() == [1, 0]
    broken = np.array([b"\xff"], dtype=object)
    with pytest.raises(InvalidInput, match="UTF-8"):
        runtime.prepare(Rows({"size": sizes[:1], "colour": broken}))


def colours_and_sizes(**encoder):
    rows = np.array([["red", 1.0], ["blue", 2.0], ["red", 3.0], [np.nan, 4.0]], dtype=object)
    encode = ColumnTransformer([("colour", OneHotEncoder(**encoder), [0])], remainder="passthrough")
    return make_pipeline(encode, LogisticRegression()).fit(rows, [0, 1, 0, 1])


COLUMNS = Signature((TensorSpec("colour", "BYTES", (-1,)), TensorSpec("size", "FP64", (-1,))))


def test_an_unknown_category_is_refused_or_ignored_as_the_model_was_trained(tmp_path):
    green = Rows({"colour": np.array([b"green"], dtype=object), "size": np.array([1.0])})
    strict = load(write_bundle(tmp_path / "strict", colours_and_sizes(), signature=COLUMNS))
    with pytest.raises(InvalidInput, match="unknown category 'green'") as refused:
        strict.prepare(green)
    assert refused.value.hint == "categories: blue, red"
    model = colours_and_sizes(handle_unknown="ignore")
    (output,) = run(load(write_bundle(tmp_path / "kind", model, signature=COLUMNS)), green)
    expected = model.predict_proba(np.array([["green", 1.0]], dtype=object))
    assert np.allclose(output.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("missing", [np.nan, None])
def test_a_missing_text_is_what_the_model_learnt_for_it(tmp_path, missing):
    rows = np.array([["red", 1.0], ["blue", 2.0], [missing, 3.0]] * 3, dtype=object)
    encode = ColumnTransformer([("colour", OneHotEncoder(), [0])], remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(rows, [0, 1, 2] * 3)
    columns = [{"name": "colour", "kind": "category", "required": False}, {"name": "size"}]
    bundle = write_bundle(tmp_path / "m", model, options={"columns": columns})
    config = bundle.manifest.task_config()
    item = TABULAR_CLASSIFICATION.from_plain({"rows": [{"size": 3}, ["red", 1]]}, config)
    (output,) = run(load(bundle), item)
    expected = model.predict_proba(np.array([[missing, 3.0], ["red", 1.0]], dtype=object))
    assert np.allclose(output.probabilities, expected, atol=1e-6)


def test_a_model_that_takes_no_missing_values_says_so(iris_runtime):
    with pytest.raises(InvalidInput, match="takes no missing values"):
        iris_runtime.prepare(rows_of([[1, 2, 3, np.nan]]))


def test_columns_that_are_not_the_models_are_refused_at_load(tmp_path):
    model = LogisticRegression(max_iter=500).fit(IRIS_ROWS, IRIS_SPECIES)
    expected = model.predict_proba(IRIS_ROWS[100:101])
    model.feature_names_in_ = np.array(["a", "b", "c", "d"], dtype=object)
    columns = [{"name": each} for each in "abcx"]
    with pytest.raises(InvalidInput, match="'d'"):
        load(write_bundle(tmp_path / "m", model, options={"columns": columns}))
    columns = [{"name": each} for each in "dcba"]
    bundle = write_bundle(tmp_path / "m", model, options={"columns": columns})
    config = bundle.manifest.task_config()
    body = dict(zip("abcd", IRIS_ROWS[100].tolist(), strict=True))
    (output,) = run(load(bundle), TABULAR_CLASSIFICATION.from_plain(body, config))
    assert np.allclose(output.probabilities, expected, atol=1e-6)


def test_columns_chosen_by_name_need_no_data_frame_when_served(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    frame = pandas.DataFrame({"size": [1.0, 2, 3, 4], "colour": ["red", "blue", "red", "blue"]})
    encode = ColumnTransformer(
        [("colour", OneHotEncoder(), ["colour"]), ("size", "passthrough", ["size"])]
    )
    model = make_pipeline(encode, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    columns = [{"name": "size"}, {"name": "colour", "kind": "category"}]
    bundle = write_bundle(tmp_path / "m", model, options={"columns": columns})
    config = bundle.manifest.task_config()
    body = {"columns": {name: frame[name].tolist() for name in frame}}
    (output,) = run(load(bundle), TABULAR_CLASSIFICATION.from_plain(body, config))
    assert np.allclose(output.probabilities, model.predict_proba(frame), atol=1e-6)


def test_a_regressor_tells_a_series_by_its_last_values(tmp_path):
    series = np.sin(np.arange(60) * np.pi / 6) * 10 + 50
    windows = np.array([series[end - 12 : end + 6] for end in range(12, 54)])
    scale = windows[:, :12].mean(axis=1, keepdims=True)
    model = LinearRegression().fit(windows[:, :12] / scale, windows[:, 12:] / scale)
    options = {"context": 12, "scaling": "mean", "errors": [0.1] * 6}
    task = "time-series-forecasting"
    bundle = write_bundle(tmp_path / "m", model, task=task, options=options)
    body = {"target": series[:48].tolist(), "horizon": 12}
    item = TIME_SERIES_FORECASTING.from_plain(body, bundle.manifest.task_config())
    (output,) = run(load(bundle), item)
    assert np.abs(output.forecasts[0].mean - series[48:]).max() < 1e-6
    assert output.usage.rows == 1
    lone = write_bundle(tmp_path / "lone", model, task=task, options={"scaling": "mean"})
    (again,) = run(load(lone), item)
    assert np.array_equal(again.forecasts[0].mean, output.forecasts[0].mean), (
        "12 features, 12 values"
    )
    for wrong in ({"context": 11}, {"context": 12, "errors": [0.1]}):
        with pytest.raises(InvalidInput):
            load(write_bundle(tmp_path / "wrong", model, task=task, options=wrong))


@pytest.mark.parametrize("shape", [(-1,), (-1, 2)])
def test_regression(tmp_path, shape):
    targets = IRIS_ROWS[:, 2] if shape == (-1,) else IRIS_ROWS[:, 2:]
    model = LinearRegression().fit(IRIS_ROWS[:, :2], targets)
    signature = Signature((), (TensorSpec("y", "FP64", shape),))
    bundle = write_bundle(tmp_path / "m", model, task="tabular-regression", signature=signature)
    first, second = run(load(bundle), rows_of(IRIS_ROWS[:2, :2]), rows_of(IRIS_ROWS[9:10, :2]))
    assert np.allclose(first.values, model.predict(IRIS_ROWS[:2, :2]))
    assert np.allclose(second.values, model.predict(IRIS_ROWS[9:10, :2]))


# ---------------------------------------------------------------------------------- texts, pictures


def test_texts(tmp_path):
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(["good fine", "bad awful", "fine", "awful"], ["pos", "neg", "pos", "neg"])
    runtime = load(write_bundle(tmp_path / "m", model, task="text-classification"))
    good, bad = run(runtime, TextInput("all fine"), TextInput("awful"))
    assert (good.labels[good.best], bad.labels[bad.best]) == ("pos", "neg")
    assert np.allclose(good.scores, model.predict_proba(["all fine"])[0])
    assert good.usage.rows == 1
    with pytest.raises(InvalidInput, match="not token ids"):
        runtime.prepare(TextInput(token_ids=(1, 2)))


def test_pictures(tmp_path):
    digits = load_digits()
    model = LogisticRegression(max_iter=500).fit(digits.data / 16, digits.target)
    options = {"image_size": [8, 8], "image_mode": "L", "pixel_scale": 1 / 255}
    bundle = write_bundle(tmp_path / "m", model, task="image-classification", options=options)
    runtime = load(bundle)
    pixels = (digits.images[:5] / 16 * 255).round().astype(np.uint8)[:, :, :, None]
    outputs = run(runtime, *[ImageInput(picture) for picture in pixels])
    assert [output.best for output in outputs] == model.predict(digits.data[:5] / 16).tolist()


# ---------------------------------------------------------------------------------- trust


def test_a_type_that_is_not_trusted_is_named_with_the_way_out(tmp_path):
    model = make_pipeline(Doubler(), LogisticRegression(max_iter=500)).fit(IRIS_ROWS, IRIS_SPECIES)
    bundle = write_bundle(tmp_path / "m", model)
    with pytest.raises(FormatNotAllowed, match=r"Doubler") as caught:
        load(bundle)
    assert "WHERRY_TRUSTED_SKLEARN_TYPES" in caught.value.hint
    assert "docs/custom-models.md" in caught.value.hint


def test_the_operator_may_trust_a_type(tmp_path):
    model = make_pipeline(Doubler(), LogisticRegression(max_iter=500)).fit(IRIS_ROWS, IRIS_SPECIES)
    bundle = write_bundle(tmp_path / "m", model)
    name = f"{Doubler.__module__}.Doubler"
    (unknown,) = skops.io.get_untrusted_types(file=bundle.main_file)
    assert unknown == name
    (output,) = run(load(bundle, trusted_types=[name]), rows_of(IRIS_ROWS[:1]))
    assert len(output.classes) == 1


def test_a_bundle_cannot_trust_its_own_types(tmp_path):
    model = make_pipeline(Doubler(), LogisticRegression(max_iter=500)).fit(IRIS_ROWS, IRIS_SPECIES)
    options = {"trusted_types": [f"{Doubler.__module__}.Doubler"], "allow_pickle": True}
    with pytest.raises(FormatNotAllowed):
        load(write_bundle(tmp_path / "m", model, options=options))
    with pytest.raises(CodeNotAllowed):
        load(write_bundle(tmp_path / "p", model, file="model.pkl", options=options))


def test_a_function_is_no_trusted_type(tmp_path):
    model = FunctionTransformer(os.system)
    with pytest.raises(FormatNotAllowed, match="system"):
        load(write_bundle(tmp_path / "m", model))


@pytest.mark.parametrize("file", ["model.pkl", "model.pickle", "model.joblib"])
def test_a_pickle_is_not_opened_unless_the_operator_allows_it(iris, tmp_path, file, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setitem(globals(), "CANARY", str(canary))
    bundle = write_bundle(tmp_path / "evil", Evil(), file=file)
    with pytest.raises(CodeNotAllowed) as caught:
        load(bundle)
    assert "WHERRY_ALLOW_PICKLE" in caught.value.hint
    assert not canary.exists()
    good = write_bundle(tmp_path / "good", iris, file=file)
    (output,) = run(load(good, allow_pickle=True), rows_of(IRIS_ROWS[:1]))
    assert output.classes.tolist() == [0]


def test_a_pickle_under_another_name_is_not_opened(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setitem(globals(), "CANARY", str(canary))
    bundle = write_bundle(tmp_path / "evil", Evil(), file="model.pkl")
    for name in ("model.skops", "model.bin", "model"):
        bundle.main_file.rename(bundle.folder / name)
        manifest = Manifest("tabular-classification", "sklearn", files=(name,))
        (bundle.folder / MANIFEST).write_text(encode_manifest(manifest))
        bundle = open_bundle(bundle.folder)
        with pytest.raises(FormatNotAllowed):
            load(bundle, allow_pickle=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"__class__": 3}',
        "[" * 100_000,
        '{"__module__": "os", '
        '"__class__": "system", "__loader__": "OperatorFuncNode", "attrs": {}}',
    ],
)
def test_a_broken_archive_is_refused(tmp_path, schema, iris):
    bundle = write_bundle(tmp_path / "m", iris)
    with zipfile.ZipFile(bundle.main_file, "w") as archive:
        archive.writestr("schema.json", schema)
    with pytest.raises(FormatNotAllowed):
        load(bundle)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, iris):
    bundle = write_bundle(tmp_path / "m", iris)
    with zipfile.ZipFile(bundle.main_file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"0" * (70 << 20))
    with pytest.raises(FormatNotAllowed, match="unpacks to"):
        load(bundle)


def test_a_model_of_another_version_is_served_with_a_warning(tmp_path, iris, caplog):
    data = pickle.dumps(iris)
    bundle = write_bundle(tmp_path / "m", iris, file="model.pkl")
    import sklearn

    old = data.replace(sklearn.__version__.encode(), b"1.0.0"[: len(sklearn.__version__)])
    assert old != data
    bundle.main_file.write_bytes(old)
    with caplog.at_level(logging.WARNING):
        load(bundle, allow_pickle=True)
    assert len(caplog.records) == 1
    assert "trained with scikit-learn 1.0.0" in caplog.text


def test_a_task_that_estimators_do_not_do_is_refused(tmp_path, iris):
    with pytest.raises(InvalidInput, match="'text-generation'"):
        load(write_bundle(tmp_path / "m", iris, task="text-generation"))


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(3),
        GradientBoostingClassifier(n_estimators=2),
        KNeighborsClassifier(),
        MLPClassifier(max_iter=1000, tol=1.0),
        GaussianProcessClassifier(RBF()),
        CalibratedClassifierCV(LinearSVC()),
        make_pipeline(SelectKBest(k=2), GaussianNB()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_common_estimators_are_trusted(model, tmp_path):
    runtime = load(write_bundle(tmp_path / "m", model.fit(IRIS_ROWS, IRIS_SPECIES)))
    (output,) = run(runtime, rows_of(IRIS_ROWS[::10]))
    assert np.allclose(output.probabilities, model.predict_proba(IRIS_ROWS[::10]), atol=1e-6)


def test_no_trusted_type_reaches_beyond_the_three_packages():
    assert {name.partition(".")[0] for name in TRUSTED_SKLEARN_TYPES} == {
        "numpy",
        "scipy",
        "sklearn",
    }
