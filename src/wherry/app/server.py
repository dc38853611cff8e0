"""The main process: supervisor, controller and job queue, with all others as its children."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from wherry import __version__, errors
from wherry.accounts.keys import Keys
from wherry.accounts.ledger import Ledger
from wherry.app.addresses import check_exposure, grpc_address, listen, reserve_grpc_port, url_of
from wherry.app.folders import lock_data, short_folder
from wherry.app.process import loop_factory, set_title
from wherry.client.local import LocalServer, remove_server, write_server
from wherry.client.schema import Deployment
from wherry.control.controller import Controller
from wherry.control.deployments import Deployments
from wherry.control.hub import Hub
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.control.metrics import MetricsHistory
from wherry.control.placement.local import Folders, LocalPlacement
from wherry.control.supervisor import Supervisor
from wherry.gateway.uplink import Question
from wherry.jobs.queue import JobQueue
from wherry.jobs.trial import runtime_options
from wherry.models.registry.registry import Registry
from wherry.settings import Settings, resolve_secret, worker_environment
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database, prepare_folder
from wherry.storage.responses import ResponseStore
from wherry.telemetry import configure_logging, get_logger
from wherry.worker.sandbox.probe import probe_sandbox
from wherry.worker.sandbox.sandbox import Confinement, Sandbox

log = get_logger("app")

COLLECT_SECONDS = 0.5
INGEST_SECONDS = 1.0
SWEEP_SECONDS = 60.0
"""How often stored responses that have expired are deleted."""
RATE_SECONDS = 15.0
"""What `wherry top` calls now: three points of the history."""


def serve(
    settings: Settings, *, demo: bool = False, on_ready: Callable[[str, str], None] | None = None
) -> int:
    """Run a server until SIGTERM or Ctrl-C; the exit status.

    Args:
        settings: of this server.
        demo: allow code, for the demo's own echo model.
        on_ready: called with URL and local key when requests are accepted.

    Raises:
        WherryError: it cannot start, and why.
    """
    if demo:
        settings = msgspec.structs.replace(settings, allow_code=True)
    check_exposure(settings)
    configure_logging(settings.log_level, settings.log_format, "supervisor")
    os.umask(0o077)
    prepare_folder(settings.folder)
    with lock_data(settings.folder) as lock, short_folder(lock) as run_folder:
        listener = listen(settings)
        settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
        reserved = reserve_grpc_port(settings)
        if reserved is not None:
            settings = msgspec.structs.replace(settings, grpc_port=reserved.getsockname()[1])
        set_title("wherry: supervisor")
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(Server(settings, run_folder, listener, on_ready).run())


class Server:
    """The main process's parts, and their order of start and end."""

    def __init__(
        self,
        settings: Settings,
        run_folder: Path,
        listener: socket.socket,
        on_ready: Callable[[str, str], None] | None,
    ) -> None:
        self._settings = settings
        self._run_folder = run_folder
        self._listener = listener
        self._on_ready = on_ready
        self._started_at = time.time()
        self._sandbox: Sandbox | None = None
        """What holds models here, once it has been tried."""

    async def run(self) -> int:
        """Start everything, wait for a signal, end everything."""
        settings, folder = self._settings, self._settings.folder
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._database = Database.for_folder(folder, settings.database_url)
        self._database.migrate()
        key = Keys.for_folder(self._database, folder).ensure_bootstrap(
            folder / "secrets", settings.admin_key or None
        )
        control_address = self._run_folder / "control.sock"
        supervisor = Supervisor(settings, self._listener, str(control_address))
        self._build(control_address, supervisor)
        tasks = [
            loop.create_task(work)
            for work in (
                self._controller.run(),
                supervisor.run(),
                self._jobs.run(),
                self._ingest_for_ever(),
                self._collect_metrics(),
                self._probe_sandbox(),
                self._sweep_responses(),
            )
        ]
        url = url_of(settings)
        grpc = grpc_address(settings)
        server_file = write_server(
            LocalServer(url, key, str(folder), os.getpid(), __version__, grpc)
        )
        ready = loop.create_task(self._announce(url, key))
        try:
            await wait_for_first([loop.create_task(stop.wait()), *tasks])
        finally:
            remove_server(server_file, os.getpid())
            ready.cancel()
            await supervisor.stop()
            await self._jobs.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._controller.close()
            await self._placement.close()
            self._hub.close()
            await self._try("ingest the journal", self._ledger.ingest)
            self._database.close()
        return 0

    def _build(self, control_address: Path, supervisor: Supervisor) -> None:
        settings, folder = self._settings, self._settings.folder
        blobs = LocalBlobs(folder / "blobs")
        registry = Registry(self._database, blobs, folder)
        registry.prepare_folder()
        budget = MemoryBudget(settings.memory_limit_mib)
        self._deployments = Deployments(self._database, registry, budget)
        logs = WorkerLogs(folder / "logs")
        self._metrics = MetricsHistory()
        self._ledger = Ledger(self._database, folder / "journal")
        self._placement = LocalPlacement(
            folders_of(settings, self._run_folder), worker_environment(), logs.write
        )
        self._controller = Controller(
            database=self._database,
            deployments=self._deployments,
            placement=self._placement,
            budget=budget,
            logs=logs,
            runtime_options=runtime_options(settings),
            resolve_secret=resolve_secret,
            request_timeout_seconds=settings.stream_timeout_seconds,
            confinement=Confinement(settings.sandbox, settings.worker_memory_mib),
        )
        self._budget = budget
        self._jobs = JobQueue(self._database, settings, self._run_folder)
        self._hub = Hub(
            control_address,
            on_change=self._controller.wake_up,
            on_nudge=self._nudge,
            on_wake=self._controller.wake,
            on_hung=self._controller.kill_hung,
            on_silent=supervisor.end_hung,
            ask=self._answer,
            is_gateway=supervisor.is_gateway,
        )
        self._controller.hub = self._hub

    def _nudge(self) -> None:
        self._controller.nudge()
        self._jobs.nudge()

    async def _announce(self, url: str, key: str) -> None:
        await self._hub.first_acknowledgement.wait()
        log.info("ready", url=url, pid=os.getpid())
        if grpc := grpc_address(self._settings):
            log.info("speaks gRPC", address=grpc)
        if self._on_ready is not None:
            self._on_ready(url, key)

    async def _probe_sandbox(self) -> None:
        if self._settings.sandbox != "off":
            self._sandbox = await asyncio.to_thread(probe_sandbox)
        await asyncio.Event().wait()  # the end of a part ends the server

    async def _ingest_for_ever(self) -> None:
        while True:
            await asyncio.sleep(INGEST_SECONDS)
            await self._try("ingest the journal", self._ledger.ingest)

    async def _sweep_responses(self) -> None:
        store = ResponseStore.of(self._settings, self._database)
        while True:
            await self._try("sweep stored responses", store.sweep)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _try(self, what: str, work: Callable[[], object]) -> None:
        """Do in a thread what is tried again later: its failure must not end the server."""
        try:
            await asyncio.to_thread(work)
        except errors.WherryError as error:
            log.warning("cannot do it now", what=what, error=error.message)
        except Exception:
            log.exception("cannot do it now", what=what)

    async def _collect_metrics(self) -> None:
        known: set[str] = set()
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            present = {f"{line.name} {line.pid}" for line in self._hub.lines}
            for gone in known - present:
                self._metrics.forget(gone)
            known = present
            for line in self._hub.lines:
                if line.load is not None:
                    self._metrics.take(f"{line.name} {line.pid}", line.load.metrics)
            self._metrics.tick()

    async def _answer(self, question: Question) -> Any:
        """What only this process knows, for the gateways' doors."""
        given = question.arguments
        if question.what == "deployments":
            await self._controller.catch_up()  # "ready" means that a call answers
            return msgspec.to_builtins(self._describe(given["team_id"]))
        if question.what == "workers":
            return msgspec.to_builtins(self._controller.workers(given["team_id"]))
        if question.what == "metrics":
            points = self._metrics.points(
                given["deployment"], given["window_seconds"], given["points"]
            )
            return msgspec.to_builtins(points)
        if question.what == "counts":
            return msgspec.msgpack.encode(self._metrics.total())
        if question.what == "overview":
            return self._overview(given["team_id"])
        if question.what == "settle":
            return await self._controller.settle()
        if question.what == "order":
            return await self._controller.order(given["team_id"], given["name"], given["order"])
        if question.what == "switch":
            await asyncio.to_thread(
                self._deployments.change, given["team_id"], given["name"], stopped=given["stopped"]
            )
            return await self._controller.settle()
        if question.what == "batch":
            caller = self._jobs.find_caller(given["token"])
            if caller is None:
                raise errors.NotFound("no runner has this token")
            return msgspec.to_builtins(caller)
        raise errors.NotFound(f"nothing is known of {question.what!r}")

    def _describe(self, team_id: str) -> list[Deployment]:
        """A team's deployments, with how they did in the last seconds."""
        found = self._controller.describe(team_id)
        for each in found:
            points = self._metrics.points(f"{each.team}/{each.name}", RATE_SECONDS, 1)
            for point in points[-1:]:
                each.load.requests_per_second = round(point.requests / RATE_SECONDS, 2)
                each.load.errors_per_second = round(point.errors / RATE_SECONDS, 2)
                each.load.latency_ms_p50 = point.latency_ms_p50
                each.load.latency_ms_p95 = point.latency_ms_p95
        return found

    def _overview(self, team_id: str) -> dict[str, Any]:
        mine = self._controller.describe(team_id)
        requests, failed = self._metrics.last_hour(f"{each.team}/{each.name}" for each in mine)
        return {
            "started_at": self._started_at,
            "memory_used_mib": self._controller.memory_used_mib(),
            "memory_limit_mib": self._budget.limit_mib,
            "requests_last_hour": requests,
            "errors_last_hour": failed,
            "sandbox": msgspec.to_builtins(self._sandbox),
            "running": self._controller.calibrations(team_id),
        }


def folders_of(settings: Settings, run_folder: Path) -> Folders:
    """Where a placement of this server finds things."""
    folder = settings.folder
    return Folders(
        run=run_folder,
        blobs=folder / "blobs",
        bundles=folder / "bundles",
        environments=folder / "environments",
        scratch=run_folder / "scratch",
    )


async def wait_for_first(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until one ends; if it failed, raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
