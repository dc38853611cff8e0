import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.real_models import minilm_folder, minilm_model, minilm_tokenizer

from wherry.errors import (
    ContextLengthExceeded,
    FormatNotAllowed,
    InvalidInput,
    ModelFailed,
)
from wherry.models.bundle import Bundle, Manifest, open_bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.tasks.tensor import TensorInput
from wherry.models.tasks.text import TextInput

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after importorskip

from wherry.worker.runtimes.onnx import OnnxRuntime  # noqa: E402

Tensor = tuple[str, int, list[Any] | None]

TEXTS = [
    "cat",
    "dog",
    "a much longer sentence about quantum physics and cheese",
    "今天天气很好，我们去公园散步吧。",
    "Quarterly revenue beat forecasts. " * 12,
    "hello",
]


def write_graph(
    path: Path,
    nodes: list[Any],
    inputs: list[Tensor],
    outputs: list[Tensor],
    constants: dict[str, np.ndarray] | None = None,
    domains: tuple[str, ...] = (),
) -> None:
    """A small model; what it does is what `nodes` say."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(each, 1) for each in domains)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )


def load(folder: Path, task: str, **manifest: Any) -> OnnxRuntime:
    files = ("model.onnx",)
    runtime = OnnxRuntime()
    bundle = Bundle(folder, Manifest(task=task, runtime="onnx", files=files, **manifest))
    runtime.load(bundle, "cpu")
    return runtime


def answer(runtime: OnnxRuntime, *items: Any) -> list[Any]:
    return list(runtime.run([runtime.prepare(item) for item in items]))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# ---------------------------------------------------------------- embeddings, the real model


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    runtime = OnnxRuntime()
    runtime.load(open_bundle(minilm_folder(tmp_path_factory.mktemp("minilm"))), "cpu")
    return runtime


def test_near_meanings_are_near(minilm: OnnxRuntime) -> None:
    cat, kitten, stock = (
        each.vector
        for each in answer(
            minilm,
            TextInput("a photo of a cat"),
            TextInput("a picture of a kitten"),
            TextInput("stock market quarterly report"),
        )
    )
    assert cat.shape == (384,)
    assert cat.dtype == np.float32
    assert np.linalg.norm(cat) == pytest.approx(1.0, abs=1e-5)
    assert cosine(cat, kitten) > 0.6 > 0.3 > cosine(cat, stock)


def test_a_batch_of_mixed_lengths_answers_as_each_text_alone(minilm: OnnxRuntime) -> None:
    together = answer(minilm, *map(TextInput, TEXTS))
    for text, joined in zip(TEXTS, together, strict=True):
        alone = answer(minilm, TextInput(text))[0]
        # float noise only: padding and neighbours must not show
        assert np.abs(alone.vector - joined.vector).max() < 1e-5
        assert alone.usage == joined.usage


def test_a_prompt_of_the_bundle_comes_before_every_text(
    minilm: OnnxRuntime, tmp_path: Path
) -> None:
    folder = minilm_folder(tmp_path)
    manifest = open_bundle(folder).manifest
    options = {**manifest.options, "prompt": "query: "}
    prompted = OnnxRuntime()
    prompted.load(Bundle(folder, msgspec.structs.replace(manifest, options=options)), "cpu")
    (found,) = answer(prompted, TextInput("boats"))
    (expected,) = answer(minilm, TextInput("query: boats"))
    assert np.allclose(found.vector, expected.vector, atol=1e-6)
    assert found.usage == expected.usage


def test_tokens_are_counted_without_padding(minilm: OnnxRuntime) -> None:
    short, long = answer(minilm, TextInput("hello"), TextInput("hello " * 40))
    assert (short.usage.input_tokens, short.usage.rows) == (3, 1)
    assert long.usage.input_tokens == 42
    assert minilm.prepare(TextInput("hello")).length == 3
    assert minilm.max_batch_cost in (128, 256, 512)


def test_a_long_text_is_cut_at_the_models_limit(minilm: OnnxRuntime) -> None:
    cut, same = answer(minilm, TextInput("hello " * 10_000), TextInput("hello " * 254 + "world"))
    assert cut.usage.input_tokens == 256
    assert cosine(cut.vector, same.vector) > 0.99999


def test_the_head_of_a_huge_text_decides_as_the_whole_would(minilm: OnnxRuntime) -> None:
    # one word of 40 000 letters is a single unknown token: the rest must still be seen
    prepared = minilm.prepare(TextInput("a" * 40_000 + " cat"))
    assert prepared.length == 4


def test_a_text_over_the_limit_is_refused_if_the_bundle_says_so(tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    runtime.load(open_bundle(minilm_folder(tmp_path, truncate=False, max_tokens=16)), "cpu")
    assert runtime.prepare(TextInput("hello " * 14)).length == 16
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 16 tokens"):
        runtime.prepare(TextInput("hello " * 15))


def test_token_ids_answer_as_their_text_with_or_without_special_ones(minilm: OnnxRuntime) -> None:
    text, with_special, without = answer(
        minilm,
        TextInput("hello"),
        TextInput(token_ids=(101, 7592, 102)),
        TextInput(token_ids=(7592,)),
    )
    assert np.abs(text.vector - with_special.vector).max() < 1e-6
    assert np.abs(text.vector - without.vector).max() < 1e-6
    assert answer(minilm, TextInput(token_ids=(1, 2, 3)))[0].usage.input_tokens == 5


def test_a_token_id_that_the_model_does_not_know_is_refused(minilm: OnnxRuntime) -> None:
    with pytest.raises(InvalidInput, match="token id 30522 is not in the model's vocabulary"):
        minilm.prepare(TextInput(token_ids=(7592, 30522)))


def test_threads_may_tokenise_at_the_same_time(minilm: OnnxRuntime) -> None:
    lengths: dict[str, list[int]] = {text: [] for text in TEXTS}

    def tokenise(text: str) -> None:
        for _ in range(50):
            lengths[text].append(minilm.prepare(TextInput(text)).length)

    threads = [threading.Thread(target=tokenise, args=(text,)) for text in TEXTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, found in lengths.items():
        assert found == [minilm.prepare(TextInput(text)).length] * 50


def test_a_wrong_number_of_dimensions_is_found_at_load(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="dimensions are 512, the model gives 384"):
        OnnxRuntime().load(open_bundle(minilm_folder(tmp_path, dimensions=512)), "cpu")


def test_a_dynamically_quantised_model_runs_texts_one_by_one(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    full = tmp_path / "full.onnx"
    unpack_weights(minilm_model(), full)
    folder = minilm_folder(tmp_path / "bundle")
    quantize_dynamic(full, folder / "model.onnx")
    runtime = OnnxRuntime()
    runtime.load(open_bundle(folder), "cpu")
    assert runtime.max_batch_rows == 1
    together = answer(runtime, *map(TextInput, TEXTS))
    for text, joined in zip(TEXTS, together, strict=True):
        assert np.array_equal(answer(runtime, TextInput(text))[0].vector, joined.vector)


def unpack_weights(source: Path, target: Path) -> None:
    """MiniLM with float weights: onnxruntime folds int8 weight x scale into constants."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options)


