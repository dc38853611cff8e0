# pyright: standard
"""scikit-learn pipelines: tables, series, texts and pictures.

Files: `*.skops`, of which only types on a frozen list are loaded: those of scikit-learn, numpy and
scipy that skops trusts, those in `wherry.models.tasks.sklearn_types`, and what the operator adds
(`WHERRY_TRUSTED_SKLEARN_TYPES`).
`*.pkl`, `*.pickle` and `*.joblib` can run any code when they load, so they need the operator's
`WHERRY_ALLOW_PICKLE=true`. Both settings reach this module through `configure`; a bundle cannot
set them.

Options of a bundle of the task `image-classification`, beside the task's own: `pixel_scale` (default
1/255) multiplies the values 0 to 255; `layout` is `flat` (default: a picture is one row of features)
or `NHWC` (a picture keeps its dimensions).
"""

from __future__ import annotations

import logging
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import sklearn
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits

from wherry.errors import CodeNotAllowed, FormatNotAllowed, InvalidInput, MissingExtra
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.forecasting import ForecastInput
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import fit_image, image_options
from wherry.models.tasks.sklearn_columns import find_categories, missing_text, number_columns
from wherry.models.tasks.sklearn_types import TRUSTED_SKLEARN_TYPES
from wherry.models.tasks.table_columns import Column, check_arrays, read_columns
from wherry.models.tasks.tabular import (
    TABULAR_REGRESSION,
    RegressionOutput,
    Rows,
    TableOutput,
)
from wherry.models.tasks.task import TaskInput, TaskOutput
from wherry.models.tasks.tensor import Array, are_finite, rows_usage
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.forecasts.blocks import BlockForecaster, read_block_options
from wherry.worker.runtimes.runtime import ItemError, Prepared
from wherry.worker.runtimes.sklearn_linear import PROVED_TYPES, find_shortcut

log = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
MAX_UNPACKED_BYTES = 16 << 30
"""Most bytes that the members of a .skops file may unpack to."""
MAX_EXPANSION = 100
"""Most bytes out of one compressed byte, once a file unpacks to over 64 MiB."""
FREE_EXPANSION_BYTES = 64 << 20


