"""GGUF files of the tests' own: real ones with other metadata, and small ones of random weights.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
NUMBER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TENSOR_TYPE = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}

Value = str | bool | int | float | list[float]


def write_gguf(
    path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, np.ndarray]
) -> Path:
    """A file of these; tensors are float32 or float16, shaped as numpy has them."""
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    header += b"".join(_entry(key, value) for key, value in metadata.items())
    offset, data = 0, b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]  # ggml counts the fastest dimension first
        header += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", TENSOR_TYPE[tensor.dtype], offset)
        data += _padded(tensor.tobytes())
        offset = len(data)
    path.write_bytes(_padded(header) + data)
    return path


def copy_gguf(
    source: Path, target: Path, *, without: Collection[str] = (), add: Mapping[str, Value] = {}
) -> Path:
    """`source` with some of its metadata left out and some added; tensors stay as they are."""
    data = source.read_bytes()
    magic, version, tensor_count, pair_count = struct.unpack_from("<4sIQQ", data)
    start, kept = 24, []
    for _ in range(pair_count):
        key, end = _read_pair(data, start)
        if key not in without and key not in add:
            kept.append(data[start:end])
        start = end
    tensors_end = start
    for _ in range(tensor_count):
        _, tensors_end = _read_string(data, tensors_end)
        tensors_end += 4 + 8 * struct.unpack_from("<I", data, tensors_end)[0] + 4 + 8
    kept += [_entry(key, value) for key, value in add.items()]
    header = struct.pack("<4sIQQ", magic, version, tensor_count, len(kept)) + b"".join(kept)
    weights = data[len(_padded(data[:tensors_end])) :]
    target.write_bytes(_padded(header + data[start:tensors_end]) + weights)
    return target


def seeing_projector(path: Path, width: int = 576, side: int = 32, patch: int = 8) -> Path:
    """Random weights that turn a picture into vectors of a language model `width` wide.

    Built as LLaVA's: patches, one block of attention, two layers to the model's width.
    """
    hidden, inner = 32, 64
    patches = (side // patch) ** 2
    dice = np.random.default_rng(1)

    def weights(*shape: int, scale: float = 0.2) -> np.ndarray:
        return dice.normal(0, scale, shape).astype(np.float32)

    tensors = {
        "v.class_embd": weights(hidden),
        "v.patch_embd.weight": weights(hidden, 3, patch, patch),
        "v.position_embd.weight": weights(patches + 1, hidden),
        "v.pre_ln.weight": np.ones(hidden, np.float32),
        "v.pre_ln.bias": np.zeros(hidden, np.float32),
        "mm.0.weight": weights(width, hidden),
        "mm.0.bias": np.zeros(width, np.float32),
        "mm.2.weight": weights(width, width, scale=0.05),
        "mm.2.bias": np.zeros(width, np.float32),
    }
    for block in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors[f"v.blk.{block}.{part}.weight"] = weights(hidden, hidden)
            tensors[f"v.blk.{block}.{part}.bias"] = np.zeros(hidden, np.float32)
        for norm in ("ln1", "ln2"):
            tensors[f"v.blk.{block}.{norm}.weight"] = np.ones(hidden, np.float32)
            tensors[f"v.blk.{block}.{norm}.bias"] = np.zeros(hidden, np.float32)
        tensors[f"v.blk.{block}.ffn_up.weight"] = weights(inner, hidden)
        tensors[f"v.blk.{block}.ffn_up.bias"] = np.zeros(inner, np.float32)
        tensors[f"v.blk.{block}.ffn_down.weight"] = weights(hidden, inner)
        tensors[f"v.blk.{block}.ffn_down.bias"] = np.zeros(hidden, np.float32)
    metadata: dict[str, Value] = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": side,
        "clip.vision.patch_size": patch,
        "clip.vision.embedding_length": hidden,
        "clip.vision.feed_forward_length": inner,
        "clip.vision.block_count": 2,
        "clip.vision.projection_dim": width,
        "clip.vision.attention.head_count": 2,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    return write_gguf(path, metadata, tensors)


def _entry(key: str, value: Value) -> bytes:
    return _string(key) + _value(value)


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case list():
            return struct.pack(f"<IIQ{len(value)}f", ARRAY, FLOAT32, len(value), *value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _read_pair(data: bytes, at: int) -> tuple[str, int]:
    key, at = _read_string(data, at)
    kind = struct.unpack_from("<I", data, at)[0]
    return key, _skip_value(data, at + 4, kind)


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    end = at + 8 + struct.unpack_from("<Q", data, at)[0]
    return data[at + 8 : end].decode(), end


def _skip_value(data: bytes, at: int, kind: int) -> int:
    if kind == STRING:
        return _read_string(data, at)[1]
    if kind != ARRAY:
        return at + NUMBER_BYTES[kind]
    item_kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item_kind == STRING:
        for _ in range(count):
            at = _read_string(data, at)[1]
        return at
    return at + count * NUMBER_BYTES[item_kind]
