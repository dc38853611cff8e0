"""A worker in the test's own process, and the other end of a connection that it trusts."""

from __future__ import annotations

import socket
from pathlib import Path

from wherry import frames
from wherry.worker.loop import Worker
from wherry.worker.spec import WorkerConfig, WorkerSpec


async def load_worker(bundle: Path) -> Worker:
    """The worker of a bundle's folder, loaded."""
    spec = WorkerSpec(
        id="w", deployment="default/model", model="model", version=1, digest="", files=(),
        token=b"t" * 32,
    )  # fmt: skip
    worker = Worker(WorkerConfig(spec=spec, bundle_folder=str(bundle)))
    await worker.load()
    return worker


def trusted_socket(worker: Worker) -> socket.socket:
    """A gateway's end of a connection whose hello is over; the worker has no other."""
    ours, theirs = socket.socketpair()
    worker.connect(theirs)
    (peer,) = worker.peers
    peer.is_trusted = True
    peer.connection.max_frame_bytes = frames.MAX_FRAME_BYTES
    return ours
