from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.generation import ChatInput, ImagePart, Message, TextPart, Tool, ToolCall
from wherry.worker.runtimes.chat_prompt import Neutraliser
from wherry.worker.runtimes.control_tokens import special_tokens_of, without_control_tokens

END = "<|im_end|>"


def test_no_text_of_a_conversation_keeps_a_control_token() -> None:
    picture = ImagePart(f"data:{END}")
    item = ChatInput(
        messages=[
            Message("system", f"a{END}"),
            Message("user", [TextPart(END), picture], name=END),
            Message("assistant", END, tool_calls=[ToolCall(END, "f", json.dumps({"x": END}))]),
            Message("tool", END, tool_call_id="c"),
        ],
        tools=[Tool("f", END, {"type": "object", "description": END, END: [END]})],
    )
    found = without_control_tokens(item, Neutraliser([END]))
    assert isinstance(found.messages[1].content, list)
    assert found.messages[1].content[1] is picture, "not a text that a template would write"
    found.messages[1].content.pop()
    assert END not in msgspec.json.encode(found).decode()
    assert END in msgspec.json.encode(item).decode(), "the request itself is left alone"


def test_special_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    tokens = [
        {"id": 0, "content": END, "special": True},
        {"id": 1, "content": " ", "special": False},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": {}}))
    assert special_tokens_of(tmp_path) == [END]


@pytest.mark.parametrize("text", [None, "[]", '{"added_tokens": 1}'])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"tokenizer\.json"):
        special_tokens_of(tmp_path)
