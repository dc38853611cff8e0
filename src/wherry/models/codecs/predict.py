"""Plain JSON for `/predict`: one object in, one object out, for every task.

A body that is not JSON (`application/octet-stream`, `image/*`) is one picture: the task gets its
bytes under the key `image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.plain_json import has_bad_number
from wherry.models.tasks.task import Task, TaskConfig


class PredictCodec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The one item of a body."""
        if is_picture(call, task, config):
            fields: dict[str, Any] = {"image": bytes(body)}
        else:
            fields = decode_json(body, object_decoder)
        return Decoded([task.from_plain(fields, config)])

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The one output as an object."""
        answer = task.to_plain(outputs[0], config)
        body = encoder.encode(answer)
        # msgspec writes NaN as null: only then is a second look worth its time
        if b"null" in body and has_bad_number(answer):
            raise InvalidInput(
                "the answer holds NaN or infinity, which JSON cannot carry",
                hint="ask for binary data over /v2",
            )
        return Reply(body)


PREDICT = PredictCodec()
object_decoder = msgspec.json.Decoder(dict[str, Any])
encoder = msgspec.json.Encoder()


def is_picture(call: Call, task: Task, config: TaskConfig) -> bool:
    """Whether the body is the bytes of a picture, for a model that takes one."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        return False
    if any(spec.name == "image" for spec in task.signature(config).inputs):
        return True
    if kind.startswith("image/"):
        raise InvalidInput(f"the model does {task.name} and takes no pictures", hint="send JSON")
    return False
