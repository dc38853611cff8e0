"""The items of OpenAI's `responses`: what a request's input is made of, as messages and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import param_of
from wherry.models.codecs.responses_turn import InputItem
from wherry.models.tasks.generation import (
    MAX_PARTS,
    FunctionName,
    ImagePart,
    Message,
    Part,
    ShortText,
    TextPart,
    ToolCall,
)

Json: TypeAlias = dict[str, Any]


class InputText(msgspec.Struct, tag="input_text"):
    """What a user, system or tool says."""

    text: str


class PlainText(msgspec.Struct, tag="text"):
    """The same, as some clients write it."""

    text: str


class OutputText(msgspec.Struct, tag="output_text"):
    """What the model said in an earlier turn."""

    text: str


class Refusal(msgspec.Struct, tag="refusal"):
    """What it said instead of an answer."""

    refusal: str


class InputImage(msgspec.Struct, tag="input_image"):
    """A picture, by address or as a `data:` URL."""

    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: str | None = None


Content: TypeAlias = (
    str
    | Annotated[
        list[InputText | PlainText | OutputText | Refusal | InputImage],
        Meta(min_length=1, max_length=MAX_PARTS),
    ]
)


class ItemHead(msgspec.Struct):
    """What tells items apart; messages need not say it."""

    type: str = "message"


class MessageItem(msgspec.Struct):
    """A turn of the conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ShortText | None = None


class CallItem(msgspec.Struct):
    """A call that the model made."""

    call_id: ShortText
    name: FunctionName
    arguments: str
    id: ShortText | None = None


class CallOutputItem(msgspec.Struct):
    """What the called function gave."""

    call_id: ShortText
    output: Content
    id: ShortText | None = None


class ReasoningItem(msgspec.Struct):
    """Thoughts of another model: accepted and dropped."""


Item: TypeAlias = MessageItem | CallItem | CallOutputItem | ReasoningItem

_head_decoder = msgspec.json.Decoder(ItemHead)
_item_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "message": msgspec.json.Decoder(MessageItem),
    "function_call": msgspec.json.Decoder(CallItem),
    "function_call_output": msgspec.json.Decoder(CallOutputItem),
    "reasoning": msgspec.json.Decoder(ReasoningItem),
}

# ------------------------------------------------------------------------------ items → messages


def read_items(given: str | list[msgspec.Raw]) -> list[Item]:
    """The items of an input; a text alone is what the user says."""
    if isinstance(given, str):
        return [MessageItem("user", given)]
    return [_read_item(raw, f"input[{index}]") for index, raw in enumerate(given)]


def _read_item(raw: msgspec.Raw, place: str) -> Item:
    try:
        kind = _head_decoder.decode(raw).type
        decoder = _item_decoders.get(kind)
        if decoder is not None:
            return decoder.decode(raw)
    except msgspec.ValidationError as error:
        path = param_of(str(error))
        told, _, _ = str(error).partition(" - at `$.")
        raise InvalidInput(
            f"{told} in {place}", param=f"{place}.{path}" if path else place
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from error
    raise InvalidInput(
        f"items of type {kind[:40]!r} are not understood",
        hint="known: " + ", ".join(_item_decoders),
        param=f"{place}.type",
    )


def messages_of(items: Sequence[Item], history: Sequence[Message]) -> list[Message]:
    """Items as messages: what an assistant says and calls in a row is one."""
    messages: list[Message] = []
    called = {call.id for message in history for call in message.tool_calls}
    for index, item in enumerate(items):
        place = f"input[{index}]"
        match item:
            case MessageItem(role, content):
                role = "system" if role == "developer" else role
                messages.append(Message(role, _read_content(content, role, f"{place}.content")))
            case CallItem(call_id, name, arguments):
                called.add(call_id)
                _caller_of(messages).tool_calls.append(ToolCall(call_id, name, arguments))
            case CallOutputItem(call_id, output):
                if call_id not in called:
                    raise InvalidInput(
                        f"no call {call_id!r} comes before its output",
                        hint="send its function_call too, or previous_response_id",
                        param=f"{place}.call_id",
                    )
                content = _read_content(output, "tool", f"{place}.output")
                messages.append(Message("tool", content, tool_call_id=call_id))
            case ReasoningItem():
                pass
    if not messages:
        raise InvalidInput("the input has nothing that the model could read", param="input")
    return messages


def _caller_of(messages: list[Message]) -> Message:
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant", ""))
    return messages[-1]


def _read_content(content: Content, role: str, place: str) -> str | list[Part]:
    if isinstance(content, str):
        return content
    parts: list[Part] = []
    for index, part in enumerate(content):
        match part:
            case InputText(text) | PlainText(text) | OutputText(text) | Refusal(text):
                parts.append(TextPart(text))
            case InputImage(url, detail):
                if role != "user":
                    raise InvalidInput(
                        f"what a {role} says cannot hold a picture", param=f"{place}[{index}]"
                    )
                if url is None:
                    raise InvalidInput(
                        "a picture needs image_url",
                        hint="pictures by file_id are not supported",
                        param=f"{place}[{index}].image_url",
                    )
                parts.append(ImagePart(url, detail))
    return parts


# ------------------------------------------------------------------------------ items → JSON


def describe_items(items: Sequence[Item], response_id: str) -> list[InputItem]:
    """The items as `GET /v1/responses/{id}/input_items` lists them, each with an id."""
    number = response_id.removeprefix("resp_")
    found: list[InputItem] = []
    for index, item in enumerate(items):
        if isinstance(item, ReasoningItem):
            continue
        fields = _item_json(item)
        prefix = {"message": "msg", "function_call": "fc"}.get(fields["type"], "fco")
        fields["id"] = item.id or f"{prefix}_{number}_in{index}"
        found.append(InputItem(fields["id"], msgspec.json.encode(fields)))
    return found


def _item_json(item: MessageItem | CallItem | CallOutputItem) -> Json:
    match item:
        case MessageItem(role, content):
            parts = [InputText(content)] if isinstance(content, str) else content
            said = [_part_json(part, role) for part in parts]
            return {"type": "message", "role": role, "status": "completed", "content": said}
        case CallItem(call_id, name, arguments):
            fields = {"call_id": call_id, "name": name, "arguments": arguments}
            return {"type": "function_call", "status": "completed"} | fields
        case CallOutputItem(call_id, output):
            if not isinstance(output, str):
                output = [_part_json(part, "tool") for part in output]
            fields = {"call_id": call_id, "output": output}
            return {"type": "function_call_output", "status": "completed"} | fields


def _part_json(part: Any, role: str) -> Json:
    match part:
        case Refusal(text) if role == "assistant":
            return {"type": "refusal", "refusal": text}
        case InputImage(url, detail):
            return {
                "type": "input_image",
                "image_url": url,
                "detail": detail or "auto",
                "file_id": None,
            }
        case InputText(text) | PlainText(text) | OutputText(text) | Refusal(text):
            if role == "assistant":
                return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            return {"type": "input_text", "text": text}
        case _:
            raise AssertionError(part)
