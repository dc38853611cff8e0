"""Templates of pipelines: what a reference stands for, and in which order steps can run."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest

from wherry import errors
from wherry.client.schema import Step
from wherry.gateway.steps import (
    MAX_FILLED_BYTES,
    MAX_LIST_BYTES,
    fill,
    find_dependencies,
    parse_reference,
    read_request,
    references_of,
    to_raw,
)

VALUES = {
    "request": to_raw({"text": "hi", "deep": {"a": [1, {"b": "c"}]}, "none": None}),
    "find": to_raw({"faces": [{"box": {"x": 1.5}}, {"box": {"x": 2}}], "name": "née"}),
}


def filled(template: Any) -> Any:
    return json.loads(bytes(fill(template, VALUES)))


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("$request.text", "hi"),
        ({"a": "$request.text", "b": 3, "c": ["$find.name", "plain"]}, {"a": "hi", "b": 3, "c": ["née", "plain"]}),
        ("$request.deep.a.1.b", "c"),
        ("$request.none", None),
        ("$find.faces.*.box.x", [1.5, 2]),
        ("$find.faces.0.box", {"x": 1.5}),
        ("$$request", "$request"),
        ({"a": "$request.text?", "b": "$request.other?"}, {"a": "hi"}),
        ({"text": "5 $ and more"}, {"text": "5 $ and more"}),
    ],
)  # fmt: skip
def test_a_reference_is_the_value_that_it_names(template: Any, value: Any):
    assert filled(template) == value


def test_the_whole_request_is_passed_on_as_it_came():
    body = b'{ "text" : 1e2, "big": 123456789012345678901234567890 }'
    request = read_request(body, "application/json", [])
    assert bytes(fill("$request", {"request": request})) == body


@pytest.mark.parametrize(
    ("template", "kind", "told"),
    [
        ("$request.other", errors.InvalidInput, "'other' of the request"),
        ("$request.text.more", errors.InvalidInput, "no object"),
        ("$find.people", errors.ModelFailed, "is not there"),
        ("$find.faces.7", errors.ModelFailed, "is not there"),
        ("$find.name.*.x", errors.ModelFailed, "is no list"),
        (["$request.other?"], errors.InvalidInput, "no \\$request.other"),
    ],
)
def test_what_is_not_there_is_told_by_whose_fault_it_is(template: Any, kind: Any, told: str):
    with pytest.raises(kind, match=told):
        filled(template)


@pytest.mark.parametrize("text", ["$", "$.a", "$a..b", "$a."])
def test_half_a_reference_is_refused(text: str):
    with pytest.raises(errors.InvalidInput):
        parse_reference(text)


def test_a_template_has_a_bottom():
    template: Any = "$request.text"
    for _ in range(50):
        template = [template]
    with pytest.raises(errors.InvalidInput, match="deep"):
        list(references_of(template))


# ------------------------------------------------------------------------------ order


def steps(*pairs: tuple[str, Any]) -> list[Step]:
    return [Step(name=name, deployment="d", input=template) for name, template in pairs]


def test_steps_run_in_the_order_of_what_they_need_whatever_they_are_written_in():
    found = find_dependencies(
        steps(
            ("last", {"a": "$left.x", "b": "$right.x"}), ("left", "$first"), ("right", "$first"),
            ("first", "$request"),
        ),
    )  # fmt: skip
    assert list(found) == ["first", "left", "right", "last"]
    assert found["last"] == {"left", "right"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (steps(("a", "$b"), ("b", "$a")), "a, b wait for each other"),
        (steps(("a", {"x": "$a.y"})), "wait for each other"),
        (steps(("a", "$nobody.x")), "refers to '\\$nobody.x'"),
        (steps(("a", "$each.x")), "refers to '\\$each.x'"),
        (steps(("a", "$request"), ("a", "$request")), "name of its own"),
        (steps(("request", "$request")), "name of its own"),
        ([Step(name="a", deployment="d", each="boxes")], "reference to a list"),
    ],
)
def test_steps_that_cannot_run_are_refused(found: list[Step], told: str):
    with pytest.raises(errors.InvalidInput, match=told):
        find_dependencies(found)


def test_an_answer_may_only_name_what_there_is():
    with pytest.raises(errors.InvalidInput, match="the answer refers"):
        find_dependencies(steps(("a", "$request")), {"x": "$b"})


# ------------------------------------------------------------------------------ bodies


def test_a_file_comes_under_the_key_that_a_step_asks_for():
    wanted = list(references_of({"audio": "$request.audio"}))
    for kind in ("audio/wav", "application/octet-stream", "video/mp4"):
        assert json.loads(bytes(read_request(b"RIFF", kind, wanted))) == {"audio": "UklGRg=="}
    with pytest.raises(errors.InvalidInput, match="no step"):
        read_request(b"GIF8", "image/gif", wanted)


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b'"x"', b'{"a": 1', b'{"a": 1} {"b": 2}', b'{"a": "\xff"}', b"[" * 100_000],
)
def test_a_body_that_is_no_object_is_refused(body: bytes):
    with pytest.raises(errors.InvalidInput):
        read_request(body, "application/json", [])


def test_a_body_cannot_bring_keys_that_the_template_does_not_have():
    body = b'{"text": "x\\", \\"secret\\": \\"y"}'
    request = read_request(body, "application/json", [])
    assert json.loads(bytes(fill({"t": "$request.text"}, {"request": request}))) == {
        "t": 'x", "secret": "y'
    }


@pytest.mark.parametrize(
    "bomb",
    [b"[" + b"[]," * 5_000_000 + b"[]]", b"{" + b'"a":{},' * 2_000_000 + b'"b":{}}'],
)
def test_a_body_made_to_burst_a_parser_costs_its_own_size(bomb: bytes):
    body = b'{"text": "hi", "bomb": ' + bomb + b"}"
    tracemalloc.start()
    try:
        request = read_request(body, "application/json", [])
        assert json.loads(bytes(fill({"t": "$request.text"}, {"request": request}))) == {"t": "hi"}
        with pytest.raises((errors.TooLarge, errors.InvalidInput)):
            fill("$request.bomb.0", {"request": request})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body)


def test_a_long_list_can_be_passed_on_but_not_looked_into():
    request = to_raw({"list": [0] * MAX_LIST_BYTES})
    assert len(bytes(fill("$request.list", {"request": request}))) > MAX_LIST_BYTES
    with pytest.raises(errors.TooLarge):
        fill("$request.list.*", {"request": request})


def test_a_template_does_not_multiply_a_large_value_without_end():
    request = to_raw({"picture": "x" * (1 << 20)})
    template = [{"a": "$request.picture"}] * (MAX_FILLED_BYTES >> 20)
    tracemalloc.start()
    try:
        with pytest.raises(errors.TooLarge):
            fill(template, {"request": request})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
    assert fill(template[:3], {"request": request})


def test_values_are_kept_as_bytes():
    assert isinstance(fill({"a": "$request.text"}, VALUES), msgspec.Raw)
