"""Opens a GGUF file with llama.cpp's server, in this process, and asks it what it can."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.image_text_to_text import IMAGE_TEXT_TO_TEXT
from wherry.worker.runtimes.chat_prompt import TemplateAbilities
from wherry.worker.runtimes.chat_template import read_template
from wherry.worker.runtimes.gguf import GgufFacts, Vocabulary
from wherry.worker.runtimes.llama_answers import chunk_decoder
from wherry.worker.runtimes.llama_native import llama
from wherry.worker.runtimes.llama_start import cannot_load, new_parameters, start_server

DEFAULT_CONTEXT_TOKENS = 2048
BATCH_SECONDS = 0.25
"""Wanted length of one prompt batch: nobody can cancel, and no other slot decodes, within one."""
LONGEST_BATCH_SECONDS = 0.5
LEAST_BATCH_TOKENS, MOST_BATCH_TOKENS = 8, 512
PICTURE_BATCH_TOKENS = 512
"""At least, of a model that sees: Gemma's pictures have 256 tokens, which belong together."""
PROJECTOR_MARK = "mmproj"
"""What llama.cpp's converter puts into the name of a projector's file."""
BYTES_PER_SECOND = 25e9
"""File size times prompt tokens a second on two cores: a first guess, then measured."""


class LlamaOptions(msgspec.Struct, frozen=True):
    """Options of a bundle; 0 lets the runtime choose."""

    n_parallel: Annotated[int, Meta(ge=1, le=64)] = 4
    """Answers generated at once; each has `context_tokens` of its own."""
    context_tokens: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    """Prompt and answer of one request; default 2048, or what the model was trained with."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Threads for generating; default half of the cores."""
    batch_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Threads for reading prompts; default all cores."""
    batch_tokens: Annotated[int, Meta(ge=0, le=8192)] = 0
    """Prompt tokens read at once; default as many as take a quarter of a second."""
    chat_template: str = ""
    """Instead of the one in the GGUF file: a file of the bundle, a Jinja template's text, or
    `plain` (`chat_template.PLAIN_TEMPLATE`), for models that were not made to converse."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """For requests that name none."""
    system: str = ""
    """What the model is told before a conversation that has no system message of its own."""


class LlamaServer:
    """A loaded model. Use `open_server`."""

    def __init__(self, native: Any, file: Path, folder: Path, properties: dict[str, Any]) -> None:
        self.native: Any = native
        self._file = file
        self._folder = folder
        self._vocabulary: Vocabulary | None = None
        self.context_tokens = int(properties["default_generation_settings"]["n_ctx"])
        abilities = properties.get("chat_template_caps", {})
        self.abilities = TemplateAbilities(
            tools=abilities.get("supports_tools") is True,
            tool_calls=abilities.get("supports_tool_calls") is True,
            system_role=abilities.get("supports_system_role") is not False,
        )

    def text_of(self, tokens: list[int]) -> str:
        """The text of token ids. The server is not asked: a loaded worker may open no socket."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._file)
        return self._vocabulary.text_of(tokens)

    def close(self) -> None:
        """Free the model; no call may be running."""
        self.native = None
        shutil.rmtree(self._folder, ignore_errors=True)


def open_server(
    bundle: Bundle, options: LlamaOptions, facts: GgufFacts, device: str
) -> LlamaServer:
    """Load the model with prompt batches short enough to be cancelled between them.

    The speed of prompts is known only after loading, and the batch size cannot be changed then:
    so a first guess is measured, and the model loaded again if it was too bold.
    """
    batch_tokens = options.batch_tokens or _guess_batch_tokens(bundle.main_file)
    if find_projector(bundle):
        # some models look at all tokens of a picture at once: they must fit into one batch
        batch_tokens = max(batch_tokens, PICTURE_BATCH_TOKENS)
    server = _open(bundle, options, facts, device, batch_tokens)
    if options.batch_tokens or find_projector(bundle):
        return server
    try:
        measured = _measure_tokens_per_second(server.native, batch_tokens)
    except Exception:
        server.close()
        raise
    if batch_tokens / measured <= LONGEST_BATCH_SECONDS or batch_tokens == LEAST_BATCH_TOKENS:
        return server
    server.close()
    # no less than a quarter of the guess: a machine that is busy for a moment looks slow
    batch_tokens = _clamp_batch(max(measured * BATCH_SECONDS, batch_tokens / 4))
    return _open(bundle, options, facts, device, batch_tokens)


