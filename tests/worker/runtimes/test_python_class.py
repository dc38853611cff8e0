import asyncio
import json
import sys
import threading
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import wherry.learning
from wherry.errors import InvalidInput, MissingExtra, ModelFailed
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest, open_bundle
from wherry.models.codecs.codec import Call
from wherry.models.codecs.inference import HEADER_LENGTH, INFERENCE
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.generation import TEXT_GENERATION, ChatInput, Message, Sampling
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.tabular import Rows
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec
from wherry.models.tasks.tensor import TENSOR, TensorInput
from wherry.models.tasks.text import TextInput
from wherry.worker.runtimes.python_class import PythonClassRuntime, PythonStreamRuntime
from wherry.worker.runtimes.runtime import BatchRuntime, ConcurrentRuntime, ItemError

OPEN = Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),))
ECHO = Path(wherry.learning.__file__).parent / "examples" / "echo"


def write_bundle(folder, code, **manifest):
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(dedent(code))
    options = {"task": "tensor", "runtime": "python_class", "signature": OPEN}
    text = encode_manifest(Manifest(**{**options, **manifest}))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return open_bundle(folder)


def load(bundle, runtime=None):
    runtime = runtime or PythonClassRuntime()
    runtime.load(bundle, "cpu")
    return runtime


def run(runtime, *items):
    return runtime.run([runtime.prepare(item) for item in items])


def tensor(*values, dtype=np.float64):
    return TensorInput({"X": np.array(values, dtype=dtype)})


# ---------------------------------------------------------------------------------- echo


@pytest.fixture
def echo():
    return load(open_bundle(ECHO))


def infer(runtime, body, headers=None):
    config = open_bundle(ECHO).manifest.task_config()
    call = Call("inference", "r", "echo", "1", 0, headers or {})
    decoded = INFERENCE.decode(memoryview(body), call, TENSOR, config)
    outputs = run(runtime, *decoded.items)
    return INFERENCE.encode(decoded, outputs, call, TENSOR, config)


def test_the_protocols_are_fulfilled():
    assert isinstance(PythonClassRuntime(), BatchRuntime)
    assert not isinstance(PythonClassRuntime(), ConcurrentRuntime)
    assert isinstance(PythonStreamRuntime(), ConcurrentRuntime)
    assert not isinstance(PythonStreamRuntime(), BatchRuntime)


def test_echo_returns_every_datatype_and_shape(echo):
    strings = np.empty((2, 1), dtype=object)
    strings[:] = [[b""], [b"\xff"]]
    kinds = ("?", "<u1", "<i8", "<f2", "<f4", "<f8")
    arrays = [np.ones((2, 0, 3), dtype=kind) for kind in kinds] + [
        strings,
        np.array(5),
        np.arange(6).reshape(2, 3),
    ]
    outputs = run(echo, *[TensorInput({"X": array}) for array in arrays])
    for array, output in zip(arrays, outputs, strict=True):
        assert np.array_equal(output.tensors["X"], array)
        assert output.tensors["X"].dtype == array.dtype
        assert output.usage.rows == 1


def test_echo_answers_json(echo):
    body = {"inputs": [{"name": "X", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}]}
    answer = json.loads(infer(echo, json.dumps(body).encode()).body)
    assert answer["outputs"] == body["inputs"]


