"""Opens a GGUF file with llama.cpp's server, in this process, and asks it what it can.

The server cannot be kept from listening; it gets a Unix socket in a private folder and a random
key.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.worker.runtimes.chat_prompt import TemplateAbilities
from wherry.worker.runtimes.gguf import GgufFacts, Vocabulary
from wherry.worker.runtimes.llama_answers import chunk_decoder
from wherry.worker.runtimes.llama_native import llama

DEFAULT_CONTEXT_TOKENS = 2048
MAX_TEMPLATE_BYTES = 256 * 1024
LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel allows 107."""
BATCH_SECONDS = 0.25
"""Wanted length of one prompt batch: nobody can cancel, and no other slot decodes, within one."""
LONGEST_BATCH_SECONDS = 0.5
LEAST_BATCH_TOKENS, MOST_BATCH_TOKENS = 8, 512
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
    """A file of the bundle with a Jinja template, instead of the one in the GGUF file."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """For requests that name none."""


def read_options(bundle: Bundle) -> LlamaOptions:
    """The bundle's options; keys of others (the task's) are passed over."""
    try:
        return msgspec.convert(dict(bundle.manifest.options), LlamaOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an option of the bundle is wrong: {error}") from error


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
    server = _open(bundle, options, facts, device, batch_tokens)
    if options.batch_tokens:
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
    folder = _private_folder()
    socket, key = folder / "llama.sock", secrets.token_urlsafe(24)
    parameters = _parameters(bundle, options, facts, batch_tokens)
    parameters.n_gpu_layers = 0 if device == "cpu" else 999
    if device.startswith("cuda:"):
        parameters.main_gpu = int(device.removeprefix("cuda:"))
    parameters.hostnames, parameters.api_keys = [str(socket)], [key]
    mask_before = os.umask(0o077)
    try:
        native = llama.Server(parameters)
        return LlamaServer(native, bundle.main_file, folder, _ask_properties(socket, key))
    except (RuntimeError, ValueError, httpx.HTTPError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InvalidInput(
            f"llama.cpp could not load {bundle.main_file.name!r}",
            hint="the reason is in the log; the file may be damaged or too new",
        ) from error
    finally:
        os.umask(mask_before)


def _ask_properties(socket: Path, key: str) -> dict[str, Any]:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket)), timeout=30, trust_env=False
    ) as client:
        response = client.get("http://llama/props", headers={"authorization": f"Bearer {key}"})
    if response.status_code != 200:
        raise ModelFailed(f"llama.cpp answered {response.status_code} when asked what it can")
    return response.json()


def _private_folder() -> Path:
    """A new 0700 folder whose path is short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="llama-"))
    if len(os.fsencode(folder / "llama.sock")) <= LONGEST_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="wherry-llama-", dir="/tmp"))


def _parameters(bundle: Bundle, options: LlamaOptions, facts: GgufFacts, batch_tokens: int) -> Any:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    wanted = options.context_tokens or DEFAULT_CONTEXT_TOKENS
    context_tokens = min(wanted, facts.context_length or wanted)
    parameters = llama.CommonParams()
    parameters.model.path = str(bundle.main_file)
    parameters.n_parallel = options.n_parallel
    parameters.n_ctx = options.n_parallel * context_tokens  # llama.cpp divides it
    parameters.n_batch = parameters.n_ubatch = max(batch_tokens, options.n_parallel)
    parameters.cpuparams.n_threads = options.threads or max(1, cores // 2)
    parameters.cpuparams_batch.n_threads = options.batch_threads or cores
    parameters.ctx_shift = False  # an answer ends where the context does
    parameters.prefill_assistant = False  # a last assistant message is a turn, not a beginning
    parameters.reasoning_format = llama.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    # caches that are shared by whoever asks: see llama_slots
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.ui = False
    parameters.warmup = False
    parameters.verbosity = 1  # errors only, to standard error
    parameters.model_alias = ["model"]
    if options.chat_template:
        parameters.chat_template = _read_template(bundle.path(options.chat_template))
    return parameters


def _read_template(file: Path) -> str:
    if file.stat().st_size > MAX_TEMPLATE_BYTES:
        raise InvalidInput(f"the chat template is over {MAX_TEMPLATE_BYTES} bytes")
    return file.read_text(encoding="utf-8")


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
