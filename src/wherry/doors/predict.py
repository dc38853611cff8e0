"""`POST /predict/{deployment}`: one plain JSON object in, one out; for the simplest clients."""

from __future__ import annotations

from wherry.doors.errors import render_platform
from wherry.doors.invoke import invoke_direct
from wherry.doors.route import Direct, Inquiry, Response, Row
from wherry.gateway.predict import Gateway

PREDICT = Direct("predict", "predict", ("content-type",))


class PredictDoor:
    """The one row."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def rows(self) -> list[Row]:
        """The table."""
        return [
            Row(
                method="POST",
                path="/predict/{name:path}",
                permission="invoke",
                handler=self.predict,
                summary='One text, picture or table row: `{"text": …}`, `{"image": …}`, `{"row": …}`',
                render=render_platform,
                request=dict,
                answer=dict,
                tag="predict",
                body_limit=self._gateway.settings.max_body_bytes,
                codec=PREDICT.codec,
                direct=PREDICT,
            )
        ]

    async def predict(self, inquiry: Inquiry) -> Response:
        """Answer one plain object."""
        return await invoke_direct(self._gateway, inquiry, PREDICT)
