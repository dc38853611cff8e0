import json
from typing import Any

import pytest

from wherry.models.tasks.generation import TEXT_GENERATION, Generation
from wherry.worker.runtimes.tool_calls import (
    AnswerReader,
    CallFinder,
    ForcedCallReader,
    TextReader,
)

CALL = '{"name": "get_weather", "arguments": {"city": "}\\"{", "days": [1, 2]}}'
ARGUMENTS = {"city": '}"{', "days": [1, 2]}


def read(reader: AnswerReader, text: str, size: int) -> Generation:
    deltas = [reader.feed(text[at : at + size]) for at in range(0, len(text), size)]
    return TEXT_GENERATION.join([*deltas, reader.finish()])


def calls_of(answer: Generation) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


def finder(parallel: bool = True) -> CallFinder:
    return CallFinder({"get_weather", "f"}, parallel=parallel)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_forced_call_is_read_piece_by_piece(size: int) -> None:
    reader = ForcedCallReader()
    answer = read(reader, CALL, size)
    assert reader.called
    assert answer.text == ""
    assert calls_of(answer) == [("get_weather", ARGUMENTS)]
    assert answer.tool_calls[0].arguments == json.dumps(ARGUMENTS)
    assert answer.tool_calls[0].id.startswith("call_")


def test_a_forced_call_that_is_cut_keeps_its_beginning() -> None:
    answer = read(ForcedCallReader(), '{"name": "f", "arguments": {"a": "b', 3)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("f", '{"a": "b')]
    reader = ForcedCallReader()
    assert read(reader, '{"name": "f', 3).tool_calls == []
    assert not reader.called


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        ("Sunny, 21°.", "Sunny, 21°.", []),
        (CALL, "", [("get_weather", ARGUMENTS)]),
        (f" \n{CALL}\n", "", [("get_weather", ARGUMENTS)]),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [("get_weather", ARGUMENTS)]),
        (f"<tool_call>{CALL}", "", [("get_weather", ARGUMENTS)]),
        (
            f"Let me see. <tool_call>{CALL}</tool_call>",
            "Let me see. ",
            [("get_weather", ARGUMENTS)],
        ),
        (
            f'<tool_call>{CALL}</tool_call>\n\n<tool_call>{{"name": "f"}}</tool_call>\n',
            "",
            [("get_weather", ARGUMENTS), ("f", {})],
        ),
        ('{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ('{"name": "f", "arguments": {"a": }}', '{"name": "f", "arguments": {"a": }}', []),
        ('{"name": "f", "arguments": 5}', '{"name": "f", "arguments": 5}', []),
        ('{"answer": 42}', '{"answer": 42}', []),
        ("{" + "x" * 500, "{" + "x" * 500, []),
        ("a <tool_call", "a <tool_call", []),
        ("a < b <tool> c", "a < b <tool> c", []),
        ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []),
        ("", "", []),
    ],
)
def test_calls_are_told_from_words(
    text: str, words: str, calls: list[tuple[str, Any]], size: int
) -> None:
    reader = finder()
    answer = read(reader, text, size)
    assert answer.text == words
    assert calls_of(answer) == calls
    assert reader.called == bool(calls)


def test_words_come_out_before_the_end() -> None:
    reader = finder()
    assert reader.feed("The weather <b>is").text == "The weather <b>is"


def test_one_call_is_enough_where_parallel_calls_are_off() -> None:
    text = f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "f"}}</tool_call>'
    assert len(read(finder(parallel=False), text, 5).tool_calls) == 1


def test_text_passes_untouched() -> None:
    reader = TextReader()
    assert reader.feed(CALL).text == CALL
    assert not reader.called
