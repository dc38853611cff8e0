"""The task `tensor`: named arrays in, named arrays out; and the checks every tensor passes.

A signature may leave a tensor open (datatype `""`, shape empty): such a model takes anything.
Clients of the Open Inference Protocol cannot read an open tensor, so `TENSOR.signature` shows it as
FP32 of shape [-1]; requests are checked against the bundle's own, open signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskOutput,
    Tensors,
    TensorSpec,
    Usage,
    type_by_datatype,
)

MAX_RANK = 32
"""Most dimensions of a tensor; numpy's own limit is 64."""
MAX_ELEMENTS = 1 << 31
"""Most elements of a tensor, zeros in the shape not counted."""

Array = np.ndarray[Any, np.dtype[Any]]

_types: dict[str, np.dtype[Any]] = {
    **{datatype: np.dtype(code) for datatype, code in type_by_datatype.items()},
    "BYTES": np.dtype(object),
    "BF16": np.dtype("<u2"),
}
datatype_by_type: dict[np.dtype[Any], str] = {
    _types[datatype]: datatype for datatype in type_by_datatype
}
json_type_by_kind: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float, "O": str}
largest_float = {each: float(np.finfo(_types[each]).max) for each in ("FP32", "FP64")}
MANY_FLOATS = 32
"""From here on it pays to look for the shortest digits of each number."""
FEW_NUMBERS = 64
"""So few numbers are looked at faster one by one than by numpy."""


class TensorInput(msgspec.Struct):
    """One request: all its tensors, all their rows."""

    tensors: dict[str, Array]


class TensorOutput(TaskOutput, kw_only=True):
    """What the model gave for one request."""

    tensors: dict[str, Array]


