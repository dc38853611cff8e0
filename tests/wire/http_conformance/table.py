"""What is sent, and what must come of it, on both paths: RFC 9110 and 9112 in raw bytes."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Literal

from tests.wire.http_conformance.conftest import MAX_BODY_BYTES
from tests.wire.http_conformance.exchange import AUTHORIZATION, HOST, KEY, in_chunks, post

INFER, PREDICT = b"/v2/models/echo/infer", b"/predict/echo"
TENSOR = b'{"inputs":[{"name":"X","shape":[2],"datatype":"FP64","data":[1.0,2.0]}]}'
PLAIN = b'{"X":[1.0,2.0]}'
SLOW = b'{"X":[-0.3]}'
CHUNKED = b"Transfer-Encoding: chunked"
CONTINUE = b"Expect: 100-continue"
WRONG_KEY = b"Authorization: Bearer wrong\r\n"
UPGRADE = (b"Connection: upgrade", b"Upgrade: h2c")
CLOSE = b"Connection: close"
GOOD = post(INFER, TENSOR)
GOOD_PLAIN = post(PREDICT, PLAIN)
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
LARGE = b" " * (2 * MAX_BODY_BYTES)
MORE = MAX_BODY_BYTES + 1
ECHOED = b"[1.0,2.0]"

End = Literal["kept", "closed", "waits"]


@dataclass
class Case:
    """One exchange."""

    name: str
    pieces: bytes | list[bytes | float]
    statuses: list[int]
    end: End = "kept"
    answer: bytes = b""
    """What the last answer holds."""
    is_head: bool = False


def refused(name: str, data: bytes, status: int = 400, answer: bytes = b"") -> Case:
    """A fault: one answer, and nothing after it is served."""
    return Case(name, data + GOOD if status == 400 else data, [status], "closed", answer)


def chunked(body: bytes, *fields: bytes, path: bytes = INFER) -> bytes:
    """A request whose body comes in chunks."""
    return post(path, body, CHUNKED, *fields, length=None)


PLAIN_CASES = [
    Case("infer", GOOD, [200], answer=ECHOED),
    Case("predict", GOOD_PLAIN, [200], answer=PLAIN),
    Case("a chunked body", chunked(in_chunks(TENSOR)), [200], answer=ECHOED),
    Case("a chunked plain body", chunked(in_chunks(PLAIN), path=PREDICT), [200], answer=PLAIN),
    Case("chunk extensions", chunked(in_chunks(TENSOR, b';a=b;c="d"')), [200], answer=ECHOED),
    Case("upper case chunk sizes", chunked(b"4F\r\n" + TENSOR.ljust(0x4F) + b"\r\n0\r\n\r\n"), [200]),
    Case("leading zeros of a chunk size", chunked(b"0004\r\n{\"X\"\r\n00b\r\n:[1.0,2.0]}\r\n000\r\n\r\n", path=PREDICT), [200], answer=PLAIN),
    Case("1-byte chunks", chunked(b"".join(b"1\r\n%c\r\n" % each for each in TENSOR) + b"0\r\n\r\n"), [200], answer=ECHOED),
    Case("lower-case field names", GOOD.replace(b"Host", b"host").replace(b"Auth", b"auth"), [200]),
    Case("upper-case field names", GOOD.replace(b"Host", b"HOST").replace(b"Content-Length", b"CONTENT-LENGTH"), [200]),
    Case("no space after a colon", GOOD.replace(b": ", b":"), [200]),
    Case("spaces and tabs around a value", post(INFER, TENSOR, b"X:  \t a \t "), [200]),
    Case("an empty value", post(INFER, TENSOR, b"X:"), [200]),
    Case("obs-text in a value", post(INFER, TENSOR, b"X: \xff\xfe"), [200]),
    Case("a field twice that may be", post(INFER, TENSOR, b"Cookie: a", b"Cookie: b"), [200]),
    Case("empty lines before the request", b"\r\n\r\n" + GOOD, [200], answer=ECHOED),
    Case("media types", post(INFER, TENSOR, b"Content-Type: application/json; charset=utf-8"), [200]),
    Case("x-api-key", post(INFER, TENSOR, key=b"X-Api-Key: " + KEY + b"\r\n"), [200]),
    Case("the pinned version", post(b"/v2/models/echo/versions/1/infer", TENSOR), [200], answer=b'"1"'),
    Case("the full name", post(b"/predict/default/echo", PLAIN), [200]),
    Case("TE: trailers", post(INFER, TENSOR, b"TE: trailers", b"Connection: TE"), [200]),
    Case("an unknown expectation", post(INFER, TENSOR, b"Expect: 200-maybe"), [200]),
    Case("an id comes back", post(INFER, b'{"id":"a",' + TENSOR[1:]), [200], answer=b'"id":"a"'),
    Case("a deadline", post(INFER, TENSOR, b"X-Request-Timeout-Seconds: 20"), [200]),
    Case("a deadline that has passed", post(PREDICT, SLOW, b"X-Request-Timeout-Seconds: 0.05"), [504]),
    Case("a deadline that is none", post(PREDICT, PLAIN, b"X-Request-Timeout-Seconds: x"), [400]),
    Case("gzip where it is understood", post(INFER, gzip.compress(TENSOR), b"Content-Encoding: gzip"), [200], answer=ECHOED),
    Case("gzip where it is not", post(PREDICT, gzip.compress(PLAIN), b"Content-Encoding: gzip"), [400]),
    Case("an unknown coding", post(INFER, TENSOR, b"Content-Encoding: br"), [400]),
    Case("a body that is no JSON", post(INFER, b"{"), [400]),
    Case("an empty body", post(INFER, b""), [400]),
    Case("no length and no chunks", post(INFER, b"", length=None), [400]),
    Case("an empty chunked body", chunked(b"0\r\n\r\n"), [400]),
]  # fmt: skip

TARGET_CASES = [
    Case("a query", post(INFER + b"?a=1&b", TENSOR), [200], answer=ECHOED),
    Case("a percent-encoded letter", post(INFER.replace(b"echo", b"%65cho"), TENSOR), [200]),
    Case("a percent-encoded slash", post(b"/predict/default%2Fecho", PLAIN), [200]),
    Case("a percent-encoded zero", post(PREDICT + b"%00", PLAIN), [404]),
    Case("dot segments", post(b"/predict/../predict/echo", PLAIN), [404]),
    Case("two slashes", post(b"//predict/echo", PLAIN), [404]),
    Case("a slash at the end", post(PREDICT + b"/", PLAIN), [404]),
    Case("another letter case", post(b"/Predict/echo", PLAIN), [404]),
    Case("no such deployment", post(b"/predict/nobody", PLAIN), [404]),
    Case("no such version", post(b"/v2/models/echo/versions/9/infer", TENSOR), [404]),
    Case("absolute", post(b"http://127.0.0.1" + PREDICT, PLAIN), [200], answer=PLAIN),
    Case("a target of 20 KiB", post(PREDICT + b"?" + b"a" * 20_000, PLAIN), [200]),
    refused("a target of 100 KiB", post(PREDICT + b"?" + b"a" * 100_000, PLAIN), 431),
    refused("absolute, of another host", post(b"http://evil" + PREDICT, PLAIN)),
    refused("absolute, with another port", post(b"http://127.0.0.1:1" + PREDICT, PLAIN)),
    refused("absolute, without a path", post(b"http://127.0.0.1", PLAIN)),
    refused("another scheme", post(b"ftp://127.0.0.1" + PREDICT, PLAIN)),
    refused("authority", post(b"127.0.0.1:80", PLAIN)),
    refused("an asterisk", post(b"*", b"", line=b"OPTIONS %b HTTP/1.1\r\n", length=None)),
    refused("CONNECT", b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + b"\r\n"),
    refused("a space in it", post(PREDICT + b" x", PLAIN)),
    refused("a zero byte in it", post(PREDICT + b"\0", PLAIN)),
    refused("none", b"POST  HTTP/1.1\r\n" + HOST + b"\r\n"),
]  # fmt: skip

HOST_CASES = [
    Case("localhost", post(INFER, TENSOR, host=b"Host: localhost:80\r\n"), [200]),
    Case("another port", post(INFER, TENSOR, host=b"Host: 127.0.0.1:1\r\n"), [200]),
    Case("missing", post(INFER, TENSOR, host=b""), [400]),
    Case("empty", post(INFER, TENSOR, host=b"Host:\r\n"), [400]),
    Case("twice", post(INFER, TENSOR, host=HOST * 2), [400]),
    Case("two in one", post(INFER, TENSOR, host=b"Host: 127.0.0.1, 127.0.0.1\r\n"), [400]),
    Case("with a path", post(INFER, TENSOR, host=b"Host: 127.0.0.1/livez\r\n"), [400]),
    Case("with a user", post(INFER, TENSOR, host=b"Host: a@127.0.0.1\r\n"), [400]),
    Case("with a port that is none", post(INFER, TENSOR, host=b"Host: 127.0.0.1:x\r\n"), [400]),
    Case("another", post(INFER, TENSOR, host=b"Host: evil\r\n"), [403]),
    Case("another, and one of ours behind", post(INFER, TENSOR, host=b"Host: evil\r\n" + HOST), [400]),
    Case("twice, on no row", post(b"/nobody", PLAIN, host=HOST * 2), [400]),
    Case("missing, in HTTP/1.0", b"GET /livez HTTP/1.0\r\n\r\n", [400], "closed"),
]  # fmt: skip

KEY_CASES = [
    Case("wrong", post(INFER, TENSOR, key=WRONG_KEY), [401]),
    Case("wrong, then right", post(INFER, TENSOR, key=WRONG_KEY) + GOOD, [401, 200]),
    Case("missing", post(INFER, TENSOR, key=b""), [401]),
    Case("twice", post(INFER, TENSOR, key=AUTHORIZATION * 2), [401]),
    Case("twice, one wrong", post(INFER, TENSOR, key=AUTHORIZATION + WRONG_KEY), [401]),
    Case("in two forms", post(INFER, TENSOR, b"X-Api-Key: " + KEY), [200]),
    Case("in two forms that disagree", post(INFER, TENSOR, b"X-Api-Key: wrong"), [401]),
    Case("of another scheme", post(INFER, TENSOR, key=AUTHORIZATION.replace(b"Bearer", b"Basic")), [401]),
    Case("lower-case scheme", post(INFER, TENSOR, key=AUTHORIZATION.replace(b"Bearer", b"bearer")), [200]),
    Case("in a trailer", chunked(in_chunks(TENSOR, trailer=WRONG_KEY)), [200], answer=ECHOED),
    Case("in a trailer only", post(INFER, in_chunks(TENSOR, trailer=AUTHORIZATION), CHUNKED, key=b"", length=None), [401]),
    Case("a host in a trailer", chunked(in_chunks(TENSOR, trailer=b"Host: evil\r\n")), [200]),
    Case("a content type twice", post(INFER, TENSOR, b"Content-Type: a/b", b"Content-Type: c/d"), [400]),
]  # fmt: skip

FRAMING_CASES = [
    refused("a length and chunks", post(INFER, in_chunks(TENSOR), CHUNKED, length=5)),
    refused("chunks and a length", post(INFER, in_chunks(TENSOR), CHUNKED, b"Content-Length: 5", length=None)),
    refused("a length twice", post(INFER, TENSOR, b"Content-Length: %d" % len(TENSOR))),
    refused("two lengths", post(INFER, TENSOR, b"Content-Length: 3")),
    refused("a list of lengths", post(INFER, TENSOR, b"Content-Length: 5, 5", length=None)),
    refused("a signed length", post(INFER, TENSOR, b"Content-Length: +5", length=None)),
    refused("a negative length", post(INFER, TENSOR, b"Content-Length: -5", length=None)),
    refused("a hexadecimal length", post(INFER, TENSOR, b"Content-Length: 0x5", length=None)),
    refused("a length with an underscore", post(INFER, TENSOR, b"Content-Length: 1_0", length=None)),
    refused("a length beyond 64 bits", post(INFER, TENSOR, b"Content-Length: 99999999999999999999", length=None)),
    refused("an empty length", post(INFER, TENSOR, b"Content-Length:", length=None)),
    refused("an unknown transfer coding", post(INFER, in_chunks(TENSOR), b"Transfer-Encoding: xchunked", length=None)),
    refused("chunked, but not last", post(INFER, in_chunks(TENSOR), b"Transfer-Encoding: chunked, identity", length=None)),
    refused("chunked twice", post(INFER, in_chunks(TENSOR), CHUNKED, b"Transfer-Encoding: identity", length=None)),
    refused("a space before the colon", post(INFER, in_chunks(TENSOR), b"Transfer-Encoding : chunked", length=None)),
    refused("bare LF", GOOD.replace(b"\r\n", b"\n")),
    refused("bare LF in one line", post(INFER, TENSOR, b"A: b\nC: d")),
    refused("bare CR in a value", post(INFER, TENSOR, b"X: a\rb")),
    refused("a folded line", post(INFER, TENSOR, b"X: a\r\n b")),
    refused("a line that begins with a space", post(INFER, TENSOR, b" X: a")),
    refused("a zero byte in a value", post(INFER, TENSOR, b"X: a\0b")),
    refused("a zero byte in a name", post(INFER, TENSOR, b"X\0: a")),
    refused("a control character in a value", post(INFER, TENSOR, b"X: a\x01b")),
    refused("a space in a name", post(INFER, TENSOR, b"X y: a")),
    refused("no name", post(INFER, TENSOR, b": a")),
    refused("no colon", post(INFER, TENSOR, b"Xa")),
    refused("a bad chunk size", chunked(b"zz\r\nabc")),
    refused("a negative chunk size", chunked(b"-5\r\nhello\r\n0\r\n\r\n")),
    refused("a chunk size beyond 64 bits", chunked(b"f" * 17 + b"\r\nabc")),
    refused("chunks with bare LF", chunked(in_chunks(TENSOR).replace(b"\r\n", b"\n"))),
    refused("a chunk longer than its size", chunked(b"2\r\nabc\r\n0\r\n\r\n")),
    refused("a trailer that is no field", chunked(in_chunks(TENSOR, trailer=b"a b\r\n"))),
    refused("a lower-case method", GOOD.replace(b"POST", b"post")),
    refused("an unknown method", GOOD.replace(b"POST", b"BREW")),
    refused("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 30),
    refused("an unknown version", GOOD.replace(b"HTTP/1.1", b"HTTP/1.2")),
    refused("a version that is none", GOOD.replace(b"HTTP/1.1", b"HTTP/x")),
    refused("HTTP/2.0 in the line", GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    refused("HTTP/0.9 in the line", GOOD.replace(b"HTTP/1.1", b"HTTP/0.9"), 505),
    refused("chunks in HTTP/1.0", chunked(in_chunks(TENSOR)).replace(b"HTTP/1.1", b"HTTP/1.0")),
    Case("a length too short", post(INFER, TENSOR + b"abc", length=len(TENSOR)), [200, 400], "closed"),
    Case("a length too long", post(INFER, TENSOR, length=len(TENSOR) + 5), [], "waits"),
    Case("a body that is not there yet", post(INFER, b"", length=5), [], "waits"),
    Case("half a head", GOOD[:40], [], "waits"),
]  # fmt: skip

SIZE_CASES = [
    Case("a head of 60 KiB", post(INFER, TENSOR, b"X: " + b"a" * 60_000), [200]),
    Case("100 fields", post(INFER, TENSOR, *[b"X%d: a" % each for each in range(97)]), [200]),
    refused("101 fields", post(INFER, TENSOR, *[b"X%d: a" % each for each in range(98)]), 431),
    refused("5000 fields", post(INFER, TENSOR, *[b"X%d: a" % each for each in range(5000)]), 431),
    refused("a head of 66 KiB", post(INFER, TENSOR, b"X: " + b"a" * 67_000), 431),
    refused("a head without end", post(INFER, b"", *[b"X: " + b"a" * 60_000] * 20)[:-4], 431),
    refused("chunk extensions of 2 MiB", chunked(in_chunks(TENSOR, b";a=" + b"b" * (1 << 20))), 431),
    refused("a trailer of 1 MiB", chunked(in_chunks(TENSOR, trailer=b"X: " + b"a" * (1 << 20) + b"\r\n")), 431),
    refused("1000 trailers", chunked(in_chunks(TENSOR, trailer=b"X: aaaaaaaa\r\n" * 50_000)), 431),
    Case("the largest body", post(INFER, TENSOR.ljust(MAX_BODY_BYTES)), [200], answer=ECHOED),
    Case("the largest body in chunks", chunked(in_chunks(TENSOR.ljust(MAX_BODY_BYTES))), [200]),
    Case("50 000 chunks of a byte", chunked(b"1\r\n \r\n" * 50_000 + in_chunks(TENSOR)), [200], answer=ECHOED),
    refused("a larger body", post(INFER, LARGE), 413),
    refused("a larger body in chunks", chunked(in_chunks(LARGE)), 413),
    refused("a length that is too large", post(INFER, b"", length=MORE), 413),
    refused("a length of 10 GiB", post(INFER, b"", length=10 << 30), 413),
    refused("a larger body, expected", post(INFER, b"", CONTINUE, length=MORE), 413),
    refused("a larger body, to no row", post(b"/nobody", LARGE), 404),
    refused("a larger body, with a wrong key", post(INFER, LARGE, key=WRONG_KEY), 401),
]  # fmt: skip

EXPECT_CASES = [
    Case("sent when told", [post(INFER, b"", CONTINUE, length=len(TENSOR)), 0.2, TENSOR], [100, 200], answer=ECHOED),
    Case("sent at once", post(INFER, TENSOR, CONTINUE), [100, 200], answer=ECHOED),
    Case("in other letters", [post(INFER, b"", b"EXPECT: 100-Continue", length=len(TENSOR)), 0.2, TENSOR], [100, 200]),
    Case("in chunks", [chunked(b"", CONTINUE), 0.2, in_chunks(TENSOR)], [100, 200], answer=ECHOED),
    Case("told only", post(INFER, b"", CONTINUE, length=5), [100], "waits"),
    refused("with a wrong key", post(INFER, b"", CONTINUE, length=5, key=WRONG_KEY), 401),
    refused("to no row", post(b"/nobody", b"", CONTINUE, length=5), 404),
    refused("with a foreign host", post(INFER, b"", CONTINUE, length=5, host=b"Host: evil\r\n"), 403),
    Case("HTTP/1.0 is not told", [post(INFER, b"", CONTINUE, length=len(TENSOR)).replace(b"1.1\r\n", b"1.0\r\n", 1), 0.2, TENSOR], [200], "closed"),
    Case("twice", post(INFER, TENSOR, CONTINUE) * 2, [100, 200, 100, 200]),
    Case("without a body", LIVE + CONTINUE + b"\r\n\r\n", [200]),
]  # fmt: skip

METHOD_CASES = [
    Case("HEAD of a row for GET", b"HEAD /livez HTTP/1.1\r\n" + HOST + b"\r\n", [200], is_head=True),
    Case("HEAD of a row for POST", post(INFER, b"", line=b"HEAD %b HTTP/1.1\r\n", length=None), [405], is_head=True),
    Case("HEAD of no row", b"HEAD /nobody HTTP/1.1\r\n" + HOST + b"\r\n", [404], is_head=True),
    Case("HEAD with a fault", b"HEAD /livez HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 101 + b"\r\n", [431], "closed", is_head=True),
    Case("GET of a row for POST", post(INFER, b"", line=b"GET %b HTTP/1.1\r\n", length=None), [405]),
    Case("GET with a body", post(b"/livez", b"body", line=b"GET %b HTTP/1.1\r\n") + GOOD, [200, 200]),
    Case("PUT", post(INFER, TENSOR, line=b"PUT %b HTTP/1.1\r\n"), [405]),
    Case("OPTIONS", post(INFER, b"", line=b"OPTIONS %b HTTP/1.1\r\n"), [405]),
    Case("TRACE", post(INFER, b"", line=b"TRACE %b HTTP/1.1\r\n", length=None), [405]),
    Case("a method that it pretends", post(INFER, TENSOR, b"X-HTTP-Method-Override: DELETE"), [200]),
]  # fmt: skip

CONNECTION_CASES = [
    Case("close", post(INFER, TENSOR, CLOSE), [200], "closed"),
    Case("close, in other letters", post(INFER, TENSOR, b"Connection: CLOSE"), [200], "closed"),
    Case("close, in a list", post(INFER, TENSOR, b"Connection: TE, close"), [200], "closed"),
    Case("close, and more behind", post(INFER, TENSOR, CLOSE) + GOOD, [200], "closed"),
    Case("close behind another", GOOD + post(PREDICT, PLAIN, CLOSE), [200, 200], "closed"),
    Case("keep-alive", post(INFER, TENSOR, b"Connection: keep-alive"), [200]),
    Case("an unknown option", post(INFER, TENSOR, b"Connection: x"), [200]),
    Case("HTTP/1.0", GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), [200], "closed"),
    Case("HTTP/1.0 that would keep it", post(INFER, TENSOR, b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), [200], "closed"),
    Case("an upgrade without a body", LIVE + b"\r\n".join(UPGRADE) + b"\r\n\r\n", [200], "closed"),
    Case("an upgrade to websocket", LIVE + b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", [200], "closed"),
    refused("an upgrade with a body", post(INFER, TENSOR, *UPGRADE)),
    Case("an upgrade that is not asked for", post(INFER, TENSOR, b"Upgrade: h2c"), [200]),
]  # fmt: skip

PIPELINE_CASES = [
    Case("2", GOOD + GOOD_PLAIN, [200] * 2, answer=PLAIN),
    Case("65", GOOD * 65, [200] * 65),
    Case("64 behind a slow one", post(PREDICT, SLOW) + GOOD * 64, [200] * 65, answer=ECHOED),
    Case("65 behind a slow one", post(PREDICT, SLOW) + GOOD * 65 + GOOD_PLAIN, [200] * 65 + [400], "closed"),
    Case("rows of both kinds", (GOOD + LIVE + b"\r\n" + GOOD_PLAIN + post(b"/nobody", PLAIN)) * 5, [200, 200, 200, 404] * 5),
    Case("a slow one last", GOOD * 3 + post(PREDICT, SLOW), [200] * 4, answer=b"[-0.3]"),
    Case("a slow one between", GOOD + post(PREDICT, SLOW) + GOOD, [200] * 3, answer=ECHOED),
    Case("the rest of the second later", [GOOD + GOOD_PLAIN[:60], 0.2, GOOD_PLAIN[60:]], [200, 200], answer=PLAIN),
    Case("the second body later", [GOOD + GOOD_PLAIN[:-5], 0.2, GOOD_PLAIN[-5:]], [200, 200], answer=PLAIN),
    Case("the second body behind a slow one later", [post(PREDICT, SLOW) + GOOD_PLAIN[:-5], 0.1, GOOD_PLAIN[-5:]], [200, 200], answer=PLAIN),
    Case("garbage behind", GOOD + b"\x01\x02garbage\r\n\r\n", [200, 400], "closed"),
    Case("garbage behind a slow one", post(PREDICT, SLOW) + b"\x01garbage\r\n\r\n", [200, 400], "closed"),
    Case("a bad chunk behind", GOOD + chunked(b"zz\r\n"), [200, 400], "closed"),
    Case("a bad chunk behind a slow one", post(PREDICT, SLOW) + GOOD + chunked(b"zz\r\n"), [200, 200, 400], "closed"),
    Case("a bad chunk behind ASGI", LIVE + b"\r\n" + chunked(b"zz\r\n"), [200, 400], "closed"),
    Case("too many fields behind a slow one", post(PREDICT, SLOW) + post(INFER, TENSOR, *[b"A: b"] * 101), [200, 431], "closed"),
    Case("two lengths behind a slow one", post(PREDICT, SLOW) + post(INFER, TENSOR, b"Content-Length: 3"), [200, 400], "closed"),
    Case("a larger body behind a slow one", post(PREDICT, SLOW) + post(INFER, LARGE), [200, 413], "closed"),
    Case("a wrong key behind a slow one", post(PREDICT, SLOW) + post(INFER, TENSOR, key=WRONG_KEY) + GOOD, [200, 401, 200]),
    Case("no JSON between", GOOD + post(INFER, b"{") + GOOD, [200, 400, 200]),
]  # fmt: skip

GROUPS = {
    "plain": PLAIN_CASES,
    "target": TARGET_CASES,
    "host": HOST_CASES,
    "key": KEY_CASES,
    "framing": FRAMING_CASES,
    "size": SIZE_CASES,
    "expect": EXPECT_CASES,
    "method": METHOD_CASES,
    "connection": CONNECTION_CASES,
    "pipeline": PIPELINE_CASES,
}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
