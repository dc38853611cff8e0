"""Open Inference Protocol v2 over HTTP, with binary tensors, versions and the repository."""

from __future__ import annotations

from typing import Any

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.doors.errors import render_inference
from wherry.doors.inference_models import InferenceModels
from wherry.doors.invoke import invoke_direct
from wherry.doors.route import Direct, Inquiry, Permission, Response, Row, json_response
from wherry.gateway.predict import Gateway

INFER = Direct(
    "inference",
    "inference",
    ("inference-header-content-length", "content-type", "content-encoding"),
)
EXTENSIONS = ["binary_tensor_data", "model_repository"]


class InferenceDoor:
    """Rows of the protocol.

    Args:
        gateway: the data plane.
        models: what is told of them.
    """

    def __init__(self, gateway: Gateway, models: InferenceModels) -> None:
        self._gateway = gateway
        self._models = models

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
            codec=INFER.codec if handler == self.infer else "",
            direct=INFER if handler == self.infer else None,
        )

    # ------------------------------------------------------------------ the server

    async def server(self, inquiry: Inquiry) -> Response:
        """Name, version, extensions."""
        return json_response(self._models.server(EXTENSIONS))

    async def live(self, inquiry: Inquiry) -> Response:
        """The process answers."""
        return json_response({"live": True})

    async def ready(self, inquiry: Inquiry) -> Response:
        """Executors make progress and outcomes can be recorded."""
        is_ready = self._models.is_ready()
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    # ------------------------------------------------------------------ models

    async def infer(self, inquiry: Inquiry) -> Response:
        """Run a model on tensors."""
        return await invoke_direct(self._gateway, inquiry, INFER)

    async def model_ready(self, inquiry: Inquiry) -> Response:
        """Whether a version of a model is loaded."""
        deployment, _ = self._models.find(*_named(inquiry))
        is_ready = self._models.is_model_ready(*_named(inquiry))
        body = {"name": deployment.name, "ready": is_ready}
        return json_response(body, 200 if is_ready else 503)

    async def metadata(self, inquiry: Inquiry) -> Response:
        """Tensors of a model."""
        return json_response(self._models.metadata(*_named(inquiry)))

    async def config(self, inquiry: Inquiry) -> Response:
        """The part of Triton's model configuration that clients read."""
        return json_response(self._models.config(*_named(inquiry)))

    async def stats(self, inquiry: Inquiry) -> Response:
        """Counts of one model, in Triton's shape."""
        return json_response({"model_stats": self._models.stats(*_named(inquiry))})

    async def all_stats(self, inquiry: Inquiry) -> Response:
        """Counts of every model."""
        return json_response({"model_stats": self._models.stats(inquiry.principal)})

    # ------------------------------------------------------------------ the repository

    async def index(self, inquiry: Inquiry) -> Response:
        """Deployed models and their states; `{"ready": true}` leaves out the others."""
        only_ready = _wants_ready(await inquiry.body())
        return json_response(self._models.index(inquiry.principal, only_ready=only_ready))

    async def load(self, inquiry: Inquiry) -> Response:
        """Start a deployment and wait until it is ready."""
        await self._models.load(inquiry.principal, inquiry.params["name"])
        return json_response({})

    async def unload(self, inquiry: Inquiry) -> Response:
        """Stop a deployment: not ready, 503, not woken by requests."""
        await self._models.unload(inquiry.principal, inquiry.params["name"])
        return json_response({})


def _named(inquiry: Inquiry) -> tuple[Principal, str, str]:
    """Who asks for which model, in which version."""
    return inquiry.principal, inquiry.params["name"], inquiry.params.get("version", "")


def _wants_ready(body: bytes) -> bool:
    if not body.strip():
        return False
    try:
        wish = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error
    return isinstance(wish, dict) and wish.get("ready") is True
