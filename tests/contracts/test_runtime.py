"""What every runtime must do, whatever its framework; a plugin passes the same suite."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import real_models, tiny_translators

from wherry.errors import InvalidInput
from wherry.learning.recipes.catalog import find_recipe
from wherry.models.bundle import Bundle, Manifest, encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.worker.runtimes.catalog import create_runtime
from wherry.worker.runtimes.runtime import BatchRuntime, ConcurrentRuntime, ItemError

PLUGIN = '''
"""A runtime as CONTRIBUTING.md tells to write one: adds what the bundle says."""

from wherry.models.tasks.tensor import TensorOutput, rows_usage
from wherry.worker.runtimes.runtime import Prepared


class AddRuntime:
    """Answers X + [options].amount."""

    max_batch_rows = 8
    max_batch_cost = 0

    def load(self, bundle, device):
        self.amount = bundle.manifest.options["amount"]

    def prepare(self, item):
        return Prepared(item)

    def run(self, batch):
        return [
            TensorOutput(
                tensors={"X": each.payload.tensors["X"] + self.amount},
                usage=rows_usage(len(each.payload.tensors["X"])),
            )
            for each in batch
        ]

    def close(self):
        pass
'''


class Case:
    """A bundle to load, and plain inputs that it answers or refuses."""

    def __init__(self, bundle: Bundle, good: list[dict[str, Any]], bad: dict[str, Any]):
        self.bundle = bundle
        self.good = good
        self.bad = bad


MakeCase = Callable[[Path], Case]


def make_iris(folder: Path) -> Case:
    pytest.importorskip("skops")
    recipe = find_recipe("iris")
    recipe.run(recipe.parameters(), {}, folder, lambda *_: None)
    good = [{"row": [5.1, 3.5, 1.4, 0.2]}, {"row": [6.7, 3.0, 5.2, 2.3]}]
    return Case(open_bundle(folder), good, {"row": [1.0, 2.0]})


def make_echo(folder: Path) -> Case:
    from importlib.resources import files

    example = Path(str(files("wherry.learning") / "examples" / "echo"))
    return Case(open_bundle(example), [{"X": [1.0, 2.0]}, {"X": [3.0]}], {"Y": [1.0]})


def make_minilm(folder: Path) -> Case:
    pytest.importorskip("onnxruntime")
    real_models.minilm_folder(folder)
    good = [{"text": "a boat"}, {"text": "the quick brown fox jumps over the lazy dog"}]
    return Case(open_bundle(folder), good, {"text": ""})


def make_tiny(folder: Path, task: str, columns: int, labels: tuple[str, ...] = ()) -> Bundle:
    """An encoder made on the spot."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from tests.tiny_encoders import write_encoder

    write_encoder(folder, columns=columns, per_token=task == "token-classification")
    files = ("model.onnx", "tokenizer.json")
    write(folder, Manifest(task=task, runtime="onnx", files=files, labels=labels))
    return open_bundle(folder)


def make_ranker(folder: Path) -> Case:
    good = [{"query": "boat", "text": "a ship"}, {"query": "who", "text": "Ada works in Paris."}]
    return Case(make_tiny(folder, "text-ranking", 1), good, {"query": "boat", "text": ""})


def make_inference(folder: Path) -> Case:
    labels = ("contradiction", "neutral", "entailment")
    good = [
        {"text": "a boat", "hypothesis": "This example is food."},
        {"text": "the king cooks", "hypothesis": "This example is space."},
    ]
    bundle = make_tiny(folder, "zero-shot-classification", 3, labels)
    return Case(bundle, good, {"text": "a boat"})


def make_tagger(folder: Path) -> Case:
    labels = ("O", "B-PER", "I-PER")
    good = [
        {"text": "Ada works in Paris.", "aggregation_strategy": "none"},
        {"text": "the king", "aggregation_strategy": "none"},
    ]
    return Case(make_tiny(folder, "token-classification", 3, labels), good, {"text": ""})


def make_spacy(folder: Path) -> Case:
    pytest.importorskip("spacy", reason="pip install 'wherry[spacy]'")
    from wherry.models.registry.catalog import fetch_entry, find_entry

    cache = real_models.cache_folder() / "sources"
    fetch_entry(find_entry("ner-en"), folder / "ner", cache=cache, progress=lambda *_: None)
    good = [{"text": "Tim Cook works in Rome."}, {"text": "It was in 2019, said Angela Merkel."}]
    return Case(open_bundle(folder / "ner"), good, {"text": ""})


