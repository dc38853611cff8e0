# pyright: standard
"""Tensors of a safetensors file as numpy arrays, mapped rather than read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wherry.errors import FormatNotAllowed

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "<i1", "I32": "<i4", "I64": "<i8"}


def read_tensors(path: Path) -> dict[str, Array]:
    """The tensors by name.

    Raises:
        FormatNotAllowed: it is damaged, or holds types that numpy does not have.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Mapping[str, Any] = json.loads(file.read(length))
        return {
            name: np.memmap(
                path,
                dtype=DTYPES[entry["dtype"]],
                mode="r",
                offset=8 + length + entry["data_offsets"][0],
                shape=tuple(entry["shape"]),
            )
            for name, entry in header.items()
            if name != "__metadata__" and 0 not in entry["shape"]
        }
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FormatNotAllowed(f"{path.name!r} cannot be read as safetensors: {error}") from error
