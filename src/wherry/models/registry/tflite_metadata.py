"""What a TensorFlow Lite file says of itself beside its graph: names of classes, and how pixels go in.

Both are Google's "TFLite metadata": a FlatBuffer in one of the model's buffers
(https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs), and
files in a ZIP archive at the end of the model. Every value in them is only a claim; what cannot be
read counts as not said.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from wherry.models.registry.class_names import MAX_NAMES_BYTES, read_names
from wherry.models.trust.files import open_regular

NAME = b"TFLITE_METADATA"
NORMALISATION = 1
"""`ProcessUnitOptions.NormalizationOptions`"""
MAX_ITEMS = 256
"""Most elements of a list, or files of the archive, that are looked at."""


class TfliteMetadata(msgspec.Struct, frozen=True):
    """What was found."""

    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    """Subtracted from pixels of 0 to 255, one number or one a channel."""
    std: tuple[float, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The bundle's options for pictures."""
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            return {}
        return {"pixel_scale": 1.0, "mean": list(self.mean), "std": list(self.std)}


def read_metadata(path: Path) -> TfliteMetadata:
    """Names of classes and normalisation, where the file has them."""
    with open_regular(path) as file:
        labels = _read_labels(file)
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                mean, std = _read_normalisation(Table.root(data))
        except (struct.error, ValueError, IndexError):
            mean, std = (), ()
    return TfliteMetadata(labels, mean, std)


def _read_labels(file: Any) -> tuple[str, ...]:
    """The one list of names in the archive at the file's end."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = [
                read_names(archive.read(each))
                for each in archive.infolist()[:MAX_ITEMS]
                if each.filename.endswith(".txt") and each.file_size <= MAX_NAMES_BYTES
            ]
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError):
        return ()
    named = [names for names in found if names]
    return named[0] if len(named) == 1 else ()


def _read_normalisation(model: Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the first input of the first graph."""
    for entry in model.tables(6):
        buffers = model.tables(4)
        if entry.data(0) != NAME or (buffer := _nth(buffers, entry.number(1))) is None:
            continue
        metadata = Table.root(buffer.data(0))
        for graph in islice(metadata.tables(3), 1):
            for tensor in islice(graph.tables(2), 1):
                for unit in tensor.tables(4):
                    if unit.number(0, "B") == NORMALISATION and (options := unit.table(1)):
                        return options.floats(0), options.floats(1)
    return (), ()


def _nth(tables: Iterator[Table], number: int) -> Table | None:
    return next(islice(tables, number, None), None)


class Table:
    """A table of a FlatBuffer: its fields by number; bounds are those of Python's `struct`."""

    def __init__(self, data: Any, place: int) -> None:
        self._data = data
        self._place = place

    @classmethod
    def root(cls, data: Any) -> Table:
        """The outermost one."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, number: int) -> int:
        """Where a field is; 0 if it is left out."""
        (back,) = struct.unpack_from("<i", self._data, self._place)
        fields = self._place - back
        (length,) = struct.unpack_from("<H", self._data, fields)
        if 4 + 2 * number >= length:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, fields + 4 + 2 * number)
        return self._place + offset if offset else 0

    def _target(self, number: int) -> int:
        """What a field points to; 0 if it is left out."""
        place = self._field(number)
        return place + struct.unpack_from("<I", self._data, place)[0] if place else 0

    def number(self, number: int, kind: str = "I") -> int:
        """A whole number; 0 if it is left out."""
        place = self._field(number)
        return struct.unpack_from(f"<{kind}", self._data, place)[0] if place else 0

    def table(self, number: int) -> Table | None:
        """A table in a field."""
        place = self._target(number)
        return Table(self._data, place) if place else None

    def tables(self, number: int) -> Iterator[Table]:
        """The tables of a list."""
        place = self._target(number)
        count = struct.unpack_from("<I", self._data, place)[0] if place else 0
        for index in range(min(count, 1 << 20)):
            at = place + 4 + 4 * index
            yield Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def data(self, number: int) -> bytes:
        """The bytes of a text or a list of bytes."""
        place = self._target(number)
        if not place:
            return b""
        (length,) = struct.unpack_from("<I", self._data, place)
        return bytes(self._data[place + 4 : place + 4 + min(length, MAX_NAMES_BYTES)])

    def floats(self, number: int) -> tuple[float, ...]:
        """A list of floats."""
        place = self._target(number)
        count = struct.unpack_from("<I", self._data, place)[0] if place else 0
        return struct.unpack_from(f"<{min(count, MAX_ITEMS)}f", self._data, place + 4)