def make_static(folder: Path) -> Case:
    pytest.importorskip("onnx")
    from tests.tiny_encoders import write_static_embedder

    write_static_embedder(folder)
    files = ("model.safetensors", "tokenizer.json")
    write(folder, Manifest(task="feature-extraction", runtime="static_embeddings", files=files))
    return Case(open_bundle(folder), [{"text": "a boat"}, {"text": "Paris"}], {"text": ""})


def make_gguf_vectors(folder: Path) -> Case:
    pytest.importorskip("xllamacpp")
    (folder / "model.gguf").symlink_to(real_models.smollm2_path())
    options = {"n_parallel": 4, "context_tokens": 64}
    manifest = Manifest(
        task="feature-extraction",
        runtime="llama_embeddings",
        files=("model.gguf",),
        options=options,
    )
    write(folder, manifest)
    good = [{"text": "a boat"}, {"text": "a much longer text about a boat on the river"}]
    return Case(open_bundle(folder), good, {"text": "w" * 100_000})


def make_onnx_tensor(folder: Path) -> Case:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    shape = ["n", 3]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["X", "X"], ["Y"])],
        "square",
        [tensor("X", onnx.TensorProto.FLOAT, shape)],
        [tensor("Y", onnx.TensorProto.FLOAT, shape)],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "m.onnx")
    signature = Signature((TensorSpec("X", "FP32", (-1, 3)),), (TensorSpec("Y", "FP32", (-1, 3)),))
    manifest = Manifest(task="tensor", runtime="onnx", files=("m.onnx",), signature=signature)
    write(folder, manifest)
    good = [{"X": [[1.0, 2.0, 3.0]]}, {"X": [[4.0, 5.0, 6.0]]}]
    return Case(open_bundle(folder), good, {"X": [[1.0]]})


def make_recipe_case(name: str, bad: dict[str, Any], *good: dict[str, Any]) -> MakeCase:
    """What a recipe that converts or learns makes."""

    def make(folder: Path) -> Case:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        return Case(real_models.run_recipe(name, folder), list(good), bad)

    return make


def make_forecaster(folder: Path) -> Case:
    write(folder, Manifest(task="time-series-forecasting", runtime="forecaster"))
    good = [{"target": [1.0, 2.0, 4.0, 3.0, 5.0]}, {"target": [3.0, None, 1.0]}]
    bad = {"target": [1.0], "horizon": 1, "covariates": {"price": [1.0, 2.0]}}
    return Case(open_bundle(folder), good, bad)


def make_xgboost(folder: Path) -> Case:
    library = pytest.importorskip("xgboost", reason="pip install 'wherry[xgboost]'")
    rows = np.random.default_rng(0).normal(size=(60, 2))
    library.XGBRegressor(n_estimators=4).fit(rows, rows[:, 0]).save_model(folder / "m.ubj")
    write(folder, detect(folder))
    return Case(open_bundle(folder), [{"row": [-1, 0]}, {"row": [1, None]}], {"row": [1]})


def make_lightgbm(folder: Path) -> Case:
    library = pytest.importorskip("lightgbm", reason="pip install 'wherry[lightgbm]'")
    rows = np.random.default_rng(0).normal(size=(60, 2))
    table = library.Dataset(rows, rows[:, 0] > 0, feature_name=["a", "b"])
    model = library.train({"objective": "binary", "verbose": -1}, table, 4)
    model.save_model(folder / "m.txt")
    write(folder, detect(folder))
    return Case(open_bundle(folder), [{"row": {"a": -1}}, {"row": {"a": 1}}], {"row": {"c": 1}})


def make_penguins(folder: Path) -> Case:
    pytest.importorskip("skops")
    recipe = find_recipe("penguins")
    sources = {"penguins.csv": real_models.penguins_csv()}
    recipe.run(recipe.parameters(), sources, folder, lambda *_: None)
    good = [{"bill_length_mm": 34.1, "sex": "male"}, {"island": "Biscoe", "body_mass_g": 5400}]
    return Case(open_bundle(folder), good, {"sex": "unknown"})


def make_plugin(folder: Path) -> Case:
    """A package on the path with an entry point, as pip would install it."""
    site = folder / "site"
    info = site / "add_runtime-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "add_runtime.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: add-runtime\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wherry.runtimes]\nadd = add_runtime:AddRuntime\n")
    sys.path.insert(0, str(site))
    signature = Signature((TensorSpec("X", "FP64", (-1,)),), (TensorSpec("X", "FP64", (-1,)),))
    write(
        folder, Manifest(task="tensor", runtime="add", signature=signature, options={"amount": 5})
    )
    return Case(open_bundle(folder), [{"X": [1.0]}, {"X": [2.0]}], {"Z": [1.0]})


