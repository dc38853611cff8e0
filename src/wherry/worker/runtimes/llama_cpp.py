"""Runtime `llama_cpp`: GGUF language models, through xllamacpp.

llama.cpp batches by itself, over `n_parallel` slots. Each slot has a thread here, because its
calls block; what they report crosses to the event loop. Never more calls than slots: one that
waited inside llama.cpp could not be cancelled. Options: `llama_server.LlamaOptions`.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import AsyncIterator, Callable
from threading import Event

import msgspec

from wherry.errors import InvalidInput, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.chat_pictures import expect_text_only, pictures_of, plain_pictures
from wherry.models.tasks.generation import GenerationInput, TextDelta
from wherry.models.tasks.options import read_options
from wherry.worker.runtimes.chat_prompt import Neutraliser
from wherry.worker.runtimes.chat_template import stops_of
from wherry.worker.runtimes.gguf import read_gguf
from wherry.worker.runtimes.llama_answers import Chunk, LlamaAnswer, chunk_decoder
from wherry.worker.runtimes.llama_requests import LlamaFacts, LlamaRequest, build_request
from wherry.worker.runtimes.llama_server import (
    LlamaOptions,
    LlamaServer,
    find_projector,
    has_guidance,
    open_server,
)
from wherry.worker.runtimes.llama_slots import SlotTable

CLOSE_SECONDS = 10.0
"""Longest wait of `close` for generations to stop."""


class Generating(msgspec.Struct):
    """A request on its way through a slot's thread."""

    request: LlamaRequest
    tenant: str
    cancelled: Event
    """Set by the worker."""
    abandoned: Event
    """Set when nobody reads the deltas any more."""
    emit: Callable[[Chunk | str | Exception | None], None]
    """Thread-safe; takes chunks, echoed text, at most one error, and None at the end."""

    def must_stop(self) -> bool:
        """Whether the next token would be for nobody."""
        return self.cancelled.is_set() or self.abandoned.is_set()


class LlamaCppRuntime:
    """One model, loaded once; streams as many answers at once as it has slots."""

    def __init__(self) -> None:
        self.max_concurrency = 1
        self._server: LlamaServer | None = None
        self._facts: LlamaFacts | None = None
        self._sees = False
        self._neutralise = Neutraliser(())
        self._slots = SlotTable(1)
        self._waiting: queue.SimpleQueue[Generating | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = Event()

    def load(self, bundle: Bundle, device: str) -> None:
        """Check the file, open it, measure it, and start a thread a slot."""
        options = read_options(bundle.manifest.options, LlamaOptions)
        gguf = read_gguf(bundle.main_file)
        server = open_server(bundle, options, gguf, device)
        self._server = server
        self._facts = LlamaFacts(
            gguf=gguf,
            context_tokens=server.context_tokens,
            abilities=server.abilities,
            has_guidance=has_guidance(),
            temperature=options.temperature,
            top_p=options.top_p,
            system=options.system,
            has_template=gguf.has_chat_template or bool(options.chat_template),
            stops=stops_of(options.chat_template),
        )
        self._sees = find_projector(bundle) is not None
        self._neutralise = Neutraliser(gguf.special_tokens)
        self._slots = SlotTable(options.n_parallel)
        self.max_concurrency = options.n_parallel
        self._threads = [
            threading.Thread(target=self._serve_slot, name=f"llama-slot-{number}", daemon=True)
            for number in range(options.n_parallel)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # a thread inside llama.cpp at exit aborts the process

    async def stream(
        self, item: GenerationInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta]:
        """Deltas of one answer; the last has finish reason and usage, also when cancelled."""
        if self._facts is None or self._closing.is_set():
            raise ModelFailed("the model is not loaded")
        pictures = await self._look_at(item)
        request = build_request(item, self._facts, self._neutralise, pictures)
        events: asyncio.Queue[Chunk | str | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        generating = Generating(
            request,
            tenant,
            cancelled,
            Event(),
            lambda event: _call_soon(loop, events.put_nowait, event),
        )
        self._waiting.put(generating)
        answer = LlamaAnswer(request)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                delta = TextDelta(text=event) if isinstance(event, str) else answer.read(event)
                if delta is not None:
                    yield delta
            yield answer.finish(cancelled=generating.must_stop() or self._closing.is_set())
        finally:
            generating.abandoned.set()

    async def _look_at(self, item: GenerationInput) -> list[str]:
        """The conversation's pictures as llama.cpp may read them."""
        if not self._sees:
            expect_text_only(item)
        # decoding takes a while, and others are being answered
        return await asyncio.to_thread(plain_pictures, item) if pictures_of(item) else []

    def close(self) -> None:
        """Stop all generations, wait for their threads, and free the model."""
        atexit.unregister(self.close)
        self._closing.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        stuck = [thread for thread in self._threads if thread.is_alive()]
        self._threads = []
        if self._server is not None and not stuck:
            self._server.close()
        self._server = self._facts = None
        if stuck:
            raise ModelFailed("llama.cpp does not stop", hint="end the process with os._exit")

    def _serve_slot(self) -> None:
        while (generating := self._waiting.get()) is not None:
            try:
                if not generating.must_stop() and not self._closing.is_set():
                    self._generate(generating)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: the stream raises it
                generating.emit(_error_of(error))
            finally:
                generating.emit(None)

    def _generate(self, generating: Generating) -> None:
        server = self._server
        if server is None:
            raise ModelFailed("the model is not loaded")
        request = generating.request
        if request.echo:
            echo = request.echo
            generating.emit(echo if isinstance(echo, str) else server.text_of(echo))
        slot, own_cache = self._slots.take(generating.tenant)
        try:
            body = request.body | {"id_slot": slot.number, "cache_prompt": own_cache}
            handle = (
                server.native.handle_chat_completions
                if request.is_chat
                else server.native.handle_completions
            )
            handle(msgspec.json.encode(body), self._callback(generating))
        finally:
            self._slots.give_back(slot)

    def _callback(self, generating: Generating) -> Callable[[bytes], bool]:
        def receive(raw: bytes) -> bool:
            """Called by llama.cpp for every chunk; true stops the generation."""
            try:
                generating.emit(chunk_decoder.decode(raw))
            except msgspec.DecodeError as error:  # raising here would end the call without a word
                generating.emit(ModelFailed(f"llama.cpp sent what we cannot read: {error}"))
                return True
            is_counted = generating.request.count_only  # the first chunk says the prompt's length
            return is_counted or generating.must_stop() or self._closing.is_set()

        return receive


def _call_soon(
    loop: asyncio.AbstractEventLoop, callback: Callable[..., None], event: object
) -> None:
    try:
        loop.call_soon_threadsafe(callback, event)
    except RuntimeError:  # the loop has been closed: nobody is left to tell
        return


def _error_of(error: Exception) -> Exception:
    # a ValueError is what llama.cpp finds wrong before it starts, such as roles that the chat
    # template does not allow; anything else is its own failure
    if isinstance(error, WherryError):
        return error
    if isinstance(error, ValueError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
        return InvalidInput(f"the model refused the request: {' '.join(lines)[:300]}")
    return ModelFailed(f"llama.cpp failed: {error!r:.300}")
