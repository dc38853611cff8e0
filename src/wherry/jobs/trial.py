"""The one smoke inference: a model that loads but does not answer never becomes a version.

It runs in a worker of its own, started and spoken to exactly as a deployment's workers are.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from wherry import errors, frames
from wherry.control.memory import PROCESS_MIB, WEIGHT_FACTOR, MemoryBudget
from wherry.control.placement.local import Folders, LocalPlacement
from wherry.control.placement.placement import WorkerHandle, describe_exit
from wherry.frames import Call, Connection, Failure, Frame, Kind
from wherry.jobs.samples import make_sample, resize_sample
from wherry.models.bundle import Manifest
from wherry.models.tasks.task import Signature
from wherry.settings import Settings, worker_environment
from wherry.telemetry.log import escape_controls
from wherry.worker.sandbox.sandbox import Confinement
from wherry.worker.spec import Report, WorkerSpec

LOAD_SECONDS = 900.0
ANSWER_SECONDS = 180.0
STOP_SECONDS = 2.0
KEPT_OUTPUT_BYTES = 64 << 10
MAX_REASON_CHARACTERS = 400

CODE_RUNTIMES = frozenset({"python_class", "python_stream"})
"""Their refusal of an input that we made up says nothing against them."""
SAMPLE_HINT = "give one real input in wherry.toml: [sample]"

LAST_LINE = re.compile(r"^(?:\w+\.)*\w+(?:: .*)?$")
FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>.+)$')

encode_json = msgspec.json.Encoder().encode


class Measured(msgspec.Struct, frozen=True):
    """What a trial found out."""

    load_seconds: float
    memory_mib: int
    """Of the worker alone, after one answer."""
    sample: Mapping[str, Any]
    """The input that was answered; empty if none was."""
    signature: Signature | None = None
    """The model's tensors, where its manifest names none and the runtime found them."""


class Output:
    """The last of what the worker printed, and what its publisher may read of it."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def write(self, _spec: WorkerSpec, data: bytes) -> None:
        """Keep the newest."""
        self._pieces.append(data)
        self._size += len(data)
        while self._size > KEPT_OUTPUT_BYTES and len(self._pieces) > 1:
            self._size -= len(self._pieces.popleft())

    def last_exception(self) -> str:
        """`ValueError: bad (model.py, line 5)` of the last traceback; "" if there is none."""
        lines = b"".join(self._pieces).decode("utf-8", "replace").splitlines()
        starts = [at for at, line in enumerate(lines) if line.startswith("Traceback (most recent")]
        if not starts:
            return ""
        place, said = "", ""
        for line in lines[starts[-1] + 1 :]:
            found = FRAME.match(line)
            if found and Path(found["file"]).is_relative_to(self._bundle):
                name = Path(found["file"]).relative_to(self._bundle)
                place = f" ({name}, line {found['line']})"
            elif LAST_LINE.match(line):
                said = line
                break
        return said and self.hide_paths(said) + place

    def hide_paths(self, text: str) -> str:
        """Text of the model's without names of the server's folders."""
        for folder in (str(self._bundle), sys.prefix, sys.base_prefix, str(Path.home())):
            text = text.replace(f"{folder}/", "").replace(folder, "…")
        return escape_controls(" ".join(text.split()))[:MAX_REASON_CHARACTERS]


def try_model(
    bundle: Path, manifest: Manifest, settings: Settings, run_folder: Path, environment: str = ""
) -> Measured:
    """Load the bundle in a folder and let it answer its sample, or one made up.

    Args:
        bundle: its folder, with the manifest in it.
        manifest: what that says.
        settings: of the server.
        run_folder: short, private, for sockets and what the model writes.
        environment: digest of the Python environment; "" = the server's own.

    Raises:
        WherryError: it does not load or answer, and what it said.
    """
    check_memory(bundle)
    return asyncio.run(_Trial(bundle, manifest, settings, run_folder, environment).run())


def check_memory(bundle: Path) -> None:
    """`DoesNotFit` rather than a machine that swaps until something else is killed."""
    size_mib = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) >> 20
    need_mib = int(size_mib * WEIGHT_FACTOR) + PROCESS_MIB
    free_mib = free_memory_mib()
    if need_mib > free_mib:
        raise errors.DoesNotFit(
            f"the model cannot be tried: it needs about {need_mib} MiB "
            f"({size_mib} MiB of files x {WEIGHT_FACTOR} + {PROCESS_MIB}), {free_mib} MiB are free",
            hint="stop a deployment, then try again",
        )


def free_memory_mib() -> int:
    """Of this machine, now."""
    return psutil.virtual_memory().available >> 20


def runtime_options(settings: Settings) -> dict[str, Any]:
    """The operator's settings that runtimes must know."""
    return {
        "allow_pickle": settings.allow_pickle,
        "trusted_types": list(settings.trusted_sklearn_types),
    }


