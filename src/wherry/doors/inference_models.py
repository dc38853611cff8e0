"""What the Open Inference Protocol tells of server and models, for its doors over HTTP and gRPC."""

from __future__ import annotations

import asyncio

import msgspec

from wherry import __version__, errors
from wherry.accounts.keys import Principal
from wherry.gateway.admit import find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute, VersionRoute, choose_version
from wherry.gateway.uplink import Uplink

LOAD_SECONDS = 120.0
LOOK_SECONDS = 0.02
READY_STATES = ("ready", "degraded")

PLATFORMS = {"onnx": "onnxruntime_onnx", "tflite": "tensorflow_lite", "python_class": "python"}
"""What Triton calls some runtimes; others have their own names."""


class ServerMetadata(msgspec.Struct):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class Tensor(msgspec.Struct):
    """A tensor of the metadata."""

    name: str
    datatype: str
    shape: list[int]


class Metadata(msgspec.Struct):
    """Tensors of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class ConfigTensor(msgspec.Struct):
    """A tensor of the configuration."""

    name: str
    data_type: str
    """As `TYPE_FP32`."""
    dims: list[int]


class Config(msgspec.Struct):
    """The part of Triton's model configuration that clients read."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class Duration(msgspec.Struct):
    """How many, and how long they took together."""

    count: int
    ns: int


class InferenceStats(msgspec.Struct):
    """Answers and failures."""

    success: Duration
    fail: Duration


class ModelStats(msgspec.Struct):
    """Counts of a version, in Triton's shape."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats
    batch_stats: list[msgspec.Struct] = []


class RepositoryEntry(msgspec.Struct):
    """One line of the repository index."""

    name: str
    version: str
    state: str
    reason: str = ""


class InferenceModels:
    """Answers about the models that a key may call; those of others are not found.

    Args:
        gateway: the data plane.
        uplink: the controller, for load and unload.
    """

    def __init__(self, gateway: Gateway, uplink: Uplink) -> None:
        self._gateway = gateway
        self._uplink = uplink

    # ------------------------------------------------------------------ the server

    def server(self, extensions: list[str]) -> ServerMetadata:
        """Name, version, extensions."""
        return ServerMetadata("wherry", __version__, extensions)

    def is_ready(self) -> bool:
        """Whether executors make progress and outcomes can be recorded."""
        return (
            self._uplink.epoch > 0
            and self._gateway.settler.is_healthy
            and not self._gateway.stuck_workers()
        )

    # ------------------------------------------------------------------ models

    def find(
        self, principal: Principal, name: str, version: str = ""
    ) -> tuple[DeploymentRoute, VersionRoute | None]:
        """A deployment, and the version that is meant; None while it has none.

        Raises:
            ModelNotFound: no such deployment or version.
        """
        deployment, named = find_deployment(self._gateway.routes, principal, name)
        version = version or named
        if not deployment.versions and not version:
            return deployment, None
        return deployment, choose_version(deployment, version, principal.key_id)

    def is_model_ready(self, principal: Principal, name: str, version: str = "") -> bool:
        """Whether a version of a model is loaded."""
        deployment, found = self.find(principal, name, version)
        return found is not None and bool(found.workers) and deployment.state in READY_STATES

    def metadata(self, principal: Principal, name: str, version: str = "") -> Metadata:
        """Tensors of a model."""
        return describe(*self.find(principal, name, version))

    def config(self, principal: Principal, name: str, version: str = "") -> Config:
        """The part of Triton's model configuration that clients read."""
        described = self.metadata(principal, name, version)
        return Config(
            name=described.name,
            platform=described.platform,
            backend=described.platform,
            max_batch_size=0,
            input=[_config_tensor(each) for each in described.inputs],
            output=[_config_tensor(each) for each in described.outputs],
        )

    def stats(self, principal: Principal, name: str = "", version: str = "") -> list[ModelStats]:
        """Counts of a model, or of all."""
        if name:
            return self._stats_of([self.find(principal, name, version)[0]])
        return self._stats_of(self._visible(principal))

    def _stats_of(self, deployments: list[DeploymentRoute]) -> list[ModelStats]:
        stats: list[ModelStats] = []
        for deployment in deployments:
            answered, failed, seconds = self._gateway.settler.counts_of(deployment.full_name)
            outcomes = InferenceStats(Duration(answered, int(seconds * 1e9)), Duration(failed, 0))
            for version in deployment.versions:
                number = str(version.number)
                stats.append(ModelStats(deployment.name, number, answered, answered, outcomes))
        return stats

    def _visible(self, principal: Principal) -> list[DeploymentRoute]:
        return [
            each
            for each in self._gateway.routes.of_team(principal.team_id)
            if principal.can_call(each.name)
        ]

    # ------------------------------------------------------------------ the repository

    def index(self, principal: Principal, *, only_ready: bool) -> list[RepositoryEntry]:
        """Deployed models and their states."""
        entries: list[RepositoryEntry] = []
        for deployment in self._visible(principal):
            is_ready = deployment.state in READY_STATES
            if only_ready and not is_ready:
                continue
            state = "READY" if is_ready else "UNAVAILABLE"
            for number in [str(each.number) for each in deployment.versions] or [""]:
                reason = "" if is_ready else deployment.cause or deployment.state
                entries.append(RepositoryEntry(deployment.name, number, state, reason))
        return entries

    async def load(self, principal: Principal, name: str) -> None:
        """Start a deployment and wait until it is ready."""
        await self._switch(principal, name, stopped=False)

    async def unload(self, principal: Principal, name: str) -> None:
        """Stop a deployment: not ready, refused, not woken by requests."""
        await self._switch(principal, name, stopped=True)

    async def _switch(self, principal: Principal, name: str, *, stopped: bool) -> None:
        deployment, _ = find_deployment(self._gateway.routes, principal, name)
        await self._uplink.ask(
            "switch",
            team_id=deployment.team_id,
            name=deployment.name,
            stopped=stopped,
            by=principal.key_id,
        )
        await self._wait_for(deployment, ("stopped",) if stopped else READY_STATES)

    async def _wait_for(self, deployment: DeploymentRoute, states: tuple[str, ...]) -> None:
        deadline = asyncio.get_running_loop().time() + LOAD_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            now = self._gateway.routes.find(deployment.team_id, deployment.team, deployment.name)
            if now is None or now.state in states:
                return
            if now.state == "failing" and "ready" in states:
                raise errors.NotReady(
                    f"deployment {now.name!r} does not start: {now.cause}",
                    hint=f"wherry logs {now.name}",
                )
            await asyncio.sleep(LOOK_SECONDS)
        raise errors.TimedOut(f"deployment {deployment.name!r} took too long to change")


def describe(deployment: DeploymentRoute, version: VersionRoute | None) -> Metadata:
    """Metadata of a deployment, by one of its versions."""
    versions = [str(each.number) for each in deployment.versions]
    if version is None:
        return Metadata(deployment.name, versions, "", [], [])
    return Metadata(
        deployment.name,
        versions,
        PLATFORMS.get(version.runtime, version.runtime),
        [Tensor(name, datatype, list(shape)) for name, datatype, shape in version.inputs],
        [Tensor(name, datatype, list(shape)) for name, datatype, shape in version.outputs],
    )


def _config_tensor(tensor: Tensor) -> ConfigTensor:
    kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    return ConfigTensor(tensor.name, kind, tensor.shape)