# ---------------------------------------------------------------- encoders made here


def write_text_graph(
    folder: Path, *, shape: list[Any], columns: int = 3, mask: bool = False
) -> None:
    """The greatest of each column over the tokens' rows in a table, padding included.

    A mask, if there is one, changes nothing.
    """
    table = np.random.default_rng(1).normal(size=(30522, columns)).astype(np.float32)
    table[0] += 5  # [PAD]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMax", ["rows"], ["logits"], axes=[1], keepdims=0),
    ]
    names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    if mask:
        nodes[1].output[0] = "most"
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["mask"], ["least"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["least", "zero"], ["nothing"]),
            helper.make_node("Add", ["most", "nothing"], ["logits"]),
        ]
    write_graph(
        folder / "model.onnx",
        nodes,
        [(name, TensorProto.INT64, shape) for name in names],
        [("logits", TensorProto.FLOAT, [shape[0], columns])],
        {"table": table, "zero": np.zeros((1, 1), dtype=np.float32)},
    )
    (folder / "tokenizer.json").write_bytes(minilm_tokenizer().read_bytes())


def test_a_classifier_gives_a_score_for_each_label(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=["n", "t"])
    labels = ("red", "green", "blue")
    runtime = load(tmp_path, "text-classification", labels=labels)
    (output,) = answer(runtime, TextInput("hello"))
    assert output.labels == labels
    assert output.scores.sum() == pytest.approx(1.0, abs=1e-6)
    assert output.usage.input_tokens == 3


