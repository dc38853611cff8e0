"""A gateway process: doors over the data plane, and its lines to the rest."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wherry.accounts.limits import KeyMeters
from wherry.accounts.secret_files import load_pepper
from wherry.app.http_doors import HttpDoors, Parts
from wherry.app.http_server import STOP_SECONDS, make_http_server
from wherry.app.process import loop_factory, set_title
from wherry.control.supervisor import GatewayOrder
from wherry.doors.batch_lines import BatchLines
from wherry.doors.errors import status_of_code
from wherry.doors.fast_lane import FastLane
from wherry.doors.inference_models import InferenceModels
from wherry.gateway.authenticate import Authenticator
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute
from wherry.gateway.settle import Settler
from wherry.gateway.uplink import LoadReport, Uplink
from wherry.jobs.batches.wire import socket_of
from wherry.memory import settle_memory
from wherry.storage.database import Database
from wherry.storage.journal import JournalWriter
from wherry.telemetry import Registry, configure_logging

if TYPE_CHECKING:
    from wherry.doors.grpc_server import GrpcServer

REPORT_SECONDS = 0.5
ROUTES_SECONDS = 10
CLEAN_UP_SECONDS = 8
"""What a gateway may take to end after its requests have; the supervisor kills it later still."""


def run_gateway(order: GatewayOrder, listener: socket.socket) -> None:
    """Be a gateway until SIGTERM."""
    settings = order.settings
    configure_logging(settings.log_level, settings.log_format, order.name)
    set_title(f"wherry: {order.name}")
    os.umask(0o077)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(order, listener))


async def _serve(order: GatewayOrder, listener: socket.socket) -> None:
    await GatewayProcess(order, listener).run()


class GatewayProcess:
    """The parts of a gateway, and their order of start and end."""

    def __init__(self, order: GatewayOrder, listener: socket.socket) -> None:
        settings, folder = order.settings, order.settings.folder
        self._settings = settings
        self._listener = listener
        self._database = Database.for_folder(folder, settings.database_url)
        self._authenticator = Authenticator(self._database, load_pepper(folder / "secrets"))
        self._counts = Registry()
        self._journal = JournalWriter(
            folder / "journal", order.name.replace(" ", "-"), durability=settings.durability
        )
        meters = KeyMeters(1 / settings.gateways)
        self._settler = Settler(meters, self._journal, self._counts, status_of_code)
        self._gateway = Gateway(order.name, settings, self._settler, self._wake)
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
        self._make_doors(order)

    def _make_doors(self, order: GatewayOrder) -> None:
        models = InferenceModels(self._gateway, self._uplink)
        parts = Parts(
            settings=self._settings,
            database=self._database,
            authenticator=self._authenticator,
            counts=self._counts,
            settler=self._settler,
            gateway=self._gateway,
            uplink=self._uplink,
            models=models,
        )
        self._doors = HttpDoors(parts)
        self._grpc_server = self._make_grpc_server(models)
        self._batch_lines = BatchLines(
            socket_of(Path(order.control_address).parent, order.name),
            self._doors.application,
            self._authenticator,
            self._uplink,
        )

    def _make_grpc_server(self, models: InferenceModels) -> GrpcServer | None:
        """The gRPC door's server; None unless it is wanted, as its package may not be there."""
        settings = self._settings
        if settings.grpc_port is None:
            return None
        from wherry.doors.grpc_server import GrpcServer
        from wherry.doors.inference_grpc import InferenceGrpcDoor

        door = InferenceGrpcDoor(self._gateway, models)
        limit_headers = self._settler.limit_headers
        return GrpcServer(
            door.methods(), self._authenticator, settings, limit_headers, door.end_streams
        )

    def _wake(self, deployment: DeploymentRoute) -> None:
        self._uplink.wake(deployment)

    async def run(self) -> None:
        """Serve until told to stop; requests in flight may end."""
        http_server = await make_http_server(
            self._doors.application, self._settings, self._make_fast_lane(), self._stop_others
        )
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(work)
            for work in (
                self._gateway.run(),
                self._uplink.run(),
                self._authenticator.watch(),
                self._doors.run(),
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
            await http_server.serve(sockets=[self._listener])
        finally:
            await self._clean_up(tasks)

    async def _clean_up(self, tasks: list[asyncio.Task[None]]) -> None:
        signal.alarm(CLEAN_UP_SECONDS)  # ends the process if a disk or database hangs
        self._batch_lines.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._gateway.close()
        await self._journal.close()
        self._authenticator.close()
        self._database.close()

    async def _stop_others(self) -> None:
        """End what would last for ever, and let calls over gRPC end, while HTTP does the same."""
        await self._doors.close()
        if self._grpc_server is not None:
            await self._grpc_server.stop(STOP_SECONDS)

    def _make_fast_lane(self) -> FastLane:
        requests = self._counts.counter(
            "wherry_fast_lane_requests_total", "Requests answered inside the HTTP protocol."
        )
        return FastLane(
            self._doors.application, self._gateway, self._authenticator, requests.labels()
        )

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            now = time.monotonic()
            used = {name: now - at for name, at in self._settler.last_used.items()}
            counts = msgspec.msgpack.encode(self._counts.snapshot())
            self._uplink.report(
                LoadReport(self._gateway.loads(), used, counts, self._gateway.version_loads())
            )
