"""Checks a safetensors file in pure Python, more strictly than its format asks.

The layout is that of https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from wherry.errors import FormatNotAllowed
from wherry.models.trust.files import open_regular

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Element type → bits."""


def check_safetensors(path: Path) -> int:
    """How many tensors the file has.

    Raises:
        FormatNotAllowed: it is not safetensors: a header that cannot be, bytes that no tensor
            owns, or that two do.
    """
    return len(tensor_names(path))


def tensor_names(path: Path) -> list[str]:
    """Names of the file's tensors, in the order of its header; raises as `check_safetensors` does."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 2 <= length <= min(MAX_HEADER_BYTES, size - 8) else b""
    try:
        return _check_header(header, size - 8 - length)
    except (FormatNotAllowed, ValueError, RecursionError) as error:
        # ValueError: not JSON or not UTF-8; RecursionError: JSON nested without end
        reason = error.message if isinstance(error, FormatNotAllowed) else "its header is no JSON"
        raise FormatNotAllowed(
            f"{path.name!r} is not a safetensors file that may be served: {reason}",
            hint="download it again, or save the model again with safetensors",
        ) from None


def _check_header(header: bytes, data_bytes: int) -> list[str]:
    if header[:1] != b"{":
        raise FormatNotAllowed("its header has no plausible length")
    tensors = json.loads(
        header.decode(), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant
    )
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatNotAllowed("its metadata holds other things than texts")
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise FormatNotAllowed(f"it has {len(tensors)} tensors, 1 to {MAX_TENSORS} are allowed")
    position = 0
    for begin, end in sorted(_read_span(name, entry) for name, entry in tensors.items()):
        if begin != position:
            raise FormatNotAllowed("its tensors overlap or leave gaps")
        position = end
    if position != data_bytes:
        raise FormatNotAllowed(f"it holds {data_bytes} bytes of data, its tensors {position}")
    return list(tensors)


def _read_span(name: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatNotAllowed(f"the tensor {name!r} is not described as it must be")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise FormatNotAllowed(f"the tensor {name!r} has numbers that cannot be")
    if entry["dtype"] not in BITS:
        raise FormatNotAllowed(f"the tensor {name!r} has the unknown type {entry['dtype']!r}")
    bits = BITS[entry["dtype"]]
    for dimension in shape:
        bits *= dimension
    begin, end = offsets
    if bits != (end - begin) * 8:
        raise FormatNotAllowed(f"the tensor {name!r} has another size than its shape says")
    return begin, end


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 63  # bool is an int, but no size
        for value in values
    )


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatNotAllowed("its header names a key twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise FormatNotAllowed(f"its header holds the number {name}")