def make_translator(folder: Path) -> Case:
    pytest.importorskip("ctranslate2", reason="pip install 'wherry[ctranslate2]'")
    tiny_translators.write_ctranslate2(folder, seed=5)
    tiny_translators.write_tokenizer(folder)
    write(folder, Manifest(task="translation", runtime="ctranslate2", files=("model.bin",)))
    good = [{"text": each, "max_tokens": 8} for each in tiny_translators.SENTENCES[:2]]
    return Case(open_bundle(folder), good, {"text": " "})


def make_pair(folder: Path) -> Case:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    tiny_translators.write_onnx_pair(folder, "merged", seed=194)
    tiny_translators.write_tokenizer(folder)
    tiny_translators.write_generation_config(folder)
    files = ("encoder_model.onnx", "decoder_model_merged.onnx")
    write(folder, Manifest(task="summarization", runtime="onnx", files=files))
    good = [{"text": each, "max_tokens": 8} for each in tiny_translators.SENTENCES[:2]]
    return Case(open_bundle(folder), good, {"text": ""})


def make_captions(folder: Path) -> Case:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    tiny_translators.write_onnx_pair(folder, "split", seed=1, takes="pictures")
    tiny_translators.write_tokenizer(folder)
    tiny_translators.write_generation_config(folder)
    names = ("encoder_model", "decoder_model", "decoder_with_past_model")
    files = tuple(f"{name}.onnx" for name in names)
    options = {"max_tokens": 8}
    write(folder, Manifest(task="image-to-text", runtime="onnx", files=files, options=options))
    good = [{"image": GREY}, {"image": DARK}]
    return Case(open_bundle(folder), good, {"image": "!"})


def write(folder: Path, manifest: Manifest) -> None:
    (folder / "wherry.toml").write_text(encode_manifest(manifest))


GREY: list[list[float]] = [[0.5] * 40] * 30
DARK: list[list[float]] = [[0.1] * 20] * 50

BATCH_CASES: dict[str, MakeCase] = {
    "forecaster": make_forecaster,
    "sklearn": make_iris,
    "sklearn columns": make_penguins,
    "python_class": make_echo,
    "onnx texts": make_minilm,
    "GGUF vectors": make_gguf_vectors,
    "onnx tensors": make_onnx_tensor,
    "onnx pairs": make_ranker,
    "onnx inference": make_inference,
    "onnx tags": make_tagger,
    "spacy": make_spacy,
    "static_embeddings": make_static,
    "onnx pictures": make_recipe_case(
        "efficientnet-lite0", {"image": "!"}, {"image": GREY}, {"image": DARK}
    ),
    "onnx boxes": make_recipe_case(
        "nanodet",
        {"image": GREY, "threshold": 2},
        {"image": GREY, "threshold": 0.01},
        {"image": DARK},
    ),
    "onnx masks": make_recipe_case("selfie", {"image": []}, {"image": GREY}, {"image": DARK}),
    "onnx drawings": make_recipe_case(
        "digit-pictures",
        {"prompt": "seven", "steps": 3},
        {"prompt": "seven", "seed": 1},
        {"prompt": "nine", "seed": 2},
    ),
    "ctranslate2": make_translator,
    "onnx seq2seq": make_pair,
    "onnx captions": make_captions,
    "plugin": make_plugin,
    "xgboost": make_xgboost,
    "lightgbm": make_lightgbm,
}