class _Trial:
    """One trial; see `try_model`."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        settings: Settings,
        run_folder: Path,
        environment: str,
    ) -> None:
        self._manifest = manifest
        self._output = Output(bundle)
        folder = settings.folder
        self._folders = Folders(
            run=run_folder,
            blobs=folder / "blobs",
            bundles=folder / "bundles",
            environments=folder / "environments",
            scratch=run_folder / "scratch",
        )
        self._spec = WorkerSpec(
            id="t-" + secrets.token_hex(4),
            deployment="default/trial",
            model="trial",
            version=0,
            digest="",
            files=(),
            bundle_folder=str(bundle),
            token=secrets.token_bytes(32),
            runtime_options=runtime_options(settings),
            environment=environment,
            runtime=manifest.runtime,
            sandbox=settings.sandbox,
            # its need is not known yet: all that there is
            memory_limit_mib=Confinement(
                worker_memory_mib=settings.worker_memory_mib or free_memory_mib()
            ).memory_limit_mib(0, MemoryBudget(settings.memory_limit_mib).limit_mib),
        )

    async def run(self) -> Measured:
        """Place, load, ask, measure, remove."""
        placement = LocalPlacement(self._folders, worker_environment(), self._output.write)
        begun = time.monotonic()
        handle = await placement.place(self._spec)
        try:
            ready = await _within(LOAD_SECONDS, self._wait_until_ready(placement), "to load")
            load_seconds = time.monotonic() - begun
            if ready.signature is not None:
                self._manifest = msgspec.structs.replace(self._manifest, signature=ready.signature)
            if self._manifest.runtime == "upstream":
                # the operator's key for that server belongs to deployments, not to imports
                return Measured(load_seconds, ready.memory_mib, self._manifest.sample)
            sample = await self._ask_while_alive(handle, placement)
            memory_mib = memory_of_process(handle.pid) or ready.memory_mib
            return Measured(load_seconds, memory_mib, sample, ready.signature)
        finally:
            await placement.close(STOP_SECONDS)

    # ------------------------------------------------------------------ loading

    async def _wait_until_ready(self, placement: LocalPlacement) -> Report:
        told = Report(state="loading")
        async for event in placement.watch():
            if event.report is not None:
                told = event.report
            if event.kind == "ready":
                return told
            if event.kind != "exited":
                continue
            # only now: what it printed before its end has been read
            if told.state == "failed":
                raise self._load_failure(told)
            raise self._death("while it loaded", event.status)
        raise AssertionError("a placement's events do not end")

    async def _wait_until_dead(self, placement: LocalPlacement) -> Mapping[str, Any]:
        async for event in placement.watch():
            if event.kind == "exited":
                raise self._death("before it answered", event.status)
        raise AssertionError("a placement's events do not end")

    def _load_failure(self, told: Report) -> errors.WherryError:
        code, _, message = told.detail.partition(": ")
        hide = self._output.hide_paths
        if code in ("model_failed", "internal"):
            said = self._output.last_exception() or hide(message)
            return errors.ModelFailed(
                f"the model does not load: {said}", hint="load it where it was made, then compare"
            )
        return errors.from_code(code, f"the model does not load: {hide(message)}", hide(told.hint))

    def _death(self, when: str, status: int | None) -> errors.WherryError:
        said = self._output.last_exception()
        return errors.ModelFailed(
            f"the model's process ended {when}: {describe_exit(status)}"
            + (f": {said}" if said else ""),
            hint="is there enough memory for it?" if status == -9 else "",
        )

    # ------------------------------------------------------------------ asking

    async def _ask_while_alive(
        self, handle: WorkerHandle, placement: LocalPlacement
    ) -> Mapping[str, Any]:
        """Ask; if the process dies over it, tell that rather than that the line broke."""
        asking = asyncio.ensure_future(self._ask_samples(handle))
        dying = asyncio.ensure_future(self._wait_until_dead(placement))
        try:
            await asyncio.wait([asking, dying], return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not isinstance(asking.exception(), errors.WorkerLost):
                return asking.result()
            return await _within(STOP_SECONDS, dying, "to end")
        finally:
            asking.cancel()
            dying.cancel()
            await asyncio.gather(asking, dying, return_exceptions=True)

    async def _ask_samples(self, handle: WorkerHandle) -> Mapping[str, Any]:
        """The sample that was answered; raises if none was."""
        given = self._manifest.sample
        sample = given or make_sample(self._manifest)
        if sample is None:
            raise errors.InvalidInput("no input can be made up to try this model", hint=SAMPLE_HINT)
        client = TrialClient(handle)
        try:
            await client.connect()
            failure = await self._ask(client, sample)
            if failure is not None and not given and (wider := _resize(sample, failure)):
                sample, failure = wider, await self._ask(client, wider)
        finally:
            client.close()
        if failure is None:
            return sample
        if not given and failure.code == "invalid_input":
            if self._manifest.runtime in CODE_RUNTIMES:
                return {}
            raise errors.InvalidInput(
                f"the model refused the input that was made up to try it: {failure.message}",
                hint=SAMPLE_HINT,
            )
        raise self._answer_failure(failure)

    async def _ask(self, client: TrialClient, sample: Mapping[str, Any]) -> Failure | None:
        return await _within(ANSWER_SECONDS, client.ask(encode_json(sample)), "to answer")

    def _answer_failure(self, failure: Failure) -> errors.WherryError:
        hide = self._output.hide_paths
        said = hide(failure.message)
        if failure.code in ("model_failed", "internal"):
            said = self._output.last_exception() or said
        return errors.from_code(
            failure.code, f"the model does not answer its sample: {said}", hide(failure.hint)
        )


def _resize(sample: Mapping[str, Any], failure: Failure) -> dict[str, Any] | None:
    if failure.code != "invalid_input":
        return None
    return resize_sample(sample, failure.message)


async def _within(seconds: float, work: Any, what: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise errors.TimedOut(f"the model took over {seconds:g} s {what}") from error


def memory_of_process(pid: int) -> int:
    """MiB of a process alone, shared pages counted by share; 0 if it cannot be known."""
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(memory, "pss", 0) or getattr(memory, "uss", 0)) >> 20


class TrialClient:
    """Speaks to one worker as a gateway does: mutual hello, one request at a time."""

    def __init__(self, handle: WorkerHandle) -> None:
        self._handle = handle
        self._nonce = secrets.token_bytes(16)
        self._connection: Connection | None = None
        self._answer: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self._number = 0

    async def connect(self) -> None:
        """Connect and prove who we are."""
        loop = asyncio.get_running_loop()
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.setblocking(False)
        try:
            await loop.sock_connect(connected, self._handle.address)
        except OSError as error:
            connected.close()
            raise errors.WorkerLost("the model's process does not listen") from error
        self._connection = Connection(connected, self._on_frame, self._on_close)
        self._connection.send(
            Kind.HELLO, header=frames.Hello(frames.VERSION, "trial", self._nonce), now=True
        )
        await _within(ANSWER_SECONDS, self._answer, "to say hello")

    async def ask(self, body: bytes) -> Failure | None:
        """Send one plain object; None when it was answered."""
        assert self._connection is not None
        self._number += 1
        self._answer = asyncio.get_running_loop().create_future()
        call = Call(
            codec="predict",
            request_id="trial",
            deployment="trial",
            version="0",
            created=int(time.time()),
            headers={"content-type": "application/json"},
            deadline_ms=int(ANSWER_SECONDS * 1000),
        )
        self._connection.send(Kind.REQUEST, self._number, call, body)
        return await self._answer

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
        if self._answer.done() and not self._answer.cancelled():
            self._answer.exception()  # nobody may be left to hear it

    def _on_frame(self, frame: Frame) -> None:
        try:
            self._handle_frame(frame)
        except (msgspec.DecodeError, ValueError) as error:
            self._fail(errors.ModelFailed(f"the model's process does not speak well: {error}"))

    def _handle_frame(self, frame: Frame) -> None:
        assert self._connection is not None
        if frame.kind == Kind.CHALLENGE:
            challenge = msgspec.msgpack.decode(frame.header, type=frames.Challenge)
            self._connection.send(Kind.PROOF, header=frames.Proof(self._prove(challenge)), now=True)
        elif frame.kind == Kind.READY or (
            frame.kind == Kind.RESULT and frame.request_id == self._number
        ):
            self._succeed(None)
        elif frame.kind == Kind.FAILURE and frame.request_id == self._number:
            self._succeed(msgspec.msgpack.decode(frame.header, type=Failure))

    def _prove(self, challenge: frames.Challenge) -> bytes:
        spec = self._handle.spec
        theirs = frames.prove(spec.token, "worker", spec.id, self._nonce, challenge.nonce)
        if not hmac.compare_digest(theirs, challenge.proof):
            raise ValueError("another process answers in its place")
        return frames.prove(spec.token, "gateway", spec.id, challenge.nonce, self._nonce)

    def _on_close(self) -> None:
        self._fail(errors.WorkerLost("the model's process closed the connection"))

    def _succeed(self, failure: Failure | None) -> None:
        if not self._answer.done():
            self._answer.set_result(failure)

    def _fail(self, error: errors.WherryError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)
