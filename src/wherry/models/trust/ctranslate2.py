"""Checks a CTranslate2 model in pure Python: every byte of it is a name, a size or a number.

The layout is that of `ctranslate2.specs.model_spec.ModelSpec.save`.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from wherry.errors import FormatNotAllowed
from wherry.models.trust.files import open_regular

LEAST_VERSION, MOST_VERSION = 4, 6
"""Of the file's layout: older ones did not tell the type of their numbers."""
MAX_NAME_BYTES = 1024
MAX_VARIABLES = 65_536
MAX_RANK = 8
BYTES_BY_TYPE = (4, 1, 2, 4, 2, 2)
"""Of one number: float32, int8, int16, int32, float16, bfloat16."""


class CTranslate2Model(msgspec.Struct, frozen=True):
    """What the head of a file says."""

    spec: str
    """`WhisperSpec`, `TransformerSpec` …"""
    variables: int


def is_ctranslate2(head: bytes) -> bool:
    """Whether a file begins as these do: a small number, and the name of a specification."""
    if len(head) < 8:
        return False
    version, length = struct.unpack_from("<IH", head)
    name = head[6 : 6 + length]
    return 1 <= version <= 255 and name.endswith(b"Spec\0")


def check_ctranslate2(path: Path) -> CTranslate2Model:
    """What the model is.

    Raises:
        FormatNotAllowed: it is not such a model, or not whole.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            model = _read_head(file)
            for _ in range(model.variables):
                _skip_variable(file, size)
            for _ in range(2 * _read_number(file, "<I", MAX_VARIABLES)):
                _read_name(file)
        except (struct.error, ValueError) as error:
            reason = "it is cut off" if isinstance(error, struct.error) else str(error)
            raise FormatNotAllowed(
                f"{path.name!r} is not a CTranslate2 model that may be served: {reason}",
                hint="convert the model again, with ct2-transformers-converter",
            ) from error
        if file.tell() != size:
            raise FormatNotAllowed(f"{path.name!r} has bytes that belong to none of its tensors")
    return model


def _read_head(file: BinaryIO) -> CTranslate2Model:
    (version,) = _unpack(file, "<I")
    if not LEAST_VERSION <= version <= MOST_VERSION:
        raise ValueError(f"version {version} of the format is not read")
    spec = _read_name(file)
    _unpack(file, "<I")  # the specification's own revision
    return CTranslate2Model(spec, _read_number(file, "<I", MAX_VARIABLES))


def _skip_variable(file: BinaryIO, size: int) -> None:
    name = _read_name(file)
    rank = _read_number(file, "<B", MAX_RANK)
    shape = _unpack(file, f"<{rank}I")
    kind, count = _unpack(file, "<BI")
    if kind >= len(BYTES_BY_TYPE) or count != math.prod(shape) * BYTES_BY_TYPE[kind]:
        raise ValueError(f"the tensor {name!r} contradicts itself")
    if file.tell() + count > size:
        raise ValueError("it is cut off")
    file.seek(count, 1)


def _read_name(file: BinaryIO) -> str:
    raw = file.read(_read_number(file, "<H", MAX_NAME_BYTES))
    if not raw.endswith(b"\0"):
        raise ValueError("a name has no end")
    return raw[:-1].decode("utf-8")


def _read_number(file: BinaryIO, layout: str, most: int) -> int:
    (number,) = _unpack(file, layout)
    if number > most:
        raise ValueError(f"{number} is more than the {most} that are read")
    return number


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
