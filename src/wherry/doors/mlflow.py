"""MLflow's scoring protocol, for each deployment under `/mlflow/{name}`.

An MLflow server serves one model, so its clients ask for `/invocations`. That path answers, too, for
a key that may call one deployment and no other.
"""

from __future__ import annotations

from wherry import errors
from wherry.doors.errors import render_mlflow
from wherry.doors.invoke import invoke, invoke_direct
from wherry.doors.route import Direct, Handler, Inquiry, Response, Row
from wherry.gateway.admit import find_deployment
from wherry.gateway.predict import Gateway
from wherry.gateway.route import DeploymentRoute

INVOCATIONS = Direct("mlflow", "mlflow", ("content-type",))
MLFLOW_VERSION = "3.17.0"
"""Whose protocol this is: clients compare it with what they need."""


class MlflowDoor:
    """Rows of the protocol."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        named = "/mlflow/{name:path}"
        return [
            self._post(f"{named}/invocations", self.score, INVOCATIONS),
            self._get(f"{named}/ping", self.ping, "Whether a deployment can answer"),
            self._get(f"{named}/health", self.ping, "The same"),
            self._get(f"{named}/version", self.version, "The protocol's version"),
            self._post("/invocations", self.score_only, None),
            self._get("/ping", self.ping_only, "Whether the key's one deployment can answer"),
            self._get("/version", self.version, "The protocol's version"),
        ]

    def _post(self, path: str, handler: Handler, direct: Direct | None) -> Row:
        return Row(
            method="POST",
            path=path,
            permission="invoke",
            handler=handler,
            summary="MLflow scoring: data frame, instances, inputs or CSV → predictions",
            render=render_mlflow,
            request=dict,
            answer=dict,
            tag="mlflow",
            body_limit=self._gateway.settings.max_body_bytes,
            content_types=("application/json", "text/csv"),
            codec=INVOCATIONS.codec,
            direct=direct,
        )

    def _get(self, path: str, handler: Handler, summary: str) -> Row:
        return Row(
            method="GET",
            path=path,
            permission="any",
            handler=handler,
            summary=summary,
            render=render_mlflow,
            tag="mlflow",
        )

    async def score(self, inquiry: Inquiry) -> Response:
        """Predictions of a named deployment."""
        return await invoke_direct(self._gateway, inquiry, INVOCATIONS)

    async def score_only(self, inquiry: Inquiry) -> Response:
        """Predictions of the one deployment that the key may call."""
        return await invoke(
            self._gateway,
            inquiry,
            door=INVOCATIONS.door,
            deployment=self._only_deployment(inquiry).name,
            codec=INVOCATIONS.codec,
            body=await inquiry.body(),
            forward=INVOCATIONS.forward,
        )

    async def ping(self, inquiry: Inquiry) -> Response:
        """200 if a named deployment is loaded."""
        name = inquiry.params["name"]
        deployment, _ = find_deployment(self._gateway.routes, inquiry.principal, name)
        return _ping(deployment)

    async def ping_only(self, inquiry: Inquiry) -> Response:
        """200 if the key's one deployment is loaded."""
        return _ping(self._only_deployment(inquiry))

    async def version(self, inquiry: Inquiry) -> Response:
        """As MLflow's server tells it: bare text."""
        return Response(MLFLOW_VERSION.encode(), content_type="text/plain; charset=utf-8")

    def _only_deployment(self, inquiry: Inquiry) -> DeploymentRoute:
        principal = inquiry.principal
        found = [
            each
            for each in self._gateway.routes.of_team(principal.team_id)
            if principal.can_call(each.name)
        ]
        if len(found) != 1:
            raise errors.InvalidInput(
                f"this key may call {len(found)} deployments, and the path names none",
                hint="ask /mlflow/NAME/…, or use a key for one deployment",
            )
        return found[0]


def _ping(deployment: DeploymentRoute) -> Response:
    if deployment.state not in ("ready", "degraded"):
        raise errors.NotReady(
            f"deployment {deployment.name!r} is {deployment.state}",
            hint="ask again in a moment",
            retry_after_seconds=max(1.0, deployment.retry_after_seconds),
        )
    return Response(b"\n")
