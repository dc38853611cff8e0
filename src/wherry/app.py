"""Joins the parts; the only file that knows them all.

`serve` is the main process (supervisor, controller, job queue); `python -m wherry.app` with an
order is a gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from wherry import __version__, errors
from wherry.accounts.keys import Keys
from wherry.accounts.ledger import Ledger
from wherry.client.local import LocalServer, remove_server, write_server
from wherry.client.schema import Deployment
from wherry.control.controller import Controller
from wherry.control.deployments import Deployments
from wherry.control.hub import Hub
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.control.metrics import MetricsHistory
from wherry.control.placement.local import Folders, LocalPlacement
from wherry.control.supervisor import UNFIT_STATUS, GatewayOrder, Supervisor
from wherry.gateway.uplink import LoadReport, Question, Uplink
from wherry.jobs.batches.batches import Batches
from wherry.jobs.files.files import Files
from wherry.jobs.queue import JobQueue
from wherry.jobs.trial import runtime_options
from wherry.memory import settle_memory
from wherry.models.registry.registry import Registry
from wherry.settings import Settings, resolve_secret, worker_environment
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database, prepare_folder
from wherry.storage.responses import ResponseStore
from wherry.telemetry import configure_logging, get_logger
from wherry.worker.launcher import die_with_parent
from wherry.worker.sandbox.probe import probe_sandbox
from wherry.worker.sandbox.sandbox import Confinement, Sandbox

log = get_logger("app")

REPORT_SECONDS = 0.5
INGEST_SECONDS = 1.0
SWEEP_SECONDS = 60.0
"""How often stored responses that have expired are deleted."""
RATE_SECONDS = 15.0
"""What `wherry top` calls now: three points of the history."""
RUN_PREFIX = "wherry-run-"
BACKLOG = 2048
STOP_SECONDS = 20
CLEAN_UP_SECONDS = 8
"""What a gateway may take to end after its requests have; the supervisor kills it later still."""
ROUTES_SECONDS = 10
SPARE_FILES = 256
"""Descriptors that connections leave to links, journal and database."""


# ------------------------------------------------------------------------------ main process


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
        store = response_store(self._settings, self._database)
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
            await asyncio.sleep(REPORT_SECONDS)
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


def response_store(settings: Settings, database: Database) -> ResponseStore:
    """Where all processes of this server keep responses."""
    return ResponseStore(
        database,
        LocalBlobs(settings.folder / "responses"),
        settings.responses_kept_days * 86_400,
        settings.responses_mib_per_team << 20,
    )


# ------------------------------------------------------------------------------ start-up


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without TLS or a proxy."""
    has_tls = bool(settings.tls_cert and settings.tls_key)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise errors.InvalidInput("tls_cert and tls_key belong together")
    if is_loopback(settings.host) or has_tls or settings.behind_proxy:
        return
    raise errors.InvalidInput(
        f"listening on {settings.host!r} without TLS would show keys to the network",
        hint="give --tls-cert and --tls-key, or --behind-proxy if one terminates TLS",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """The socket all gateways share."""
    listener = bind(settings.host, settings.port, "--port")
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def reserve_grpc_port(settings: Settings) -> socket.socket | None:
    """A socket that keeps the gRPC port for our gateways; None if there is no such door.

    gRPC takes no socket that is open already: each gateway binds its own to the port, which the
    kernel allows from now on to processes of this user, and to no other server before.

    Raises:
        MissingExtra: its package is not installed.
    """
    if settings.grpc_port is None:
        return None
    if importlib.util.find_spec("grpc") is None:
        raise errors.MissingExtra(
            "the gRPC door needs the package 'grpcio'", hint="pip install 'wherry[grpc]'"
        )
    reserved = bind(settings.host, settings.grpc_port, "--grpc-port")
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def bind(host: str, port: int, flag: str) -> socket.socket:
    """A socket at an address; a taken port is said plainly, with a free one for the flag."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise errors.Conflict(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint=f"wherry serve {flag} {next_free_port(host, port)}",
        ) from error
    return bound


def next_free_port(host: str, port: int) -> int:
    """The first free port above one that is taken; 0 if none of the next 100 is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port + 1, min(port + 101, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    return 0


def url_of(settings: Settings) -> str:
    """Where clients of this machine reach the server."""
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{near_host(settings)}:{settings.port}"


def grpc_address(settings: Settings) -> str:
    """The same for gRPC, whose clients want no scheme; empty if there is no such door."""
    return "" if settings.grpc_port is None else f"{near_host(settings)}:{settings.grpc_port}"


def near_host(settings: Settings) -> str:
    """The host by which this machine's clients reach the server, as addresses have it."""
    host = settings.host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def lock_data(folder: Path) -> Any:
    """One server per data folder; the lock goes with the process.

    Yields the file; what a server that was killed wrote there is still in it.
    """
    import fcntl

    with (folder / "serve.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.Conflict(
                f"another server uses the data folder {str(folder)!r}",
                hint="stop it, or give --data another folder",
            ) from error
        yield file


@contextlib.contextmanager
def short_folder(lock: Any) -> Any:
    """A private folder for sockets; short, as their paths may have 107 bytes only.

    Its name is kept in the lock file, so that the next start removes what a kill left behind.
    """
    lock.seek(0)
    left_behind = Path(lock.read().strip() or "none")
    if left_behind.name.startswith(RUN_PREFIX) and left_behind.parent == Path(
        tempfile.gettempdir()
    ):
        shutil.rmtree(left_behind, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=RUN_PREFIX))
    lock.truncate(0)
    lock.write(str(folder))
    lock.flush()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def set_title(title: str) -> None:
    """Say in the process list what this process is."""
    from setproctitle import setproctitle

    setproctitle(title)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it exists."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


async def wait_for_first(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until one ends; if it failed, raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


# ------------------------------------------------------------------------------ gateway process


def run_gateway(order: GatewayOrder, listener: socket.socket) -> None:
    """A gateway process, until SIGTERM."""
    settings = order.settings
    configure_logging(settings.log_level, settings.log_format, order.name)
    set_title(f"wherry: {order.name}")
    os.umask(0o077)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve_gateway(order, listener))


async def _serve_gateway(order: GatewayOrder, listener: socket.socket) -> None:
    await GatewayProcess(order, listener).run()


class GatewayProcess:
    """The parts of a gateway: doors over the data plane, and its lines to the rest."""

    def __init__(self, order: GatewayOrder, listener: socket.socket) -> None:
        # imported here: the main process has no use for the doors
        from wherry.accounts.limits import KeyMeters
        from wherry.accounts.secret_files import load_pepper
        from wherry.doors.batch_lines import BatchLines
        from wherry.doors.errors import status_of_code
        from wherry.doors.inference_models import InferenceModels
        from wherry.doors.route import Doors, Row
        from wherry.gateway.authenticate import Authenticator
        from wherry.gateway.predict import Gateway
        from wherry.gateway.settle import Settler
        from wherry.jobs.batches.wire import socket_of
        from wherry.storage.journal import JournalWriter
        from wherry.telemetry import Registry as MetricsRegistry

        settings, folder = order.settings, order.settings.folder
        self._settings = settings
        self._listener = listener
        self._database = Database.for_folder(folder, settings.database_url)
        self._authenticator = Authenticator(self._database, load_pepper(folder / "secrets"))
        self._counts = MetricsRegistry()
        self._journal = JournalWriter(
            folder / "journal", order.name.replace(" ", "-"), durability=settings.durability
        )
        meters = KeyMeters(1 / settings.gateways)
        self._settler = Settler(meters, self._journal, self._counts, status_of_code)
        self._gateway = Gateway(
            order.name,
            settings,
            self._settler,
            self._wake,
        )
        self._uplink = Uplink(
            order.control_address,
            order.name,
            os.getpid(),
            self._gateway.replace_routes,
            on_ended=self._gateway.deaths.note,
            on_poison=self._gateway.quarantine.learn,
        )
        self._gateway.tell_hung = self._uplink.tell_hung
        self._gateway.quarantine.tell_others = self._uplink.tell_poison
        self._models = InferenceModels(self._gateway, self._uplink)
        rows: list[Row] = []
        rows += self._make_rows(lambda: rows)
        hosts = frozenset({*settings.allowed_hosts, settings.host})
        self._app = Doors(rows, self._authenticator, hosts, self._settler.limit_headers)
        self._grpc_server = self._make_grpc_server()
        self._batch_lines = BatchLines(
            socket_of(Path(order.control_address).parent, order.name),
            self._app,
            self._authenticator,
            self._uplink,
        )

    def _make_rows(self, all_rows: Callable[[], list[Any]]) -> list[Any]:
        from wherry.doors.anthropic import AnthropicDoor
        from wherry.doors.hub import HubDoor
        from wherry.doors.huggingface import HuggingFaceDoor
        from wherry.doors.inference import InferenceDoor
        from wherry.doors.kserve_v1 import KserveV1Door
        from wherry.doors.mlflow import MlflowDoor
        from wherry.doors.ollama import OllamaDoor
        from wherry.doors.openai import OpenAIDoor
        from wherry.doors.openai_audio import OpenAIAudioDoor
        from wherry.doors.openai_background import BackgroundRuns
        from wherry.doors.openai_batches import OpenAIBatchesDoor
        from wherry.doors.openai_files import OpenAIFilesDoor
        from wherry.doors.openai_images import OpenAIImagesDoor
        from wherry.doors.openai_responses import OpenAIResponsesDoor
        from wherry.doors.operations import OperationsDoor
        from wherry.doors.platform import PlatformDoor
        from wherry.doors.predict import PredictDoor
        from wherry.doors.rerank import RerankDoor
        from wherry.jobs.files.uploads import FileUploads

        settings = self._settings
        folder = settings.folder
        blobs = LocalBlobs(folder / "blobs")
        registry = Registry(self._database, blobs, folder)
        budget = MemoryBudget(settings.memory_limit_mib)
        platform = self._platform = PlatformDoor(
            settings=settings,
            database=self._database,
            registry=registry,
            deployments=Deployments(self._database, registry, budget),
            keys=Keys.for_folder(self._database, folder),
            ledger=Ledger(self._database, folder / "journal"),
            budget=budget,
            gateway=self._gateway,
            uplink=self._uplink,
            authenticator=self._authenticator,
        )
        files = Files(self._database, settings)
        store = response_store(settings, self._database)
        self._runs = BackgroundRuns(self._gateway, store)
        doors = [
            # rows are matched in this order: the busiest first
            PredictDoor(self._gateway),
            KserveV1Door(self._gateway),  # before OpenAI's, whose /v1/models/{name} matches it
            OpenAIDoor(self._gateway),
            OpenAIResponsesDoor(self._gateway, store, self._runs),
            OpenAIImagesDoor(self._gateway),
            AnthropicDoor(self._gateway),
            RerankDoor(self._gateway),
            HuggingFaceDoor(self._gateway),
            InferenceDoor(self._gateway, self._models),
            OpenAIFilesDoor(files, FileUploads(files, settings)),
            OpenAIBatchesDoor(
                Batches(self._database, files, settings),
                self._uplink.nudge,
                lambda method, path: self._app.find_row(method, path)[0],
            ),
            MlflowDoor(self._gateway),
            OllamaDoor(self._gateway, registry),
            OpenAIAudioDoor(self._gateway),
            OperationsDoor(self._gateway, self._uplink, self._counts, all_rows),
            platform,
            HubDoor(registry, blobs),
        ]
        return [row for door in doors for row in door.rows()]

    def _wake(self, deployment: Any) -> None:
        self._uplink.wake(deployment)

    async def run(self) -> None:
        """Serve until told to stop; requests in flight may end."""
        import uvicorn

        settings = self._settings
        config = uvicorn.Config(
            self._app,
            http=await self._choose_protocol(),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
        )
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(work)
            for work in (
                self._gateway.run(),
                self._uplink.run(),
                self._authenticator.watch(),
                self._runs.run(),
                self._report_for_ever(),
            )
        ]
        # before that every deployment would be unknown; connections wait in the socket's backlog
        routes = loop.create_task(self._uplink.has_routes.wait())
        await asyncio.wait([routes], timeout=ROUTES_SECONDS)
        routes.cancel()
        settle_memory()
        self._batch_lines.listen()
        try:
            if self._grpc_server is not None:
                await self._grpc_server.start()
            await make_http_server(config, self._stop_others).serve(sockets=[self._listener])
        finally:
            signal.alarm(CLEAN_UP_SECONDS)  # ends the process if a disk or database hangs
            self._batch_lines.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._gateway.close()
            await self._journal.close()
            self._authenticator.close()
            self._database.close()

    def _make_grpc_server(self) -> Any:
        """The gRPC door's server; None unless it is wanted, as its package may not be there."""
        settings = self._settings
        if settings.grpc_port is None:
            return None
        from wherry.doors.grpc_server import GrpcServer
        from wherry.doors.inference_grpc import InferenceGrpcDoor

        door = InferenceGrpcDoor(self._gateway, self._models)
        limit_headers = self._settler.limit_headers
        return GrpcServer(
            door.methods(), self._authenticator, settings, limit_headers, door.end_streams
        )

    async def _stop_others(self) -> None:
        """End what would last for ever, and let calls over gRPC end, while HTTP does the same."""
        self._platform.close()
        await self._runs.close()
        if self._grpc_server is not None:
            await self._grpc_server.stop(STOP_SECONDS)

    async def _choose_protocol(self) -> Any:
        """What speaks HTTP here: a protocol that works with the installed uvicorn."""
        from wherry.doors.fast_lane import FastLane, FastLaneProtocol
        from wherry.doors.http_guard import GuardedProtocol
        from wherry.doors.self_check import choose_protocol

        settings = self._settings
        files = raise_open_files(settings.max_connections + SPARE_FILES)
        requests = self._counts.counter(
            "wherry_fast_lane_requests_total", "Requests answered inside the HTTP protocol."
        )

        class Protocol(GuardedProtocol):
            stall_seconds = settings.client_stall_seconds
            max_connections = max(1, files - SPARE_FILES)

        class FastProtocol(FastLaneProtocol, Protocol):
            lane = FastLane(self._app, self._gateway, self._authenticator, requests.labels())

        try:
            fast = FastProtocol if settings.fast_lane else None
            return await choose_protocol(self._app, Protocol, fast)
        except errors.Internal as error:
            log.error("cannot serve HTTP", error=error.text)
            raise SystemExit(UNFIT_STATUS) from error

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            now = time.monotonic()
            used = {name: now - at for name, at in self._settler.last_used.items()}
            counts = msgspec.msgpack.encode(self._counts.snapshot())
            self._uplink.report(
                LoadReport(self._gateway.loads(), used, counts, self._gateway.version_loads())
            )


