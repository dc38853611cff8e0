"""Requests of Hugging Face's task API, whatever form their client gave them.

The body is a file as it stands (with any content type or none), or JSON: `inputs` beside
`parameters`, or all on one level as old clients (0.x) and some tasks have it. `options`, which tell
Hugging Face's own service whether to wait, mean nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Reply, decode_json
from wherry.models.tasks.task import Task, TaskConfig, TaskInput, media_of
from wherry.models.tasks.text import check_text, check_texts

MAX_TEXTS = 2048
"""Most texts of one request."""
MEDIA_TYPES = ("image/", "audio/", "video/")
TEXT_STARTS = (b"{", b"\xff\xfe")
"""How a body begins that is no file: with an object, or as UTF-16 does (which is refused)."""
ENVELOPE = frozenset({"inputs", "parameters", "options", "stream"})
"""Keys of a body that are neither an input nor a parameter."""

Parameters = TypeVar("Parameters")


class HfRequest(msgspec.Struct):
    """What a client asks of one model."""

    inputs: Any
    """The file's bytes, or what JSON had; of a body without `inputs`, an object of its other keys."""
    parameters: dict[str, Any]
    """None of them is None."""
    task: Task
    config: TaskConfig
    call: Call

    def read_parameters(self, kind: type[Parameters]) -> Parameters:
        """The parameters that a struct names, checked; others are ignored."""
        try:
            return msgspec.convert(self.parameters, kind)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `$.")
            name = place.rstrip("`")
            param = f"parameters.{name}" if name else "parameters"
            raise InvalidInput(f"{param!r} is wrong: {reason}", param=param) from error

    def text(self) -> str:
        """The one text of a task that takes no more."""
        return check_text(self.inputs, self.config, "inputs")

    def texts(self) -> list[str]:
        """One text, or a list of them."""
        if isinstance(self.inputs, list):
            return check_texts(self.inputs, self.config, "inputs", most=MAX_TEXTS)
        return [self.text()]

    def fields(self) -> dict[str, Any]:
        """`inputs` if it is an object; `InvalidInput` if it is not."""
        if not isinstance(self.inputs, dict):
            kind = type(self.inputs).__name__
            raise InvalidInput(f"'inputs' must be an object, not {kind}", param="inputs")
        return self.inputs


class Asked(Protocol):
    """A request in one task's shape: what the model is asked, and how its client reads answers.

    One whose answer may come in events has `stream()` beside these: an encoder of them.
    """

    @property
    def items(self) -> Sequence[TaskInput]:
        """In the order in which `answer` has their outputs."""
        ...

    def answer(self, outputs: Sequence[Any]) -> Reply:
        """The whole answer."""
        ...


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


def reply_json(value: Any) -> Reply:
    """An answer as JSON."""
    return Reply(_encoder.encode(value))


def read_request(body: memoryview, call: Call, task: Task, config: TaskConfig) -> HfRequest:
    """Any of the forms; `InvalidInput` for what is none of them."""
    if is_file(body, call, task):
        return HfRequest(bytes(body), {}, task, config, call)
    fields: dict[str, Any] = decode_json(body, _decoder)
    others = {key: value for key, value in fields.items() if key not in ENVELOPE}
    parameters = fields.get("parameters")
    if not isinstance(parameters, dict | None):
        raise InvalidInput("'parameters' must be an object", param="parameters")
    inputs = fields.get("inputs")
    if inputs is None:
        if not others:
            raise InvalidInput(
                "the request has no 'inputs'", hint='send {"inputs": …}', param="inputs"
            )
        inputs, others = others, {}
    given = {**others, **(parameters or {})}
    known = {key: value for key, value in given.items() if value is not None}
    return HfRequest(inputs, known, task, config, call)


def is_file(body: memoryview, call: Call, task: Task) -> bool:
    """Whether a body is a file; clients name no type where they were given bytes."""
    kind = call.headers.get("content-type", "").strip().lower()
    if not media_of(task):
        if kind.startswith(MEDIA_TYPES):
            raise InvalidInput(f"the model does {task.name} and takes no files", hint="send JSON")
        return False
    if kind.startswith("application/json"):
        return False
    if kind.startswith((*MEDIA_TYPES, "application/octet-stream")):
        return True
    return not bytes(body[:64]).lstrip().startswith(TEXT_STARTS)
