# pyright: standard
"""Weights out of a file of `torch.save`, without torch and without running what the file says.

Such a file is a pickle, which may name any function to be called. This reader knows an ordered
dictionary, tensors and their storages, and refuses a file that names anything else. Both layouts are
read: the zip archive of torch 1.6 and later, and the one before it.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput

MAX_STORAGE_BYTES = 4 << 30
"""Most bytes of one storage."""
MAX_PICKLE_BYTES = 64 << 20
"""Most bytes of the description in a zip archive: names and shapes, no numbers."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

type_by_storage: dict[str, str] = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}

Array = np.ndarray[Any, np.dtype[Any]]


class StorageType(NamedTuple):
    """A class of storages that a file may name."""

    dtype: str


class Storage(NamedTuple):
    """A piece of memory that tensors lie in; its bytes are elsewhere in the file."""

    key: str
    dtype: str
    length: int
    """In elements."""


class Tensor(NamedTuple):
    """A view into a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(path: Path) -> dict[str, Array]:
    """The tensors of a `state_dict` file by name, each in memory of its own.

    Raises:
        FormatNotAllowed: the file names a class or function other than those of plain weights.
        InvalidInput: it is no such file, is cut off, or holds something else than named tensors.
    """
    try:
        with path.open("rb") as file:
            named, memory = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except (FormatNotAllowed, InvalidInput):
        raise
    # a broken pickle makes the reader stumble over anything
    except Exception as error:
        raise InvalidInput(f"{path.name!r} is not a file of torch weights: {error}") from error
    return {name: _view(tensor, memory) for name, tensor in _checked_names(named).items()}


def _checked_names(found: Any) -> Mapping[str, Tensor]:
    if not isinstance(found, dict):
        raise InvalidInput(f"the file holds a {type(found).__name__}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidInput(
                f"the file holds {type(value).__name__} under {str(name)[:80]!r}, not a tensor",
                hint="save model.state_dict() alone",
            )
    return found


def _view(tensor: Tensor, memory: Mapping[str, Array]) -> Array:
    storage = memory[tensor.storage.key]
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype=storage.dtype)
    if math.prod(tensor.shape) > len(storage):
        raise InvalidInput("a tensor of the file has more elements than its storage")
    reach = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in reach)
    if min(tensor.offset, *tensor.strides, *tensor.shape, 0) < 0 or last >= len(storage):
        raise InvalidInput("a tensor of the file goes past the end of its storage")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    start = storage[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False).copy()


# ------------------------------------------------------------------------------ the pickle


class _Reader(pickle.Unpickler):
    """Builds nothing but dictionaries, tuples, numbers, texts, and the classes of this module."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The few names that plain weights need."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _make_tensor
        if module == "torch" and name in type_by_storage:
            return StorageType(type_by_storage[name])
        raise FormatNotAllowed(
            f"the file names {module}.{name}, which is not part of plain weights",
            hint="save model.state_dict(), or use safetensors",
        )

    def persistent_load(self, pid: Any) -> Storage:
        """`("storage", its class, key, device, number of elements …)`."""
        kind, storage_type, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(storage_type, StorageType):
            raise InvalidInput("the file refers to something else than a storage")
        count = int(count)
        if not 0 <= count * np.dtype(storage_type.dtype).itemsize <= MAX_STORAGE_BYTES:
            raise InvalidInput(f"a storage of the file has over {MAX_STORAGE_BYTES >> 30} GiB")
        return self.storages.setdefault(str(key), Storage(str(key), storage_type.dtype, count))


class _MakeTensor:
    """Stands for torch's function; one that the file cannot change."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> Tensor:
        if not isinstance(storage, Storage):
            raise InvalidInput("a tensor of the file lies in no storage")
        sizes, steps = tuple(map(int, shape)), tuple(map(int, strides))
        return Tensor(storage, int(offset), sizes, steps)


_make_tensor = _MakeTensor()


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Array]]:
    """`archive/data.pkl`, and a member for each storage."""
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InvalidInput(f"the archive has {len(pickles)} files data.pkl, not one")
        root = pickles[0].removesuffix("data.pkl")
        if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
            raise InvalidInput("the description in the archive is too large")
        reader = _Reader(io.BytesIO(archive.read(pickles[0])))
        found = reader.load()
        memory: dict[str, Array] = {}
        for storage in reader.storages.values():
            with archive.open(f"{root}data/{storage.key}") as member:
                memory[storage.key] = _read_numbers(member, storage)
    return found, memory


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, Array]]:
    """Five pickles one after another, then each storage after its number of elements."""
    file.seek(0)
    if _Reader(file).load() != LEGACY_MAGIC or _Reader(file).load() != LEGACY_PROTOCOL:
        raise InvalidInput("the file does not begin as torch.save begins one")
    system = _Reader(file).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InvalidInput("the file was written on a machine with another byte order")
    reader = _Reader(file)
    found = reader.load()
    memory: dict[str, Array] = {}
    for key in _Reader(file).load():
        storage = reader.storages.get(str(key))
        count = int.from_bytes(file.read(8), "little")
        if storage is None or storage.length != count:
            raise InvalidInput("a storage of the file is not as long as it says")
        memory[storage.key] = _read_numbers(file, storage)
    return found, memory


def _read_numbers(file: Any, storage: Storage) -> Array:
    kind = np.dtype(storage.dtype)
    data = file.read(storage.length * kind.itemsize)
    if len(data) != storage.length * kind.itemsize:
        raise InvalidInput("the file is cut off in its numbers")
    return np.frombuffer(data, dtype=kind)
