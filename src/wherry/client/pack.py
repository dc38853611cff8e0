# pyright: standard
"""Makes a bundle folder of what a data scientist has: a fitted estimator, a file, a Python class.

Frameworks are imported only when there is a model of theirs to pack.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.client.pack_columns import first_row, read_frame, row_of
from wherry.errors import FormatNotAllowed, InvalidInput, MissingExtra

if TYPE_CHECKING:
    from wherry.models.bundle import Manifest
    from wherry.models.tasks.task import TensorSpec

MODEL_SUFFIXES = (
    *(".skops", ".onnx", ".gguf", ".tflite", ".pt", ".pt2", ".keras", ".h5", ".hdf5"),
    *(".json", ".ubj", ".txt", ".model", ".lgb"),  # of boosted trees, if their content is
    *(".py", ".pkl", ".pickle", ".joblib"),
)
"""Single files that the server knows how to import."""
PYTHON_CLASS = "docs/custom-models.md"


def pack(
    model_or_path: object,
    *,
    name: str = "model",
    task: str | None = None,
    labels: Sequence[str] | None = None,
    sample: Any = None,
    description: str = "",
    licence: str = "",
    trusted_types: Sequence[str] = (),
) -> Path:
    """A bundle folder, or the model file, ready to be uploaded.

    A folder with `wherry.toml` and a single model file come back as they are. Anything else is
    packed into a new temporary folder, which the caller deletes.

    Args:
        model_or_path: A fitted scikit-learn estimator or pipeline, or a path: a bundle folder, a
            model file, a `.py` file with a class `Model`, or a folder with `model.py`.
        name: Name of the model, for messages.
        task: What the model does; guessed for estimators, needed for a Python class.
        labels: Names of the classes in the order of the model's outputs; default: its classes.
        sample: One input: a row, a text, or the object that `/predict` takes. Or the data frame
            that the model was trained on, which tells names, kinds, categories and what may miss.
        description: For people who look for a model.
        licence: SPDX identifier.
        trusted_types: Types of your own that the server's operator has allowed.

    Raises:
        InvalidInput: The model cannot be served as it is; the hint says what can.
        FormatNotAllowed: It holds types that skops does not trust.
        MissingExtra: skops is not installed.
    """
    wishes = Wishes(name, task, labels, sample, description, licence, tuple(trusted_types))
    if isinstance(model_or_path, (str, Path)):
        return check_path(Path(model_or_path))
    if not hasattr(model_or_path, "fit"):
        raise InvalidInput(
            f"{name!r}: a {type(model_or_path).__name__} cannot be packed",
            hint="a fitted scikit-learn estimator, a path (.onnx, .gguf, .skops, a bundle folder), "
            f"or a Python class ({PYTHON_CLASS})",
        )
    return pack_estimator(model_or_path, wishes)


@dataclass(frozen=True)
class Wishes:
    """What the caller of `pack` said."""

    name: str
    task: str | None
    labels: Sequence[str] | None
    sample: Any
    description: str
    licence: str
    trusted_types: tuple[str, ...]


# ------------------------------------------------------------------------------ paths


def check_path(path: Path) -> Path:
    """The path itself, if it can be uploaded; what is in it is found out by the server."""
    from wherry.models.bundle import MANIFEST

    if not path.exists():
        raise InvalidInput(f"there is no file or folder {str(path)!r}")
    if (path / MANIFEST).is_file():
        check_bundle(path)
        return path
    if path.is_dir() and not any(path.iterdir()):
        raise InvalidInput(f"the folder {str(path)!r} is empty")
    if path.is_file() and path.suffix.lower() not in MODEL_SUFFIXES:
        raise FormatNotAllowed(
            f"{path.name!r} is not a model file that can be served",
            hint=f"known: {', '.join(MODEL_SUFFIXES)}; or a Python class ({PYTHON_CLASS})",
        )
    return path


def check_bundle(folder: Path) -> None:
    """Read the manifest and look for the files it names."""
    from wherry.models.bundle import open_bundle

    bundle = open_bundle(folder)
    for file in bundle.manifest.files:
        bundle.path(file)


def write_bundle(folder: Path, manifest: Manifest) -> Path:
    """Write `wherry.toml`; the folder is a bundle then."""
    from wherry.models.bundle import MANIFEST, encode_manifest

    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder


# ------------------------------------------------------------------------------ scikit-learn


def pack_estimator(model: Any, wishes: Wishes) -> Path:
    """A bundle of a fitted estimator."""
    from wherry.models.tasks.sklearn_columns import number_columns

    check_fitted(model, wishes.name)
    task = wishes.task or guess_task(model, wishes.name)
    data = dump_estimator(model, wishes)  # first: no sample helps what cannot be loaded
    served = copy.deepcopy(model)
    number_columns(served)  # as the runtime will, whose tables have no names
    manifest = describe_estimator(served, task, wishes)
    folder = Path(tempfile.mkdtemp(prefix="wherry-"))
    (folder / "model.skops").write_bytes(data)
    return write_bundle(folder, manifest)


def check_fitted(model: Any, name: str) -> None:
    """Refuse an estimator that has learnt nothing yet."""
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise InvalidInput(f"{name!r} is not fitted", hint="call fit() first") from error
    except TypeError as error:
        raise InvalidInput(
            f"{name!r}: a {type(model).__name__} is no scikit-learn estimator",
            hint=f"export it to ONNX, or bring it as a Python class ({PYTHON_CLASS})",
        ) from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtra:
    """The error for a package that packing needs."""
    return MissingExtra(
        f"packing a scikit-learn model needs the package {error.name!r}",
        hint="pip install 'wherry[sklearn]'",
    )


def guess_task(model: Any, name: str) -> str:
    """The task of an estimator, by its kind and by what its first step reads."""
    from sklearn.base import is_classifier, is_regressor

    if is_classifier(model):
        return "text-classification" if reads_texts(model) else "tabular-classification"
    if is_regressor(model) and not reads_texts(model):
        return "tabular-regression"
    raise InvalidInput(
        f"{name!r}: a {type(model).__name__} is neither a classifier nor a regressor of tables",
        hint=f"bring it as a Python class ({PYTHON_CLASS})",
    )


def reads_texts(model: Any) -> bool:
    """Whether an estimator, or the first step of a pipeline, takes texts and no table."""
    from sklearn.pipeline import FeatureUnion, Pipeline
    from sklearn.utils import get_tags

    if isinstance(model, Pipeline):
        return reads_texts(model.steps[0][1])
    if isinstance(model, FeatureUnion):
        return all(reads_texts(step) for _, step in model.transformer_list)
    tags = get_tags(model).input_tags
    return tags.string and not tags.two_d_array


def describe_estimator(model: Any, task: str, wishes: Wishes) -> Manifest:
    """The manifest of an estimator's bundle; its sample has been tried."""
    import msgspec
    import sklearn

    from wherry.models.bundle import Manifest
    from wherry.models.tasks.task import Signature

    options: dict[str, Any] = {"sklearn_version": sklearn.__version__}
    labels = () if task == "tabular-regression" else find_labels(model, wishes)
    signature = Signature()
    sample: Mapping[str, Any] = {}
    columns = read_frame(model, wishes.sample) if task.startswith("tabular") else ()
    if columns:
        row = first_row(wishes.sample, columns)
        targets = try_sample(model, row_of(row, columns), wishes)
        options["columns"] = [msgspec.to_builtins(column) for column in columns]
        inputs = tuple(column.spec for column in columns)
        signature = Signature(inputs, describe_outputs(model, task, targets, len(labels)))
        sample = {"row": row}
    elif task.startswith("tabular"):
        row, names = find_row(model, wishes)
        targets = try_sample(model, as_table(row), wishes)
        inputs = describe_inputs(row, names)
        signature = Signature(inputs, describe_outputs(model, task, targets, len(labels)))
        sample = {"row": row}
        if len(inputs) == 1 and hasattr(model, "feature_names_in_"):
            options["feature_names"] = names
    elif task == "text-classification":
        text = find_text(wishes.sample)
        try_sample(model, [text], wishes)
        sample = {"text": text}
    elif isinstance(wishes.sample, Mapping):
        sample = wishes.sample
    return Manifest(
        task=task,
        runtime="sklearn",
        description=wishes.description,
        licence=wishes.licence,
        labels=labels,
        signature=signature,
        files=("model.skops",),
        options=options,
        sample=sample,
    )


