"""Bodies that no good client sends, to every inference door.

The oracle is always the same: a 4xx in the protocol's own shape, no word about our insides, the
same workers afterwards, and the next good request is answered.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import LiveServer
from tests.wire.probe import check_refusal, resident_mib, workers

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
IRIS, ECHO, DIGITS = "/v2/models/iris/infer", "/v2/models/echo/infer", "/predict/digits"
USER = {"role": "user", "content": "x"}


def tensor(name: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": data}]}


GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "chat", "messages": [USER], "max_tokens": 1},
    MESSAGES: {"model": "chat", "messages": [USER], "max_tokens": 1},
    COUNT: {"model": "chat", "messages": [USER]},
    COMPLETIONS: {"model": "chat", "prompt": "x", "max_tokens": 1},
    RESPONSES: {"model": "chat", "input": "x", "max_output_tokens": 1},
    EMBEDDINGS: {"model": "embeddings", "input": "x"},
    IRIS: tensor("input", [1, 4], [1, 2, 3, 4]),
    ECHO: tensor("X", [2], [1, 2]),
    DIGITS: {"image": [[0.5] * 28] * 28},
    "/predict/iris": {"row": [1, 2, 3, 4]},
    "/predict/topics": {"text": "x"},
    "/predict/echo": {"X": [1, 2]},
    "/predict/chat": {"text": "x", "max_tokens": 1},
    "/predict/embeddings": {"text": "x"},
}
"""A good request for every codec and every model."""

BODIES: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \n",
    "cut off": b'{"model": "chat", ',
    "list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "number": b"1",
    "NaN": b"NaN",
    "infinity as a value": b'{"model": "chat", "row": [Infinity]}',
    "NaN as a value": b'{"model": "chat", "row": [NaN], "temperature": NaN}',
    "200 000 lists": b"[" * 200_000,
    "200 000 objects": b'{"a":' * 200_000,
    "closed deep lists": b'{"model":"chat","zzz":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an integer of 4400 digits": b'{"model":' + b"9" * 4400 + b"}",
    "1e400": b'{"model":"chat","row":[1e400],"temperature":1e400}',
    "half a pair of surrogates": b'{"model":"\\ud800","text":"\\ud800"}',
    "no UTF-8": b'{"model":"\xff\xfe","text":"\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"chat"}',
    "UTF-16": '{"model":"chat"}'.encode("utf-16"),
    "a control character": b'{"model":"a\nb"}',
    "something behind": b'{"model":"chat"} x',
    "two objects": b"{}{}",
    "a long name": b'{"model":"' + b"m" * 200_000 + b'"}',
    "200 000 keys": b"{" + b",".join(b'"k%d":1' % number for number in range(200_000)) + b"}",
    "gzip without saying so": gzip.compress(b"{}"),
}


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_harmed(live: LiveServer) -> Iterator[None]:
    """No worker was restarted, memory did not run away, and all doors still answer."""
    check_all_good(live)
    before = {each.pid: resident_mib(each.pid) for each in workers(live)}
    yield
    check_all_good(live)
    after = {each.pid: resident_mib(each.pid) for each in workers(live)}
    assert set(after) == set(before)
    for pid, mib in after.items():
        assert mib - before[pid] < 300, f"worker {pid} grew from {before[pid]:.0f} to {mib:.0f} MiB"
    assert "Traceback" not in live.log()


def check_all_good(live: LiveServer) -> None:
    """Every good request is answered."""
    for path, body in GOOD.items():
        answer = live.http.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("name", BODIES)
def test_what_is_not_such_a_request_is_refused(live: LiveServer, path: str, name: str):
    headers = {"content-type": "application/json"}
    begun = time.monotonic()
    check_refusal(path, live.http.post(path, content=BODIES[name], headers=headers))
    assert time.monotonic() - begun < 3


def with_fields(path: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A good request with some fields replaced."""
    return path, GOOD[path] | fields