def test_labels_that_may_hold_together_use_the_sigmoid(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=["n", "t"])
    softmax = load(tmp_path, "text-classification")
    sigmoid = load(tmp_path, "text-classification", options={"function": "sigmoid"})
    raw = load(tmp_path, "text-classification", options={"function": "none"})
    logits = answer(raw, TextInput("hello"))[0].scores
    powers = np.exp(logits)
    assert answer(softmax, TextInput("hello"))[0].scores == pytest.approx(powers / powers.sum())
    found = answer(sigmoid, TextInput("hello"))[0]
    assert found.scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_one_logit_is_the_second_of_two_labels(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=["n", "t"], columns=1)
    runtime = load(tmp_path, "text-classification", labels=("no", "yes"))
    (output,) = answer(runtime, TextInput("hello"))
    assert output.scores.shape == (2,)
    assert output.scores.sum() == pytest.approx(1.0)


def test_labels_that_do_not_fit_the_graph_are_found_at_load(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=["n", "t"])
    with pytest.raises(InvalidInput, match="names 2 labels, the model gives 3 scores"):
        load(tmp_path, "text-classification", labels=("a", "b"))


@pytest.mark.parametrize("mask", [True, False])
def test_a_model_that_looks_at_its_padding_joins_texts_of_equal_length(
    tmp_path: Path, mask: bool
) -> None:
    write_text_graph(tmp_path, shape=["n", "t"], mask=mask)
    runtime = load(tmp_path, "text-classification", options={"function": "none"})
    three, five = runtime.prepare(TextInput("hello")), runtime.prepare(TextInput("a b c"))
    assert three.group != five.group
    assert three.group == runtime.prepare(TextInput("world")).group
    assert runtime.max_batch_rows == 64


def test_a_graph_of_one_fixed_text_runs_texts_one_by_one(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=[1, 8])
    runtime = load(tmp_path, "text-classification")
    assert runtime.max_batch_rows == 1
    outputs = answer(runtime, TextInput("hello"), TextInput("a b c d e f g h i j"))
    assert [output.usage.input_tokens for output in outputs] == [3, 8]


def test_a_graph_that_takes_no_tokens_is_refused_for_texts(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", 3]))
    with pytest.raises(FormatNotAllowed, match=r"takes \['x'\], an encoder of texts takes"):
        load(tmp_path, "feature-extraction")


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    write_text_graph(tmp_path, shape=["n", "t"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatNotAllowed, match=r"not a tokenizer\.json"):
        load(tmp_path, "text-classification")


def test_numbers_that_are_not_finite_are_a_failure_of_the_model(tmp_path: Path) -> None:
    write_graph(
        tmp_path / "model.onnx",
        [
            helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["numbers"], ["least"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["least", "floor"], ["left"]),
            helper.make_node("Log", ["left"], ["logits"]),
        ],
        [("input_ids", TensorProto.INT64, ["n", "t"])],
        [("logits", TensorProto.FLOAT, ["n", 1])],
        {"floor": np.array([[100.5]], dtype=np.float32)},
    )
    (tmp_path / "tokenizer.json").write_bytes(minilm_tokenizer().read_bytes())
    runtime = load(tmp_path, "feature-extraction", options={"normalise": False})
    with pytest.raises(ModelFailed, match="not finite"):
        answer(runtime, TextInput(token_ids=(5,)))


# ---------------------------------------------------------------- pictures


def write_picture_graph(folder: Path, shape: list[Any], axes: list[int]) -> None:
    """Two numbers a picture: its mean, and the mean's negative."""
    write_graph(
        folder / "model.onnx",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=axes, keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["bright"]),
            helper.make_node("Neg", ["bright"], ["dark"]),
            helper.make_node("Concat", ["bright", "dark"], ["logits"], axis=1),
        ],
        [("x", TensorProto.FLOAT, shape)],
        [("logits", TensorProto.FLOAT, [shape[0], 2])],
        {"one": np.array([1], dtype=np.int64)},
    )


def picture(value: int, height: int = 5, width: int = 7, channels: int = 1) -> ImageInput:
    return ImageInput(np.full((height, width, channels), value, dtype=np.uint8))


