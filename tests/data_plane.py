"""A gateway's data plane in the test's own loop, with real workers, journal and keys' limits."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from wherry.accounts.keys import Principal
from wherry.accounts.limits import KeyMeters
from wherry.client.schema import KeyLimits
from wherry.control.placement.local import Folders, LocalPlacement
from wherry.control.placement.placement import WorkerEvent, WorkerHandle
from wherry.doors.errors import status_of_code
from wherry.gateway.admit import Inbound
from wherry.gateway.exchange import Answer
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute, Snapshot, VersionRoute, WorkerRoute
from wherry.gateway.settle import Settler
from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.settings import Settings, worker_environment
from wherry.storage.journal import JournalWriter, OutcomeRecord, read_segment
from wherry.telemetry import Registry
from wherry.worker.spec import WorkerSpec

PRINCIPAL = Principal("key-1", "team-1", "default", frozenset({"invoke"}))
ANY = (TensorSpec("X", "", ()),)


def write_model(folder: Path, source: str, *, idempotent: bool = True) -> Path:
    """A bundle whose model is the Python class in `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        task="tensor",
        runtime="python_class",
        files=("model.py",),
        signature=Signature(ANY, ANY),
        idempotent=idempotent,
    )
    (folder / "model.py").write_text(source)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


class DataPlane:
    """What a test drives."""

    patience_seconds = 20
    """For a worker to become ready; large frameworks need more."""

    def __init__(self, folder: Path, run_folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.scratch = run_folder / "scratch"
        """As in a server: short, since sockets lie in it."""
        folders = Folders(
            run=run_folder,
            blobs=folder / "blobs",
            bundles=folder / "bundles",
            environments=folder / "environments",
            scratch=self.scratch,
        )
        self.output: list[bytes] = []
        self.placement = LocalPlacement(
            folders, worker_environment(), lambda _, data: self.output.append(data)
        )
        self.journal = JournalWriter(folder / "journal", "gateway-0")
        self.woken: list[str] = []
        settler = Settler(KeyMeters(), self.journal, Registry(), status_of_code)
        self.gateway = Gateway(
            "gateway 0", settings, settler, lambda route: self.woken.append(route.name)
        )
        self.events: list[WorkerEvent] = []
        self._epoch = 0
        self._count = 0

    async def listen(self) -> None:
        async for event in self.placement.watch():
            self.events.append(event)

    async def wait_for(self, worker: WorkerHandle, kind: str) -> WorkerEvent:
        """The first event of a kind that a worker has had."""
        for _ in range(self.patience_seconds * 100):
            for event in self.events:
                if event.id == worker.id and event.kind == kind:
                    return event
                if event.id == worker.id and event.kind == "exited":
                    raise AssertionError(b"".join(self.output).decode("utf-8", "replace"))
            await asyncio.sleep(0.01)
        raise AssertionError(f"worker {worker.id} was never {kind}")

    async def start_worker(self, bundle: Path, **changes: Any) -> WorkerHandle:
        """A worker that is ready; `changes` are fields of its spec."""
        self._count += 1
        spec = WorkerSpec(
            id=f"w{self._count}",
            deployment="default/model",
            model="model",
            version=1,
            digest="",
            files=(),
            bundle_folder=str(bundle),
            token=secrets.token_bytes(32),
        )
        spec = msgspec.structs.replace(spec, **changes)
        worker = await self.placement.place(spec)
        await self.wait_for(worker, "ready")
        return worker

    def route(
        self,
        *workers: WorkerHandle,
        number: int = 1,
        beside: Sequence[DeploymentRoute] = (),
        **changes: Any,
    ) -> None:
        """Let deployment `model` be served by these workers, and others be there beside it."""
        self._epoch += 1
        idempotent = changes.pop("idempotent", True)
        version = version_route(*workers, number=number, idempotent=idempotent)
        fields: dict[str, Any] = {
            "name": "model", "state": "ready", "cause": "", "retry_after_seconds": 1.0,
            "versions": (version,),
        }  # fmt: skip
        deployment = DeploymentRoute(
            team_id="team-1", team="default", created_at=0.0, **(fields | changes)
        )
        self.gateway.replace_routes(Snapshot(self._epoch, (deployment, *beside)))

    async def wait_for_links(self, count: int) -> None:
        """Return when so many workers have shaken hands with the gateway."""
        for _ in range(1000):
            queues = self.gateway._queues.values()
            if sum(link.is_ready for queue in queues for link in queue.links.values()) == count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"fewer than {count} workers are linked")

    def inbound(self, value: Any, **changes: Any) -> Inbound:
        """A request that sends one FP64 value (or more) as tensor X."""
        values = value if isinstance(value, list) else [value]
        body = {
            "inputs": [{"name": "X", "shape": [len(values)], "datatype": "FP64", "data": values}]
        }
        self._count += 1
        fields: dict[str, Any] = {
            "door": "inference",
            "request_id": f"req-{self._count}",
            "principal": PRINCIPAL,
            "deployment": "model",
            "codec": "inference",
            "body": msgspec.json.encode(body),
        }
        return Inbound(**(fields | changes))

    async def call(self, value: Any, **changes: Any) -> list[float]:
        """The tensor that comes back."""
        answer = await self.gateway.predict(self.inbound(value, **changes)).answer()
        return decode(answer)

    async def records(self) -> list[OutcomeRecord]:
        """Everything the journal holds."""
        await self.journal.close()
        return [
            record
            for path in (self.folder / "journal" / "gateway-0").glob("*.journal")
            for record, _ in read_segment(path, 0)
        ]


def version_route(
    *workers: WorkerHandle, number: int = 1, weight: int = 100, idempotent: bool = True
) -> VersionRoute:
    """A version of `model` that these workers serve."""
    routes = tuple(
        WorkerRoute(each.id, each.generation, each.address, each.spec.token) for each in workers
    )
    return VersionRoute(
        "model", number, f"sha256:{number}", "tensor", "python_class", weight, idempotent,
        routes, (), (),
    )  # fmt: skip


def decode(answer: Answer) -> list[float]:
    """The data of the first output."""
    return msgspec.json.decode(answer.body)["outputs"][0]["data"]


def limited(**limits: int) -> Principal:
    """A key with limits."""
    return msgspec.structs.replace(PRINCIPAL, key_id="key-2", limits=KeyLimits(**limits))


@asynccontextmanager
async def data_plane(folder: Path, **settings: Any) -> AsyncIterator[DataPlane]:
    """A data plane whose workers end with the test."""
    with tempfile.TemporaryDirectory(prefix="wherry-") as run_folder:
        plane = DataPlane(folder, Path(run_folder), Settings(**settings))
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(plane.gateway.run()), loop.create_task(plane.listen())]
        try:
            yield plane
        finally:
            plane.gateway.close()
            await plane.placement.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await plane.journal.close()
            if sys.exc_info()[0] is not None:
                print(b"".join(plane.output).decode("utf-8", "replace")[-4000:])


Story = Callable[[DataPlane], Coroutine[Any, Any, None]]


def play(folder: Path, story: Story, **settings: Any) -> None:
    """Run a story on a data plane of its own."""

    async def run() -> None:
        async with data_plane(folder, **settings) as plane:
            await story(plane)

    asyncio.run(run())