class TensorTask:
    """Arrays as they are."""

    name = "tensor"
    input_type = TensorInput
    output_type = TensorOutput

    def signature(self, config: TaskConfig) -> Signature:
        """The bundle's signature; open tensors shown as FP32 of shape [-1]."""
        return Signature(
            inputs=tuple(map(shown_spec, config.signature.inputs)),
            outputs=tuple(map(shown_spec, config.signature.outputs)),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> Sequence[TensorInput]:
        """One item carrying every row of the request."""
        check_tensors(tensors, config.signature.inputs)
        return [TensorInput(dict(tensors))]

    def to_tensors(self, outputs: Sequence[TensorOutput], config: TaskConfig) -> dict[str, Array]:
        """The tensors of the request's one output."""
        return outputs[0].tensors

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TensorInput:
        """`{"input name": nested lists}`."""
        specs = config.signature.inputs
        check_names(body, specs)
        return TensorInput({spec.name: array_from_plain(body[spec.name], spec) for spec in specs})

    def to_plain(self, output: TensorOutput, config: TaskConfig) -> dict[str, Any]:
        """`{"output name": nested lists}`."""
        return {name: plain_from_array(name, array) for name, array in output.tensors.items()}


TENSOR = TensorTask()


# ------------------------------------------------------------------------------ datatypes


def datatype_of(array: Array) -> str:
    """Open Inference datatype of an array; `ModelFailed` for types that have none."""
    known = datatype_by_type.get(array.dtype)
    if known is not None:
        return known
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return datatype_by_type[array.dtype.newbyteorder("<")]
    except KeyError:
        raise ModelFailed(
            f"an array of type {array.dtype} has no Open Inference datatype"
        ) from None


def type_of(datatype: str) -> np.dtype[Any]:
    """Type in numpy of an Open Inference datatype; `InvalidInput` lists the known ones."""
    try:
        return _types[datatype]
    except KeyError:
        known = ", ".join([*type_by_datatype, "BF16", "BYTES"])
        raise InvalidInput(f"unknown datatype {datatype!r}", hint=f"known: {known}") from None


def shown_spec(spec: TensorSpec) -> TensorSpec:
    """`spec` as clients see it: never without datatype or shape."""
    if spec.datatype:
        return spec
    return TensorSpec(spec.name, "FP32", spec.shape or (-1,))


# ------------------------------------------------------------------------------ checks


def count_elements(name: str, shape: Sequence[int]) -> int:
    """Product of a shape from a request; `InvalidInput` if the shape is not possible."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"tensor {name!r} has {len(shape)} dimensions; at most {MAX_RANK}")
    count = bound = 1
    for size in shape:
        if size < 0:
            raise InvalidInput(f"tensor {name!r} has a negative size in its shape {list(shape)}")
        count *= size
        # zeros count as one: numpy refuses [0, 2**40, 2**40] with an error of its own
        bound *= size or 1
    if bound > MAX_ELEMENTS:
        raise InvalidInput(f"tensor {name!r} is too large: more than {MAX_ELEMENTS} elements")
    return count


def check_names(names: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    """Every declared tensor is there and no other."""
    for spec in specs:
        if spec.name not in names:
            break
    else:
        if len(names) == len(specs):
            return
    declared = {spec.name for spec in specs}
    if set(names) == declared:
        return
    known = ", ".join(repr(spec.name) for spec in specs)
    for name in names:
        if name not in declared:
            raise InvalidInput(f"unknown input {name[:80]!r}", hint=f"inputs: {known}", param=name)
    missing = ", ".join(repr(spec.name) for spec in specs if spec.name not in names)
    raise InvalidInput(f"missing input {missing}", hint=f"inputs: {known}")


def check_tensors(tensors: Tensors, specs: Sequence[TensorSpec]) -> None:
    """Names, datatypes and shapes fit the signature, or `InvalidInput` says what does not."""
    check_names(tensors, specs)
    for spec in specs:
        check_tensor(tensors[spec.name], spec)


def check_tensor(array: Array, spec: TensorSpec) -> None:
    """Datatype and shape of one tensor; an open spec takes any."""
    datatype = spec.datatype
    if not datatype:
        return
    if array.dtype != _types.get(datatype):
        raise InvalidInput(
            f"input {spec.name!r} is {datatype_of(array)}, the model takes {spec.datatype}",
            param=spec.name,
        )
    shape, declared = array.shape, spec.shape
    if len(shape) == 2 == len(declared) and declared[0] == -1 and declared[1] in (shape[1], -1):
        return  # rows of a table, nearly always
    if not fits_shape(shape, declared):
        raise InvalidInput(
            f"input {spec.name!r} has shape {list(array.shape)}, the model takes "
            f"{list(spec.shape)}",
            hint="-1 stands for any size",
            param=spec.name,
        )


def fits_shape(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether a shape is one that `declared` allows."""
    if len(shape) != len(declared):
        return False
    for size, want in zip(shape, declared, strict=True):
        if want != size and want != -1:
            return False
    return True


# ------------------------------------------------------------------------------ rows


def has_free_rows(specs: Sequence[TensorSpec]) -> bool:
    """Whether requests may be joined along the first dimension of all `specs`."""
    for spec in specs:
        if not spec.datatype or not spec.shape or spec.shape[0] != -1:
            return False
    return bool(specs)


def count_rows(tensors: Tensors, specs: Sequence[TensorSpec]) -> int:
    """Rows of a request, 1 where the model has no rows; `InvalidInput` if tensors disagree."""
    if not has_free_rows(specs):
        return 1
    if len(specs) == 1:
        return tensors[specs[0].name].shape[0]
    counts = {tensors[spec.name].shape[0] for spec in specs}
    if len(counts) > 1:
        raise InvalidInput(
            f"the inputs have different numbers of rows: {', '.join(map(str, sorted(counts)))}"
        )
    return counts.pop()


def join_rows(parts: Sequence[Tensors]) -> dict[str, Array]:
    """Tensors of several items below one another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def split_rows(tensors: Tensors, counts: Sequence[int]) -> list[dict[str, Array]]:
    """The inverse of `join_rows`: views of `counts[i]` rows each."""
    bounds = np.cumsum(counts)[:-1]
    parts = {name: np.split(array, bounds) for name, array in tensors.items()}
    return [{name: parts[name][index] for name in parts} for index in range(len(counts))]


@lru_cache(maxsize=256)
def rows_usage(rows: int) -> Usage:
    """Units of `rows` answered rows; an empty request still costs one."""
    return Usage(rows=max(rows, 1))


# ------------------------------------------------------------------------------ raw bytes


def array_from_raw(name: str, raw: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """A tensor from its little-endian bytes; the length must fit the shape exactly.

    The array is the memory of `raw` itself if it may be written there and numbers can lie there, a
    copy otherwise.
    """
    count = count_elements(name, shape)
    kind = type_of(datatype)
    if kind.kind == "O":
        return bytes_from_raw(name, raw, count).reshape(shape)
    if len(raw) != count * kind.itemsize:
        raise InvalidInput(
            f"tensor {name!r} of shape {list(shape)} and datatype {datatype} takes "
            f"{count * kind.itemsize} bytes, but has {len(raw)}"
        )
    if kind.kind == "b" and (np.frombuffer(raw, dtype=np.uint8) > 1).any():
        raise InvalidInput(f"tensor {name!r}: a BOOL is one byte, 0 or 1")
    array = np.frombuffer(raw, dtype=kind).reshape(shape)
    return array if array.flags.writeable and array.flags.aligned else array.copy()


def bytes_from_raw(name: str, raw: memoryview, count: int) -> Array:
    """`count` byte strings, each after its length as UINT32, little endian."""
    if 4 * count > len(raw):
        raise InvalidInput(
            f"tensor {name!r} needs {count} strings, its {len(raw)} bytes hold fewer"
        )
    found = np.empty(count, dtype=object)
    start = 0
    for index in range(count):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if start + 4 > len(raw) or end > len(raw):
            raise InvalidInput(f"tensor {name!r}: string {index} goes past the end of its bytes")
        found[index] = bytes(raw[start + 4 : end])
        start = end
    if start != len(raw):
        raise InvalidInput(f"tensor {name!r} has {len(raw) - start} bytes too many")
    return found


def raw_from_array(array: Array) -> bytes:
    """The inverse of `array_from_raw`."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        data = bytes_of(element)
        parts += (len(data).to_bytes(4, "little"), data)
    return b"".join(parts)


def bytes_of(element: Any) -> bytes:
    """An element of a BYTES tensor that a model gave, text or bytes."""
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise ModelFailed(f"the model gave {type(element).__name__} where text or bytes belong")


# ------------------------------------------------------------------------------ lists


def array_from_list(
    name: str, values: list[Any], datatype: str, shape: Sequence[int] | None = None
) -> Array:
    """A tensor from (nested) lists whose elements already have the datatype's JSON type.

    Args:
        name: The tensor's name, for messages.
        values: Flat, or nested as `shape` says.
        datatype: Its Open Inference datatype.
        shape: What the values must fill; None takes the shape of the nesting.
    """
    kind = type_of(datatype)
    if shape is not None and are_few_that_fit(values, datatype):
        array = np.array(values, dtype=kind)
    else:
        array = convert_list(name, values, datatype, kind)
    if shape is None:
        return array
    is_flat = array.ndim == 1 or array.size == 0  # an inner list of no rows cannot be seen
    if array.size != count_elements(name, shape) or not (is_flat or array.shape == tuple(shape)):
        raise InvalidInput(
            f"tensor {name!r}: data of shape {list(array.shape)} does not fill its shape "
            f"{list(shape)}",
            param=name,
        )
    return array.reshape(shape)


def are_few_that_fit(values: list[Any], datatype: str) -> bool:
    """Whether these are a few floats in one list, of which none is too large for the datatype."""
    limit = largest_float.get(datatype)
    return (
        limit is not None
        and 0 < len(values) <= FEW_NUMBERS
        and type(values[0]) is float
        and -limit <= min(values)
        and max(values) <= limit
    )


def convert_list(name: str, values: list[Any], datatype: str, kind: np.dtype[Any]) -> Array:
    """Any (nested) list as an array of its own shape."""
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=kind)
    except ValueError as error:
        raise InvalidInput(f"tensor {name!r}: {error}", param=name) from error
    except OverflowError as error:
        raise _does_not_fit(name, datatype) from error
    if kind.kind == "f" and not np.isfinite(array).all():
        raise _does_not_fit(name, datatype)
    return encode_strings(name, array) if kind.kind == "O" else array


