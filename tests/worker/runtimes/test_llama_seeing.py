"""Chat with pictures: a real language model, and a projector of random weights made here.

Random weights say nothing true about a picture, but what they say depends on its pixels.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")

from tests.chat_pictures import chat_picture, png_bomb
from tests.gguf_files import seeing_projector
from tests.real_models import smollm2_path

from wherry.errors import ContextLengthExceeded, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.chat_pictures import picture_url
from wherry.models.tasks.generation import (
    ChatInput,
    Generation,
    ImagePart,
    Message,
    Part,
    Sampling,
    TextPart,
)
from wherry.models.tasks.image_text_to_text import IMAGE_TEXT_TO_TEXT
from wherry.worker.runtimes.llama_cpp import LlamaCppRuntime

PICTURE_TOKENS = 16
"""Of the projector: 32 x 32 pixels in patches of 8 x 8."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    (folder / "model.gguf").symlink_to(smollm2_path())
    seeing_projector(folder / "mmproj-model.gguf")
    return folder


def load(folder: Path, task: str = "image-text-to-text", **options: object) -> LlamaCppRuntime:
    files = ("model.gguf", "mmproj-model.gguf")
    chosen = {"n_parallel": 2, "context_tokens": 256} | options
    runtime = LlamaCppRuntime()
    runtime.load(Bundle(folder, Manifest(task, "llama_cpp", files=files, options=chosen)), "cpu")
    return runtime


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LlamaCppRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


def show(*parts: Part | bytes | str) -> ChatInput:
    """A question of pictures and texts, answered with the likeliest words."""
    content: list[Part] = [
        ImagePart(picture_url(part))
        if isinstance(part, bytes)
        else TextPart(part)
        if isinstance(part, str)
        else part
        for part in parts
    ]
    return ChatInput(
        [Message("user", content)], Sampling(max_tokens=6, temperature=0, top_logprobs=0)
    )


async def answer(model: LlamaCppRuntime, item: ChatInput) -> Generation:
    deltas = [delta async for delta in model.stream(item, threading.Event(), "")]
    return IMAGE_TEXT_TO_TEXT.join(deltas)


def ask(model: LlamaCppRuntime, *parts: Part | bytes | str) -> Generation:
    return asyncio.run(answer(model, show(*parts)))


def likelihoods(found: Generation) -> list[float]:
    assert found.logprobs is not None
    return [each.logprob for each in found.logprobs]


def test_the_answer_depends_on_the_pixels_and_on_nothing_else(model: LlamaCppRuntime) -> None:
    red, blue, again = (
        ask(model, "What is this?", chat_picture(colour)) for colour in ("red", "blue", "red")
    )
    assert red.text == again.text
    assert likelihoods(red) == pytest.approx(likelihoods(again), abs=1e-3)
    assert likelihoods(red)[0] != pytest.approx(likelihoods(blue)[0], abs=0.05)


def test_what_the_file_is_called_and_how_it_is_packed_makes_no_difference(
    model: LlamaCppRuntime,
) -> None:
    as_png = ask(model, chat_picture("red"), "What?")
    as_webp = ImagePart(picture_url(chat_picture("red", form="BMP"), "image/webp"))
    assert ask(model, as_webp, "What?").text == as_png.text


def test_the_tokens_of_a_picture_are_charged(model: LlamaCppRuntime) -> None:
    without = ask(model, "What is this?").usage.input_tokens
    one = ask(model, "What is this?", chat_picture()).usage.input_tokens
    two = ask(model, "What is this?", chat_picture(), chat_picture("blue")).usage.input_tokens
    assert one >= without + PICTURE_TOKENS
    assert two >= one + PICTURE_TOKENS


def test_pictures_of_several_people_do_not_mix(model: LlamaCppRuntime) -> None:
    items = [show("What?", chat_picture(colour)) for colour in ("red", "blue", "lime", "white")]
    alone = [asyncio.run(answer(model, item)) for item in items]

    async def together() -> list[Generation]:
        return list(await asyncio.gather(*(answer(model, item) for item in items)))

    for one, found in zip(alone, asyncio.run(together()), strict=True):
        assert likelihoods(found)[0] == pytest.approx(likelihoods(one)[0], abs=0.02)


def test_pictures_that_do_not_fit_into_the_context_are_refused(model: LlamaCppRuntime) -> None:
    with pytest.raises(ContextLengthExceeded):
        ask(model, *[chat_picture()] * 16, "word " * 60)
    assert ask(model, "What?", chat_picture()).text


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (ImagePart("https://pictures.example/a.png"), "fetches none"),
        (ImagePart("file:///etc/passwd"), "fetches none"),
        (ImagePart("data:image/png;base64,%%%"), "not valid base64"),
        (ImagePart("data:text/plain;base64,aGk="), "no data: URL"),
        (ImagePart(picture_url(b"")), "picture 1 is refused"),
        (ImagePart(picture_url(b"#!/bin/sh")), "picture 1 is refused"),
        (ImagePart(picture_url(b"RIFF\0\0\0\0WAVEfmt ")), "picture 1 is refused"),
    ],
)
def test_what_is_no_picture_is_refused_and_never_reaches_the_model(
    model: LlamaCppRuntime, part: ImagePart, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        ask(model, "What?", part)
    assert refused.value.param == "messages"


def test_a_picture_cut_off_is_refused(model: LlamaCppRuntime) -> None:
    file = chat_picture("red", (400, 300), "JPEG")
    with pytest.raises(InvalidInput, match="cut off"):
        ask(model, file[: len(file) // 2])


def test_a_bomb_is_refused_by_its_header(model: LlamaCppRuntime) -> None:
    with pytest.raises(InvalidInput, match="has more than 16777216 pixels"):
        ask(model, png_bomb(50_000))


def test_more_pictures_than_a_conversation_may_have_are_refused(model: LlamaCppRuntime) -> None:
    with pytest.raises(InvalidInput, match="has 17 pictures, the limit is 16"):
        ask(model, *[chat_picture()] * 17)


def test_the_same_files_without_the_task_read_text_only(folder: Path) -> None:
    runtime = load(folder, task="text-generation")
    try:
        with pytest.raises(InvalidInput, match="reads text only"):
            ask(runtime, chat_picture())
        assert ask(runtime, "Hello").text
    finally:
        runtime.close()


def test_a_model_that_is_to_see_needs_a_projector(folder: Path) -> None:
    manifest = Manifest("image-text-to-text", "llama_cpp", files=("model.gguf",))
    with pytest.raises(InvalidInput, match="needs a projector file"):
        LlamaCppRuntime().load(Bundle(folder, manifest), "cpu")


def test_a_projector_of_another_model_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(smollm2_path())
    seeing_projector(tmp_path / "mmproj-model.gguf", width=64)
    with pytest.raises(InvalidInput, match="could not load"):
        load(tmp_path)
