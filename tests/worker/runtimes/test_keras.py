"""Keras files: answers are those of `predict`, and only Keras's own layers are loaded."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.registry.detect import detect
from wherry.models.tasks.tensor import TensorInput

pytest.importorskip("torch", reason="pip install 'wherry[keras]'")
os.environ["KERAS_BACKEND"] = "torch"
keras = pytest.importorskip("keras", reason="pip install 'wherry[keras]'")
h5py = pytest.importorskip("h5py", reason="pip install 'wherry[keras]'")

from wherry.worker.runtimes.keras import KerasRuntime  # noqa: E402 - after importorskip

pytestmark = pytest.mark.filterwarnings("default")


def make_table() -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,), name="row"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


def make_two_headed() -> Any:
    keras.utils.set_random_seed(3)
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    both = keras.layers.Rescaling(2.0, offset=1.0)(joined)
    first = keras.layers.Dense(3, name="first")(both)
    second = keras.layers.Dense(1, activation="sigmoid", name="second")(joined)
    return keras.Model({"left": left, "right": right}, [first, second])


def make_pictures() -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, padding="same", activation="gelu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )


def load(folder: Path, file: str, **manifest: Any) -> KerasRuntime:
    """As a server does: looked at first, then loaded."""
    assert detect(folder).runtime == "keras"
    fields: dict[str, Any] = {"task": "tensor", **manifest}
    runtime = KerasRuntime()
    runtime.load(Bundle(folder, Manifest(runtime="keras", files=(file,), **fields)), "cpu")
    return runtime


def ask(runtime: KerasRuntime, **tensors: np.ndarray) -> list[np.ndarray]:
    (output,) = runtime.run([runtime.prepare(TensorInput(tensors))])
    return [*output.tensors.values()]


def random_inputs(runtime: KerasRuntime, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    return {
        each.name: random.normal(size=(rows, *each.shape[1:])).astype(np.float32)
        for each in runtime.signature.inputs
    }


@pytest.mark.parametrize("file", ["m.keras", "m.h5"])
@pytest.mark.parametrize("make", [make_table, make_two_headed, make_pictures])
def test_answers_are_those_of_predict(make: Callable[[], Any], file: str, tmp_path: Path):
    model = make()
    model.save(tmp_path / file)
    runtime = load(tmp_path, file)
    inputs = random_inputs(runtime, 3)
    given = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    expected = model.predict(given, verbose=0)
    expected = expected if isinstance(expected, list) else [expected]
    assert [each.shape for each in runtime.signature.outputs] == [
        tuple(-1 if size is None else size for size in each.shape) for each in model.outputs
    ]
    for ours, theirs in zip(ask(runtime, **inputs), expected, strict=True):
        # the same backend with the same weights
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_batch_gives_what_each_row_gives_alone(tmp_path: Path):
    make_table().save(tmp_path / "m.keras")
    runtime = load(tmp_path, "m.keras")
    assert runtime.joins_rows
    items = [TensorInput(random_inputs(runtime, rows)) for rows in (1, 4, 2)]
    outputs = runtime.run([runtime.prepare(item) for item in items])
    for item, output in zip(items, outputs, strict=True):
        (alone,) = ask(runtime, **item.tensors)
        (together,) = output.tensors.values()
        # another batch size may choose another kernel: float noise
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    make_table().save(tmp_path / "m.keras")
    runtime = load(tmp_path, "m.keras")
    with pytest.raises(InvalidInput, match="shape"):
        ask(runtime, row=np.zeros((1, 5), np.float32))


# ------------------------------------------------------------------------------ refused


def save_with_code(path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(path)


def test_a_layer_of_code_is_refused_at_import(tmp_path: Path):
    save_with_code(tmp_path / "m.keras")
    with pytest.raises(FormatNotAllowed, match="brings code"):
        detect(tmp_path)


def test_a_layer_of_code_in_hdf5_is_refused_before_it_is_loaded(tmp_path: Path):
    save_with_code(tmp_path / "m.h5")
    detect(tmp_path)  # nothing here reads HDF5
    with pytest.raises(FormatNotAllowed, match="brings code"):
        load(tmp_path, "m.h5")


def test_weights_alone_are_refused(tmp_path: Path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["weight"] = np.zeros(3)
    with pytest.raises(FormatNotAllowed, match="no model"):
        load(tmp_path, "m.h5")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"module": "os", "class_name": "system"}, "module 'os'"),
        ({"module": "keras.utils", "class_name": "get_file"}, "module 'keras.utils'"),
        ({"module": "keras.src.saving.file_editor", "class_name": "F"}, "module"),
        ({"registered_name": "Custom>Mine"}, "custom object"),
        ({"class_name": "TorchModuleWrapper"}, "brings code"),
        ({"class_name": ["Dense"]}, "brings code"),
    ],
)
def test_what_is_not_keras_own_is_refused(change: dict[str, Any], what: str, tmp_path: Path):
    make_table().save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= change
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(FormatNotAllowed, match=what):
        detect(tmp_path)
