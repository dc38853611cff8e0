"""Attacks on the GGUF header (S19)."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import FormatNotAllowed
from wherry.models.trust.gguf import check_gguf


def text(value: str, length: int | None = None) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def string_array(count: int, *items: str) -> bytes:
    return struct.pack("<IQ", 8, count) + b"".join(text(item) for item in items)


def tensor(name: str, dimensions: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


ENTRIES = [
    entry("general.architecture", 8, text("llama")),
    entry("llama.context_length", 4, struct.pack("<I", 2048)),
    entry("tokenizer.ggml.tokens", 9, string_array(2, "a", "b")),
    entry("tokenizer.ggml.scores", 9, struct.pack("<IQff", 6, 2, 0.5, 1.5)),
    entry("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
    entry("tokenizer.chat_template", 8, text("{{ messages }}" * 100)),
]
TENSORS = [tensor("one", [8, 2]), tensor("two", [32], kind=2, offset=64)]


def gguf(**change: Any) -> bytes:
    entries, tensors = change.get("entries", ENTRIES), change.get("tensors", TENSORS)
    counts = (change.get("n_tensors", len(tensors)), change.get("n_entries", len(entries)))
    magic = change.get("magic", b"GGUF") + struct.pack("<I", change.get("version", 3))
    header = magic + struct.pack("<QQ", *counts) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(change.get("data", 64 + 18))


def test_a_good_file_tells_its_short_values(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    assert check_gguf(path) == {"general.architecture": "llama", "llama.context_length": 2048}


def with_alignment(value: int) -> bytes:
    return gguf(entries=[entry("general.alignment", 4, struct.pack("<I", value))], data=1 << 17)


ATTACKS = {
    "empty": b"",
    "only magic": b"GGUF",
    "other magic": gguf(magic=b"GGML"),
    "version 1": gguf(version=1),
    "version 99": gguf(version=99),
    "big endian": gguf(version=3 << 24),
    "2^63 entries": gguf(n_entries=1 << 63),
    "2^63 tensors": gguf(n_tensors=1 << 63),
    "one entry too many": gguf(n_entries=len(ENTRIES) + 1),
    "no tensors": gguf(tensors=[], n_tensors=0),
    "key of 2^64-1 bytes": gguf(entries=[text("x", (1 << 64) - 1)]),
    "text of 2^64-1 bytes": gguf(entries=[entry("x", 8, text("x", (1 << 64) - 1))]),
    "text of 2 MiB": gguf(entries=[entry("x", 8, text("x" * (2 << 20)))]),
    "key that is no UTF-8": gguf(entries=[struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8)]),
    "same key twice": gguf(entries=[ENTRIES[0], ENTRIES[0]]),
    "metadata type 255": gguf(entries=[entry("x", 255, bytes(8))]),
    "array of arrays": gguf(entries=[entry("x", 9, struct.pack("<IQ", 9, 1) + bytes(16))]),
    "array of 2^64-1 texts": gguf(entries=[entry("x", 9, string_array((1 << 64) - 1, "a"))]),
    "array of 2^62 numbers": gguf(entries=[entry("x", 9, struct.pack("<IQ", 4, 1 << 62))]),
    "many large arrays": gguf(
        entries=[
            entry(f"x{n}", 9, struct.pack("<IQ", 0, 1 << 21) + bytes(1 << 21)) for n in range(3)
        ]
    ),
    "dimensions that overflow": gguf(tensors=[tensor("x", [1 << 32, 1 << 32, 1 << 32, 2])]),
    "dimension 0": gguf(tensors=[tensor("x", [0, 4])]),
    "no dimensions": gguf(tensors=[tensor("x", [])]),
    "five dimensions": gguf(tensors=[tensor("x", [1, 1, 1, 1, 1])]),
    "half a block": gguf(tensors=[tensor("x", [16], kind=2)]),
    "tensor type 255": gguf(tensors=[tensor("x", [8], kind=255)]),
    "same tensor twice": gguf(tensors=[tensor("x", [8]), tensor("x", [8], offset=32)]),
    "offset behind the end": gguf(tensors=[tensor("x", [8], offset=1 << 20)]),
    "offset of 2^63": gguf(tensors=[tensor("x", [8], offset=1 << 63)]),
    "offset off the alignment": gguf(tensors=[tensor("x", [8], offset=4)]),
    "overlap": gguf(tensors=[tensor("x", [16]), tensor("y", [8], offset=32)]),
    "longer than the file": gguf(tensors=[tensor("x", [1 << 20])]),
    "alignment 0": with_alignment(0),
    "alignment 3": with_alignment(3),
    "alignment 2^31": with_alignment(1 << 31),
    "alignment as text": gguf(entries=[entry("general.alignment", 8, text("32"))]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_quickly(tmp_path: Path, attack: str):
    path = tmp_path / "model.gguf"
    path.write_bytes(ATTACKS[attack])
    started = time.process_time()
    with pytest.raises(FormatNotAllowed, match=r"model\.gguf"):
        check_gguf(path)
    assert time.process_time() - started < 0.2


def test_every_cut_is_refused(tmp_path: Path):
    whole = gguf()
    path = tmp_path / "model.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatNotAllowed):
            check_gguf(path)


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_other_alignments_are_fine(tmp_path: Path, alignment: int):
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += entry("general.alignment", 4, struct.pack("<I", alignment)) + tensor("x", [8])
    path = tmp_path / "model.gguf"
    path.write_bytes(header + bytes(-len(header) % alignment) + bytes(32))
    assert check_gguf(path) == {"general.alignment": alignment}