def find_labels(model: Any, wishes: Wishes) -> tuple[str, ...]:
    """Names of the classes, in the order of the model's outputs."""
    classes = getattr(model, "classes_", None)
    if classes is None or isinstance(classes, list):
        raise InvalidInput(
            f"{wishes.name!r} predicts several targets at once, or no classes",
            hint=f"pack one model a target, or bring it as a Python class ({PYTHON_CLASS})",
        )
    found = tuple(wishes.labels) if wishes.labels else tuple(map(str, classes.tolist()))
    if len(found) != len(classes):
        raise InvalidInput(
            f"{wishes.name!r} has {len(classes)} classes, but {len(found)} labels were given",
            hint=f"classes: {', '.join(map(str, classes[:20].tolist()))}",
        )
    return found


def find_row(model: Any, wishes: Wishes) -> tuple[list[Any], list[str]]:
    """One row of features, zeros if there is no sample; and the features' names."""
    width: int | None = getattr(model, "n_features_in_", None)
    names = [str(each) for each in getattr(model, "feature_names_in_", ())]
    row = read_row(wishes.sample, names)
    if row is None:
        if width is None:
            raise InvalidInput(
                f"{wishes.name!r} does not say how many features it takes",
                hint="pass sample=one row",
            )
        row = [0.0] * width
    if width is not None and len(row) != width:
        raise InvalidInput(f"the sample has {len(row)} features, {wishes.name!r} takes {width}")
    return row, names or [f"feature_{index}" for index in range(len(row))]