@pytest.mark.parametrize(
    ("shape", "axes", "mode"),
    [
        (["n", 3, 4, 6], [1, 2, 3], "RGB"),
        (["n", 4, 6, 3], [1, 2, 3], "RGB"),
        (["n", 4, 6], [1, 2], "L"),
        (["n", 24], [1], "L"),
    ],
)
def test_pictures_of_any_size_and_colour_are_classified(
    tmp_path: Path, shape: list[Any], axes: list[int], mode: str
) -> None:
    write_picture_graph(tmp_path, shape, axes)
    options = {"image_mode": mode, "mean": [0.5], "std": [0.25], "image_size": [4, 6]}
    runtime = load(tmp_path, "image-classification", labels=("bright", "dark"), options=options)
    white, black, grey = answer(runtime, picture(255), picture(0, 30, 40, 3), picture(128, 4, 6, 1))
    bright = 1 / (1 + np.exp(-4.0))  # the mean is (1 - 0.5) / 0.25 = 2
    assert white.scores == pytest.approx([bright, 1 - bright], abs=1e-5)
    assert black.scores == pytest.approx([1 - bright, bright], abs=1e-5)
    assert grey.scores[0] == pytest.approx(0.504, abs=0.01)
    assert grey.usage.rows == 1


def test_a_batch_of_pictures_answers_as_each_alone(tmp_path: Path) -> None:
    write_picture_graph(tmp_path, ["n", 1, 4, 4], [1, 2, 3])
    runtime = load(tmp_path, "image-classification", options={"image_mode": "L"})
    items = [picture(value) for value in (0, 60, 200)]
    together = answer(runtime, *items)
    for item, joined in zip(items, together, strict=True):
        assert np.array_equal(answer(runtime, item)[0].scores, joined.scores)


def test_channels_that_do_not_fit_the_graph_are_found_at_load(tmp_path: Path) -> None:
    write_picture_graph(tmp_path, ["n", 1, 4, 4], [1, 2, 3])
    with pytest.raises(InvalidInput, match="takes 1 channels, image_mode 'RGB' gives 3"):
        load(tmp_path, "image-classification")


def test_another_size_than_the_graphs_is_found_at_load(tmp_path: Path) -> None:
    write_picture_graph(tmp_path, ["n", 3, 4, 4], [1, 2, 3])
    with pytest.raises(InvalidInput, match=r"takes pictures of \[4, 4\]"):
        load(tmp_path, "image-classification", options={"image_size": [8, 8]})


# ---------------------------------------------------------------- tensors


def doubling(shape: list[Any]) -> tuple[list[Any], list[Tensor], list[Tensor]]:
    return (
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )


def rows(*values: float, width: int = 3) -> TensorInput:
    column = np.array(values, dtype=np.float32)[:, np.newaxis]
    return TensorInput({"x": np.repeat(column, width, axis=1)})


