"""Models of sentencepiece are read before the library reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.errors import FormatNotAllowed
from wherry.models.trust.formats import check_format
from wherry.models.trust.sentencepiece import check_sentencepiece

WORDS = ("<unk>", "<s>", "</s>", "\u2581river", "é")


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def model_bytes(*words: str) -> bytes:
    score = b"\x15\x00\x00\x80\xbf"  # field 2, a float
    pieces = b"".join(field(1, field(1, word.encode()) + score) for word in words)
    return pieces + field(2, b"\x18\x01") + field(3, field(1, b"nmt_nfkc"))


@pytest.mark.parametrize("name", ["source.spm", "sentencepiece.bpe.model"])
def test_a_model_is_known_by_its_content(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(model_bytes(*WORDS))
    assert check_format(tmp_path / name) == "sentencepiece"
    assert check_sentencepiece(tmp_path / name) == len(WORDS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        model_bytes(),
        model_bytes(*WORDS)[:-3],
        model_bytes(*WORDS) + field(9, b"code"),
        field(1, field(1, b"\xff\xfe")) + field(2, b""),
        field(1, b"\x0a\x7fshort") + field(2, b""),
        b"not protobuf at all" * 9,
        b"\x80\x04\x95pickle",
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "source.spm").write_bytes(data)
    with pytest.raises(FormatNotAllowed):
        check_format(tmp_path / "source.spm")