def raise_open_files(wanted: int) -> int:
    """Let this process open so many files, or as many as it may; how many that are."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def make_http_server(config: Any, stop_others: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """A uvicorn server that stops others, too, while it waits for requests in flight.

    A signal lets it return; what else must end is up to its caller. It wakes up once a second, for
    the date in its answers, and when it is told to stop; uvicorn's own loop looks ten times a second
    whether it is.
    """
    import uvicorn

    loop, told = asyncio.get_running_loop(), asyncio.Event()

    class HttpServer(uvicorn.Server):
        async def main_loop(self) -> None:
            while not await self.on_tick(0):
                timer = loop.call_later(1.0, told.set)
                await told.wait()
                timer.cancel()
                told.clear()

        def handle_exit(self, sig: int, frame: Any) -> None:
            # not uvicorn's, which raises the signal again before the caller can clean up
            self.should_exit = True
            loop.call_soon_threadsafe(told.set)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            others = loop.create_task(stop_others())
            await super().shutdown(sockets)
            await others

    return HttpServer(config)


def main() -> None:
    """Entry of a gateway process; the supervisor starts it, nobody else."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gateway-order-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    arguments = parser.parse_args()
    with os.fdopen(arguments.gateway_order_fd, "rb") as source:
        order = msgspec.msgpack.decode(source.read(), type=GatewayOrder)
    die_with_parent(order.supervisor_pid)
    run_gateway(order, socket.socket(fileno=arguments.listen_fd))


if __name__ == "__main__":
    main()
