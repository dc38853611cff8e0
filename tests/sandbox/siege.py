"""Lets a hostile model loose on a data plane, and tells as JSON what it got and who still stands.

`python -m tests.sandbox.siege FOLDER [MODE [ATTACK…]]`; a process of its own, so that it can be
another user's. All attacks, unless some are named.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.data_plane import DataPlane, data_plane, write_model

ECHO = "class Model:\n    def predict(self, batch):\n        return batch\n"
HOSTILE = Path(__file__).with_name("hostile_model.py")


def listen(kind: int, family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, kind)
    listener.bind(address)
    if kind == socket.SOCK_STREAM:
        listener.listen()
    return listener


async def besiege(
    folder: Path, plane: DataPlane, mode: str = "auto", attacks: Sequence[str] = ()
) -> dict[str, Any]:
    data = folder / "blobs"
    data.mkdir()
    (data / "secret").write_text("pepper")
    outside = folder / "outside"
    outside.mkdir()
    (outside / "victim").write_text("whole")
    other = write_model(folder / "other", ECHO)
    neighbour = await plane.start_worker(other)
    tcp = listen(socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    stream = listen(socket.SOCK_STREAM, socket.AF_UNIX, str(folder / "stream.sock"))
    datagram = listen(socket.SOCK_DGRAM, socket.AF_UNIX, str(folder / "datagram.sock"))
    abstract = listen(socket.SOCK_STREAM, socket.AF_UNIX, f"\0wherry-{os.getpid()}")
    for each in (stream, datagram):
        Path(each.getsockname()).chmod(0o777)
    hostile = write_model(folder / "hostile", HOSTILE.read_text())
    targets = {
        "data": str(data), "secret": str(data / "secret"), "outside": str(outside),
        "victim": str(outside / "victim"), "other_bundle": str(other), "port": port,
        "supervisor": os.getpid(), "neighbour": neighbour.pid, "user": os.getuid(),
        "neighbour_socket": neighbour.address, "socket": str(folder / "stream.sock"),
        "datagram_socket": str(folder / "datagram.sock"), "abstract": f"wherry-{os.getpid()}",
        "home": str(Path.home()), "attacks": list(attacks),
    }  # fmt: skip
    (hostile / "targets.json").write_text(json.dumps(targets))
    worker = await plane.start_worker(hostile, memory_limit_mib=700, sandbox=mode)
    told = next(
        json.loads(line)
        for line in b"".join(plane.output).decode("utf-8", "replace").splitlines()
        if line.startswith('{"attacks"')
    )
    plane.route(worker)
    own = await plane.call(1.0)
    plane.route(neighbour)
    reports = [each.report for each in plane.events if each.id == worker.id and each.report]
    sandbox = next(each.sandbox for each in reports if each.sandbox is not None)
    scratch = plane.scratch / f"{worker.id}.{worker.generation}"
    existed = scratch.is_dir()
    result = {
        **told,
        "sandbox": msgspec.to_builtins(sandbox),
        "still_serves": own == [1.0],
        "neighbour_serves": await plane.call(2.0) == [2.0],
        "neighbour_pid_unchanged": not any(
            each.kind == "exited" for each in plane.events if each.id == neighbour.id
        ),
        "victim": (outside / "victim").read_text(),
        "outside": sorted(each.name for each in outside.iterdir()),
        "bundle_unchanged": (hostile / "model.py").read_text() == HOSTILE.read_text(),
        "got_a_datagram": _has_datagram(datagram),
    }
    await plane.placement.remove(worker, 5)
    result["scratch_came_and_went"] = existed and not scratch.exists()
    for each in (tcp, stream, datagram, abstract):
        each.close()
    return result


def _has_datagram(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        return bool(listener.recv(10))
    except BlockingIOError:
        return False


async def main(folder: Path, mode: str, attacks: Sequence[str]) -> None:
    async with data_plane(folder) as plane:
        try:
            print(json.dumps(await besiege(folder, plane, mode, attacks)))
        finally:
            reports = [each.report for each in plane.events if each.report is not None]
            print(*(each.detail for each in reports if each.detail), file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "auto", sys.argv[3:]))
