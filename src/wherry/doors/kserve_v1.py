"""KServe's v1 protocol: `POST /v1/models/{name}:predict`.

Whether a model is there is asked by `GET /v1/models/{name}`, which is OpenAI's row: KServe's clients
read its status only.
"""

from __future__ import annotations

from wherry.doors.errors import render_inference
from wherry.doors.invoke import invoke_direct
from wherry.doors.route import Direct, Inquiry, Response, Row
from wherry.gateway.predict import Gateway

PREDICT = Direct("kserve_v1", "kserve_v1", ())


class KserveV1Door:
    """The one row; it stands before OpenAI's, whose path would match it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(
                method="POST",
                path="/v1/models/{name:path}:predict",
                permission="invoke",
                handler=self.predict,
                summary='KServe v1: `{"instances": […]}` → `{"predictions": […]}`',
                render=render_inference,
                request=dict,
                answer=dict,
                tag="kserve",
                body_limit=self._gateway.settings.max_body_bytes,
                codec=PREDICT.codec,
                direct=PREDICT,
            )
        ]

    async def predict(self, inquiry: Inquiry) -> Response:
        """Predictions for instances."""
        return await invoke_direct(self._gateway, inquiry, PREDICT)
