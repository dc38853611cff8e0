"""Inside one worker: requests in, batches or streams through the runtime, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors, frames
from wherry.frames import Call, Failure, Kind, Outcome
from wherry.models.bundle import CODE_RUNTIMES, Bundle, open_bundle
from wherry.models.codecs.catalog import find_codec
from wherry.models.codecs.codec import Codec, Reply
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.task import Signature, is_slow_to_encode, media_of
from wherry.worker.batcher import Batcher, Waiting
from wherry.worker.busy import BusyTime
from wherry.worker.cores import count_cores
from wherry.worker.executor import Executor, Pace, run_batch
from wherry.worker.file_room import FileRoom
from wherry.worker.peer import Peer, Work
from wherry.worker.rows import Gathered, Tables
from wherry.worker.runtimes.catalog import create_runtime
from wherry.worker.runtimes.runtime import (
    BatchRuntime,
    ConcurrentRuntime,
    ItemError,
    Prepared,
    Runtime,
)
from wherry.worker.spec import WorkerConfig

INLINE_BYTES = 16 << 10
"""Larger bodies are decoded and prepared in a thread, so that one does not delay the others."""
NUMBER_TASKS = frozenset({"tensor", "tabular-classification", "tabular-regression"})
"""Tasks whose runtimes have nothing to prepare in an array."""
SLOW_WORDS = (b"BYTES", b"BOOL", b"\\")
"""What must be looked at element by element; and an escape, which may stand for anything."""
SMALL_BYTES = 8 << 10
"""Smaller answers of a batch share a frame."""
HELD_SECONDS = 0.03
"""Longest that an answer waits for those of the next batches, in order to leave with them."""
HELD_WAITING = 16
"""Only while so many wait: then the processor is what all wait for, and waking others takes it."""
MAX_LIGHT_BYTES = 8 << 20
"""Looking at so many numbers takes milliseconds, however light each is."""
PREPARE_THREADS = max(2, min(4, count_cores()))
"""Threads that decode files and encode them, beside the one that runs the model. Each keeps the
memory of what it decoded."""
PUSH_SECONDS = 1.0
"""A gateway that takes no byte for so long is given up, if a model waits for it that may run once."""


class Worker:
    """One bundle, its runtime, and the gateways that talk to it."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.spec = config.spec
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(PREPARE_THREADS, "prepare"))
        self.executor = Executor(self.loop)
        self.peers: set[Peer] = set()
        self.bundle: Bundle = open_bundle(Path(config.bundle_folder))
        self.task = find_task(self.bundle.manifest.task)
        self.task_config = self.bundle.manifest.task_config()
        self.found_signature: Signature | None = None
        self.reads_files = bool(media_of(self.task))
        self._files = FileRoom(self._understand, self._admit_file) if self.reads_files else None
        self._is_slow_to_encode = is_slow_to_encode(self.task)
        self.runtime: Runtime = create_runtime(
            self.bundle.manifest.runtime, self.bundle.manifest.task
        )
        # asked once: an isinstance of a runtime_checkable protocol costs microseconds
        self._batch: BatchRuntime | None = None
        self._concurrent: ConcurrentRuntime | None = None
        if isinstance(self.runtime, BatchRuntime):
            self._batch = self.runtime
        else:
            self._concurrent = self.runtime
        self._tables: Tables | None = None
        self._is_idempotent = self.bundle.manifest.idempotent
        self._codecs: dict[str, Codec] = {}
        self._batcher: Batcher[Work] = Batcher(1)
        self._is_running = False
        self._is_run_planned = False
        self._letting_go: asyncio.TimerHandle | None = None
        self._pace = Pace(may_be_quick=self.bundle.manifest.runtime not in CODE_RUNTIMES)
        self.busy = BusyTime()
        self._slots = asyncio.Semaphore(1)
        self._alone = asyncio.Lock()
        self._streams: set[asyncio.Task[None]] = set()
        self._streams_finished = 0
        self.draining = False
        self._drained = asyncio.Event()
        self.credits = config.spec.max_frame_credits

    async def load(self) -> None:
        """Open the model in the thread that will run it."""
        configure = getattr(self.runtime, "configure", None)
        if configure is not None:
            configure(secrets=self.config.spec.secrets, options=self.config.spec.runtime_options)
        device = self.config.spec.device
        await self.executor.call(lambda: self.runtime.load(self.bundle, device))
        self._take_signature()
        if self._batch is not None:
            rows = self.bundle.manifest.max_batch_rows or self._batch.max_batch_rows
            spare_padding = getattr(self._batch, "spare_padding", -1.0)
            self._batcher = Batcher(rows, self._batch.max_batch_cost, spare_padding)
            self.credits = max(self.credits, 2 * rows)
            if rows > 1 and getattr(self._batch, "joins_rows", False):
                self._tables = Tables(
                    self._batch, self._run_here, rows, self.task, self.task_config, self._find_codec
                )
        elif self._concurrent is not None:
            self._slots = asyncio.Semaphore(self._concurrent.max_concurrency)
            self.busy.slots = self._concurrent.max_concurrency
            self.credits = max(2, 2 * self._concurrent.max_concurrency)

    def _take_signature(self) -> None:
        """Of a model of raw tensors whose manifest names none, the graph's own count."""
        manifest = self.bundle.manifest
        found: Signature = getattr(self.runtime, "signature", Signature())
        if manifest.task == "tensor" and not manifest.signature.inputs and found.inputs:
            self.found_signature = found
            self.task_config = msgspec.structs.replace(self.task_config, signature=found)

    def connect(self, connected: socket.socket) -> None:
        """Take a connection that was accepted."""
        self.peers.add(Peer(self, connected))

    def forget(self, peer: Peer) -> None:
        """Its connection has ended."""
        self.peers.discard(peer)

    @property
    def in_flight(self) -> int:
        """Requests that have no answer yet."""
        return sum(len(peer.works) for peer in self.peers)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        works = (work for peer in self.peers for work in peer.works.values())
        return sum(not work.started for work in works)

    def progress(self) -> frames.Pong:
        """Evidence that the executor moves."""
        busy_since = self.executor.busy_since
        busy_ms = int((time.monotonic() - busy_since) * 1000) if busy_since else 0
        return frames.Pong(
            self.executor.finished + self._streams_finished, busy_ms, len(self._batcher)
        )

    # ---------------------------------------------------------------------- one request

    def accept(self, work: Work, body: memoryview) -> None:
        """Decode and prepare a request, then let it wait for its turn."""
        if self.draining:
            self.fail(work, Failure(frames.DRAINING, "the worker is stopping"))
            return
        if self._files is not None:
            self._files.enter(work, body)
            return
        try:
            is_light = len(body) <= INLINE_BYTES or self._is_light(work.call, body)
            items = self._understand(work, body) if is_light else None
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must end
            self.fail(work, failure_of(error))
            return
        if items is not None:
            self._admit(work, items)
            return

        # a large body must not delay the small ones of others
        def understood(result: asyncio.Future[Any]) -> None:
            self._admit(work, *result.result())
            self._run_soon()

        future = self.loop.run_in_executor(
            None, lambda: _attempt(lambda: self._understand(work, body))
        )
        future.add_done_callback(understood)

    def answer_at_once(self, peer: Peer, gathered: Sequence[Gathered]) -> Sequence[Gathered]:
        """Answer small requests that came together, if nothing else has to be done first.

        Returns those that must go the usual way, one by one.
        """
        if (
            self._tables is None
            or not self._pace.is_quick
            or not self._is_idempotent
            or self._is_running
            or self.draining
            or len(self._batcher)
        ):
            return gathered
        return self._tables.answer(peer, gathered)

    def find_binary(self, call: Call) -> int:
        """At which byte of a request's body numbers begin; 0 if none do."""
        find = getattr(self._find_codec(call), "find_binary", None)
        return find(call) if find is not None else 0

    def _is_light(self, call: Call, body: memoryview) -> bool:
        """Whether a large body is understood in no time: it is numbers, as they are in memory."""
        if len(body) > MAX_LIGHT_BYTES or self.task.name not in NUMBER_TASKS:
            return False
        binary_at = self.find_binary(call)
        if not 0 < binary_at <= INLINE_BYTES:
            return False
        text = bytes(body[:binary_at])
        return not any(each in text for each in SLOW_WORDS)

    def _find_codec(self, call: Call) -> Codec:
        codec = self._codecs.get(call.codec)
        if codec is None:
            codec = self._codecs[call.codec] = find_codec(call.codec)
        return codec

    def _understand(self, work: Work, body: memoryview) -> list[Any]:
        """Items of the request; prepared ones for a batch runtime."""
        call = work.call
        codec = self._find_codec(call)
        if codec.tasks and self.task.name not in codec.tasks:
            raise errors.InvalidInput(
                f"the model {call.deployment!r} does {self.task.name}, which this endpoint "
                f"does not serve",
                param="model",
            )
        work.codec = codec
        work.decoded = codec.decode(body, call, self.task, self.task_config)
        items = work.decoded.items
        if call.stream:
            start = getattr(codec, "stream", None)
            if start is None or self._concurrent is None:
                raise errors.InvalidInput(
                    f"the model {call.deployment!r} does not stream", param="stream"
                )
            work.encoder = start(work.decoded, call)
        if self._batch is not None:
            prepared = [self._batch.prepare(item) for item in items]
            if call.alone:
                for each in prepared:
                    each.group = work  # equal to no other request's
            return prepared
        return list(items)

    def _admit(
        self, work: Work, items: Sequence[Any] | None, error: BaseException | None = None
    ) -> None:
        if work.finished:
            return
        if error is not None:
            self.fail(work, failure_of(error))
        elif items is None or work.is_cancelled:
            self.fail(work, _unwanted(work))
        elif not items:
            work.outputs = []
            self.succeed(work)
        elif self._batch is not None:
            work.remaining = len(items)
            work.outputs = [None] * len(items)
            for index, prepared in enumerate(items):
                waiting = Waiting(work, prepared, work.deadline, work.arrived, index)
                self._batcher.add(waiting)
        else:
            work.remaining = len(items)
            work.outputs = [None] * len(items)
            for index, item in enumerate(items):
                self._start_stream(work, index, item)

    def _admit_file(
        self, work: Work, items: Sequence[Any] | None, error: BaseException | None
    ) -> None:
        self._admit(work, items, error)
        self._run_soon()

    def cancel(self, work: Work) -> None:
        """The gateway does not want it any more; its final frame still follows."""
        work.cancel()
        if not work.started and self._batch is not None:
            self._drop_unwanted()

    def _mark_started(self, works: list[Work], now: float) -> None:
        """Tell the gateways before the model sees anything (see `wherry.frames`)."""
        presumes = self._is_idempotent and self._pace.is_quick
        fresh: dict[Peer, list[int]] = {}
        for work in works:
            if not work.started:
                work.started = now
                peer = work.peer
                if peer.presumes is not presumes:
                    peer.presume(presumes)
                # one that runs alone may be what killed a worker: its start must be known
                if not presumes or work.call.alone:
                    fresh.setdefault(peer, []).append(work.request_id)
        for peer, request_ids in fresh.items():
            peer.connection.send(Kind.STARTED, header=request_ids, now=True)
            # behind answers that the gateway does not read, STARTED would die with this process,
            # and the gateway would let another one execute the requests
            if not self._is_idempotent and not peer.connection.push(PUSH_SECONDS):
                peer.connection.close()

    def succeed(self, work: Work, peers: set[Peer] | None = None) -> None:
        """Encode and send the answer of a request whose items are all done.

        Given `peers`, a small answer waits at its peer for the others of its batch, and the peer is
        added to these.
        """
        if work.finished:
            return
        if work.encoder is not None:
            # with END, not before: who reads the closing events knows that the answer is recorded
            closing = work.encoder.end(work.usage)
            self._finish(work, Kind.END, self._outcome(work, Reply(b"")), closing)
            return
        if self._is_slow_to_encode:
            self._encode_in_thread(work)
            return
        try:
            reply = self._encode(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must end
            self.fail(work, failure_of(error))
            return
        self._reply(work, reply, peers)

    def _encode(self, work: Work) -> Reply:
        return work.codec.encode(work.decoded, work.outputs, work.call, self.task, self.task_config)

    def _encode_in_thread(self, work: Work) -> None:
        """Neither this thread nor the model's makes files."""

        def encoded(result: asyncio.Future[Any]) -> None:
            reply, error = result.result()
            if error is not None:
                self.fail(work, failure_of(error))
            elif not work.finished:
                self._reply(work, reply)

        future = self.loop.run_in_executor(None, lambda: _attempt(lambda: self._encode(work)))
        future.add_done_callback(encoded)

    def _reply(self, work: Work, reply: Reply, peers: set[Peer] | None = None) -> None:
        """Send an answer, or let it wait for the others of its batch."""
        if peers is not None and _is_small(reply):
            queued_us = int((work.started - work.arrived) * 1e6)
            work.peer.gather((work.request_id, work.usage, queued_us, reply.body))
            peers.add(work.peer)
            self._end(work)
            return
        outcome = self._outcome(work, reply)
        if work.call.wants_gist:
            outcome.gist = _gist_of(work)
        self._finish(work, Kind.RESULT, outcome, reply.body)

    def fail(self, work: Work, failure: Failure) -> None:
        """Send the error of a request; the first one wins."""
        if not work.finished:
            failure.usage = work.usage
            self._finish(work, Kind.FAILURE, failure, b"")

    def _outcome(self, work: Work, reply: Reply) -> Outcome:
        now = time.monotonic()
        started = work.started or now
        return Outcome(
            work.usage,
            reply.content_type,
            reply.headers,
            int((started - work.arrived) * 1e6),
            int((now - started) * 1e6),
        )

    def _finish(self, work: Work, kind: Kind, header: Any, payload: Any) -> None:
        work.peer.connection.send(kind, work.request_id, header, payload)
        self._end(work)

    def _end(self, work: Work) -> None:
        work.finished = True
        work.peer.works.pop(work.request_id, None)
        if self._files is not None:
            self._files.leave(work)
        if self.draining:
            self._check_drained()

    # ---------------------------------------------------------------------- batches

    def _drop_unwanted(self) -> None:
        now = time.monotonic()
        for waiting in self._batcher.drop(lambda item: item.owner.is_unwanted(now)):
            self.fail(waiting.owner, _unwanted(waiting.owner))

    def run_waiting(self) -> None:
        """Form a batch of all that has come and is understood: now, if it takes next to no time."""
        if len(self._batcher):
            if self._pace.is_quick and not self._is_running:
                self._run_next()
            else:
                self._run_soon()

    def _run_soon(self) -> None:
        """Form a batch when other gateways' requests are read, too."""
        if not self._is_running and not self._is_run_planned:
            self._is_run_planned = True
            self.loop.call_soon(self._run_next)

    def _run_next(self) -> None:
        self._is_run_planned = False
        runtime = self._batch
        if self._is_running or runtime is None:
            return
        batch = self._take_batch()
        if not batch:
            return
        prepared = [waiting.prepared for waiting in batch]
        if self._pace.is_quick:
            self._finish_batch(batch, self._run_here(prepared), None)
            if len(self._batcher):
                self._run_soon()
            return
        self.busy.enter()
        self._is_running = True
        self.executor.submit(
            lambda: run_batch(runtime, prepared),
            lambda results, error: self._batch_done(batch, results, error),
        )

    def _run_here(self, prepared: Sequence[Prepared]) -> list[Any]:
        """Run on the loop: for what is quick, a hop to the executor and back costs more."""
        assert self._batch is not None
        self.busy.enter()
        begun = self.executor.begin()
        results = run_batch(self._batch, prepared)
        self._pace.note(self.executor.end(begun))
        self.busy.leave()
        return results

    def _take_batch(self) -> list[Waiting[Work]]:
        """The next batch, marked as started; what nobody waits for is left out."""
        while batch := self._batcher.take():
            now = time.monotonic()
            wanted: list[Waiting[Work]] = []
            for waiting in batch:
                work = waiting.owner
                if work.finished or work.is_cancelled or now > work.deadline:
                    self.fail(work, _unwanted(work))
                else:
                    wanted.append(waiting)
            if wanted:
                self._mark_started([waiting.owner for waiting in wanted], now)
                wanted = [each for each in wanted if not each.owner.peer.connection.closed]
            if wanted:
                return wanted
        return []

    def _batch_done(
        self,
        batch: list[Waiting[Work]],
        results: list[Any] | None,
        error: BaseException | None,
    ) -> None:
        self._is_running = False
        self._pace.note(self.executor.last_seconds)
        self.busy.leave()
        self._run_next()  # first: the executor works while this thread encodes
        self._finish_batch(batch, results, error)

    def _finish_batch(
        self,
        batch: list[Waiting[Work]],
        results: list[Any] | None,
        error: BaseException | None,
    ) -> None:
        """Encode what the model gave; small answers leave in one frame."""
        peers: set[Peer] = set()
        begun = max(waiting.owner.started for waiting in batch)
        for position, waiting in enumerate(batch):
            work = waiting.owner
            if error is not None or results is None:
                self.fail(work, failure_of(error))
                continue
            try:
                # one with items in earlier batches has run for longer: it is told by itself
                some = peers if work.is_gathered and work.started == begun else None
                self._take_result(work, waiting.index, results[position], some)
            except Exception as fault:  # noqa: BLE001 - a runtime may give anything; others go on
                self.fail(work, failure_of(fault))
        run_us = int((time.monotonic() - begun) * 1e6)
        is_held = self._may_hold_answers()
        for peer in peers:
            peer.send_gathered(run_us, is_held=is_held)
        if not is_held:
            self._let_go()
        elif self._letting_go is None:
            self._letting_go = self.loop.call_later(HELD_SECONDS, self._let_go)

    def _may_hold_answers(self) -> bool:
        """Whether answers may wait for those of the next batches.

        A worker that dies before has them repeated, so it must be allowed to answer twice.
        """
        return (
            self._is_running
            and self._is_idempotent
            and len(self._batcher) >= HELD_WAITING
            and self.executor.last_seconds < HELD_SECONDS
        )

    def _let_go(self) -> None:
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None
            for peer in self.peers:
                peer.send_gathered(0, is_held=False)

    def _take_result(self, work: Work, index: int, result: Any, peers: set[Peer] | None) -> None:
        if isinstance(result, ItemError):
            self.fail(work, Failure(result.code, result.message))
            return
        outputs = work.outputs
        outputs[index] = result
        work.usage = result.usage if len(outputs) == 1 else work.usage + result.usage
        work.remaining -= 1
        if not work.remaining:
            self.succeed(work, peers)

    # ---------------------------------------------------------------------- streams

    def _start_stream(self, work: Work, index: int, item: Any) -> None:
        stream = self.loop.create_task(self._stream(work, index, item))
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)

    async def _stream(self, work: Work, index: int, item: Any) -> None:
        outputs: list[Any] = []
        runtime = self._concurrent
        assert runtime is not None
        try:
            async with self._all_slots() if work.call.alone else self._slots:
                if work.is_unwanted(time.monotonic()):
                    self.fail(work, _unwanted(work))
                    return
                self._mark_started([work], time.monotonic())
                if work.peer.connection.closed:
                    self.fail(work, _unwanted(work))
                    return
                self.busy.enter()
                timer = self.loop.call_at(work.deadline, work.cancel)
                try:
                    async for output in runtime.stream(item, work.cancelled, work.call.tenant):
                        work.usage += output.usage
                        if work.encoder is not None:
                            self._send_event(work, index, output)
                        else:
                            outputs.append(output)
                finally:
                    timer.cancel()
                    self.busy.leave()
            if work.is_cancelled:
                self.fail(work, _unwanted(work))
                return
            self._item_done(work, index, outputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must end
            work.cancel()  # its other choices need not go on
            self.fail(work, failure_of(error))
        finally:
            self._streams_finished += 1

    @contextlib.asynccontextmanager
    async def _all_slots(self) -> AsyncGenerator[None]:
        """Let what runs end, and let nothing else begin."""
        assert self._concurrent is not None
        taken = 0
        try:
            async with self._alone:  # two that each had half of the slots would wait for ever
                for _ in range(self._concurrent.max_concurrency):
                    await self._slots.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._slots.release()

    def _send_event(self, work: Work, index: int, output: Any) -> None:
        assert work.encoder is not None
        event = work.encoder.event(index, output)
        if event and not work.finished:
            work.peer.connection.send(Kind.CHUNK, work.request_id, payload=event)

    def _item_done(self, work: Work, index: int, outputs: list[Any]) -> None:
        if work.encoder is None:
            join: Callable[[list[Any]], Any] | None = getattr(self.task, "join", None)
            work.outputs[index] = join(outputs) if join is not None else outputs[-1]
        work.remaining -= 1
        if not work.remaining:
            self.succeed(work)

    # ---------------------------------------------------------------------- the end

    async def drain(self) -> None:
        """Finish what was accepted, take nothing new, return when idle."""
        self.draining = True
        self._check_drained()
        await self._drained.wait()
        await asyncio.sleep(0)  # let the last frames leave
        await asyncio.gather(*(peer.connection.close_when_sent() for peer in self.peers))

    def _check_drained(self) -> None:
        if not any(peer.works for peer in self.peers):
            self._drained.set()


def _is_small(reply: Reply) -> bool:
    """Whether it may share a frame."""
    is_plain = reply.content_type == "application/json" and not reply.headers
    return is_plain and len(reply.body) <= SMALL_BYTES


def _attempt(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - carried to the loop, which ends the request
        return None, error


def _gist_of(work: Work) -> bytes:
    from wherry.models.tasks.gist import gist_of  # most workers are never asked

    try:
        return gist_of(work.outputs)
    except Exception:  # noqa: BLE001 - the answer is good whatever a plugin's struct looks like
        return b""


def _unwanted(work: Work) -> Failure:
    if time.monotonic() > work.deadline:
        return Failure("timed_out", "the deadline passed before the model answered")
    return Failure("cancelled", "the client went away")


def failure_of(error: BaseException | None) -> Failure:
    """An error as it crosses to the gateway; a bug is logged whole and told without detail."""
    if isinstance(error, errors.WherryError):
        retry_after = error.retry_after_seconds if isinstance(error, errors.TryLater) else 0.0
        return Failure(error.code, error.message, error.hint, error.param, retry_after)
    if error is not None:
        traceback.print_exception(error, file=sys.stderr)
    return Failure("model_failed", "the model failed on this input")