@pytest.fixture(scope="module", params=list(BATCH_CASES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = list(sys.path)
    case = BATCH_CASES[request.param](tmp_path_factory.mktemp("bundle"))
    runtime = create_runtime(case.bundle.manifest.runtime)
    assert isinstance(runtime, BatchRuntime)
    runtime.load(case.bundle, "cpu")
    yield case, runtime
    runtime.close()
    sys.path[:] = path


def items_of(case: Case, plain: list[dict[str, Any]]) -> list[Any]:
    task = find_task(case.bundle.manifest.task)
    config = case.bundle.manifest.task_config()
    return [task.from_plain(each, config) for each in plain]


def prepare_all(case: Case, runtime: BatchRuntime, plain: list[dict[str, Any]]) -> list[Any]:
    return [runtime.prepare(item) for item in items_of(case, plain)]


def plain_of(case: Case, output: Any) -> dict[str, Any]:
    task = find_task(case.bundle.manifest.task)
    return task.to_plain(output, case.bundle.manifest.task_config())


def test_a_batch_is_answered_one_for_one_and_in_order(loaded: tuple[Case, BatchRuntime]):
    case, runtime = loaded
    prepared = [runtime.prepare(item) for item in items_of(case, case.good)]
    alone = [plain_of(case, runtime.run([each])[0]) for each in prepared]
    forward = runtime.run(prepared) if len({each.group for each in prepared}) == 1 else None
    if forward is None:
        return  # these two may not share a batch: the batcher keeps them apart
    assert len(forward) == len(prepared)
    for single, together in zip(alone, forward, strict=True):
        assert_alike(single, plain_of(case, together))
    assert str(alone[0]) != str(alone[1])


def test_every_answer_says_what_it_cost(loaded: tuple[Case, BatchRuntime]):
    case, runtime = loaded
    for item in items_of(case, case.good):
        (output,) = runtime.run([runtime.prepare(item)])
        assert not isinstance(output, ItemError)
        assert output.usage.rows >= 1
        assert output.usage.input_tokens >= 0


def test_bad_input_is_refused_before_it_reaches_the_model(loaded: tuple[Case, BatchRuntime]):
    case, runtime = loaded
    with pytest.raises(InvalidInput):
        prepare_all(case, runtime, [case.bad])


def test_prepare_may_run_in_several_threads(loaded: tuple[Case, BatchRuntime]):
    case, runtime = loaded
    items = items_of(case, case.good) * 8
    found: list[Any] = [None] * len(items)

    def work(index: int) -> None:
        found[index] = runtime.prepare(items[index])

    threads = [threading.Thread(target=work, args=(each,)) for each in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, prepared in enumerate(found):
        expected = plain_of(case, runtime.run([runtime.prepare(items[index])])[0])
        assert_alike(plain_of(case, runtime.run([prepared])[0]), expected)


def test_bounds_of_a_batch_are_sensible(loaded: tuple[Case, BatchRuntime]):
    _, runtime = loaded
    assert runtime.max_batch_rows >= 1
    assert runtime.max_batch_cost >= 0


def assert_alike(left: Any, right: Any) -> None:
    """Equal but for float noise."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_alike(left[key], right[key])
    elif isinstance(left, list) and any(isinstance(each, dict) for each in left):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    elif isinstance(left, (int, float, list)):
        assert np.allclose(left, right, rtol=1e-3, atol=1e-4)
    else:
        assert left == right


# ------------------------------------------------------------------------------ streams


@pytest.mark.slow
def test_a_concurrent_runtime_streams_counts_and_stops(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    model = real_models.smollm2_path()
    (tmp_path / model.name).symlink_to(model)
    write(tmp_path, Manifest(task="text-generation", runtime="llama_cpp", files=(model.name,)))
    bundle = open_bundle(tmp_path)
    runtime = create_runtime("llama_cpp")
    assert isinstance(runtime, ConcurrentRuntime)
    runtime.load(bundle, "cpu")
    task = find_task("text-generation")
    item = task.from_plain(
        {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0},
        bundle.manifest.task_config(),
    )

    async def play() -> None:
        whole = [delta async for delta in runtime.stream(item, threading.Event(), "t")]
        assert 0 < sum(each.usage.output_tokens for each in whole) <= 60
        assert sum(each.usage.input_tokens for each in whole) > 0
        cancelled = threading.Event()
        some = []
        async for delta in runtime.stream(item, cancelled, "t"):
            some.append(delta)
            if len(some) == 3:
                cancelled.set()
        assert len(some) < len(whole)
        assert sum(each.usage.output_tokens for each in some) > 0, "cancelled work is metered too"

    asyncio.run(play())
    runtime.close()


def test_every_built_in_runtime_is_named_in_the_suite():
    from wherry.worker.runtimes.catalog import BUILT_IN

    covered = {
        "ctranslate2",
        "forecaster",
        "sklearn",
        "python_class",
        "onnx",
        "llama_cpp",
        "llama_embeddings",
        "spacy",
        "lightgbm",
        "static_embeddings",
        "xgboost",
    }
    elsewhere = {
        "apertium",
        "diffusers",
        "transformers",
        "upstream",
        "python_stream",
        "faster_whisper",
        "hibari",
        "opencv",
        "recommender",
        "tflite",
        "vllm",
        "torch",
        "keras",
        "tensorflow",
    }  # tests/worker/runtimes
    assert set(BUILT_IN) == covered | elsewhere