def test_echo_answers_eight_megabytes(echo):
    raw = np.arange(2_000_000, dtype="<f4").tobytes()
    tensor = {
        "name": "X",
        "datatype": "FP32",
        "shape": [2_000_000],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = infer(echo, head + raw, {HEADER_LENGTH: str(len(head))})
    assert bytes(reply.body).endswith(raw)


def test_the_sample_of_echo_works(echo):
    manifest = open_bundle(ECHO).manifest
    item = TENSOR.from_plain(manifest.sample, manifest.task_config())
    (output,) = run(echo, item)
    assert TENSOR.to_plain(output, manifest.task_config()) == manifest.sample


# ---------------------------------------------------------------------------------- tasks


def test_load_sees_the_folder_and_files_import_each_other(tmp_path):
    code = """
        from helper_of_this_test import FACTOR
        class Model:
            def load(self, folder):
                self.offset = float((folder / "offset.txt").read_text())
            def predict(self, batch):
                return [{"X": item["X"] * FACTOR + self.offset} for item in batch]
            def close(self):
                self.offset = None
    """
    bundle = write_bundle(tmp_path / "m", code)
    (bundle.folder / "helper_of_this_test.py").write_text("FACTOR = 10")
    (bundle.folder / "offset.txt").write_text("0.5")
    before = list(sys.path)
    runtime = load(bundle)
    assert sys.path == before
    (output,) = run(runtime, tensor(1.0, 2.0))
    assert output.tensors["X"].tolist() == [10.5, 20.5]
    runtime.close()
    assert runtime.model.offset is None


def test_another_class_can_be_the_entry(tmp_path):
    code = "class Other:\n    def predict(self, batch): return [{'X': [7]} for _ in batch]\n"
    bundle = write_bundle(tmp_path / "m", code, options={"entry": "model.py:Other"})
    assert run(load(bundle), tensor(1))[0].tensors["X"].tolist() == [7]


def test_tables(tmp_path):
    code = """
        import numpy as np
        class Model:
            def predict(self, batch):
                return [np.stack([1 - each["input"][:, 0], each["input"][:, 0]], 1) for each in batch]
    """
    bundle = write_bundle(
        tmp_path / "m",
        code,
        task="tabular-classification",
        signature=Signature(),
        labels=("no", "yes"),
    )
    rows = Rows({"input": np.array([[0.25], [0.75]])}, many=False)
    (output,) = run(load(bundle), rows)
    assert output.classes.tolist() == [0, 1]
    assert output.probabilities.dtype == np.float32
    assert not output.many
    assert output.usage.rows == 2


def test_classes_and_values_of_tables(tmp_path):
    code = "class Model:\n    def predict(self, batch): return [[1] * len(e['input']) for e in batch]\n"
    rows = Rows({"input": np.zeros((3, 1))})
    more = {"signature": Signature(), "labels": ("no", "yes")}
    bundle = write_bundle(tmp_path / "c", code, task="tabular-classification", **more)
    assert run(load(bundle), rows)[0].classes.tolist() == [1, 1, 1]
    bundle = write_bundle(tmp_path / "v", code, task="tabular-regression", **more)
    assert run(load(bundle), rows)[0].values.tolist() == [1.0, 1.0, 1.0]


def test_texts_and_pictures(tmp_path):
    code = """
        class Model:
            def predict(self, batch):
                return [{"long": len(each) / 10, "short": 1 - len(each) / 10} for each in batch]
    """
    more = {"signature": Signature(), "labels": ("short", "long")}
    bundle = write_bundle(tmp_path / "t", code, task="text-classification", **more)
    first, second = run(load(bundle), TextInput("abcdefgh"), TextInput("a"))
    assert (first.labels[first.best], second.labels[second.best]) == ("long", "short")
    bundle = write_bundle(tmp_path / "i", code, task="image-classification", **more)
    (output,) = run(load(bundle), ImageInput(np.zeros((9, 2, 1), dtype=np.uint8)))
    assert output.scores.tolist() == pytest.approx([0.1, 0.9])


def test_vectors(tmp_path):
    code = "class Model:\n    def predict(self, batch): return [[len(e), 1] for e in batch]\n"
    bundle = write_bundle(tmp_path / "m", code, task="feature-extraction", signature=Signature())
    (output,) = run(load(bundle), TextInput("abc"))
    assert output.vector.tolist() == [3.0, 1.0]
    assert output.vector.dtype == np.float32


def test_outputs_take_the_declared_form(tmp_path):
    outputs = (TensorSpec("y", "FP32", (-1,)), TensorSpec("t", "BYTES", (1,)))
    code = "class Model:\n    def predict(self, batch): return [{'t': ['é'], 'y': [1, 2]}]\n"
    bundle = write_bundle(tmp_path / "m", code, signature=Signature(OPEN.inputs, outputs))
    (output,) = run(load(bundle), tensor(1))
    assert list(output.tensors) == ["y", "t"]
    assert output.tensors["y"].dtype == np.float32
    assert output.tensors["t"].tolist() == ["é".encode()]


# ---------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("task", "result"),
    [
        ("tensor", "[1]"),
        ("tensor", "[{}]"),
        ("tensor", "[{'X': 1, 'Y': 2}]"),
        ("tensor", "[{'X': [1 + 2j]}]"),
        ("tensor", "[{'X': [None]}]"),
        ("tensor", "[{'X': [[1], [2, 3]]}]"),
        ("tensor", "[]"),
        ("tensor", "[{'X': 1}] * 2"),
        ("tensor", "None"),
        ("tensor", "5"),
        ("tabular-classification", "[[2]]"),
        ("tabular-classification", "[[-1]]"),
        ("tabular-classification", "[[0.5]]"),
        ("tabular-classification", "[[0, 0]]"),
        ("tabular-classification", "[[[0.1, 0.2, 0.7]]]"),
        ("tabular-regression", "[['a']]"),
        ("tabular-regression", "[[[[1.0]]]]"),
        ("text-classification", "[{'no': 1}]"),
        ("text-classification", "['no']"),
        ("text-classification", "[{'no': 1, 'yes': 'x'}]"),
        ("feature-extraction", "[[[1.0]]]"),
    ],
)
def test_a_result_of_another_form_is_the_models_fault(tmp_path, task, result, capsys):
    code = f"class Model:\n    def predict(self, batch): return {result}\n"
    signature = OPEN if task == "tensor" else Signature()
    bundle = write_bundle(
        tmp_path / "m", code, task=task, signature=signature, labels=("no", "yes")
    )
    item = {
        "tensor": tensor(1.0),
        "text-classification": TextInput("a"),
        "feature-extraction": TextInput("a"),
    }.get(task, Rows({"input": np.zeros((1, 1))}))
    (output,) = run(load(bundle), item)
    assert isinstance(output, ItemError)
    assert output.code == "model_failed"
    assert capsys.readouterr().err  # what was wrong is in the log


