"""Attacks on the safetensors header (S20)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import FormatNotAllowed
from wherry.models.trust.safetensors import check_safetensors


def tensor(shape: list[Any], begin: Any, end: Any, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = {"b": tensor([2, 2], 4, 20, "F32"), "a": tensor([4], 0, 4), "empty": tensor([0], 4, 4)}


def test_a_good_file_is_counted(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack({"__metadata__": {"format": "pt"}, **GOOD}, bytes(20)))
    assert check_safetensors(path) == 3


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty file"),
        pytest.param(b"\x01\x02", id="cut in the length"),
        pytest.param(pack(GOOD, bytes(20), 1 << 63), id="length 2^63"),
        pytest.param(pack(GOOD, bytes(20), 100 << 20), id="length over the file"),
        pytest.param(pack(GOOD, bytes(20))[:-1], id="cut in the data"),
        pytest.param(pack(GOOD, bytes(21)), id="trailing byte"),
        pytest.param(pack(GOOD, bytes(20)) + b"PK\x03\x04" + bytes(50), id="polyglot"),
        pytest.param(pack({}), id="no tensors"),
        pytest.param(pack([1]), id="a list"),
        pytest.param(pack(b"{" + b'"a":[' * 100_000), id="nested without end"),
        pytest.param(pack(b"{\xff}"), id="not UTF-8"),
        pytest.param(
            pack({"a": tensor([4], 0, 4), "b": tensor([4], 2, 6)}, bytes(6)), id="overlap"
        ),
        pytest.param(pack({"a": tensor([4], 0, 4), "b": tensor([4], 5, 9)}, bytes(9)), id="gap"),
        pytest.param(pack({"a": tensor([4], 1, 5)}, bytes(5)), id="gap at the start"),
        pytest.param(pack({"a": tensor([5], 0, 4)}, bytes(4)), id="other size than its shape"),
        pytest.param(
            pack({"a": tensor([4194305, 4194305, 211106198978564], 0, 4)}, bytes(4)),
            id="product wraps to 4 in 64 bits",
        ),
        pytest.param(pack({"a": tensor([-2, -2], 0, 4)}, bytes(4)), id="negative dimensions"),
        pytest.param(pack({"a": tensor([4.0], 0, 4)}, bytes(4)), id="fractional dimension"),
        pytest.param(pack({"a": tensor([True, 4], 0, 4)}, bytes(4)), id="boolean dimension"),
        pytest.param(pack({"a": tensor([4], 4, 0)}, bytes(4)), id="ends before it begins"),
        pytest.param(pack({"a": tensor([4], 0, "4")}, bytes(4)), id="offset as text"),
        pytest.param(pack({"a": tensor([1] * 65, 0, 1)}, bytes(1)), id="65 dimensions"),
        pytest.param(pack({"a": tensor([4], 0, 4, "PICKLE")}, bytes(4)), id="unknown type"),
        pytest.param(pack({"a": {**GOOD["a"], "x": 1}}, bytes(4)), id="unknown key"),
        pytest.param(pack({"a": [1]}, bytes(4)), id="a tensor that is a list"),
        pytest.param(
            pack({"a": tensor([4], 0, 4), "__metadata__": {"n": 1}}, bytes(4)), id="metadata"
        ),
        pytest.param(pack(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}'), id="NaN"),
        pytest.param(
            pack(
                b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
                b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
                bytes(4),
            ),
            id="the same name twice",
        ),
        pytest.param(pack({str(n): tensor([0], 0, 0) for n in range(100_000)}), id="100k tensors"),
        pytest.param(pack(b"{" + b" " * (17 << 20) + b"}"), id="17 MiB of header"),
    ],
)
def test_an_attack_is_refused_quickly(tmp_path: Path, data: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(FormatNotAllowed, match=r"model\.safetensors"):
        check_safetensors(path)
    assert time.process_time() - started < 20  # quadratic work would take minutes


def test_every_cut_is_refused(tmp_path: Path):
    whole = pack(GOOD, bytes(20))
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatNotAllowed):
            check_safetensors(path)
