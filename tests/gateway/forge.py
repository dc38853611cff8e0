"""Real worker processes that die by SIGKILL after so many bytes of what they say to gateways.

A process that has everything imported forks one worker after the other, so that hundreds of deaths
take seconds. Each runs the real `Worker` on a real Unix socket; only its `send` counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from wherry import frames
from wherry.control.placement.placement import WorkerHandle
from wherry.worker.spec import WorkerSpec

SCRIPT = '''
import asyncio, ctypes, json, os, signal, socket, sys
from wherry.worker.loop import Worker
from wherry.worker.runtimes import python_class
from wherry.worker.spec import WorkerConfig, WorkerSpec
from wherry.models.codecs.catalog import find_codec
import numpy

for each in ("inference", "openai.chat"):
    find_codec(each)


class DyingSocket:
    """Sends `budget` bytes in all; dies with the last of them, or when asked for more."""

    left = -1
    dies_late = False
    said = -1

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def sendmsg(self, pieces):
        return self.send(b"".join(pieces))

    def send(self, data):
        kind = type(self)
        if kind.left >= 0:
            data = bytes(data)[: kind.left]
            if not data:
                os.kill(os.getpid(), signal.SIGKILL)
        count = self._real.send(data)
        if kind.said >= 0:
            os.write(kind.said, bytes(data)[:count])
        if kind.left >= 0:
            kind.left -= count
            if not kind.left and not kind.dies_late:
                os.kill(os.getpid(), signal.SIGKILL)
        return count


async def work(order):
    DyingSocket.left, DyingSocket.dies_late = order["budget"], order["dies_late"]
    if order["said"]:
        DyingSocket.said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    spec = WorkerSpec(
        id=order["id"], deployment="default/model", model="model", version=1, digest="", files=(),
        token=bytes.fromhex(order["token"]), max_frame_credits=order["credits"],
    )
    worker = Worker(WorkerConfig(spec=spec, bundle_folder=order["bundle"]))
    await worker.load()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(order["address"])
    listener.listen()
    listener.setblocking(False)
    loop.add_reader(listener.fileno(), lambda: worker.connect(DyingSocket(listener.accept()[0])))
    os.write(1, f"{order['id']} {os.getpid()}\\n".encode())
    await stop.wait()
    loop.remove_reader(listener.fileno())
    listener.close()
    await worker.drain()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with the forge
        status = 1
        try:
            asyncio.run(work(json.loads(line)))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
'''


class Forge:
    """Makes workers; use `forge` to get one."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = 0
        self.said = folder / "said"
        self.living: list[int] = []

    async def start(
        self,
        bundle: Path,
        *,
        budget: int = -1,
        dies_late: bool = False,
        credits_: int = 64,
        keeps: bool = False,
    ) -> WorkerHandle:
        """A worker that listens.

        Args:
            bundle: what it serves.
            budget: bytes that it may send before it dies; -1 = any.
            dies_late: when it is about to send more, not at once.
            credits_: requests that a gateway may have there.
            keeps: write what it says into the file `said`.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        name, token = f"forged-{self._count}", secrets.token_bytes(32)
        address = str(self._folder / f"{self._count}.sock")
        order = {
            "id": name, "token": token.hex(), "address": address, "bundle": str(bundle),
            "budget": budget, "dies_late": dies_late, "credits": credits_,
            "said": str(self.said) if keeps else "",
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        told = (await self._process.stdout.readline()).split()
        assert told, "the forge has ended"
        assert told[0].decode() == name
        spec = WorkerSpec(
            id=name, deployment="default/model", model="model", version=1, digest="", files=(),
            token=token,
        )  # fmt: skip
        pid = int(told[1])
        self.living.append(pid)
        return WorkerHandle(name, 1, address, pid, spec)

    def kill(self, worker: WorkerHandle) -> None:
        """Let it be gone, if it is not."""
        self.living.remove(worker.pid)
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def ends_of_frames(self) -> list[int]:
        """Where the frames end that the worker with `keeps` has said, in bytes."""
        data, ends, position = self.said.read_bytes(), list[int](), 0
        while position + frames.PREFIX.size <= len(data):
            position += frames.PREFIX.size + frames.PREFIX.unpack_from(data, position)[0]
            ends.append(position)
        return ends


@asynccontextmanager
async def forge() -> AsyncIterator[Forge]:
    """A forge whose workers end with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        with tempfile.TemporaryDirectory(prefix="wherry-") as run_folder:
            yield Forge(process, Path(run_folder))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        await process.wait()