def test_an_exception_is_told_to_the_log_and_not_to_the_caller(tmp_path, capsys):
    code = """
        class Model:
            def predict(self, batch):
                raise RuntimeError("secret-of-the-model")
    """
    (output,) = run(load(write_bundle(tmp_path / "m", code)), tensor(1))
    assert output == ItemError("model_failed", "the model failed on this input")
    assert "secret-of-the-model" in capsys.readouterr().err


POISON = """
    from wherry.errors import InvalidInput
    class Model:
        calls = []
        def predict(self, batch):
            self.calls.append(len(batch))
            if any(item["X"][0] < 0 for item in batch):
                raise InvalidInput("X must not be negative")
            return batch
"""


def test_a_poisonous_item_fails_alone(tmp_path):
    runtime = load(write_bundle(tmp_path / "m", POISON))
    good, bad, last = run(runtime, tensor(1), tensor(-1), tensor(2))
    assert (good.tensors["X"].tolist(), last.tensors["X"].tolist()) == ([1], [2])
    assert bad == ItemError("invalid_input", "X must not be negative")


def test_what_may_not_be_repeated_is_not_run_twice(tmp_path):
    runtime = load(write_bundle(tmp_path / "m", POISON, idempotent=False))
    assert runtime.max_batch_rows == 1
    outputs = run(runtime, tensor(1), tensor(-1))
    assert runtime.model.calls == [2]
    assert {output.code for output in outputs} == {"model_failed"}
    assert "negative" not in outputs[0].message


@pytest.mark.parametrize(
    ("code", "options", "error"),
    [
        ("", {}, InvalidInput),
        ("Model = 3", {}, InvalidInput),
        ("class Model: pass", {}, InvalidInput),
        ("class Model:\n def predict(self, b): ...", {"entry": "other.py:Model"}, InvalidInput),
        ("class Model:\n def predict(self, b): ...", {"entry": "../model.py:Model"}, InvalidInput),
        ("class Model:\n def predict(self, b): ...", {"entry": "/etc/model.py"}, InvalidInput),
        ("import a_package_that_is_not_there", {}, MissingExtra),
    ],
)
def test_a_class_that_cannot_be_made_is_refused(tmp_path, code, options, error):
    with pytest.raises(error):
        load(write_bundle(tmp_path / "m", code, options=options))


def test_a_task_without_an_adapter_is_refused_with_the_way_out(tmp_path):
    bundle = write_bundle(tmp_path / "m", "", task="text-generation")
    with pytest.raises(InvalidInput) as caught:
        load(bundle)
    assert "python_stream" in caught.value.hint


# ---------------------------------------------------------------------------------- streams


def write_stream(tmp_path, code, **options):
    return write_bundle(
        tmp_path / "s",
        code,
        task="text-generation",
        runtime="python_stream",
        signature=Signature(),
        options=options,
    )


def collect(runtime, max_tokens=None, cancel_after=None, text="hello there"):
    item = ChatInput([Message("user", text)], Sampling(max_tokens=max_tokens))
    cancelled = threading.Event()

    async def read():
        deltas = []
        async for delta in runtime.stream(item, cancelled, "team"):
            deltas.append(delta)
            if len(deltas) == cancel_after:
                cancelled.set()
        return deltas

    return asyncio.run(read())


