"""Static embedders, against arithmetic by hand and against model2vec itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.text import TextInput

pytest.importorskip("tokenizers")
pytest.importorskip("onnx")

from tests.tiny_encoders import (
    STATIC_DIMENSIONS,
    make_tokenizer,
    save_tensors,
    write_static_embedder,
)

from wherry.worker.runtimes.static_embeddings import StaticEmbeddingsRuntime

FLOAT_NOISE = 1e-6
TEXTS = [
    "the boat is in the river",
    "Ada Lovelace works in Paris.",
    "中文 only",
    "中",
    "e\u0301 שלום x",
    "bread " * 200,
]


def load(folder: Path, **options: Any) -> StaticEmbeddingsRuntime:
    runtime = StaticEmbeddingsRuntime()
    runtime.load(Bundle(folder, detect(folder, options=options)), "cpu")
    return runtime


def answer(runtime: StaticEmbeddingsRuntime, *texts: str) -> list[Any]:
    return list(runtime.run([runtime.prepare(TextInput(text)) for text in texts]))


def reference(tensors: dict[str, np.ndarray], text: str) -> np.ndarray:
    """What model2vec's documentation says that it computes."""
    tokenizer = make_tokenizer()
    unknown = tokenizer.token_to_id("[UNK]")
    ids = [
        each
        for each in tokenizer.encode(text, add_special_tokens=False).ids[:512]
        if each != unknown
    ]
    if not ids:
        return np.zeros(STATIC_DIMENSIONS)
    mapping, weights = tensors.get("mapping"), tensors.get("weights")
    rows = tensors["embeddings"][ids if mapping is None else mapping[ids]].astype(np.float64)
    if weights is not None:
        rows *= weights[ids][:, np.newaxis]
    vector = rows.mean(axis=0)
    return vector / np.linalg.norm(vector)


def test_the_folder_is_found(tmp_path: Path):
    write_static_embedder(tmp_path, max_length=100)
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.runtime) == ("feature-extraction", "static_embeddings")
    assert manifest.files == ("model.safetensors", "tokenizer.json")
    assert manifest.options == {"drop_unknown": True, "normalise": True, "max_tokens": 100}


def test_the_layout_of_sentence_transformers_is_found(tmp_path: Path):
    inner = tmp_path / "0_StaticEmbedding"
    tensors = write_static_embedder(inner)
    save_tensors(inner / "model.safetensors", {"embedding.weight": tensors["embeddings"]})
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    manifest = detect(tmp_path)
    assert manifest.files[0] == "0_StaticEmbedding/model.safetensors"
    # sentence-transformers cuts only where the tokenizer's file says so
    assert manifest.options == {"drop_unknown": False, "normalise": True, "max_tokens": 1 << 17}
    tokenizer = json.loads((inner / "tokenizer.json").read_text())
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": 128,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (inner / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert detect(tmp_path).options["max_tokens"] == 128
    assert answer(load(tmp_path), "boat")[0].vector.shape == (STATIC_DIMENSIONS,)


@pytest.mark.parametrize("columns", [False, True])
def test_vectors_are_the_mean_of_the_tokens(tmp_path: Path, columns: bool):
    tensors = write_static_embedder(tmp_path, columns=columns)
    outputs = answer(load(tmp_path), *TEXTS)
    for text, output in zip(TEXTS, outputs, strict=True):
        assert output.vector == pytest.approx(reference(tensors, text), abs=FLOAT_NOISE)
        assert output.vector.dtype == np.float32
        assert answer(load(tmp_path), text)[0].vector.tolist() == output.vector.tolist()
    assert outputs[0].usage.input_tokens == 6


@pytest.mark.parametrize("columns", [False, True])
def test_vectors_are_those_of_model2vec(tmp_path: Path, columns: bool):
    model2vec = pytest.importorskip("model2vec", reason="pip install model2vec")
    write_static_embedder(tmp_path, columns=columns)
    model = model2vec.StaticModel.from_pretrained(str(tmp_path))
    for text, output in zip(TEXTS[:-1], answer(load(tmp_path), *TEXTS[:-1]), strict=True):
        # theirs adds in float32 and in another order; longer texts they cut by letters first
        assert output.vector == pytest.approx(model.encode(text), abs=1e-5)


def test_a_text_of_unknown_tokens_has_no_direction(tmp_path: Path):
    write_static_embedder(tmp_path)
    (output,) = answer(load(tmp_path), "中")
    assert not output.vector.any()
    (kept,) = answer(load(tmp_path, drop_unknown=False), "中")
    assert kept.vector.any()


def test_long_texts_are_cut(tmp_path: Path):
    write_static_embedder(tmp_path)
    runtime = load(tmp_path, max_tokens=5)
    cut, same = answer(runtime, "boat " * 100 + "river", "boat " * 5)
    assert cut.vector.tolist() == same.vector.tolist()
    assert cut.usage.input_tokens == 5


def test_a_client_may_send_token_ids(tmp_path: Path):
    write_static_embedder(tmp_path)
    runtime = load(tmp_path)
    boat = make_tokenizer().token_to_id("boat")
    (output,) = runtime.run([runtime.prepare(TextInput(token_ids=(boat,)))])
    assert output.vector.tolist() == answer(runtime, "boat")[0].vector.tolist()
    with pytest.raises(InvalidInput, match="not in the model's vocabulary"):
        runtime.prepare(TextInput(token_ids=(100_000,)))


@pytest.mark.parametrize(
    "tensors",
    [
        {"embeddings": np.zeros((3, 4), np.float32)},
        {"embeddings": np.zeros(500, np.float32)},
        {"embeddings": np.zeros((500, 4), np.float32), "mapping": np.full(500, 500)},
        {"embeddings": np.zeros((500, 4), np.float32), "mapping": np.zeros(2, np.int64)},
        {"embeddings": np.zeros((500, 4), np.float32), "weights": np.zeros(2, np.float32)},
        {"embeddings": np.zeros((500, 4), np.float32), "weights": np.zeros((500, 1))},
    ],
    ids=[
        "few rows",
        "one dimension",
        "row too high",
        "short mapping",
        "few weights",
        "wide weights",
    ],
)
def test_tables_that_do_not_fit_the_tokenizer_are_refused(tmp_path: Path, tensors: Any):
    write_static_embedder(tmp_path)
    save_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(FormatNotAllowed):
        load(tmp_path)


def test_another_width_than_the_bundle_says_is_refused(tmp_path: Path):
    write_static_embedder(tmp_path)
    with pytest.raises(InvalidInput, match="dimensions are 32, the model gives 64"):
        load(tmp_path, dimensions=32)
