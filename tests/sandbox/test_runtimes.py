"""The frameworks run inside the sandbox as they do outside."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.data_plane import DataPlane, data_plane
from tests.real_models import cache_folder, minilm_folder, smollm2_folder, smollm2_path

from wherry.models.bundle import MANIFEST, Manifest, encode_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
]


def iris(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("skops")
    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    folder.mkdir()
    data = load_iris()
    model = RandomForestClassifier(20, random_state=1, n_jobs=2).fit(data.data, data.target)
    skops.io.dump(model, folder / "model.skops")
    manifest = Manifest(
        task="tabular-classification",
        runtime="sklearn",
        files=("model.skops",),
        labels=("setosa", "versicolor", "virginica"),
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return folder, {"input": data.data[[0, 70, 149]].tolist()}


def minilm(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    return minilm_folder(folder), {"text": "A boat on the river."}


def smollm2(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("xllamacpp")
    made = smollm2_folder(folder, n_parallel=1, context_tokens=256, batch_tokens=64)
    (made / "model.gguf").unlink()  # a link that leads out of the bundle
    shutil.copyfile(smollm2_path(), made / "model.gguf")
    message = {"role": "user", "content": "Say hello."}
    return made, {"messages": [message], "temperature": 0, "max_tokens": 8}


def spacy(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("spacy", reason="pip install 'wherry[spacy]'")
    from wherry.models.registry.catalog import fetch_entry, find_entry

    cache = cache_folder() / "sources"
    fetch_entry(find_entry("ner-en"), folder, cache=cache, progress=lambda *_: None)
    return folder, {"text": "Tim Cook works in Rome."}


def static(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("onnx")
    from tests.tiny_encoders import write_static_embedder

    write_static_embedder(folder)
    files = ("model.safetensors", "tokenizer.json")
    manifest = Manifest(task="feature-extraction", runtime="static_embeddings", files=files)
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return folder, {"text": "A boat on the river."}


def translator(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("ctranslate2", reason="pip install 'wherry[ctranslate2]'")
    from tests.tiny_translators import write_ctranslate2, write_tokenizer

    folder.mkdir()
    write_ctranslate2(folder)
    write_tokenizer(folder)
    manifest = Manifest(task="translation", runtime="ctranslate2", files=("model.bin",))
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return folder, {"text": "the old cat", "max_tokens": 8}


def rules(folder: Path) -> tuple[Path, dict[str, Any]]:
    from wherry.worker.runtimes.apertium import MODES

    if not (MODES / "eng-spa.mode").is_file():
        pytest.skip("apt-get install apertium-eng-spa")
    folder.mkdir()
    manifest = Manifest(task="translation", runtime="apertium", options={"pair": "eng-spa"})
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return folder, {"text": "The house is green."}


def torch_encoder(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("transformers", reason="pip install 'wherry[transformers]'")
    from tests.tiny_transformers import write_encoder

    folder.mkdir()
    write_encoder(folder)
    files = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    manifest = Manifest(task="feature-extraction", runtime="transformers", files=files)
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    return folder, {"text": "the old cat"}


def torch_writer(folder: Path) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("transformers", reason="pip install 'wherry[transformers]'")
    from tests.tiny_transformers import TEMPLATE, write_llama

    folder.mkdir()
    write_llama(folder, template=TEMPLATE)
    manifest = Manifest(
        task="text-generation", runtime="transformers", files=("model.safetensors",)
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest))
    message = {"role": "user", "content": "Say hello."}
    return folder, {"messages": [message], "temperature": 0, "max_tokens": 8}


MAKERS = [iris, minilm, smollm2, spacy, static, translator, rules, torch_encoder, torch_writer]


@pytest.mark.parametrize("make", MAKERS)
def test_a_framework_answers_the_same_in_the_sandbox(tmp_path: Path, make: Any):
    bundle, question = make(tmp_path / "bundle")
    runtime = {
        iris: "sklearn",
        minilm: "onnx",
        smollm2: "llama_cpp",
        spacy: "spacy",
        static: "static_embeddings",
        translator: "ctranslate2",
        rules: "apertium",
        torch_encoder: "transformers",
        torch_writer: "transformers",
    }[make]

    async def ask(plane: DataPlane, sandbox: str) -> bytes:
        worker = await plane.start_worker(
            bundle, sandbox=sandbox, runtime=runtime, memory_limit_mib=2048
        )
        plane.route(worker)
        await plane.wait_for_links(1)
        inbound = plane.inbound(0.0, codec="predict", body=msgspec.json.encode(question))
        answers = [await plane.gateway.predict(inbound).answer() for _ in range(2)]
        await plane.placement.remove(worker, 10)
        return bytes(answers[1].body)

    async def story() -> None:
        async with data_plane(tmp_path) as plane:
            outside = await ask(plane, "off")
            inside = await ask(plane, "required")
            assert inside == outside
            printed = b"".join(plane.output).decode()
            assert "Permission" not in printed, printed
            assert "not permitted" not in printed, printed

    asyncio.run(story())
