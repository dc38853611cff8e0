import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.generation import (
    MAX_JSON_DEPTH,
    MAX_JSON_NODES,
    PLAIN_MAX_TOKENS,
    TEXT_GENERATION,
    ChatInput,
    CompletionInput,
    Generation,
    Message,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    cap_tokens,
    check_json_size,
)
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec, Usage

CONFIG = TaskConfig()


def texts(*values: str) -> np.ndarray:
    tensor = np.empty(len(values), dtype=object)
    tensor[:] = [value.encode() for value in values]
    return tensor


def test_the_catalogue_knows_the_task() -> None:
    assert find_task("text-generation") is TEXT_GENERATION


def test_its_signature_is_texts_unless_the_bundle_says_otherwise() -> None:
    assert [each.name for each in TEXT_GENERATION.signature(CONFIG).inputs] == ["text"]
    own = Signature(inputs=(TensorSpec("prompt", "BYTES", (1,)),))
    assert TEXT_GENERATION.signature(TaskConfig(signature=own)) == own


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_tensor_of_texts_is_a_conversation_each(shape: tuple[int, ...]) -> None:
    items = TEXT_GENERATION.from_tensors({"text": texts("你好", "b").reshape(shape)}, CONFIG)
    assert [item.messages for item in items] == [[Message("user", "你好")], [Message("user", "b")]]
    assert {item.sampling.max_tokens for item in items} == {PLAIN_MAX_TOKENS}


def test_scalar_tensors_set_the_sampling() -> None:
    tensors = {
        "text": texts("a"),
        "max_tokens": np.array([7]),
        "temperature": np.array([0.5], dtype=np.float32),
        "seed": np.array([3], dtype=np.int32),
    }
    [item] = TEXT_GENERATION.from_tensors(tensors, CONFIG)
    sampling = item.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (7, 0.5, 3)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"text": texts("a"), "other": np.array([1])},
        {"text": np.empty((0,), dtype=object)},
        {"text": texts("a", "b").reshape(1, 2)},
        {"text": texts("a"), "max_tokens": np.array([0])},
        {"text": texts("a"), "max_tokens": np.array([1.5])},
        {"text": texts("a"), "max_tokens": np.array([1, 2])},
        {"text": texts("a"), "temperature": np.array([np.nan])},
        {"text": texts("a"), "temperature": np.array([3.0])},
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(InvalidInput):
        TEXT_GENERATION.from_tensors(tensors, CONFIG)


def test_a_text_that_is_not_utf8_is_refused() -> None:
    tensor = np.empty(1, dtype=object)
    tensor[0] = b"\xff\xfe"
    with pytest.raises(InvalidInput, match="UTF-8"):
        TEXT_GENERATION.from_tensors({"text": tensor}, CONFIG)


def test_a_plain_text_is_said_by_a_user_and_a_prompt_is_continued() -> None:
    said = TEXT_GENERATION.from_plain({"text": "Hi", "max_tokens": 5}, CONFIG)
    assert isinstance(said, ChatInput)
    assert said.messages == [Message("user", "Hi")]
    assert said.sampling.max_tokens == 5
    continued = TEXT_GENERATION.from_plain({"prompt": "Once", "temperature": 0}, CONFIG)
    assert isinstance(continued, CompletionInput)
    assert (continued.prompt, continued.sampling.temperature) == ("Once", 0.0)


def test_plain_messages_are_a_conversation() -> None:
    messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    item = TEXT_GENERATION.from_plain({"messages": messages}, CONFIG)
    assert isinstance(item, ChatInput)
    assert [message.role for message in item.messages] == ["system", "user"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "prompt": "b"},
        {"messages": []},
        {"text": 5},
        {"text": "a", "max_tokens": 0},
        {"text": "a", "max_token": 5},
        {"text": "a", "temperature": float("nan")},
        {"text": "a", "stop": [""]},
        {"messages": [{"role": "wizard", "content": "x"}]},
    ],
)
def test_a_plain_body_that_is_not_clear_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        TEXT_GENERATION.from_plain(body, CONFIG)


def test_the_least_cap_of_tokens_holds() -> None:
    config = TaskConfig(options={"max_tokens": 50})
    assert cap_tokens(None, CONFIG) is None
    assert cap_tokens(80, config) == 50
    assert cap_tokens(10, config) == 10
    assert cap_tokens(80, config, 20) == 20
    assert cap_tokens(None, config) == 50
    item = TEXT_GENERATION.from_plain({"text": "a"}, config)
    assert item.sampling.max_tokens == 50


def test_deltas_join_to_one_answer() -> None:
    token = TokenLogprob("a", -0.5)
    joined = TEXT_GENERATION.join(
        [
            TextDelta(text="a", logprobs=[token]),
            TextDelta(tool_calls=[ToolCallDelta(1, "id1", "second"), ToolCallDelta(0, "id0", "f")]),
            TextDelta(text="b", tool_calls=[ToolCallDelta(0, arguments='{"x":')]),
            TextDelta(tool_calls=[ToolCallDelta(0, arguments="1}")]),
            TextDelta(finish_reason="tool_calls", usage=Usage(3, 4, 1)),
        ]
    )
    assert joined == Generation(
        text="ab",
        tool_calls=[ToolCall("id0", "f", '{"x":1}'), ToolCall("id1", "second", "")],
        finish_reason="tool_calls",
        logprobs=[token],
        usage=Usage(3, 4, 1),
    )


def test_an_answer_without_an_end_was_cancelled() -> None:
    assert TEXT_GENERATION.join([TextDelta(text="a")]).finish_reason == "cancelled"


def test_an_answer_is_plain_json_and_tensors() -> None:
    output = Generation(text="你", finish_reason="length", usage=Usage(2, 1, 1))
    assert TEXT_GENERATION.to_plain(output, CONFIG) == {
        "prediction": "你",
        "text": "你",
        "finish_reason": "length",
        "usage": {"input_tokens": 2, "output_tokens": 1},
    }
    called = Generation(tool_calls=[ToolCall("i", "f", "{}")], finish_reason="tool_calls")
    assert TEXT_GENERATION.to_plain(called, CONFIG)["tool_calls"][0]["name"] == "f"
    tensors = TEXT_GENERATION.to_tensors([output, called], CONFIG)
    assert tensors["text"].tolist() == ["你".encode(), b""]
    assert tensors["finish_reason"].tolist() == [b"length", b"tool_calls"]


def test_free_form_json_is_bounded_in_depth_and_size() -> None:
    deep: object = 1
    for _ in range(MAX_JSON_DEPTH):
        deep = {"a": [deep]}
    with pytest.raises(InvalidInput, match="deep"):
        check_json_size(deep, "schema")
    with pytest.raises(InvalidInput, match="more than"):
        check_json_size([[0] * 1000] * (MAX_JSON_NODES // 1000 + 1), "schema")
    check_json_size({"a": [{"b": 1}]}, "schema")