def test_requests_are_joined_by_rows_and_split_again(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", 3]))
    runtime = load(tmp_path, "tensor")
    assert runtime.max_batch_rows > 1
    one, none, two = answer(
        runtime, rows(1), TensorInput({"x": np.empty((0, 3), "f4")}), rows(2, 3)
    )
    assert one.tensors["y"].tolist() == [[2, 2, 2]]
    assert none.tensors["y"].shape == (0, 3)
    assert two.tensors["y"].tolist() == [[4, 4, 4], [6, 6, 6]]
    assert two.usage.rows == 2


def test_the_graph_tells_its_own_signature(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", 3]))
    signature = load(tmp_path, "tensor").signature
    assert signature == Signature(
        (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)
    )


def test_a_graph_that_mixes_its_rows_answers_requests_one_by_one(tmp_path: Path) -> None:
    write_graph(
        tmp_path / "model.onnx",
        [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "most"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["n", 3])],
        [("y", TensorProto.FLOAT, ["n", 3])],
    )
    runtime = load(tmp_path, "tensor")
    assert runtime.max_batch_rows == 1
    low, high = answer(runtime, rows(1), rows(5))
    assert low.tensors["y"].tolist() == high.tensors["y"].tolist() == [[0, 0, 0]]


def test_a_graph_of_fixed_shape_answers_one_by_one(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling([2, 3]))
    runtime = load(tmp_path, "tensor")
    assert runtime.max_batch_rows == 1
    one, two = answer(runtime, rows(1, 2), rows(3, 4))
    assert one.tensors["y"][0, 0] == 2
    assert two.tensors["y"][1, 2] == 8


def test_requests_of_other_free_sizes_do_not_share_a_batch(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", "m"]))
    runtime = load(tmp_path, "tensor")
    narrow, wide = runtime.prepare(rows(1)), runtime.prepare(rows(1, width=4))
    assert narrow.group != wide.group


def test_texts_go_through_a_graph_as_bytes(tmp_path: Path) -> None:
    write_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n"])],
        [("y", TensorProto.STRING, ["n"])],
    )
    runtime = load(tmp_path, "tensor")
    given = np.array([b"a", "日本".encode()], dtype=object)
    (output,) = answer(runtime, TensorInput({"x": given}))
    assert output.tensors["y"].tolist() == given.tolist()
    with pytest.raises(InvalidInput, match="not valid UTF-8"):
        answer(runtime, TensorInput({"x": np.array([b"\xff"], dtype=object)}))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing input 'x'"),
        ({"x": np.zeros((1, 4), np.float32)}, r"shape \[1, 4\], the model takes \[-1, 3\]"),
        ({"x": np.zeros((1, 3), np.float64)}, "is FP64, the model takes FP32"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "unknown input 'z'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", 3]))
    runtime = load(tmp_path, "tensor")
    with pytest.raises(InvalidInput, match=message):
        runtime.prepare(TensorInput(tensors))


def test_a_node_that_fails_is_a_failure_of_the_model(tmp_path: Path) -> None:
    write_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"]), ("shape", TensorProto.INT64, [2])],
        [("y", TensorProto.FLOAT, ["a", "b"])],
    )
    runtime = load(tmp_path, "tensor")
    wrong = {"x": np.zeros(6, np.float32), "shape": np.array([7, 7])}
    with pytest.raises(ModelFailed):
        answer(runtime, TensorInput(wrong))
    right = {"x": np.zeros(6, np.float32), "shape": np.array([2, 3])}
    assert answer(runtime, TensorInput(right))[0].tensors["y"].shape == (2, 3)


# ---------------------------------------------------------------- files that are no models


def custom_domain(path: Path) -> None:
    write_graph(
        path,
        [helper.make_node("Spy", ["x"], ["y"], domain="evil")],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        domains=("evil",),
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"this is not a model " * 100),
        lambda path: path.write_bytes(b"\x08\x0a" * 1000),
        custom_domain,
    ],
    ids=["empty", "text", "bytes", "custom domain"],
)
def test_a_file_that_is_no_servable_model_is_refused(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "model.onnx")
    with pytest.raises(FormatNotAllowed, match=r"'model\.onnx' cannot be opened") as caught:
        load(tmp_path, "tensor")
    assert str(tmp_path) not in caught.value.text


def test_a_graph_that_gives_no_tensor_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FormatNotAllowed, match=r"'y' of type seq\(tensor\(float\)\)") as caught:
        load(tmp_path, "tensor")
    assert "zipmap" in caught.value.hint


def test_a_graph_that_opens_but_does_not_run_is_found_at_load(tmp_path: Path) -> None:
    write_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        [("input_ids", TensorProto.INT64, ["n", "t"])],
        [("last_hidden_state", TensorProto.FLOAT, ["n", "t", 2])],
        {"table": np.zeros((10, 2), dtype=np.float32)},  # the vocabulary has 30 522
    )
    (tmp_path / "tokenizer.json").write_bytes(minilm_tokenizer().read_bytes())
    with pytest.raises(ModelFailed, match=r"'model\.onnx' fails on a trial input"):
        load(tmp_path, "feature-extraction")


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    write_graph(tmp_path / "model.onnx", *doubling(["n", 3]))
    bundle = Bundle(tmp_path, Manifest(task="tensor", runtime="onnx", files=("model.onnx",)))
    with pytest.raises(InvalidInput, match="no device 'tpu'"):
        OnnxRuntime().load(bundle, "tpu")


def test_a_task_that_onnx_does_not_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not do the task 'text-generation'"):
        load(tmp_path, "text-generation")
