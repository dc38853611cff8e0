"""SmolLM2 out of its GGUF file: the folder loads, chats, and writes what transformers writes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.real_models import smollm2_path

from wherry.learning.recipes.catalog import find_recipe
from wherry.models.bundle import open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    ChatInput,
    CompletionInput,
    Generation,
    Message,
    Sampling,
)
from wherry.worker.runtimes.catalog import create_runtime

pytestmark = pytest.mark.slow
HOW = "pip install 'wherry[transformers]' gguf accelerate"
torch = pytest.importorskip("torch", reason=HOW)
transformers = pytest.importorskip("transformers", reason=HOW)
for needed in ("gguf", "accelerate"):
    pytest.importorskip(needed, reason=HOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    recipe = find_recipe("smollm2-safetensors")
    (name,) = recipe.sources
    manifest = recipe.run(recipe.parameters(), {name: smollm2_path()}, folder, lambda *_: None)
    assert detect(folder) == manifest, "every file may be served"
    return folder


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Any:
    runtime: Any = create_runtime("transformers", "text-generation")
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def write(runtime: Any, item: Any) -> Generation:
    async def play() -> list[Any]:
        return [delta async for delta in runtime.stream(item, threading.Event(), "team")]

    return TEXT_GENERATION.join(asyncio.run(play()))


def test_the_first_tokens_are_those_of_generate(folder: Path, runtime: Any):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = "Once upon a time, there was a river"
    given = words(prompt, return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(**given, do_sample=False, max_new_tokens=16)
    expected = words.decode(found[0][given["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = write(runtime, CompletionInput(prompt, Sampling(max_tokens=16, temperature=0)))
    assert answer.text == expected
    assert answer.usage.input_tokens == given["input_ids"].shape[1]


def test_it_chats_by_its_own_template_and_ends_its_turn(runtime: Any):
    messages = [Message("user", "Say hello.")]
    item = ChatInput(messages, Sampling(max_tokens=60, temperature=0))
    found = write(runtime, item)
    assert found.finish_reason == "stop"
    assert found.text
    assert "<|" not in found.text
    assert found.input_tokens > 20, "the template has a system text of its own"
    assert write(runtime, item).text == found.text
