"""A controller, a gateway and the line between them in the test's own loop; workers are real."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.data_plane import PRINCIPAL, decode

from wherry import errors
from wherry.accounts.limits import KeyMeters
from wherry.accounts.teams import Teams
from wherry.client.schema import Deployment, DeploymentSpec, Rollout, WorkerInfo
from wherry.control.controller import Controller
from wherry.control.deployments import Deployments
from wherry.control.hub import Hub
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.control.placement.local import Folders, LocalPlacement
from wherry.doors.errors import status_of_code
from wherry.gateway.admit import Inbound
from wherry.gateway.predict import Gateway
from wherry.gateway.settle import Settler
from wherry.gateway.uplink import LoadReport, Uplink
from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.registry.registry import Registry
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.settings import Settings, resolve_secret, worker_environment
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Connection, Database
from wherry.storage.journal import JournalWriter
from wherry.telemetry import Registry as MetricsRegistry
from wherry.worker.sandbox.sandbox import Confinement, SandboxMode

ANY = (TensorSpec("X", "", ()),)
WAIT_SECONDS = 20.0


class BreakableDatabase(Database):
    """The real one, until it is away."""

    is_away = False

    @contextmanager
    def read(self) -> Generator[Connection]:
        if self.is_away:
            raise errors.Unavailable("the database is away")
        with super().read() as connection:
            yield connection

    def revisions(self) -> dict[str, int]:
        if self.is_away:
            raise errors.Unavailable("the database is away")
        return super().revisions()


class ControlPlane:
    """What a test drives."""

    def __init__(
        self, folder: Path, run_folder: Path, limit_mib: int, sandbox: SandboxMode
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.database = BreakableDatabase.for_folder(folder)
        self.database.migrate()
        self.team = Teams(self.database).ensure_team("default").id
        self.registry = Registry(self.database, LocalBlobs(folder / "blobs"), folder)
        self.registry.prepare_folder()
        self.deployments = Deployments(self.database, self.registry, MemoryBudget(1_000_000))
        self.logs = WorkerLogs(folder / "logs")
        self.placement = LocalPlacement(
            Folders(
                run=run_folder,
                blobs=folder / "blobs",
                bundles=folder / "bundles",
                environments=folder / "environments",
                scratch=folder / "scratch",
            ),
            worker_environment(),
            self.logs.write,
        )
        self.controller = Controller(
            database=self.database,
            deployments=self.deployments,
            placement=self.placement,
            budget=MemoryBudget(limit_mib),
            logs=self.logs,
            runtime_options={"allow_code": True},
            resolve_secret=resolve_secret,
            request_timeout_seconds=60.0,
            confinement=Confinement(sandbox),
        )
        self.hung: list[int] = []
        self.address = run_folder / "control.sock"
        self.hub = Hub(
            self.address,
            on_change=self.controller.wake_up,
            on_nudge=self.controller.nudge,
            on_wake=self.controller.wake,
            on_hung=self.controller.kill_hung,
            on_silent=self.hung.append,
            ask=self._answer,
            is_gateway=lambda pid: pid == os.getpid(),
        )
        self.controller.hub = self.hub
        self.journal = JournalWriter(folder / "journal", "gateway-0")
        self.settler = Settler(KeyMeters(), self.journal, MetricsRegistry(), status_of_code)
        self.gateway = Gateway("gateway 0", Settings(), self.settler, self._wake)
        self.uplink = Uplink(
            str(self.address),
            "gateway 0",
            os.getpid(),
            self.gateway.replace_routes,
            on_ended=self.gateway.deaths.note,
            on_poison=self.gateway.quarantine.learn,
        )
        self.gateway.tell_hung = self.uplink.tell_hung
        self.gateway.quarantine.tell_others = self.uplink.tell_poison
        self._principal = msgspec.structs.replace(PRINCIPAL, team_id=self.team)

    async def _answer(self, _question: Any) -> Any:
        return await self.controller.settle()

    def _wake(self, route: Any) -> None:
        self.uplink.wake(route)

    async def report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            used = {name: now - at for name, at in self.settler.last_used.items()}
            self.uplink.report(
                LoadReport(self.gateway.loads(), used, b"", self.gateway.version_loads())
            )

    def add_model(self, name: str, source: str, *, memory_mib: int = 10) -> int:
        """The number of a new version."""
        bundle = self.folder / "new"
        bundle.mkdir(exist_ok=True)
        manifest = Manifest(
            task="tensor",
            runtime="python_class",
            files=("model.py",),
            signature=Signature(ANY, ANY),
        )
        (bundle / "model.py").write_text(source)
        (bundle / "wherry.toml").write_text(encode_manifest(manifest))
        return self.registry.add_version(
            self.team, name, bundle, manifest, memory_mib=memory_mib, load_seconds=0.1
        ).number

    async def apply(self, name: str, **fields: Any) -> None:
        """Change a deployment, and return when gateways follow."""
        fields.setdefault("rollout", Rollout(keep_warm_seconds=0.0))
        self.deployments.apply(self.team, [DeploymentSpec(name=name, **fields)])
        await self.controller.settle()

    async def change(self, name: str, **fields: Any) -> None:
        """Change some fields of a deployment."""
        self.deployments.change(self.team, name, **fields)
        await self.controller.settle()

    def see(self, name: str) -> Deployment:
        """A deployment as it is."""
        return next(each for each in self.controller.describe(self.team) if each.name == name)

    def workers(self, state: str = "") -> list[WorkerInfo]:
        """Workers of all deployments."""
        found = self.controller.workers(self.team)
        return [each for each in found if not state or each.state == state]

    async def wait(self, what: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                seen = self.controller.describe(self.team), self.workers()
                raise AssertionError(f"it never came to be: {seen}")
            await asyncio.sleep(0.01)

    async def wait_ready(self, name: str, replicas: int = 1) -> None:
        """Wait until a deployment is ready."""
        await self.wait(
            lambda: self.see(name).state == "ready" and self.see(name).replicas_ready == replicas
        )
        await self.controller.catch_up()

    async def wait_serving(self, name: str, version: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until a version alone answers, and gateways know."""
        await self.wait(lambda: self.see(name).rollout.serving == [version], seconds)
        await self.controller.catch_up()

    async def call(self, name: str, value: float = 1.0, **changes: Any) -> float:
        """What a deployment answers to one number."""
        body = {"inputs": [{"name": "X", "shape": [1], "datatype": "FP64", "data": [value]}]}
        fields: dict[str, Any] = {
            "door": "inference",
            "request_id": f"req-{time.monotonic_ns()}",
            "principal": self._principal,
            "deployment": name,
            "codec": "inference",
            "body": msgspec.json.encode(body),
            "timeout_seconds": 20.0,
        }
        return decode(await self.gateway.predict(Inbound(**(fields | changes))).answer())[0]


