"""All doors over HTTP, made of a gateway's parts."""

from __future__ import annotations

from dataclasses import dataclass

from wherry.accounts.keys import Keys
from wherry.accounts.ledger import Ledger
from wherry.control.deployments import Deployments
from wherry.control.memory import MemoryBudget
from wherry.doors.anthropic import AnthropicDoor
from wherry.doors.anthropic_batches import AnthropicBatchesDoor
from wherry.doors.hub import HubDoor
from wherry.doors.huggingface import HuggingFaceDoor
from wherry.doors.inference import InferenceDoor
from wherry.doors.inference_models import InferenceModels
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
from wherry.doors.route import Doors, Row
from wherry.gateway.authenticate import Authenticator
from wherry.gateway.predict import Gateway
from wherry.gateway.settle import Settler
from wherry.gateway.uplink import Uplink
from wherry.jobs.batches.batches import Batches
from wherry.jobs.files.files import Files
from wherry.jobs.files.uploads import FileUploads
from wherry.models.registry.registry import Registry
from wherry.settings import Settings
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database
from wherry.storage.responses import ResponseStore
from wherry.telemetry import Registry as MetricsRegistry


@dataclass(frozen=True)
class Parts:
    """What a gateway's doors are made of."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    counts: MetricsRegistry
    settler: Settler
    gateway: Gateway
    uplink: Uplink
    models: InferenceModels


class HttpDoors:
    """The doors, the table of their rows as one application, and what some do beside requests."""

    def __init__(self, parts: Parts) -> None:
        self._blobs = LocalBlobs(parts.settings.folder / "blobs")
        self._registry = Registry(parts.database, self._blobs, parts.settings.folder)
        self._platform = self._make_platform(parts)
        store = ResponseStore.of(parts.settings, parts.database)
        self._runs = BackgroundRuns(parts.gateway, store)
        self._rows = self._make_rows(parts, store)
        self.application = Doors(
            self._rows,
            parts.authenticator,
            frozenset({*parts.settings.allowed_hosts, parts.settings.host}),
            parts.settler.limit_headers,
        )

    def _make_platform(self, parts: Parts) -> PlatformDoor:
        settings, database = parts.settings, parts.database
        budget = MemoryBudget(settings.memory_limit_mib)
        return PlatformDoor(
            settings=settings,
            database=database,
            registry=self._registry,
            deployments=Deployments(database, self._registry, budget),
            keys=Keys.for_folder(database, settings.folder),
            ledger=Ledger(database, settings.folder / "journal"),
            budget=budget,
            gateway=parts.gateway,
            uplink=parts.uplink,
            authenticator=parts.authenticator,
        )

    def _make_rows(self, parts: Parts, store: ResponseStore) -> list[Row]:
        gateway, settings = parts.gateway, parts.settings
        files = Files(parts.database, settings)
        batches = Batches(parts.database, files, settings)
        doors = [
            # rows are matched in this order: the busiest first
            PredictDoor(gateway),
            KserveV1Door(gateway),  # before OpenAI's, whose /v1/models/{name} matches it
            OpenAIDoor(gateway),
            OpenAIResponsesDoor(gateway, store, self._runs),
            OpenAIImagesDoor(gateway),
            AnthropicDoor(gateway),
            RerankDoor(gateway),
            HuggingFaceDoor(gateway),
            InferenceDoor(gateway, parts.models),
            OpenAIFilesDoor(files, FileUploads(files, settings)),
            AnthropicBatchesDoor(batches, files, parts.uplink.nudge, settings.max_batch_lines),
            OpenAIBatchesDoor(batches, parts.uplink.nudge, self._find_row),
            MlflowDoor(gateway),
            OllamaDoor(gateway, self._registry),
            OpenAIAudioDoor(gateway),
            OperationsDoor(gateway, parts.uplink, parts.counts, lambda: self._rows),
            self._platform,
            HubDoor(self._registry, self._blobs),
        ]
        return [row for door in doors for row in door.rows()]

    def _find_row(self, method: str, path: str) -> Row | None:
        return self.application.find_row(method, path)[0]

    async def run(self) -> None:
        """Do what is asked for in the background, until cancelled."""
        await self._runs.run()

    async def close(self) -> None:
        """End what would last for ever."""
        self._platform.close()
        await self._runs.close()