def read_row(sample: Any, names: Sequence[str]) -> list[Any] | None:
    """The first row of a sample: a list, an array, a data frame, a series or a plain object."""
    if sample is None:
        return None
    if isinstance(sample, Mapping):
        sample = sample.get("row", sample.get("rows", sample.get("features", sample)))
    if isinstance(sample, Mapping):
        try:
            return [plain_value(sample[name]) for name in names]
        except KeyError as error:
            raise InvalidInput(f"the sample has no feature {error.args[0]!r}") from error
    values: Any = getattr(sample, "values", sample)  # of a data frame or series
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    row = values[0] if values and isinstance(values[0], (list, tuple)) else values
    return [plain_value(value) for value in row]


def plain_value(value: Any) -> str | float:
    """A feature as text or number."""
    if isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"a feature of the sample is no number and no text: {value!r}"
        ) from error


def find_text(sample: Any) -> str:
    """The text of a sample."""
    if isinstance(sample, Mapping):
        sample = sample.get("text")
    elif isinstance(sample, Sequence) and not isinstance(sample, str) and sample:
        sample = sample[0]
    return str(sample or "an example")


def as_table(row: Sequence[Any]) -> Any:
    """One row as the runtime will give it to the model."""
    import numpy as np

    has_text = any(isinstance(value, str) for value in row)
    return np.array([row], dtype=object if has_text else np.float64)


def try_sample(model: Any, features: Any, wishes: Wishes) -> int:
    """Let the model answer the sample as it will be asked when served; gives the target count."""
    import warnings

    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = np.asarray(model.predict(features))
    except Exception as error:  # an estimator may raise anything
        summary = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "pass sample=one real row" if wishes.sample is None else "it is given plain arrays"
        raise InvalidInput(
            f"{wishes.name!r} does not answer a sample: {summary}",
            hint=f"{hint}; or bring it as a Python class ({PYTHON_CLASS})",
        ) from error
    return found.shape[1] if found.ndim == 2 else 1


def describe_inputs(row: Sequence[Any], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """One matrix of numbers; or, where some feature is text, one column a feature.

    Numbers are FP64, as in the estimator itself: answers are the same to the last digit.
    """
    from wherry.models.tasks.task import TensorSpec

    if not any(isinstance(value, str) for value in row):
        return (TensorSpec("input", "FP64", (-1, len(row))),)
    return tuple(
        TensorSpec(name, "BYTES" if isinstance(value, str) else "FP64", (-1,))
        for name, value in zip(names, row, strict=True)
    )


def describe_outputs(
    model: Any, task: str, target_count: int, label_count: int
) -> tuple[TensorSpec, ...]:
    """What the model gives for a table."""
    from wherry.models.tasks.task import TensorSpec

    if task == "tabular-regression":
        shape = (-1,) if target_count == 1 else (-1, target_count)
        return (TensorSpec("prediction", "FP64", shape),)
    outputs = [TensorSpec("label", "BYTES", (-1,)), TensorSpec("class", "INT64", (-1,))]
    if hasattr(model, "predict_proba"):
        outputs.append(TensorSpec("probabilities", "FP32", (-1, label_count)))
    return tuple(outputs)


def dump_estimator(model: Any, wishes: Wishes) -> bytes:
    """The model as skops writes it; types that the server would refuse are named here already."""
    from wherry.models.tasks.sklearn_types import TRUSTED_SKLEARN_TYPES

    try:
        import skops.io
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    trusted = TRUSTED_SKLEARN_TYPES.union(wishes.trusted_types)
    try:
        data = skops.io.dumps(model)
        refused = set(skops.io.get_untrusted_types(data=data)) - trusted
    except Exception as error:  # skops meets objects of any kind
        raise FormatNotAllowed(
            f"{wishes.name!r} cannot be written by skops: {error}",
            hint=f"bring it as a Python class ({PYTHON_CLASS})",
        ) from error
    if refused:
        raise FormatNotAllowed(
            f"{wishes.name!r} holds types that are not trusted: {', '.join(sorted(refused))}",
            hint=explain_refused(refused),
        )
    return data


def explain_refused(types: Iterable[str]) -> str:
    """What to do about types that skops does not trust.

    Those of a notebook, a script or inside a function exist nowhere else: the server could not
    import them even if they were allowed.
    """
    way_out = f"bring it as a Python class, its code beside it: {PYTHON_CLASS}, 'scikit-learn'"
    local = [each for each in types if each.startswith("__main__.") or "<" in each]
    if local:
        return f"{', '.join(sorted(local))} exists only here, a server cannot import it: {way_out}"
    return (
        f"if the server has their package, its operator sets WHERRY_TRUSTED_SKLEARN_TYPES="
        f"{','.join(sorted(types))} and you pass the same as trusted_types; or {way_out}"
    )
