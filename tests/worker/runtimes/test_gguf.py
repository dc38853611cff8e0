import struct
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import InvalidInput
from wherry.worker.runtimes.gguf import CONTROL_TOKEN, USER_TOKEN, read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, value: Any) -> bytes:
    match value:
        case str():
            return text(key) + struct.pack("<I", 8) + text(value)
        case int():
            return text(key) + struct.pack("<II", 4, value)
        case [str(), *_]:
            items = b"".join(map(text, value))
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items
        case _:
            items = struct.pack(f"<{len(value)}i", *value)
            return text(key) + struct.pack("<IIQ", 9, 5, len(value)) + items


METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 512,
    "tokenizer.ggml.tokens": ["a", "<|end|>", "<|user|>", "<h1>", "\n"],
    "tokenizer.ggml.token_type": [1, CONTROL_TOKEN, USER_TOKEN, USER_TOKEN, CONTROL_TOKEN],
    "tokenizer.chat_template": "<|user|>{{ content }}",
}


def write(path: Path, metadata: dict[str, Any], blocks: int = 2) -> bytes:
    tensors = b"".join(
        text(f"blk.{block}.weight") + struct.pack("<IQIQ", 1, 32, 0, 0) for block in range(blocks)
    )
    pairs = b"".join(pair(key, value) for key, value in metadata.items())
    data = struct.pack("<4sIQQ", b"GGUF", 3, blocks, len(metadata)) + pairs + tensors
    path.write_bytes(data)
    return data


def test_facts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, METADATA)
    facts = read_gguf(path)
    assert (facts.architecture, facts.context_length) == ("llama", 512)
    assert (facts.vocabulary_size, facts.longest_token_bytes) == (5, 8)


def test_special_tokens_are_those_that_text_could_forge(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, METADATA)
    # <h1> is a token of its own, but no role marker; a line break must stay one
    assert read_gguf(path).special_tokens == ("<|end|>", "<|user|>")


def test_a_block_count_that_would_abort_the_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for count in (0, 999):
        write(path, METADATA | {"llama.block_count": count})
        with pytest.raises(InvalidInput, match="blocks"):
            read_gguf(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    data = write(path, METADATA)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidInput):
            read_gguf(path)


@pytest.mark.parametrize("missing", ["general.architecture", "tokenizer.ggml.tokens"])
def test_a_file_without_a_language_model_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "m.gguf"
    write(path, {key: value for key, value in METADATA.items() if key != missing})
    with pytest.raises(InvalidInput):
        read_gguf(path)


def test_lengths_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    huge = struct.pack("<Q", 2**62)
    for data in (
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**40),
        struct.pack("<4sIQQ", b"GGUF", 3, 2**40, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + huge,
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<II", 9, 8) + huge,
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<II", 9, 4) + huge,
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("k") + struct.pack("<I", 77),
        struct.pack("<4sIQQ", b"ggml", 3, 0, 0),
    ):
        path.write_bytes(data + b"\0" * 24)
        with pytest.raises(InvalidInput):
            read_gguf(path)
