"""Forms: the same however they are cut, refused where two readers could differ, bounded."""

from __future__ import annotations

import contextlib
import re

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import InvalidInput, TooLarge, WherryError
from wherry.models.codecs.multipart import (
    MAX_FIELD_BYTES,
    MAX_HEAD_BYTES,
    MAX_PARTS,
    Collector,
    End,
    File,
    Form,
    MultipartReader,
    read_form,
)

TYPE = "multipart/form-data; boundary=wherry"
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


def form(*parts: bytes, end: bytes = b"--wherry--\r\n") -> bytes:
    return b"".join(b"--wherry\r\n" + part + b"\r\n" for part in parts) + end


def part(name: str, content: bytes, filename: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    head = f'Content-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content


def read_in_pieces(body: bytes, cuts: list[int]) -> Form:
    reader, collector, found = MultipartReader(TYPE), Collector(), Form()
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        for event in reader.feed(body[start:end]):
            if collector.take(event):
                collector.put_into(found)
    reader.end()
    return found


TRICKY = form(
    part("purpose", b"batch"),
    part("file", b"\r\n--wherr\r\n--wherrx\r\n\r--wherry\n--wherry", "a.jsonl"),
    part("file", b"", "empty"),
    part("tags[]", "船".encode()),
    part("tags[]", b"\r\n"),
)


def test_a_form_is_the_same_wherever_it_is_cut():
    whole = read_form(TRICKY, TYPE)
    assert whole.texts == {"purpose": ["batch"], "tags[]": ["船", "\r\n"]}
    assert [file.filename for file in whole.files["file"]] == ["a.jsonl", "empty"]
    assert whole.files["file"][0].content.startswith(b"\r\n--wherr\r\n")
    for cut in range(len(TRICKY) + 1):
        assert read_in_pieces(TRICKY, [cut]) == whole
    assert read_in_pieces(TRICKY, list(range(1, len(TRICKY)))) == whole


def test_no_beginning_of_a_form_is_a_form():
    whole = TRICKY.removesuffix(b"\r\n")
    for length in range(len(whole)):
        with pytest.raises(InvalidInput):
            read_form(whole[:length], TYPE)
    read_form(whole, TYPE)


@given(
    texts=st.dictionaries(NAMES, st.text(max_size=50), max_size=4),
    files=st.lists(st.binary(max_size=200), max_size=3),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_what_a_real_client_sends_is_what_is_read(
    texts: dict[str, str], files: list[bytes], cuts: list[int]
):
    sent = [("file", (f"{number}.bin", content)) for number, content in enumerate(files)]
    request = httpx.Request(
        "POST", "http://x", data=texts, files=sent or [("file", ("none", b""))],
        headers={"content-type": TYPE},
    )  # fmt: skip
    body = request.read()
    places = sorted(min(cut, len(body)) for cut in cuts)
    found = read_in_pieces(body, places)
    assert found.texts == {name: [text] for name, text in texts.items()}
    assert [file.content for file in found.files["file"]] == (files or [b""])


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_a_form_or_a_clear_error(body: bytes):
    for attempt in (body, b"--wherry\r\n" + body, TRICKY[:90] + body + TRICKY[90:]):
        with contextlib.suppress(WherryError):
            assert isinstance(read_form(attempt, TYPE), Form)


@pytest.mark.parametrize(
    "body",
    [
        b"hello" + form(part("a", b"1")),
        form(part("a", b"1")) + b"more",
        form(b"Content-Disposition: form-data\r\n\r\n1"),
        form(b'Content-Disposition: attachment; name="a"\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a"; name="b"\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a"; filename*=UTF-8\'\'x\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a"\r\nContent-Disposition: x\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a"\r\nno colon\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="\xff"\r\n\r\n1'),
        form(b'Content-Disposition: form-data; name="a%0Ab"\r\n\r\n1'),
        form(part("a", b"1") .replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n")),
        form(part("a", b"1").replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed\r\n\r\n")),
        form(part("a", b"\xff")),
        form(part("a", b"1"), end=b"--wherry-\r\n"),
        form(part("a", b"1")).replace(b"\r\n", b"\n"),
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_refused(body: bytes):
    with pytest.raises(InvalidInput):
        read_form(body, TYPE)


@pytest.mark.parametrize(
    "kind",
    [
        "", "multipart/form-data", "multipart/mixed; boundary=wherry", "application/json",
        "multipart/form-data; boundary=", 'multipart/form-data; boundary="a"; boundary=b',
        "multipart/form-data; boundary=" + "x" * 71, 'multipart/form-data; boundary="x "',
        'multipart/form-data; boundary="\r\n"',
    ],
)  # fmt: skip
def test_a_content_type_without_a_boundary_is_refused(kind: str):
    with pytest.raises(InvalidInput):
        read_form(TRICKY, kind)


def test_parts_heads_and_fields_are_bounded():
    read_form(form(*[part("a", b"1")] * MAX_PARTS), TYPE)
    with pytest.raises(TooLarge):
        read_form(form(*[part("a", b"1")] * (MAX_PARTS + 1)), TYPE)
    with pytest.raises(TooLarge):
        read_form(form(b"X: " + b"y" * MAX_HEAD_BYTES + b"\r\n" + part("a", b"1")), TYPE)
    read_form(form(part("a", b"1" * MAX_FIELD_BYTES)), TYPE)
    with pytest.raises(TooLarge):
        read_form(form(part("a", b"1" * (MAX_FIELD_BYTES + 1))), TYPE)


def test_a_head_without_an_end_is_not_gathered_for_ever():
    reader = MultipartReader(TYPE)
    list(reader.feed(b"--wherry\r\n"))
    for _ in range(MAX_HEAD_BYTES):
        assert list(reader.feed(b"x")) == []
    with pytest.raises(TooLarge):
        list(reader.feed(b"x"))


def test_data_is_handed_on_and_not_kept():
    reader = MultipartReader(TYPE)
    list(reader.feed(b"--wherry\r\n" + part("file", b"", "big")))
    piece = b"\r\n--wherrx" * 10_000
    for _ in range(20):
        events = list(reader.feed(piece))
        assert sum(len(each.piece) for each in events) > len(piece) - 20  # type: ignore[union-attr]
    assert isinstance(list(reader.feed(b"\r\n--wherry--"))[-1], End)


def test_fields_say_what_is_missing_or_came_twice():
    found = read_form(form(part("a", b"1"), part("a", b"2"), part("f", b"x", "n")), TYPE)
    assert found.file("f") == File("n", "", b"x")
    assert found.text("b", "default") == "default"
    for name, expected in (("a", "2 times"), ("b", "missing")):
        with pytest.raises(InvalidInput, match=expected) as caught:
            found.text(name)
        assert caught.value.param == name
    with pytest.raises(InvalidInput, match=re.escape("'g' must be one file")):
        found.file("g")


def test_names_are_read_as_browsers_and_curl_write_them():
    def name_of(written: bytes) -> str:
        head = b'Content-Disposition: form-data; name="f"; filename="' + written + b'"\r\n\r\nx'
        return read_form(form(head), TYPE).file("f").filename

    assert name_of(b"a%22b.txt") == 'a"b.txt'
    assert name_of(rb"a\"b\\c") == 'a"b\\c'
    assert name_of("报告; final=2.jsonl".encode()) == "报告; final=2.jsonl"
