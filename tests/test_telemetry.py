"""Tests of the log, request ids and metrics."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.telemetry import (
    Registry,
    Secret,
    Snapshot,
    configure_logging,
    estimate_quantile,
    get_logger,
    merge,
    redact,
    register_secret,
    render_prometheus,
    request_id,
)
from wherry.telemetry.log import MAX_TEXT_CHARACTERS, escape_controls
from wherry.telemetry.metrics import MAX_SERIES


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield io.StringIO()
    root.handlers[:], root.level, logging.raiseExceptions = handlers, level, raises


def read_json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# ------------------------------------------------------------------------------ the log


def test_a_json_line_carries_event_fields_and_origin(stream: io.StringIO) -> None:
    configure_logging("info", "auto", "gateway-0", stream)  # a stream that is no terminal
    get_logger("journal").warning("segment full", segment="a", size=3, ratio=0.5, flag=True)
    get_logger("journal").debug("not shown")
    (line,) = read_json_lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "event": "segment full",
        "level": "warning",
        "logger": "journal",
        "process": "gateway-0",
        "segment": "a",
        "size": 3,
        "ratio": 0.5,
        "flag": True,
    }


def test_a_text_line_is_for_people(stream: io.StringIO) -> None:
    configure_logging("info", "text", "gateway-0", stream)
    get_logger("x").info("worker ready", worker="w 1", empty="", seconds=1.5)
    line = stream.getvalue().rstrip("\n")
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d info +gateway-0 +worker ready  worker="w 1"  empty=""  seconds=1.5', line
    )


def test_lines_of_other_libraries_look_the_same(stream: io.StringIO) -> None:
    configure_logging("info", "json", "p", stream)
    logging.getLogger("another.library").info("listening on %s", "127.0.0.1")
    assert read_json_lines(stream)[0]["event"] == "listening on 127.0.0.1"


def test_configuring_again_does_not_double_lines(stream: io.StringIO) -> None:
    configure_logging("info", "json", "p", stream)
    configure_logging("info", "json", "p", stream)
    get_logger("x").info("once")
    assert len(read_json_lines(stream)) == 1


def test_registered_secrets_and_our_keys_are_hidden_everywhere(stream: io.StringIO) -> None:
    configure_logging("info", "json", "p", stream)
    secret = Secret('canary-5d1f"quote')
    key = "wh-" + "aB3_-xyz" * 5 + "123"
    log = get_logger("x")
    event = f"event {secret.reveal()}"
    log.info(event, plain=secret.reveal(), object=secret, key=key)
    log.info("nested", fields_of={"a": [secret.reveal()]}, path=f"/v1?key={key}")
    try:
        raise ValueError(f"bad {secret.reveal()} and {key}")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "canary" not in text
    assert key not in text
    assert text.count("***") >= 8
    assert f"{secret!r} {secret} {[secret]}" == "*** *** [***]"


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        Secret("something-secret").__reduce__()


def test_short_words_are_not_taken_for_secrets() -> None:
    register_secret("a")
    assert redact("banana") == "banana"


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "attack",
    [
        'x\n{"event":"key.create"}',
        "x\r\n12:00:00 error  gateway-0 forged",
        "x\x1b[2Jcleared",
        "x\u202eright to left",
        "x\u2028line\u2029paragraph\x85next",
        "x\x00nul\x7f",
    ],
)
def test_nobody_forges_a_line(stream: io.StringIO, log_format: Any, attack: str) -> None:
    configure_logging("info", log_format, "p", stream)
    get_logger("x").info(attack, agent=attack, **{"name\n": 1})
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert text[:-1].isprintable()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_cannot_forge_a_line(stream: io.StringIO, log_format: Any) -> None:
    configure_logging("info", log_format, "p", stream)
    try:
        raise ValueError("x\n12:00:00 error  gateway-0 forged")
    except ValueError:
        get_logger("x").exception("failed")
    first, *others = stream.getvalue().splitlines()
    assert "failed" in first
    assert all(line.startswith("    ") for line in others)
    assert ("traceback" in first) == (log_format == "json")


def test_a_field_cannot_replace_what_the_line_says_itself(stream: io.StringIO) -> None:
    configure_logging("info", "json", "p", stream)
    get_logger("x").info("true", level="forged", process="forged", time="forged")
    (line,) = read_json_lines(stream)
    assert (line["event"], line["level"], line["process"]) == ("true", "info", "p")


def test_long_texts_are_cut(stream: io.StringIO) -> None:
    configure_logging("info", "json", "p", stream)
    get_logger("x").info("e" * 1_000_000, agent="a" * 1_000_000, **{f"f{n}": n for n in range(500)})
    line = stream.getvalue()
    assert len(line) < 3 * MAX_TEXT_CHARACTERS
    assert "(1000000 characters)" in line


def test_chinese_text_stays_readable() -> None:
    assert escape_controls("模型 已加载") == "模型 已加载"


@pytest.mark.parametrize("value", [float("nan"), 2**80, b"bytes", object, {1, 2}, None, [1]])
def test_any_value_can_be_logged(stream: io.StringIO, value: object) -> None:
    configure_logging("info", "json", "p", stream)
    get_logger("x").info("event", value=value)
    assert "value" in read_json_lines(stream)[0]


# ------------------------------------------------------------------------------ request ids


def test_request_ids_are_unique_short_and_sorted() -> None:
    made = [request_id() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch(r"req-[0-9a-v]{22}", each) for each in made)


def test_request_ids_of_threads_differ() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: request_id(), range(5_000)))
    assert len(set(made)) == 5_000


def test_a_forked_process_has_ids_of_its_own() -> None:
    script = (
        "import os; from wherry.telemetry import request_id; request_id(); os.fork();"
        "os.write(1, f'{request_id()}\\n'.encode())"  # in one piece: both write at once
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    first, second = result.stdout.split()
    assert first != second


# ------------------------------------------------------------------------------ metrics


def make_registry() -> Registry:
    registry = Registry()
    requests = registry.counter("wherry_requests_total", "Requests.", ["deployment", "door"])
    requests.labels("iris", "predict").add(3)
    registry.gauge("wherry_in_flight", "In flight.").labels().set(2.5)
    seconds = registry.histogram("wherry_seconds", "Duration.", ["deployment"], (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        seconds.labels("iris").observe(value)
    return registry


RENDERED = """\
# HELP wherry_requests_total Requests.
# TYPE wherry_requests_total counter
wherry_requests_total{deployment="iris",door="predict"} 3
# HELP wherry_in_flight In flight.
# TYPE wherry_in_flight gauge
wherry_in_flight 2.5
# HELP wherry_seconds Duration.
# TYPE wherry_seconds histogram
wherry_seconds_bucket{deployment="iris",le="0.1"} 2
wherry_seconds_bucket{deployment="iris",le="1"} 3
wherry_seconds_bucket{deployment="iris",le="+Inf"} 4
wherry_seconds_sum{deployment="iris"} 7.65
wherry_seconds_count{deployment="iris"} 4
"""


def test_metrics_are_rendered_as_prometheus_reads_them() -> None:
    assert render_prometheus(make_registry().snapshot()).decode() == RENDERED
    assert render_prometheus(Snapshot()) == b""


def test_prometheus_own_parser_reads_it() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    registry = make_registry()
    odd = 'quote" backslash\\ line\nbreak 模型'
    registry.counter("odd_total", 'help with \\ and\nline and "').labels().add()
    registry.gauge("odd", "x", ["name"]).labels(odd).set(float("inf"))
    text = render_prometheus(registry.snapshot()).decode()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["odd", (odd,)] == float("inf")
    assert samples["odd_total", ()] == 1
    assert samples["wherry_seconds_bucket", ("iris", "+Inf")] == 4
    assert samples["wherry_requests_total", ("iris", "predict")] == 3


def test_snapshots_of_processes_add_up() -> None:
    first, second = make_registry(), make_registry()
    extra = Registry()
    extra.counter("wherry_requests_total", "Requests.", ["deployment", "door"]).labels(
        "b", "v2"
    ).add()
    wire = [msgspec.msgpack.encode(each.snapshot()) for each in (first, second, extra)]
    snapshots = [msgspec.msgpack.decode(each, type=Snapshot) for each in wire]
    text = render_prometheus(merge(snapshots)).decode()
    assert 'wherry_requests_total{deployment="iris",door="predict"} 6' in text
    assert 'wherry_requests_total{deployment="b",door="v2"} 1' in text
    assert "wherry_in_flight 5\n" in text
    assert 'wherry_seconds_count{deployment="iris"} 8' in text
    assert render_prometheus(merge(snapshots[:1])) == render_prometheus(snapshots[0])
    assert merge([]) == Snapshot()


def test_a_family_of_another_shape_is_left_out_of_the_sum() -> None:
    other = Registry()
    other.histogram("wherry_seconds", "Duration.", ["deployment"], (5.0,)).labels("iris").observe(1)
    text = render_prometheus(merge([make_registry().snapshot(), other.snapshot()])).decode()
    assert 'wherry_seconds_count{deployment="iris"} 4' in text


def test_series_are_bounded() -> None:
    family = Registry().counter("x_total", "X.", ["user"])
    for number in range(MAX_SERIES + 500):
        family.labels(f"user-{number}").add()
    assert len(family.series) <= MAX_SERIES + 1
    assert family.labels("other").value == 500
    assert family.labels("user-3").value == 1
    family.remove("user-3")
    family.remove("nobody")
    assert ("user-3",) not in family.series
    family.labels("y" * 10_000).add()
    assert max(len(label) for (label,) in family.series) <= 120


def test_a_bound_series_is_the_one_that_is_rendered() -> None:
    registry = Registry()
    bound = registry.counter("x_total", "X.", ["a"]).labels("1")
    for _ in range(5):
        bound.add()
    assert b'x_total{a="1"} 5\n' in render_prometheus(registry.snapshot())


def test_wrong_definitions_are_refused_at_once() -> None:
    registry = Registry()
    registry.counter("a_total", "A.")
    with pytest.raises(ValueError, match="exists"):
        registry.counter("a_total", "A.")
    with pytest.raises(ValueError, match="_total"):
        registry.counter("a", "A.")
    with pytest.raises(ValueError, match="names"):
        registry.gauge('bad"name', "A.")
    with pytest.raises(ValueError, match="rise"):
        registry.histogram("h", "H.", bounds=(1.0, 1.0))
    with pytest.raises(ValueError, match="labels"):
        registry.counter("b_total", "B.", ["x"]).labels("1", "2")


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(
    values: list[float], quantile: float
) -> None:
    bounds = (0.5, 1.0, 5.0, 20.0, 100.0)
    histogram = Registry().histogram("h", "H.", bounds=bounds).labels()
    for value in values:
        histogram.observe(value)
    rank = max(1, -(-int(quantile * len(values) * 1e9) // 10**9))
    true = sorted(values)[min(rank, len(values)) - 1]
    estimate = estimate_quantile(bounds, histogram.counts, quantile)
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < true), default=0.0)
    assert lower <= estimate <= upper


def test_quantiles_at_the_ends() -> None:
    assert estimate_quantile((1.0, 2.0), [0, 0, 0], 0.5) == 0.0
    assert estimate_quantile((1.0, 2.0), [0, 0, 9], 0.5) == 2.0


def test_telemetry_imports_nothing_heavy() -> None:
    script = (
        "import sys, wherry.telemetry;"
        "print([name for name in ('structlog', 'rich', 'asyncio', 'prometheus_client', 'numpy')"
        " if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout == "[]\n"