class SklearnRuntime:
    """One fitted estimator or pipeline."""

    max_batch_rows = 256
    max_batch_cost = 0
    joins_rows = False

    def __init__(self) -> None:
        self.allow_pickle = False
        self.trusted_types: frozenset[str] = frozenset()

    def configure(self, *, secrets: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Take the operator's settings; called before `load`."""
        self.allow_pickle = options.get("allow_pickle") is True
        self.trusted_types = frozenset(options.get("trusted_types", ()))

    def load(self, bundle: Bundle, device: str) -> None:
        """Read the estimator and check that it fits the bundle's task and labels."""
        threadpool_limits(1)  # one thread a worker; more workers rather than more threads
        self.bundle = bundle
        self.config = bundle.manifest.task_config()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model = self.read_model(bundle.main_file)
        log_warnings(caught)
        self.adapter = find_adapter(bundle.manifest.task)(self.model, bundle)
        self.joins_rows = isinstance(self.adapter, Table)

    def read_model(self, path: Path) -> Any:
        """The estimator in a file, by the rules of the module's docstring."""
        if path.suffix == ".skops":
            return load_skops(path, self.trusted_types)
        if path.suffix not in PICKLE_SUFFIXES:
            raise FormatNotAllowed(
                f"the sklearn runtime cannot read {path.name!r}", hint="save it as .skops"
            )
        if not self.allow_pickle:
            raise CodeNotAllowed(
                f"{path.name!r} is a pickle: loading it can run any code in it",
                hint="save it with skops.io.dump, or let the operator set WHERRY_ALLOW_PICKLE=true",
            )
        return load_pickle(path)

    def prepare(self, item: TaskInput) -> Prepared:
        """Features of one request."""
        return self.adapter.prepare(item)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """All rows of all requests in one call of the model."""
        return self.adapter.run(batch)

    def close(self) -> None:
        """Let go of the model."""
        del self.model, self.adapter


# ------------------------------------------------------------------------------ files


def load_skops(path: Path, trusted: frozenset[str]) -> Any:
    """Load a .skops file whose every type is trusted; `FormatNotAllowed` names the others."""
    import skops.io

    check_archive(path)
    try:
        unknown = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # a hostile file may fail anywhere in skops
        raise FormatNotAllowed(f"{path.name!r} is not a valid .skops file: {error}") from error
    refused = [name for name in unknown if name not in trusted | TRUSTED_SKLEARN_TYPES]
    if refused:
        names = ", ".join(refused)
        raise FormatNotAllowed(
            f"{path.name!r} holds types that are not trusted: {names}",
            hint="if you trust their code, let the operator start the server with "
            f"WHERRY_TRUSTED_SKLEARN_TYPES={','.join(refused)}; or bring the model as a Python "
            "class (docs/custom-models.md)",
        )
    try:
        return skops.io.load(path, trusted=unknown)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the model needs the package {error.name!r}", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # as above
        raise FormatNotAllowed(f"{path.name!r} could not be loaded: {error}") from error


def check_archive(path: Path) -> None:
    """Refuse what is no zip file, and a zip bomb, before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FormatNotAllowed(
            f"{path.name!r} is not a .skops file: {error}", hint="save it with skops.io.dump"
        ) from error
    unpacked = sum(member.file_size for member in members)
    most = max(FREE_EXPANSION_BYTES, MAX_EXPANSION * path.stat().st_size)
    if unpacked > min(most, MAX_UNPACKED_BYTES):
        raise FormatNotAllowed(f"{path.name!r} unpacks to {unpacked} bytes, more than is allowed")


def load_pickle(path: Path) -> Any:
    """Unpickle; only called when the operator allows it."""
    try:
        if path.suffix == ".joblib":
            import joblib

            return joblib.load(path)
        with path.open("rb") as file:
            return pickle.load(file)  # noqa: S301, TID251 - behind the operator's setting
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the model needs the package {error.name!r}", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # unpickling may raise anything
        raise FormatNotAllowed(f"{path.name!r} could not be unpickled: {error}") from error


def log_warnings(caught: Sequence[warnings.WarningMessage]) -> None:
    """One line for a model of another scikit-learn version, others as they are."""
    versions = {
        each.message.original_sklearn_version
        for each in caught
        if isinstance(each.message, InconsistentVersionWarning)
    }
    if versions:
        log.warning(
            "the model was trained with scikit-learn %s and is served with %s: answers may differ",
            ", ".join(sorted(versions)),
            sklearn.__version__,
        )
    for each in caught:
        if not isinstance(each.message, InconsistentVersionWarning):
            log.warning("%s: %s", each.category.__name__, each.message)


# ------------------------------------------------------------------------------ tasks


def find_adapter(task: str) -> Callable[[Any, Bundle], Any]:
    """How estimators do a task."""
    adapters: dict[str, Callable[[Any, Bundle], Any]] = {
        "tabular-classification": TableClassifier,
        "tabular-regression": TableRegressor,
        "text-classification": TextClassifier,
        "image-classification": ImageClassifier,
        "time-series-forecasting": LagForecaster,
    }
    if task not in adapters:
        raise InvalidInput(
            f"the sklearn runtime does not do the task {task!r}",
            hint="it does " + ", ".join(adapters),
        )
    return adapters[task]


def ask(method: Callable[[Any], Any], features: Any) -> Any:
    """Call an estimator; `prepare` has looked at every row: nobody needs to look again."""
    with warnings.catch_warnings(), sklearn.config_context(assume_finite=True):
        warnings.simplefilter("ignore")  # e.g. about feature names, once for every request
        return method(features)


class Classifier:
    """What all classifiers share: classes, labels, probabilities."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        self.model = model
        classes = getattr(model, "classes_", None)
        if classes is None or isinstance(classes, list):
            raise InvalidInput(
                f"{type(model).__name__} is not a classifier of one target",
                hint="bring it as a Python class (docs/custom-models.md)",
            )
        self.labels: tuple[str, ...] = bundle.manifest.labels or tuple(map(str, classes.tolist()))
        if len(self.labels) != len(classes):
            raise InvalidInput(
                f"the bundle names {len(self.labels)} labels, the model has {len(classes)} classes"
            )
        self.index_by_class = {label: index for index, label in enumerate(classes.tolist())}
        self.has_probabilities = hasattr(model, "predict_proba")
        self.shortcut = find_shortcut(model) if self.has_probabilities else None

    def classify(self, features: Any) -> tuple[Array, Array | None]:
        """Class indices and, if the model has them, probabilities (rows, classes).

        With probabilities the class is the most probable one, so that the two never disagree.
        """
        if self.has_probabilities:
            shortcut = self.shortcut
            if shortcut is not None and features.dtype in PROVED_TYPES:
                probabilities = shortcut(features)
            else:
                probabilities = np.asarray(ask(self.model.predict_proba, features))
            return probabilities.argmax(axis=1), probabilities.astype(np.float32)
        predicted = np.asarray(ask(self.model.predict, features)).tolist()
        found = [self.index_by_class[label] for label in predicted]
        return np.array(found, dtype=np.int64), None

    def score(self, features: Any) -> Array:
        """Probabilities; 1 for the class and 0 for others where the model has none."""
        classes, probabilities = self.classify(features)
        if probabilities is None:
            return np.eye(len(self.labels), dtype=np.float32)[classes]
        return probabilities


class Table:
    """What classifiers and regressors of tables share: a matrix of features."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        number_columns(model)
        self.specs = bundle.manifest.signature.inputs
        self.features = getattr(model, "n_features_in_", None)
        self.allows_nan = get_tags(model).input_tags.allow_nan
        self.missing = missing_text(model)
        self.columns = read_columns(bundle.manifest.task_config())
        self.names = names_in_order(model, self.columns) or [spec.name for spec in self.specs]
        self.optional = frozenset(each.name for each in self.columns if not each.required)
        self.refused = known_columns(model, self.names) if not self.columns else ()

    def prepare(self, item: Rows) -> Prepared:
        """One matrix a request; the output's form goes with it."""
        matrix = self.matrix_of(item.tensors)
        if not self.columns:  # those that are declared have been checked
            self.check(item.tensors)
        rows, features = matrix.shape
        if self.features is not None and features != self.features:
            raise InvalidInput(f"a row has {features} features, the model takes {self.features}")
        return Prepared((matrix, item.many), rows, 0, matrix.dtype.kind)

    def check(self, tensors: Mapping[str, Array]) -> None:
        """Refuse numbers and categories that the model would fail on."""
        for name, array in tensors.items():
            if array.dtype.kind == "f" and not are_finite(array):
                if np.isinf(array).any():
                    raise InvalidInput("the model takes no infinity", param=name)
                if not self.allows_nan:
                    raise InvalidInput("the model takes no missing values (NaN)", param=name)
        check_arrays(tensors, [each for each in self.refused if each.name in tensors])

    def matrix_of(self, tensors: Mapping[str, Array]) -> Array:
        """Rows by features, from one matrix or from columns."""
        names = self.names if len(tensors) == len(self.names) else list(tensors)
        if len(names) == 1:
            name = next(iter(tensors)) if names[0] not in tensors else names[0]
            matrix = as_matrix(tensors[name])
            return self.decode(name, matrix) if matrix.dtype.kind == "O" else matrix
        columns = [as_matrix(tensors[name]) for name in names]
        if any(column.dtype.kind == "O" for column in columns):
            columns = [
                self.decode(name, column) for name, column in zip(names, columns, strict=True)
            ]
        return np.concatenate(columns, axis=1)

    def decode(self, name: str, column: Array) -> Array:
        """A column for a matrix of mixed types; an optional empty text is a missing value."""
        found = decode_column(column)
        if column.dtype.kind == "O" and name in self.optional:
            found[found == ""] = self.missing
        return found


def names_in_order(model: Any, columns: Sequence[Column]) -> list[str]:
    """The declared columns in the model's order; `InvalidInput` if they are not the model's."""
    declared = [column.name for column in columns]
    trained = [str(each) for each in getattr(model, "feature_names_in_", declared)]
    if declared and set(declared) != set(trained):
        wrong = sorted(set(declared) ^ set(trained))[0]
        raise InvalidInput(f"the bundle's columns are not the model's: they differ in {wrong!r}")
    return trained if declared else []


def known_columns(model: Any, names: Sequence[str]) -> tuple[Column, ...]:
    """Columns whose unknown categories the model's encoder would fail on."""
    return tuple(
        Column(names[index], "category", required=False, categories=found.values)
        for index, found in find_categories(model).items()
        if index < len(names) and not found.accepts_unknown
    )


def as_matrix(array: Array) -> Array:
    """Rows by features; a column gets a second dimension."""
    if array.ndim not in (1, 2):
        raise InvalidInput(f"the model takes a table, not an array of {array.ndim} dimensions")
    return array[:, None] if array.ndim == 1 else array


def decode_column(column: Array) -> Array:
    """A column for a matrix of mixed types: texts as `str`, numbers as they are."""
    if column.dtype.kind != "O":
        return column.astype(object)
    try:
        texts = [each.decode() for each in column.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"a feature is not valid UTF-8: {error}") from error
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(column.shape)


def join_matrices(batch: Sequence[Prepared]) -> Array:
    """All rows of a batch."""
    if len(batch) == 1:
        return batch[0].payload[0]
    return np.concatenate([prepared.payload[0] for prepared in batch])


def row_ranges(batch: Sequence[Prepared]) -> list[slice]:
    """Where each request's rows are in the joined matrix."""
    ends = list(accumulate(prepared.rows for prepared in batch))
    return [slice(end - prepared.rows, end) for end, prepared in zip(ends, batch, strict=True)]


class TableClassifier(Table):
    """Tables of features to classes."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        super().__init__(model, bundle)
        self.classifier = Classifier(model, bundle)
        given = {"label", "class"}
        if self.classifier.has_probabilities:
            given.add("probabilities")
        missing = [
            spec.name for spec in bundle.manifest.signature.outputs if spec.name not in given
        ]
        if missing:
            raise InvalidInput(
                f"the bundle declares the output {missing[0]!r}, which the model does not give",
                hint="outputs: " + ", ".join(sorted(given)),
            )

    def run(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One call for all rows, split again by request."""
        matrix = join_matrices(batch)
        classes, probabilities = self.classify(matrix)
        labels = self.classifier.labels
        return [
            TableOutput(
                classes=classes[rows],
                probabilities=None if probabilities is None else probabilities[rows],
                labels=labels,
                many=prepared.payload[1],
                usage=rows_usage(prepared.rows),
            )
            for prepared, rows in zip(batch, row_ranges(batch), strict=True)
        ]

    def classify(self, matrix: Array) -> tuple[Array, Array | None]:
        """Classes and probabilities; of no rows, too, which scikit-learn itself refuses."""
        if len(matrix):
            return self.classifier.classify(matrix)
        nothing = np.empty((0, len(self.classifier.labels)), dtype=np.float32)
        has_probabilities = self.classifier.has_probabilities
        return np.empty(0, dtype=np.int64), nothing if has_probabilities else None


class TableRegressor(Table):
    """Tables of features to numbers."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        super().__init__(model, bundle)
        if not hasattr(model, "predict"):
            raise InvalidInput(f"{type(model).__name__} has no method 'predict'")
        (output,) = TABULAR_REGRESSION.signature(bundle.manifest.task_config()).outputs
        if output.datatype not in ("FP32", "FP64"):
            raise InvalidInput(f"the output {output.name!r} must be FP32 or FP64")
        self.model = model
        self.shortcut = find_shortcut(model)

    def predict(self, matrix: Array) -> Array:
        """(rows,) or (rows, targets)."""
        if self.shortcut is not None and matrix.dtype in PROVED_TYPES:
            return self.shortcut(matrix)
        return ask(self.model.predict, matrix)

    def run(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One call for all rows, split again by request."""
        matrix = join_matrices(batch)
        values = np.asarray(self.predict(matrix) if len(matrix) else [], dtype=np.float64)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        return [
            RegressionOutput(
                values=values[rows], many=prepared.payload[1], usage=rows_usage(prepared.rows)
            )
            for prepared, rows in zip(batch, row_ranges(batch), strict=True)
        ]


class LabelScores:
    """What classifiers of texts and pictures share: one score a label."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        self.classifier = Classifier(model, bundle)

    def answer(self, features: Any) -> list[TaskOutput]:
        """One answer for every item of `features`."""
        labels = self.classifier.labels
        return [
            Classification(labels=labels, scores=row, usage=rows_usage(1))
            for row in self.classifier.score(features)
        ]


class TextClassifier(LabelScores):
    """Pipelines that begin with a vectoriser of texts."""

    def prepare(self, item: TextInput) -> Prepared:
        """The text itself: vectorising is part of the pipeline."""
        if item.text is None:
            raise InvalidInput("the model takes text, not token ids")
        return Prepared(item.text)

    def run(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One call for all texts."""
        return self.answer([prepared.payload for prepared in batch])


class ImageClassifier(LabelScores):
    """Classifiers of small pictures, such as digits."""

    def __init__(self, model: Any, bundle: Bundle) -> None:
        super().__init__(model, bundle)
        options = bundle.manifest.options
        self.options = image_options(options)
        self.scale = float(options.get("pixel_scale", 1 / 255))
        self.is_flat = options.get("layout", "flat") == "flat"
        self.features = getattr(model, "n_features_in_", None)

    def prepare(self, item: ImageInput) -> Prepared:
        """Pixels as the numbers that the model was trained on."""
        pixels = fit_image(item.pixels, self.options).astype(np.float32) * self.scale
        features = pixels.reshape(-1) if self.is_flat else pixels
        if self.is_flat and self.features not in (None, features.size):
            raise InvalidInput(
                f"the picture has {features.size} values, the model takes {self.features}",
                param="image",
            )
        return Prepared(features, group=features.shape)

    def run(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One call for all pictures."""
        return self.answer(np.stack([prepared.payload for prepared in batch]))


class LagForecaster:
    """Regressors that tell the next values of a series from the last ones, and from covariates.

    Options of the bundle: see `forecasts.blocks`. A row of features is the window of the target, then
    that of each covariate, then what is known of the covariates in the block.
    """

    def __init__(self, model: Any, bundle: Bundle) -> None:
        self.model = model
        options = read_block_options(bundle.manifest.options)
        features, beside = int(getattr(model, "n_features_in_", 0)), len(options.covariates)
        if not options.context and not beside:
            options = msgspec.structs.replace(options, context=features)
        rest = features - options.context * (1 + beside)
        if not options.context or rest < 0 or (rest % beside if beside else rest):
            raise InvalidInput(
                f"the model takes {features} features, the bundle says a context of "
                f"{options.context} and {beside} covariates",
                hint="say how many values of the past it sees with the option 'context'",
            )
        self.forecaster = BlockForecaster(options, self._step)
        self.forecaster.take_form(self.forecaster.try_out())

    def _step(self, windows: Array, future: Array | None) -> Array:
        rows = windows.transpose(0, 2, 1).reshape(len(windows), -1)
        if windows.shape[2] > 1:
            steps = (self.model.n_features_in_ - rows.shape[1]) // (windows.shape[2] - 1)
            coming = (
                np.zeros((len(rows), steps, windows.shape[2] - 1)) if future is None else future
            )
            rows = np.concatenate([rows, coming.transpose(0, 2, 1).reshape(len(rows), -1)], axis=1)
        return ask(self.model.predict, rows)

    def prepare(self, item: ForecastInput) -> Prepared:
        """Refuse what the model cannot use."""
        self.forecaster.check(item)
        return Prepared(item, rows=max(1, len(item.series)))

    def run(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """All series of all requests, block by block."""
        return [*self.forecaster.answer([prepared.payload for prepared in batch])]
