"""The platform API: everything about a server that is no inference."""

from __future__ import annotations

from wherry.accounts.keys import Keys
from wherry.accounts.ledger import Ledger
from wherry.control.deployments import Deployments
from wherry.control.logs import WorkerLogs
from wherry.control.memory import MemoryBudget
from wherry.doors.platform_accounts import AccountsPart
from wherry.doors.platform_base import Parts
from wherry.doors.platform_deployments import DeploymentsPart
from wherry.doors.platform_jobs import JobsPart
from wherry.doors.platform_models import ModelsPart
from wherry.doors.platform_overview import OverviewPart
from wherry.doors.platform_runtimes import RuntimesPart
from wherry.doors.route import Row
from wherry.doors.sse import Streams
from wherry.gateway.authenticate import Authenticator
from wherry.gateway.predict import Gateway
from wherry.gateway.uplink import Uplink
from wherry.jobs.jobs import Jobs
from wherry.jobs.uploads import Uploads
from wherry.models.registry.registry import Registry
from wherry.settings import Settings
from wherry.storage.database import Database


class PlatformDoor:
    """All rows under `/platform/v1`.

    Args:
        settings: the server's.
        database: where everything is.
        registry: models.
        deployments: what should run.
        keys: who may what.
        ledger: what was used.
        budget: how much memory models may use.
        gateway: this gateway, for its health.
        uplink: the controller.
        authenticator: ends the streams of keys that are revoked.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        registry: Registry,
        deployments: Deployments,
        keys: Keys,
        ledger: Ledger,
        budget: MemoryBudget,
        gateway: Gateway,
        uplink: Uplink,
        authenticator: Authenticator,
    ) -> None:
        self._streams = Streams(authenticator, database)
        parts = Parts(
            settings=settings,
            database=database,
            registry=registry,
            deployments=deployments,
            keys=keys,
            ledger=ledger,
            budget=budget,
            gateway=gateway,
            uplink=uplink,
            jobs=Jobs(database),
            uploads=Uploads(settings.folder / "uploads", settings.max_upload_bytes),
            logs=WorkerLogs(settings.folder / "logs"),
            streams=self._streams,
        )
        self._tables = (
            OverviewPart(parts),
            ModelsPart(parts),
            JobsPart(parts),
            RuntimesPart(parts),
            DeploymentsPart(parts),
            AccountsPart(parts),
        )

    def rows(self) -> list[Row]:
        """The table."""
        return [row for table in self._tables for row in table.rows()]

    def close(self) -> None:
        """End all event streams: the gateway stops."""
        self._streams.close()