WORDS = """
    class Model:
        closed = False
        def stream(self, request):
            try:
                yield from request["messages"][-1]["content"].split()
                yield {"text": "!", "input_tokens": 5, "output_tokens": 2}
            finally:
                Model.closed = True
"""


def test_pieces_become_a_stream_with_usage(tmp_path):
    runtime = load(write_stream(tmp_path, WORDS), PythonStreamRuntime())
    deltas = collect(runtime)
    assert [delta.text for delta in deltas] == ["hello", "there", "!", ""]
    answer = TEXT_GENERATION.join(deltas)
    assert answer.finish_reason == "stop"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 4)
    runtime.close()


def test_a_stream_ends_at_the_token_limit(tmp_path):
    runtime = load(write_stream(tmp_path, WORDS), PythonStreamRuntime())
    answer = TEXT_GENERATION.join(collect(runtime, max_tokens=1))
    assert (answer.text, answer.finish_reason) == ("hello", "length")
    assert runtime.model.closed
    runtime.close()


def test_a_cancelled_stream_stops_and_says_what_was_spent(tmp_path):
    code = "class Model:\n    def stream(self, request):\n        while True: yield 'x'\n"
    runtime = load(write_stream(tmp_path, code), PythonStreamRuntime())
    deltas = collect(runtime, cancel_after=3)
    assert deltas[-1].finish_reason == "cancelled"
    assert deltas[-1].usage.output_tokens == 3
    runtime.close()


@pytest.mark.parametrize(
    "body",
    [
        "yield 'a'; raise RuntimeError('secret')",
        "yield 3",
        "yield {'output_tokens': -1}",
        "raise RuntimeError('secret')",
    ],
)
def test_a_stream_that_fails_is_the_models_fault(tmp_path, body, capsys):
    code = f"class Model:\n    def stream(self, request):\n        {body}\n        yield 'b'\n"
    runtime = load(write_stream(tmp_path, code), PythonStreamRuntime())
    with pytest.raises(ModelFailed) as caught:
        collect(runtime)
    assert "secret" not in caught.value.text
    assert "Traceback" in capsys.readouterr().err
    runtime.close()


def test_the_number_of_streams_is_bounded(tmp_path):
    runtime = load(write_stream(tmp_path, WORDS, max_concurrency=3), PythonStreamRuntime())
    assert runtime.max_concurrency == 3
    runtime.close()
    for wrong in (0, 65, "3"):
        with pytest.raises(InvalidInput):
            load(write_stream(tmp_path, WORDS, max_concurrency=wrong), PythonStreamRuntime())


def test_a_config_of_echo_is_open():
    manifest = open_bundle(ECHO).manifest
    assert TENSOR.signature(manifest.task_config()).inputs[0].datatype == "FP32"
    assert manifest.task_config() == TaskConfig(signature=OPEN, options={"entry": "model.py:Model"})


# ---------------------------------------------------------------------------------- other tasks


def answer_plain(tmp_path, task, code, *bodies, **manifest):
    """What `/predict` would answer to each body, all of them in one batch."""
    bundle = write_bundle(tmp_path / "m", code, task=task, signature=Signature(), **manifest)
    runtime = load(bundle)
    found, config = find_task(task), bundle.manifest.task_config()
    items = [found.from_plain(body, config) for body in bodies]
    outputs = run(runtime, *items)
    return [
        each if isinstance(each, ItemError) else found.to_plain(each, config) for each in outputs
    ]


FORECASTER = """
    import numpy as np

    class Model:
        def predict(self, batch):
            return [self.repeat(each) for each in batch]

        def repeat(self, series):
            mean = np.full(series.horizon, series.target[-1])
            return {"mean": mean, "quantiles": {0.1: mean - 4, 0.5: mean, 0.9: mean + 4}}
"""


def test_a_class_forecasts_each_series_of_each_request(tmp_path):
    one = {"target": [1, None, 3], "horizon": 2, "quantiles": [0.1, 0.3, 0.9]}
    many = {"series": [{"target": [5], "id": "a"}, {"target": [7]}], "horizon": 1}
    first, second = answer_plain(tmp_path, "time-series-forecasting", FORECASTER, one, many)
    assert first["mean"] == [3, 3]
    assert {level: column[0] for level, column in first["quantiles"].items()} == pytest.approx(
        {"0.1": -1, "0.3": 1, "0.9": 7}  # 0.3 lies between two of its own
    )
    assert [each["mean"] for each in second["forecasts"]] == [[5], [7]]
    assert second["forecasts"][0]["id"] == "a"


