"""Calling models with arrays: the Open Inference Protocol with its binary extension.

https://github.com/kserve/open-inference-protocol and
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from wherry import errors
from wherry.client.wire import Call, Request, decode, exchange, quote_segment

if TYPE_CHECKING:
    import numpy as np

HEADER_LENGTH = "inference-header-content-length"


def infer(
    deployment: str,
    inputs: Mapping[str, Any],
    *,
    outputs: Sequence[str] = (),
    version: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    binary: bool = True,
) -> Call[dict[str, np.ndarray]]:
    """Ask a model with arrays; gives its output arrays by name.

    Args:
        deployment: the deployment.
        inputs: name → array, or what `numpy.asarray` takes; texts as `str` or `bytes`.
        outputs: those wanted; empty = all.
        version: a version that is served now; default: as the deployment routes.
        parameters: of the request.
        binary: send and get raw buffers instead of JSON numbers.
    """
    path = f"/v2/models/{quote_segment(deployment)}"
    path += f"/versions/{version}/infer" if version is not None else "/infer"
    header, buffers = _encode_inputs(inputs, binary=binary)
    if outputs:
        flags = {"binary_data": binary}
        header["outputs"] = [{"name": name, "parameters": flags} for name in outputs]
    header["parameters"] = {**(parameters or {}), "binary_data_output": binary}
    head = msgspec.json.encode(header)
    request = Request(
        method="POST",
        path=path,
        content=b"".join([head, *buffers]),
        content_type="application/octet-stream" if binary else "application/json",
        headers={HEADER_LENGTH: str(len(head))} if binary else {},
    )
    reply = yield from exchange(request)
    head_bytes = int(reply.headers.get(HEADER_LENGTH) or len(reply.content))
    answer = decode(reply.content[:head_bytes], _Answer)
    return _decode_outputs(answer, memoryview(reply.content)[head_bytes:])


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Answer(msgspec.Struct):
    outputs: list[_Output]


def _encode_inputs(
    inputs: Mapping[str, Any], *, binary: bool
) -> tuple[dict[str, Any], list[bytes]]:
    import numpy as np

    described: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype = _datatype_of(name, array)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            buffers.append(_encode_array(array, datatype))
            tensor["parameters"] = {"binary_data_size": len(buffers[-1])}
        elif datatype == "BYTES":
            tensor["data"] = [_as_bytes(item).decode("utf-8") for item in array.ravel()]
        else:
            tensor["data"] = array.ravel().tolist()
        described.append(tensor)
    return {"inputs": described}, buffers


def _datatype_of(name: str, array: np.ndarray) -> str:
    from wherry.models.tasks.task import type_by_datatype

    if array.dtype.kind in "OSU":
        return "BYTES"
    little_endian = array.dtype.newbyteorder("<")
    for datatype, kind in type_by_datatype.items():
        if little_endian == kind:
            return datatype
    raise errors.InvalidInput(f"input {name!r} has type {array.dtype.name!r}, which has no tensor")


def _encode_array(array: np.ndarray, datatype: str) -> bytes:
    from wherry.models.tasks.task import type_by_datatype

    if datatype != "BYTES":
        return array.astype(type_by_datatype[datatype], copy=False).tobytes()
    items = [_as_bytes(item) for item in array.ravel()]
    return b"".join(len(item).to_bytes(4, "little") + item for item in items)


def _as_bytes(item: object) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8")
    if isinstance(item, bytes):
        return bytes(item)
    raise errors.InvalidInput(f"a text tensor holds {type(item).__name__!r}: give str or bytes")


def _decode_outputs(answer: _Answer, buffer: memoryview) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for output in answer.outputs:
        size_bytes = output.parameters.get("binary_data_size")
        if size_bytes is None:
            arrays[output.name] = _decode_listed(output)
            continue
        piece, buffer = buffer[: int(size_bytes)], buffer[int(size_bytes) :]
        arrays[output.name] = _decode_buffer(output, piece)
    return arrays


def _decode_listed(output: _Output) -> np.ndarray:
    import numpy as np

    from wherry.models.tasks.task import type_by_datatype

    if output.datatype != "BYTES":
        kind = type_by_datatype[output.datatype]
        return np.array(output.data or [], dtype=kind).reshape(output.shape)
    return _as_object_array([_as_bytes(item) for item in output.data or []], output.shape)


def _decode_buffer(output: _Output, piece: memoryview) -> np.ndarray:
    import numpy as np

    from wherry.models.tasks.task import type_by_datatype

    if output.datatype == "BYTES":
        return _as_object_array(_split_texts(piece), output.shape)
    kind = np.dtype("<u2" if output.datatype == "BF16" else type_by_datatype[output.datatype])
    if math.prod(output.shape) * kind.itemsize != len(piece):
        raise errors.Internal(f"output {output.name!r} has {len(piece)} bytes for {output.shape}")
    return np.frombuffer(piece, dtype=kind).reshape(output.shape)


def _split_texts(piece: memoryview) -> list[bytes]:
    texts: list[bytes] = []
    position = 0
    while position < len(piece):
        size = int.from_bytes(piece[position : position + 4], "little")
        position += 4
        if position + size > len(piece):
            raise errors.Internal("a text tensor of the answer is cut off")
        texts.append(bytes(piece[position : position + size]))
        position += size
    return texts


def _as_object_array(items: list[bytes], shape: Sequence[int]) -> np.ndarray:
    import numpy as np

    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)
