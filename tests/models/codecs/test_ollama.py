"""Ollama's requests and answers, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wherry.errors import InvalidInput, ModelFailed
from wherry.frames import Call, Usage
from wherry.models.codecs.ollama_chat import OLLAMA_CHAT
from wherry.models.codecs.ollama_embed import OLLAMA_EMBED
from wherry.models.codecs.ollama_generate import OLLAMA_GENERATE
from wherry.models.tasks.generation import (
    TEXT_GENERATION,
    ChatInput,
    CompletionInput,
    Generation,
    ImagePart,
    TextDelta,
    ToolCall,
    ToolCallDelta,
)
from wherry.models.tasks.task import TaskConfig
from wherry.models.tasks.text import FEATURE_EXTRACTION

CONFIG = TaskConfig()
CALL = Call("ollama.chat", "req-1", "m", "1", created=1_700_000_000, max_tokens=100)
HELLO = [{"role": "user", "content": "Hi"}]
MOMENT = "2023-11-14T22:13:20.000Z"


def read(codec: Any = OLLAMA_CHAT, **fields: Any) -> Any:
    body = json.dumps({"model": "m:latest", **fields}).encode()
    return codec.decode(memoryview(body), CALL, TEXT_GENERATION, CONFIG)


def write(decoded: Any, output: Generation, codec: Any = OLLAMA_CHAT) -> dict[str, Any]:
    return json.loads(codec.encode(decoded, [output], CALL, TEXT_GENERATION, CONFIG).body)


def lines_of(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_options_become_the_tasks_sampling():
    options = {
        "num_predict": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 3,
        "stop": "end",
        "num_ctx": 4096,
    }
    (item,) = read(messages=HELLO, options=options).items
    found = item.sampling
    assert (found.max_tokens, found.temperature, found.top_p, found.top_k) == (7, 0.5, 0.9, 40)
    assert (found.seed, found.stop) == (3, ["end"])


@pytest.mark.parametrize("num_predict", [-1, -2, 0, None])
def test_no_end_is_the_deployments_own(num_predict: int | None):
    (item,) = read(messages=HELLO, options={"num_predict": num_predict, "seed": -1}).items
    assert (item.sampling.max_tokens, item.sampling.seed) == (100, None)


def test_an_answer_ends_with_what_the_door_looks_for():
    answer = Generation(text='"done":true}', finish_reason="length", usage=Usage(3, 4))
    decoded = read(messages=HELLO)
    body = OLLAMA_CHAT.encode(decoded, [answer], CALL, TEXT_GENERATION, CONFIG).body
    assert bytes(body).endswith(b'"done":true}')
    assert bytes(body).count(b'"done":true}') == 1
    assert json.loads(body) == {
        "model": "m:latest",
        "created_at": MOMENT,
        "message": {"role": "assistant", "content": '"done":true}'},
        "done_reason": "length",
        "prompt_eval_count": 3,
        "eval_count": 4,
        "done": True,
    }


def test_a_stream_has_a_line_a_delta_and_calls_when_they_are_whole():
    stream = OLLAMA_CHAT.stream(read(messages=HELLO), CALL)
    first = stream.event(0, TextDelta(text="Hel"))
    pieces = [ToolCallDelta(0, "call_1", "get", '{"a"'), ToolCallDelta(0, arguments=":[1]}")]
    quiet = b"".join(stream.event(0, TextDelta(tool_calls=[piece])) for piece in pieces)
    quiet += stream.event(0, TextDelta(finish_reason="tool_calls"))
    end = lines_of(stream.end(Usage(5, 6)))
    assert lines_of(first)[0]["message"] == {"role": "assistant", "content": "Hel"}
    assert quiet == b""
    (call,) = end[0]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get", "arguments": {"a": [1]}}
    assert (end[0]["done"], end[1]["done"], end[1]["done_reason"]) == (False, True, "stop")
    assert (end[1]["prompt_eval_count"], end[1]["eval_count"]) == (5, 6)


def test_arguments_that_are_no_object_are_the_models_fault():
    output = Generation(tool_calls=[ToolCall("c", "get", "[1]")])
    with pytest.raises(ModelFailed, match="no JSON object"):
        write(read(messages=HELLO), output)


def test_answers_of_tools_find_their_calls():
    called = [
        {"function": {"name": "a", "arguments": {}}},
        {"function": {"name": "b", "arguments": {"x": 1}}},
        {"function": {"name": "b", "arguments": {"x": 2}}, "id": "own"},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": called},
        {"role": "tool", "tool_name": "b", "content": "1"},
        {"role": "tool", "tool_call_id": "own", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    (item,) = read(messages=messages).items
    assert [each.id for each in item.messages[1].tool_calls] == ["call_1_0", "call_1_1", "own"]
    assert item.messages[1].tool_calls[1].arguments == '{"x":1}'
    assert [each.tool_call_id for each in item.messages[2:]] == ["call_1_1", "own", "call_1_0"]
    with pytest.raises(InvalidInput, match="answers no call"):
        read(messages=[*messages, {"role": "tool", "content": "4"}])


def test_pictures_are_told_by_their_first_bytes():
    message = {"role": "user", "content": "What?", "images": ["/9j/4AAQ"]}
    (item,) = read(messages=[message]).items
    picture = item.messages[0].content[1]
    assert picture == ImagePart("data:image/jpeg;base64,/9j/4AAQ")
    with pytest.raises(InvalidInput) as refused:
        read(messages=[{**message, "images": ["data:image/png;base64,iVBO"]}])
    assert refused.value.param == "messages[0].images[0]"


def test_a_prompt_is_a_message_unless_it_is_raw():
    (item,) = read(OLLAMA_GENERATE, prompt="Hi", system="Be brief", format="json").items
    assert isinstance(item, ChatInput)
    assert [(each.role, each.content) for each in item.messages] == [
        ("system", "Be brief"),
        ("user", "Hi"),
    ]
    assert item.json_format is not None
    (raw,) = read(OLLAMA_GENERATE, prompt="Hi", raw=True).items
    assert isinstance(raw, CompletionInput)
    assert raw.prompt == "Hi"
    with pytest.raises(InvalidInput, match="'raw' takes no 'system'"):
        read(OLLAMA_GENERATE, prompt="Hi", raw=True, system="x")


@pytest.mark.parametrize("codec", [OLLAMA_CHAT, OLLAMA_GENERATE])
def test_nothing_asked_is_nothing_answered(codec: Any):
    decoded = read(codec)
    assert decoded.items == []
    answer = json.loads(codec.encode(decoded, [], CALL, TEXT_GENERATION, CONFIG).body)
    assert (answer["done"], answer["done_reason"]) == (True, "load")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": {"a": [[]] * 30_000}}, "format"),
        ({"format": "xml"}, "format"),
        ({"tools": [{"function": {"name": "a"}}] * 2}, "tools[1]"),
        ({"options": {"stop": ["x"] * 100}}, "options.stop"),
        ({"options": {"temperature": -1}}, "options.temperature"),
    ],
)
def test_what_is_too_much_is_refused_by_name(fields: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        read(messages=HELLO, **fields)
    assert refused.value.param == param


def test_texts_that_are_no_texts_are_refused():
    for given in ("", ["a", ""], [1], {"a": 1}, ["x"] * 3000):
        body = json.dumps({"model": "m", "input": given}).encode()
        with pytest.raises(InvalidInput):
            OLLAMA_EMBED.decode(memoryview(body), CALL, FEATURE_EXTRACTION, CONFIG)