@asynccontextmanager
async def control_plane(
    folder: Path, limit_mib: int = 0, sandbox: SandboxMode = "auto"
) -> AsyncIterator[ControlPlane]:
    """A control plane that ends with the test."""
    with tempfile.TemporaryDirectory(prefix="wherry-") as run_folder:
        plane = ControlPlane(folder, Path(run_folder), limit_mib, sandbox)
        loop = asyncio.get_running_loop()
        works = (
            plane.controller.run(),
            plane.gateway.run(),
            plane.uplink.run(),
            plane.report_for_ever(),
        )
        tasks = [loop.create_task(work) for work in works]
        try:
            await plane.uplink.has_routes.wait()
            yield plane
        finally:
            plane.gateway.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await plane.controller.close()
            await plane.placement.close()
            plane.hub.close()
            await plane.journal.close()
            plane.database.close()
            if sys.exc_info()[0] is not None:
                for log in (folder / "logs").glob("*.log"):
                    print(log.read_text()[-4000:])


def play(
    folder: Path,
    story: Callable[[ControlPlane], Coroutine[Any, Any, None]],
    limit_mib: int = 0,
    sandbox: SandboxMode = "auto",
) -> None:
    """Run a story in a control plane."""

    async def run() -> None:
        async with control_plane(folder / "data", limit_mib, sandbox) as plane:
            await story(plane)

    asyncio.run(run())
