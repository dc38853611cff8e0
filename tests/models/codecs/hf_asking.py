"""Asking the codec of Hugging Face's tasks: what becomes of a body, and of a model's outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wherry.frames import Call
from wherry.models.codecs.codec import Decoded, Reply
from wherry.models.codecs.hf import HF
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.task import TaskConfig

CONFIG = TaskConfig(labels=("no", "yes"))


def decode(
    task: str, body: bytes | dict[str, Any], config: TaskConfig = CONFIG, **fields: Any
) -> Decoded:
    """The items of a body; `fields` are those of the call."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HF.decode(memoryview(raw), call_of(fields), find_task(task), config)


def encode(
    task: str, decoded: Decoded, outputs: Sequence[Any], config: TaskConfig = CONFIG, **fields: Any
) -> Reply:
    """The answer as it leaves."""
    return HF.encode(decoded, outputs, call_of(fields), find_task(task), config)


def answer(task: str, decoded: Decoded, outputs: Sequence[Any], **fields: Any) -> Any:
    """The answer as a client reads it."""
    return json.loads(bytes(encode(task, decoded, outputs, **fields).body))


def call_of(fields: dict[str, Any]) -> Call:
    """A call with some header fields, which may stream."""
    return Call("hf", "req-1", "name", "1", 0, **fields)
