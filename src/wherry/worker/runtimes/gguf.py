"""Reads the metadata of a GGUF file, in Python: what must be known before llama.cpp opens it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3). Every
length is checked against the file's size, so a damaged file ends in `InvalidInput`.
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import InvalidInput

MAX_PAIRS = 4096
MAX_TENSORS = 100_000
STRING, ARRAY = 8, 9
NUMBER_FORMAT = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
NORMAL_TOKEN, UNUSED_TOKEN, BYTE_TOKEN = 1, 5, 6
INVISIBLE_BYTES = bytes([*range(33), *range(127, 161), 173])
"""Byte-level vocabularies write these as the characters from U+0100 on, in this order."""
UNKNOWN_TOKEN, CONTROL_TOKEN, USER_TOKEN = 2, 3, 4
"""`tokenizer.ggml.token_type` of tokens that text must not be able to forge."""


class GgufFacts(msgspec.Struct, frozen=True):
    """What Wherry uses of a file's metadata."""

    architecture: str
    context_length: int
    """Tokens the model was trained with; 0 = not said."""
    vocabulary_size: int
    longest_token_bytes: int
    special_tokens: tuple[str, ...]
    """Texts that the tokenizer reads as control tokens, such as `<|im_end|>`."""
    has_chat_template: bool = False
    pooling_type: int = 0
    """Of models that make vectors: 1 mean, 2 first token, 3 last, 4 for ranking; 0 = not said."""


def read_gguf(path: Path) -> GgufFacts:
    """Facts of a file; `InvalidInput` if it is no sound GGUF."""
    if path.stat().st_size < 24:
        raise InvalidInput(f"{path.name!r} is not a GGUF file: it is too short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            reader = _Reader(data)
            metadata = reader.read_metadata()
            blocks = reader.count_blocks()
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise InvalidInput(f"{path.name!r} is a damaged GGUF file: {error}") from error
    return _facts_of(metadata, blocks)


class Vocabulary:
    """The text of token ids, as llama.cpp writes it. Read again from the file: seldom needed."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata = _Reader(data).read_metadata()
        self._tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self._types: list[int] = metadata.get("tokenizer.ggml.token_type") or []
        self._model = metadata.get("tokenizer.ggml.model")
        if self._model not in ("gpt2", "llama"):
            raise InvalidInput(
                f"a prompt of token ids cannot be echoed by a tokenizer of kind {self._model!r}",
                hint="send text, or leave echo out",
            )

    def text_of(self, tokens: list[int]) -> str:
        """The text of token ids, one after the other."""
        return b"".join(self._bytes_of(token) for token in tokens).decode("utf-8", "replace")

    def _bytes_of(self, token: int) -> bytes:
        text = self._tokens[token]
        kind = self._types[token] if token < len(self._types) else NORMAL_TOKEN
        if kind == BYTE_TOKEN:
            return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
        if kind not in (NORMAL_TOKEN, UNUSED_TOKEN):
            return text.encode()
        if self._model == "llama":
            return text.replace("\u2581", " ").encode()
        return b"".join(byte_of_character(character) for character in text)


def byte_of_character(character: str) -> bytes:
    """The byte for which a character stands in byte-level vocabularies."""
    code = ord(character)
    if code < 256:
        return bytes([code])  # the visible ones stand for themselves
    if code - 256 < len(INVISIBLE_BYTES):
        return INVISIBLE_BYTES[code - 256 : code - 255]
    return character.encode()


class _Reader:
    """A cursor over a file's header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 24
        magic, version, self._tensors, self._pairs = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in (2, 3):
            raise InvalidInput("not a GGUF file of version 2 or 3")
        if self._pairs > MAX_PAIRS or self._tensors > MAX_TENSORS:
            raise InvalidInput("a damaged GGUF file: too many entries")

    def read_metadata(self) -> dict[str, Any]:
        """All key-value pairs."""
        return {self._string(): self._value(self._number("<I")) for _ in range(self._pairs)}

    def count_blocks(self) -> int:
        """One more than the highest N of the tensors `blk.N.…`; read after the metadata."""
        highest = -1
        for _ in range(self._tensors):
            found = re.match(r"blk\.(\d{1,6})\.", self._string())
            dimensions = self._number("<I")
            if dimensions > 8:
                raise InvalidInput("a damaged GGUF file: a tensor has too many dimensions")
            described = 8 * dimensions + 4 + 8  # shape, type, offset
            self._demand(described)
            self._at += described
            highest = max(highest, int(found[1])) if found else highest
        return highest + 1

    def _number(self, kind: str) -> Any:
        value = struct.unpack_from(kind, self._data, self._at)[0]
        self._at += struct.calcsize(kind)
        return value

    def _string(self) -> str:
        length = self._number("<Q")
        self._demand(length)
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(_format_of(kind))
        item_kind, count = self._number("<I"), self._number("<Q")
        if item_kind == ARRAY:
            raise InvalidInput("a damaged GGUF file: nested arrays")
        if item_kind == STRING:
            self._demand(count * 8)
            return [self._string() for _ in range(count)]
        return self._numbers(_format_of(item_kind), count)

    def _numbers(self, kind: str, count: int) -> list[Any]:
        size = struct.calcsize(kind) * count
        self._demand(size)
        values = struct.unpack_from(f"<{count}{kind[1]}", self._data, self._at)
        self._at += size
        return list(values)

    def _demand(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise InvalidInput("a damaged GGUF file: it ends inside its header")


def _format_of(kind: int) -> str:
    if kind not in NUMBER_FORMAT:
        raise InvalidInput(f"a damaged GGUF file: unknown value type {kind}")
    return NUMBER_FORMAT[kind]


def _facts_of(metadata: dict[str, Any], blocks: int) -> GgufFacts:
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(architecture, str) or not isinstance(tokens, list) or not tokens:
        raise InvalidInput("the GGUF file holds no language model with a tokenizer")
    declared = metadata.get(f"{architecture}.block_count")
    # llama.cpp aborts the process on a block count that does not fit the tensors
    if declared != blocks:
        raise InvalidInput(f"the GGUF file says {declared!r} blocks and holds {blocks}")
    return GgufFacts(
        architecture=architecture,
        context_length=_whole_number(metadata.get(f"{architecture}.context_length")),
        vocabulary_size=len(tokens),
        longest_token_bytes=max(len(token.encode("utf-8")) for token in tokens),
        special_tokens=_special_tokens_of(metadata, tokens),
        pooling_type=_whole_number(metadata.get(f"{architecture}.pooling_type")),
        has_chat_template=bool(metadata.get("tokenizer.chat_template")),
    )


def _whole_number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _special_tokens_of(metadata: dict[str, Any], tokens: list[str]) -> tuple[str, ...]:
    """Control tokens, and tokens of other kinds that the chat template writes around turns."""
    template = metadata.get("tokenizer.chat_template", "")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    special = {
        token
        for token, kind in zip(tokens, types, strict=False)
        if kind in (CONTROL_TOKEN, UNKNOWN_TOKEN)
        or (kind == USER_TOKEN and len(token) > 2 and token in template)
    }
    # one or two characters cannot be broken without breaking ordinary text, e.g. `\n`
    return tuple(sorted(token for token in special if len(token.strip()) > 2))