def _does_not_fit(name: str, datatype: str) -> InvalidInput:
    return InvalidInput(f"tensor {name!r}: a number does not fit {datatype}", param=name)


def encode_strings(name: str, array: Array) -> Array:
    """BYTES of an object array of `str`; ragged nesting is refused."""
    flat = array.ravel().tolist()
    if not all(type(element) is str for element in flat):
        raise InvalidInput(f"tensor {name!r}: the nested lists are not of equal length", param=name)
    found = np.empty(len(flat), dtype=object)
    found[:] = [element.encode() for element in flat]
    return found.reshape(array.shape)


def array_from_plain(value: Any, spec: TensorSpec) -> Array:
    """A tensor from plain JSON lists; an open spec takes the type of the values."""
    datatype = spec.datatype or guess_datatype(value)
    if datatype == "BF16":
        raise InvalidInput(f"input {spec.name!r} is BF16, which only binary requests can carry")
    array = array_from_list(spec.name, convert_lists(spec.name, value, datatype), datatype)
    if spec.datatype and array.size == 0 and len(spec.shape) > array.ndim:
        array = array.reshape(tuple(0 if size == -1 else size for size in spec.shape))
    check_tensor(array, spec)
    return array


def convert_lists(name: str, value: Any, datatype: str) -> Any:
    """`value` if it is lists of lists of the datatype's JSON type, whatever their depth."""
    depth, inner = 0, value
    while isinstance(inner, list) and depth <= MAX_RANK:
        depth, inner = depth + 1, inner[0] if inner else None
    wanted: Any = json_type_by_kind[type_of(datatype).kind]
    for _ in range(depth):
        wanted = list[wanted]
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"input {name!r}: {error}", param=name) from error


