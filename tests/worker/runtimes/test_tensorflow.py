"""SavedModels: answers are those of the function itself, and what does more is refused.

TensorFlow conflicts with much: `wherry runtime install tensorflow`, then run this file with the
environment's own Python and pytest in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.tensor import TensorInput

tf = pytest.importorskip("tensorflow", reason="pip install 'wherry[tensorflow]'")

from wherry.worker.runtimes.tensorflow import TensorflowRuntime  # noqa: E402 - after importorskip

pytestmark = pytest.mark.filterwarnings("default")


class Small(tf.Module):
    """A table of numbers in, numbers and texts out."""

    def __init__(self) -> None:
        self.weights = tf.Variable(tf.random.stateless_normal((4, 3), (1, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
    def __call__(self, x: Any) -> dict[str, Any]:
        scores = tf.tanh(x @ self.weights)
        return {"scores": scores, "best": tf.strings.as_string(tf.argmax(scores, -1))}


class Texts(tf.Module):
    """Texts in, texts out."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "text")])
    def __call__(self, text: Any) -> dict[str, Any]:
        return {"upper": tf.strings.upper(text, encoding="utf-8")}


class ReadsAFile(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((), tf.string, "name")])
    def __call__(self, name: Any) -> dict[str, Any]:
        return {"content": tf.io.read_file(name)}


class CallsPython(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((), tf.float32, "x")])
    def __call__(self, x: Any) -> dict[str, Any]:
        return {"y": tf.numpy_function(lambda value: value + 1, [x], tf.float32)}


def save(folder: Path, module: Any) -> Any:
    tf.saved_model.save(module, str(folder), signatures=module.__call__)
    return module


def load(folder: Path) -> TensorflowRuntime:
    """As a server does: looked at first, then loaded."""
    runtime = TensorflowRuntime()
    runtime.load(Bundle(folder, detect(folder)), "cpu")
    return runtime


def ask(runtime: TensorflowRuntime, **tensors: Any) -> dict[str, np.ndarray]:
    (output,) = runtime.run([runtime.prepare(TensorInput(tensors))])
    return output.tensors


def numbers(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)


def test_answers_are_those_of_the_function_itself(tmp_path: Path):
    module = save(tmp_path, Small())
    found, expected = ask(load(tmp_path), x=numbers(3)), module(tf.constant(numbers(3)))
    # the same kernels on the same numbers
    np.testing.assert_allclose(found["scores"], expected["scores"].numpy(), rtol=1e-6)
    assert found["best"].tolist() == expected["best"].numpy().tolist()


def test_a_batch_gives_what_each_row_gives_alone(tmp_path: Path):
    save(tmp_path, Small())
    runtime = load(tmp_path)
    assert runtime.joins_rows
    items = [TensorInput({"x": numbers(rows)}) for rows in (1, 3, 2)]
    for item, output in zip(
        items, runtime.run([runtime.prepare(item) for item in items]), strict=True
    ):
        alone = ask(runtime, **item.tensors)
        # another batch size may choose another kernel: float noise
        np.testing.assert_allclose(output.tensors["scores"], alone["scores"], rtol=1e-5)


def test_texts_of_every_script_come_back(tmp_path: Path):
    save(tmp_path, Texts())
    runtime = load(tmp_path)
    texts = np.array(["straße".encode(), "你好".encode()], object)
    assert [each.decode() for each in ask(runtime, text=texts)["upper"]] == ["STRASSE", "你好"]


def test_what_does_not_fit_is_refused(tmp_path: Path):
    save(tmp_path, Small())
    with pytest.raises(InvalidInput, match="shape"):
        ask(load(tmp_path), x=np.zeros((1, 5), np.float32))


@pytest.mark.parametrize(
    ("module", "operator"), [(ReadsAFile(), "ReadFile"), (CallsPython(), "PyFunc")]
)
def test_a_model_that_does_more_than_compute_is_refused(module: Any, operator: str, tmp_path: Path):
    save(tmp_path, module)
    with pytest.raises(FormatNotAllowed, match=operator):
        detect(tmp_path)


def test_another_function_than_the_default_needs_its_name(tmp_path: Path):
    module = Small()
    tf.saved_model.save(module, str(tmp_path), signatures={"classify": module.__call__})
    with pytest.raises(FormatNotAllowed) as refused:
        load(tmp_path)
    assert "'classify'" in refused.value.hint
    manifest = detect(tmp_path, options={"function": "classify"})
    TensorflowRuntime().load(Bundle(tmp_path, manifest), "cpu")