def with_schema(schema: Any) -> tuple[str, dict[str, Any]]:
    """A chat that must follow a schema."""
    wanted = {"name": "x", "schema": schema}
    return with_fields(CHAT, response_format={"type": "json_schema", "json_schema": wanted})


def nested(depth: int) -> dict[str, Any]:
    """A schema of objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REFUSED = {
    "temperature as text": with_fields(CHAT, temperature="1"),
    "temperature of 10^300": with_fields(CHAT, temperature=1e300),
    "n of 2^31": with_fields(CHAT, n=2**31),
    "negative n": with_fields(CHAT, n=-1),
    "seed of 2^64": with_fields(CHAT, seed=2**64),
    "max_tokens of 10^30": with_fields(CHAT, max_tokens=10**30),
    "no max_tokens": with_fields(CHAT, max_tokens=0),
    "max_tokens with a fraction": with_fields(CHAT, max_tokens=1.5),
    "stream as text": with_fields(CHAT, stream="yes"),
    "stops without end": with_fields(CHAT, stop=["a"] * 100_000),
    "a stop of 1 MB": with_fields(CHAT, stop="a" * 1_000_000),
    "messages without end": with_fields(CHAT, messages=[USER] * 100_000),
    "a message that is a number": with_fields(CHAT, messages=[{"role": "user", "content": 1}]),
    "a part of no known type": with_fields(
        CHAT, messages=[{"role": "user", "content": [{"type": "zzz"}]}]
    ),
    "a picture for a text model": with_fields(
        CHAT,
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
            }
        ],
    ),
    "a bias for no token": with_fields(CHAT, logit_bias={"abc": 5}),
    "a bias of 10^9": with_fields(CHAT, logit_bias={"5": 1e9}),
    "the template of another": with_fields(CHAT, chat_template="{{ 1 }}"),
    "tools without end": with_fields(
        CHAT,
        tools=[{"type": "function", "function": {"name": f"f{each}"}} for each in range(1000)],
    ),
    "a tool with a strange name": with_fields(
        CHAT, tools=[{"type": "function", "function": {"name": "a b\n"}}]
    ),
    "a schema that is nonsense": with_schema({"type": "nonsense"}),
    "a schema of no type": with_schema({"type": []}),
    "a schema from elsewhere": with_schema({"$ref": "http://127.0.0.1:1/x"}),
    "a schema that is too deep": with_schema(nested(100)),
    "a schema with 30 000 members": with_schema(
        {"anyOf": [{"const": str(number)} for number in range(30_000)]}
    ),
    "prompts without end": with_fields(COMPLETIONS, prompt=["a"] * 100_000),
    "no prompt": with_fields(COMPLETIONS, prompt=[]),
    "a token that is none": with_fields(COMPLETIONS, prompt=[2**31 - 1]),
    "a negative token": with_fields(COMPLETIONS, prompt=[-1]),
    "best of 10^9": with_fields(COMPLETIONS, best_of=10**9),
    "items without end": with_fields(RESPONSES, input=[USER] * 100_000),
    "an item of no known type": with_fields(RESPONSES, input=[{"type": "zzz" * 1000}]),
    "an item that is a number": with_fields(RESPONSES, input=[1]),
    "an output of no call": with_fields(
        RESPONSES, input=[{"type": "function_call_output", "call_id": "x", "output": "y"}]
    ),
    "a file for a text model": with_fields(
        RESPONSES, input=[{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]
    ),
    "a picture to answer about": with_fields(
        RESPONSES,
        input=[
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}],
            }
        ],
    ),
    "a hosted tool": with_fields(RESPONSES, tools=[{"type": "code_interpreter"}]),
    "a format that is too deep": with_fields(
        RESPONSES, text={"format": {"type": "json_schema", "name": "x", "schema": nested(100)}}
    ),
    "a format that is too deep, not kept": with_fields(
        RESPONSES,
        store=False,
        text={"format": {"type": "json_schema", "name": "x", "schema": nested(100)}},
    ),
    "metadata without end": with_fields(
        RESPONSES, metadata={str(number): "x" for number in range(10_000)}
    ),
    "nobody's response": with_fields(RESPONSES, previous_response_id="resp_\0\n"),
    "a response with a long name": with_fields(RESPONSES, previous_response_id="r" * 100_000),
    "texts without end": with_fields(EMBEDDINGS, input=["a"] * 3000),
    "a text of 2 MB": with_fields(EMBEDDINGS, input="x" * 2_000_000),
    "a token embedded that is none": with_fields(EMBEDDINGS, input=[10**12]),
    "other dimensions": with_fields(EMBEDDINGS, dimensions=10),
    "an unknown encoding": with_fields(EMBEDDINGS, encoding_format="hex"),
    "2^62 rows of nothing": (IRIS, tensor("input", [0, 2**62], [])),
    "a shape of 4 GB": (IRIS, tensor("input", [2**30, 1], [1])),
    "a shape over 64 bits": (ECHO, tensor("X", [2**32, 2**32], [1])),
    "a million dimensions": (ECHO, tensor("X", [1] * 1_000_000, [1])),
    "33 dimensions": (ECHO, tensor("X", [1] * 33, [1])),
    "a row too short": ("/predict/iris", {"row": [1, 2, 3]}),
    "a row without end": ("/predict/iris", {"row": [1] * 100_000}),
    "a row with a hole": ("/predict/iris", {"row": [1, None, 3, 4]}),
    "a row over 32 bits": ("/predict/iris", {"row": [1e308] * 4}),
    "a picture without rows": (DIGITS, {"image": []}),
    "a picture of six colours": (DIGITS, {"image": [[[1] * 6] * 28] * 28}),
    "a picture in 5 MB of letters": (DIGITS, {"image": "A" * 5_000_000}),
    "100 000 conversations": (
        "/v2/models/chat/infer",
        {
            "inputs": [
                {"name": "text", "datatype": "BYTES", "shape": [100_000], "data": ["a"] * 100_000}
            ]
        },
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_out_of_their_range_are_refused(live: LiveServer, name: str):
    path, body = REFUSED[name]
    begun = time.monotonic()
    check_refusal(path, live.http.post(path, json=body))
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
        {"type": "string", "pattern": "(((("},
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        nested(20),
    ],
    ids=str,
)
def test_a_schema_bomb_costs_little(live: LiveServer, schema: Any):
    path, body = with_schema(schema)
    begun = time.monotonic()
    answer = live.http.post(path, json=body)
    assert time.monotonic() - begun < 5
    if answer.status_code != 200:
        check_refusal(path, answer)


# ------------------------------------------------------------------------------ pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it has so many pixels, one bit each."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small_png() -> bytes:
    target = io.BytesIO()
    Image.new("L", (28, 28)).save(target, "PNG")
    return target.getvalue()


PNG = small_png()
PICTURES = {
    "50 000 x 50 000, only the head": png(50_000, 50_000),
    "50 000 x 50 000, all of it": png(50_000, 50_000, zlib.compress(b"\0" * (50_000 * 6251), 9)),
    "as high as can be": png(1, 2**31 - 1),
    "no pixels": png(0, 0),
    "cut off in the head": PNG[:20],
    "cut off at the end": PNG[:-20],
    "vector": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
    "vector with an entity": b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "TIFF that points to itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 100,
    "100 MB of comment": PNG[:33]
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 10**8))
    + PNG[33:],
    "nothing": b"",
    "noise": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_bomb_is_refused_by_its_head(live: LiveServer, name: str):
    begun = time.monotonic()
    check_refusal(
        DIGITS,
        live.http.post(DIGITS, content=PICTURES[name], headers={"content-type": "image/png"}),
    )
    text = base64.b64encode(PICTURES[name]).decode()
    check_refusal(DIGITS, live.http.post(DIGITS, json={"image": text}))
    assert time.monotonic() - begun < 2


# ------------------------------------------------------------------------------ encodings

PACKED = gzip.compress(json.dumps(GOOD[IRIS]).encode())


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(b" " * 10_000_000),
        gzip.compress(b"\0" * 200_000_000, 1),
        gzip.compress(PACKED),
        PACKED[:-5],
        PACKED + b"x",
        b"no gzip",
        b"",
    ],
    ids=["10 MB", "200 MB", "twice", "cut off", "something behind", "none", "empty"],
)
def test_a_compressed_bomb_is_refused(live: LiveServer, body: bytes):
    begun = time.monotonic()
    check_refusal(IRIS, live.http.post(IRIS, content=body, headers={"content-encoding": "gzip"}))
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 5000])
def test_an_unknown_encoding_is_refused(live: LiveServer, encoding: str):
    headers = {"content-encoding": encoding}
    check_refusal(IRIS, live.http.post(IRIS, content=PACKED, headers=headers))


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/predict/iris", "/platform/v1/keys"])
def test_other_doors_take_no_compressed_bodies(live: LiveServer, path: str):
    answer = live.http.post(path, content=PACKED, headers={"content-encoding": "gzip"})
    check_refusal(path, answer)
    assert "compressed" in answer.text


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "x" * 5000])
def test_openai_bodies_are_json(live: LiveServer, kind: str):
    body = json.dumps(GOOD[CHAT])
    check_refusal(CHAT, live.http.post(CHAT, content=body, headers={"content-type": kind}))


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "x", "", "1e-9", "86401"])
def test_a_time_limit_must_be_a_sane_number(live: LiveServer, value: str):
    headers = {"x-request-timeout-seconds": value}
    check_refusal(IRIS, live.http.post(IRIS, json=GOOD[IRIS], headers=headers))


@pytest.mark.parametrize("value", ["wait=-1", "wait=999999999", "x" * 5000, "wait=0"])
def test_any_preference_may_be_sent(live: LiveServer, value: str):
    answer = live.http.post(IRIS, json=GOOD[IRIS], headers={"prefer": value})
    assert answer.status_code == 200


# ------------------------------------------------------------------------------ fuzz

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([0, -1, 1, 2**31, 2**63, "", "chat", "user", "FP32", "BYTES", "X", "input"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good request in which something was replaced, taken away, or scrambled."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body: Any = json.loads(json.dumps(GOOD[path]))
    for _ in range(draw(st.integers(1, 3))):
        change(draw, body)
    data = json.dumps(body).encode()
    if draw(st.integers(0, 4)) == 0 and data:
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + draw(st.binary(max_size=4)) + data[place + 1 :]
    return path, data


def change(draw: st.DrawFn, place: Any) -> None:
    """Walk into a body and change something there."""
    while True:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw(st.sampled_from(keys[:8]))
        if isinstance(place[key], (dict, list)) and draw(st.booleans()):
            place = place[key]
            continue
        if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
            del place[key]
        else:
            place[key] = draw(values)
        return


@settings(
    max_examples=600,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=mutated())
def test_whatever_a_body_becomes_it_is_answered_or_refused(
    live: LiveServer, request: tuple[str, bytes]
):
    path, body = request
    headers = {"content-type": "application/json"}
    answer = live.http.post(path, content=body, headers=headers)
    if answer.status_code == 200:
        return
    check_refusal(path, answer)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    datatype=st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "FP16", "BF16", "UINT64"]),
    shape=st.lists(st.integers(0, 5) | st.integers(2**31, 2**64), max_size=4),
    size=st.integers(0, 80) | st.integers(2**31, 2**64),
    tail=st.binary(max_size=80),
    off_by=st.sampled_from([0, 0, 0, 1, -1, 1000]),
)
def test_whatever_a_binary_tensor_is_it_is_answered_or_refused(
    live: LiveServer, datatype: str, shape: list[int], size: int, tail: bytes, off_by: int
):
    described: dict[str, Any] = {"name": "X", "datatype": datatype, "shape": shape}
    described["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head) + off_by)}
    answer = live.http.post(ECHO, content=head + tail, headers=headers)
    if answer.status_code != 200:
        check_refusal(ECHO, answer)
