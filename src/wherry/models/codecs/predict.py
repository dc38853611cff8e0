"""Plain JSON for `/predict`: one object in, one object out, for every task.

A body that is not JSON (`application/octet-stream`, `image/*`, `audio/*`, `video/*`) is a file: a
task that takes one gets its bytes under the key `image` or `audio`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.questions import Question, question_of
from wherry.models.tasks.task import Task, TaskConfig, media_of


class PredictCodec:
    """See the module's docstring."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The one item of a body, or those of the question that it is."""
        if key := file_key(call, task):
            fields: dict[str, Any] = {key: bytes(body)}
        else:
            fields = decode_json(body, object_decoder)
        question = question_of(fields, task, config)
        if question is not None:
            return Decoded(question.items, question)
        return Decoded([task.from_plain(fields, config)])

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The one output, or the question's answer, as an object."""
        question: Question | None = decoded.context
        answer = question.to_plain(outputs) if question else task.to_plain(outputs[0], config)
        return Reply(encode_plain(answer))


PREDICT = PredictCodec()
object_decoder = msgspec.json.Decoder(dict[str, Any])

MEDIA_BY_TYPE = {"image": "image", "audio": "audio", "video": "audio"}
"""First part of a content type → what it holds for a task: of a video, its sound."""
NAME_BY_MEDIA = {"image": "pictures", "audio": "sound"}


def file_key(call: Call, task: Task) -> str:
    """The key under which the body is a file for the task; "" if the body is JSON."""
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        return media_of(task)
    media = MEDIA_BY_TYPE.get(kind.partition("/")[0], "")
    if media and media != media_of(task):
        raise InvalidInput(
            f"the model does {task.name} and takes no {NAME_BY_MEDIA[media]}",
            hint=f"send {NAME_BY_MEDIA.get(media_of(task), 'JSON')}",
        )
    return media