def find_projector(bundle: Bundle) -> Path | None:
    """The file that turns pictures into what the model reads, if the model is to see.

    Raises:
        InvalidInput: the task is to see, and the bundle has no such file.
    """
    if bundle.manifest.task != IMAGE_TEXT_TO_TEXT.name:
        return None
    for name in bundle.manifest.files[1:]:
        if PROJECTOR_MARK in name.lower():
            return bundle.path(name)
    raise InvalidInput(
        f"a GGUF model of the task {IMAGE_TEXT_TO_TEXT.name!r} needs a projector file",
        hint="name it in files after the model; its own name holds 'mmproj'",
    )


def has_guidance() -> bool:
    """Whether this build of llama.cpp has the llguidance engine for JSON schemas."""
    return llama.json_schema_to_grammar('{"type": "boolean"}').startswith("%llguidance")


def _guess_batch_tokens(file: Path) -> int:
    return _clamp_batch(BYTES_PER_SECOND / file.stat().st_size * BATCH_SECONDS)


def _clamp_batch(tokens: float) -> int:
    return max(LEAST_BATCH_TOKENS, min(MOST_BATCH_TOKENS, int(tokens) // 8 * 8))


def _open(
    bundle: Bundle, options: LlamaOptions, facts: GgufFacts, device: str, batch_tokens: int
) -> LlamaServer:
    started = start_server(_parameters(bundle, options, facts, device, batch_tokens))
    try:
        properties = _ask_properties(started.socket, started.key)
    except httpx.HTTPError as error:
        shutil.rmtree(started.folder, ignore_errors=True)
        raise cannot_load(bundle.main_file) from error
    return LlamaServer(started.native, bundle.main_file, started.folder, properties)


def _ask_properties(socket: Path, key: str) -> dict[str, Any]:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket)), timeout=30, trust_env=False
    ) as client:
        response = client.get("http://llama/props", headers={"authorization": f"Bearer {key}"})
    if response.status_code != 200:
        raise ModelFailed(f"llama.cpp answered {response.status_code} when asked what it can")
    return response.json()


def _parameters(
    bundle: Bundle, options: LlamaOptions, facts: GgufFacts, device: str, batch_tokens: int
) -> Any:
    wanted = options.context_tokens or DEFAULT_CONTEXT_TOKENS
    context_tokens = min(wanted, facts.context_length or wanted)
    parameters = new_parameters(
        bundle.main_file, device, threads=options.threads, batch_threads=options.batch_threads
    )
    parameters.n_parallel = options.n_parallel
    parameters.n_ctx = options.n_parallel * context_tokens  # llama.cpp divides it
    parameters.n_batch = parameters.n_ubatch = max(batch_tokens, options.n_parallel)
    parameters.ctx_shift = False  # an answer ends where the context does
    parameters.prefill_assistant = False  # a last assistant message is a turn, not a beginning
    parameters.reasoning_format = llama.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    if projector := find_projector(bundle):
        parameters.mmproj.path = str(projector)
    if options.chat_template:
        parameters.chat_template = read_template(bundle, options.chat_template)
    return parameters


def _measure_tokens_per_second(native: Any, batch_tokens: int) -> float:
    """Prompt tokens a second: the best of a few runs, which also bring the weights into memory."""
    best = 0.0
    for _ in range(3):
        started = time.monotonic()
        tokens = _read_prompt(native, "a b c d e f g h " * (batch_tokens // 8))
        best = max(best, tokens / max(time.monotonic() - started, 1e-3))
        if batch_tokens / best <= BATCH_SECONDS:
            break
    return max(best, 0.1)


def _read_prompt(native: Any, prompt: str) -> int:
    """Let the model read a prompt; returns its length in tokens."""
    body = {
        "prompt": prompt,
        "max_tokens": 1,
        "cache_prompt": False,
        "id_slot": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    lengths: list[int] = []

    def see(raw: bytes) -> bool:
        chunk = chunk_decoder.decode(raw)
        if chunk.error is not None:
            raise ModelFailed(f"the model failed its first prompt: {chunk.error.message[:300]}")
        if chunk.usage is not None:
            lengths.append(chunk.usage.prompt_tokens)
        return False

    native.handle_completions(json.dumps(body).encode(), see)
    if not lengths:
        raise ModelFailed("the model did not answer its first prompt")
    return lengths[-1]