def test_a_class_that_forecasts_means_alone_tells_no_quantiles(tmp_path):
    code = """
        class Model:
            def predict(self, batch):
                return [[each.target.mean()] * each.horizon for each in batch]
    """
    (found,) = answer_plain(
        tmp_path, "time-series-forecasting", code, {"target": [1, 3], "horizon": 2}
    )
    assert (found["mean"], found["quantiles"]) == ([2, 2], {})


@pytest.mark.parametrize("asked", [{"quantiles": [0.05]}, {"horizon": 3, "quantiles": [0.99]}])
def test_quantiles_beyond_a_classs_own_are_refused(tmp_path, asked):
    (found,) = answer_plain(
        tmp_path, "time-series-forecasting", FORECASTER, {"target": [1], **asked}
    )
    assert isinstance(found, ItemError)
    assert found.code == InvalidInput.code


def test_a_class_compares_pairs_of_texts(tmp_path):
    code = """
        class Model:
            def predict(self, batch):
                return [len(set(a.split()) & set(b.split())) / 4 for a, b in batch]
    """
    body = {"text": "the old boat", "text_pair": "the new boat"}
    bundle = write_bundle(tmp_path / "m", code, task="text-ranking", signature=Signature())
    task, config = find_task("text-ranking"), bundle.manifest.task_config()
    first, second = (spec.name for spec in task.signature(config).inputs)
    item = task.from_plain(dict(zip((first, second), body.values(), strict=True)), config)
    (output,) = run(load(bundle), item)
    assert output.score == 0.5


def test_a_class_says_how_likely_one_text_follows_from_another(tmp_path):
    code = "class Model:\n    def predict(self, batch):\n        return [0.75 for _ in batch]\n"
    body = {"text": "A boat.", "hypothesis": "It floats."}
    (found,) = answer_plain(tmp_path, "zero-shot-classification", code, body)
    assert found["entailment"] == pytest.approx(0.75)


def test_a_class_finds_things_in_a_text(tmp_path):
    code = """
        class Model:
            def predict(self, batch):
                return [
                    [{"label": "BOAT", "start": text.index("Ada"), "end": text.index("Ada") + 3}]
                    if "Ada" in text else [{"label": "BOAT", "start": 0, "end": 99}]
                    for text in batch
                ]
    """
    found, wrong = answer_plain(
        tmp_path, "token-classification", code, {"text": "The Ada sails."}, {"text": "Nothing."}
    )
    (entity,) = found["entities"]
    assert (entity["label"], entity["start"], entity["end"], entity["text"]) == (
        "BOAT",
        4,
        7,
        "Ada",
    )
    assert isinstance(wrong, ItemError)  # outside of the text


def test_a_class_finds_things_on_a_picture_in_the_clients_pixels(tmp_path):
    code = """
        class Model:
            def predict(self, batch):
                return [
                    [
                        {"label": "dim", "score": 0.2, "box": [0, 0, 1, 1]},
                        {"label": "boat", "score": 0.9, "box": [1, 0, picture.shape[1], 2]},
                    ]
                    for picture in batch
                ]
    """
    picture = np.zeros((4, 6, 3), dtype=int).tolist()
    (found,) = answer_plain(
        tmp_path, "object-detection", code, {"image": picture, "threshold": 0.5}
    )
    (box,) = found["boxes"] if "boxes" in found else found["objects"]
    assert box["label"] == "boat"
    assert list(box["box"].values()) == [1, 0, 6, 2]


def test_a_class_reads_and_measures_pictures(tmp_path):
    picture = {"image": np.full((2, 2, 3), 7, dtype=int).tolist()}
    vector = (
        "class Model:\n    def predict(self, batch):\n        return [[1.0, 2.0]] * len(batch)\n"
    )
    (found,) = answer_plain(tmp_path, "image-feature-extraction", vector, picture)
    assert found["embedding"] == [1, 2]
    text = "class Model:\n    def predict(self, batch):\n        return ['AHOY'] * len(batch)\n"
    (read,) = answer_plain(tmp_path, "image-to-text", text, picture)
    assert read["text"] == "AHOY"


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_a_class_makes_a_text_of_a_text_and_characters_are_counted(tmp_path, task):
    code = "class Model:\n    def predict(self, batch):\n        return [t[::-1] for t in batch]\n"
    bundle = write_bundle(tmp_path / "m", code, task=task, signature=Signature())
    item = find_task(task).from_plain({"text": "boat"}, bundle.manifest.task_config())
    (output,) = run(load(bundle), item)
    assert (output.text, output.usage.characters) == ("taob", 4)