def guess_datatype(value: Any) -> str:
    """Datatype of plain values: BOOL, INT64, FP64 or BYTES, by what they hold."""
    kinds: set[type] = set()
    queue = [value]
    while queue:
        each = queue.pop()
        if isinstance(each, list):
            queue.extend(each)
        else:
            kinds.add(type(each))
    if kinds <= {bool}:
        return "BOOL" if kinds else "FP64"
    if kinds <= {int}:
        return "INT64"
    return "BYTES" if kinds == {str} else "FP64"


def plain_from_array(name: str, array: Array) -> Any:
    """Nested lists of an array; BYTES as text."""
    if array.dtype.kind not in "OSU":
        return array.tolist()
    flat = (array if array.ndim == 1 else array.ravel()).tolist()
    try:
        texts = [bytes_of(each).decode() for each in flat]
    except UnicodeError as error:
        raise InvalidInput(
            f"output {name!r} is not text, so JSON cannot carry it",
            hint="ask for it as binary data over /v2",
        ) from error
    if array.ndim == 1:
        return texts
    return np.array(texts, dtype=object).reshape(array.shape).tolist()


def are_finite(array: Array) -> bool:
    """Whether an array of floats holds neither NaN nor infinity."""
    if array.size <= FEW_NUMBERS:
        # a sum is finite if all are; if it is too large, they are looked at one by one
        values = array.ravel().tolist()
        return math.isfinite(sum(values)) or all(map(math.isfinite, values))
    return bool(np.isfinite(array).all())
