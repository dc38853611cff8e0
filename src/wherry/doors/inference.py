"""Open Inference Protocol v2 over HTTP, with binary tensors, versions and the repository."""

from __future__ import annotations

from typing import Any

import msgspec

from wherry import __version__, errors
from wherry.doors.errors import render_inference
from wherry.doors.invoke import invoke_direct
from wherry.doors.route import Direct, Inquiry, Permission, Response, Row, json_response
from wherry.gateway.admit import find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute, VersionRoute, choose_version
from wherry.gateway.uplink import Uplink

INFER = Direct(
    "inference",
    "inference",
    ("inference-header-content-length", "content-type", "content-encoding"),
)
EXTENSIONS = ["binary_tensor_data", "model_repository"]
LOAD_SECONDS = 120.0

PLATFORMS = {
    "onnx": "onnxruntime_onnx",
    "opencv": "opencv",
    "tflite": "tensorflow_lite",
    "sklearn": "sklearn",
    "llama_cpp": "llama_cpp",
    "python_class": "python",
    "upstream": "upstream",
}


class Tensor(msgspec.Struct):
    """A tensor of the metadata."""

    name: str
    datatype: str
    shape: list[int]


class Metadata(msgspec.Struct):
    """What `GET /v2/models/M` answers."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class RepositoryEntry(msgspec.Struct):
    """One line of the repository index."""

    name: str
    version: str
    state: str
    reason: str = ""


class InferenceDoor:
    """Rows of the protocol.

    Args:
        gateway: the data plane.
        uplink: the controller, for load and unload.
    """

    def __init__(self, gateway: Gateway, uplink: Uplink) -> None:
        self._gateway = gateway
        self._uplink = uplink

    def rows(self) -> list[Row]:
        """The table."""
        limit = self._gateway.settings.max_body_bytes
        model, version = "/v2/models/{name:path}", "/v2/models/{name:path}/versions/{version}"
        rows = [
            self._row("GET", "/v2", "any", self.server, "Name, version and extensions"),
            self._row("GET", "/v2/", "any", self.server, "Name, version and extensions"),
            self._row("GET", "/v2/health/live", "open", self.live, "Whether the server runs"),
            self._row("GET", "/v2/health/ready", "open", self.ready, "Whether it can answer"),
            self._row("GET", "/v2/models/stats", "any", self.all_stats, "Counts of all models"),
            self._row("POST", "/v2/repository/index", "any", self.index, "Deployed models"),
        ]
        for base in (version, model):
            rows += [
                self._row("POST", base + "/infer", "invoke", self.infer, "Infer", limit=limit),
                self._row("GET", base + "/ready", "any", self.model_ready, "Whether it is ready"),
                self._row("GET", base + "/config", "any", self.config, "Triton configuration"),
                self._row("GET", base + "/stats", "any", self.stats, "Counts of a model"),
                self._row("GET", base, "any", self.metadata, "Tensors of a model"),
            ]
        repository = "/v2/repository/models/{name:path}"
        rows += [
            self._row("POST", repository + "/load", "operate", self.load, "Start a model"),
            self._row("POST", repository + "/unload", "operate", self.unload, "Stop a model"),
        ]
        return rows

    def _row(
        self,
        method: str,
        path: str,
        permission: Permission,
        handler: Any,
        summary: str,
        limit: int = 1 << 20,
    ) -> Row:
        return Row(
            method=method,
            path=path,
            permission=permission,
            handler=handler,
            summary=summary,
            render=render_inference,
            tag="inference",
            body_limit=limit,
            request=dict if handler == self.infer else None,
            answer=dict,
            direct=INFER if handler == self.infer else None,
        )

    # ------------------------------------------------------------------ the server

    async def server(self, inquiry: Inquiry) -> Response:
        """Name, version, extensions."""
        return json_response({"name": "wherry", "version": __version__, "extensions": EXTENSIONS})

    async def live(self, inquiry: Inquiry) -> Response:
        """The process answers."""
        return json_response({"live": True})

    async def ready(self, inquiry: Inquiry) -> Response:
        """Executors make progress and outcomes can be recorded."""
        is_ready = (
            self._uplink.epoch > 0
            and self._gateway.settler.is_healthy
            and not self._gateway.stuck_workers()
        )
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    # ------------------------------------------------------------------ models

    def _find(self, inquiry: Inquiry) -> tuple[DeploymentRoute, VersionRoute | None]:
        deployment, version = find_deployment(
            self._gateway.routes, inquiry.principal, inquiry.params["name"]
        )
        version = inquiry.params.get("version", version)
        if not deployment.versions and not version:
            return deployment, None
        return deployment, choose_version(deployment, version, inquiry.principal.key_id)

    async def infer(self, inquiry: Inquiry) -> Response:
        """Run a model on tensors."""
        return await invoke_direct(self._gateway, inquiry, INFER)

    async def model_ready(self, inquiry: Inquiry) -> Response:
        """Whether a version of a model is loaded."""
        deployment, version = self._find(inquiry)
        is_ready = version is not None and bool(version.workers)
        is_ready = is_ready and deployment.state in ("ready", "degraded")
        body = {"name": deployment.name, "ready": is_ready}
        return json_response(body, 200 if is_ready else 503)

    async def metadata(self, inquiry: Inquiry) -> Response:
        """Tensors of a model."""
        deployment, version = self._find(inquiry)
        return json_response(describe(deployment, version))

    async def config(self, inquiry: Inquiry) -> Response:
        """The part of Triton's model configuration that clients read."""
        deployment, version = self._find(inquiry)
        described = describe(deployment, version)
        return json_response(
            {
                "name": described.name,
                "platform": described.platform,
                "backend": described.platform,
                "max_batch_size": 0,
                "input": [_config_tensor(each) for each in described.inputs],
                "output": [_config_tensor(each) for each in described.outputs],
            }
        )

    async def stats(self, inquiry: Inquiry) -> Response:
        """Counts of one model, in Triton's shape."""
        deployment, _ = self._find(inquiry)
        return json_response({"model_stats": self._stats_of([deployment])})

    async def all_stats(self, inquiry: Inquiry) -> Response:
        """Counts of every model."""
        return json_response({"model_stats": self._stats_of(self._visible(inquiry))})

    def _stats_of(self, deployments: list[DeploymentRoute]) -> list[dict[str, Any]]:
        stats: list[dict[str, Any]] = []
        for deployment in deployments:
            answered, failed, seconds = self._gateway.settler.counts_of(deployment.full_name)
            for version in deployment.versions:
                stats.append(
                    {
                        "name": deployment.name,
                        "version": str(version.number),
                        "inference_count": answered,
                        "execution_count": answered,
                        "inference_stats": {
                            "success": {"count": answered, "ns": int(seconds * 1e9)},
                            "fail": {"count": failed, "ns": 0},
                        },
                        "batch_stats": [],
                    }
                )
        return stats

    def _visible(self, inquiry: Inquiry) -> list[DeploymentRoute]:
        principal = inquiry.principal
        return [
            each
            for each in self._gateway.routes.of_team(principal.team_id)
            if principal.can_call(each.name)
        ]

    # ------------------------------------------------------------------ the repository

    async def index(self, inquiry: Inquiry) -> Response:
        """Deployed models and their states; `{"ready": true}` leaves out the others."""
        only_ready = _wants_ready(await inquiry.body())
        entries: list[RepositoryEntry] = []
        for deployment in self._visible(inquiry):
            is_ready = deployment.state in ("ready", "degraded")
            if only_ready and not is_ready:
                continue
            state = "READY" if is_ready else "UNAVAILABLE"
            for number in [str(each.number) for each in deployment.versions] or [""]:
                reason = "" if is_ready else deployment.cause or deployment.state
                entries.append(RepositoryEntry(deployment.name, number, state, reason))
        return json_response(entries)

    async def load(self, inquiry: Inquiry) -> Response:
        """Start a deployment and wait until it is ready."""
        return await self._switch(inquiry, stopped=False)

    async def unload(self, inquiry: Inquiry) -> Response:
        """Stop a deployment: not ready, 503, not woken by requests."""
        return await self._switch(inquiry, stopped=True)

    async def _switch(self, inquiry: Inquiry, *, stopped: bool) -> Response:
        deployment, _ = find_deployment(
            self._gateway.routes, inquiry.principal, inquiry.params["name"]
        )
        await self._uplink.ask(
            "switch",
            team_id=deployment.team_id,
            name=deployment.name,
            stopped=stopped,
            by=inquiry.principal.key_id,
        )
        wanted = ("stopped",) if stopped else ("ready", "degraded")
        await self._wait_for(deployment, wanted)
        return json_response({})

    async def _wait_for(self, deployment: DeploymentRoute, states: tuple[str, ...]) -> None:
        import asyncio

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
            await asyncio.sleep(0.02)
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


def _config_tensor(tensor: Tensor) -> dict[str, Any]:
    kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    return {"name": tensor.name, "data_type": kind, "dims": tensor.shape}


def _wants_ready(body: bytes) -> bool:
    if not body.strip():
        return False
    try:
        wish = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error
    return isinstance(wish, dict) and wish.get("ready") is True
