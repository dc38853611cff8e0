"""TensorFlow Lite files bring their labels and say how pixels go in; damaged ones say nothing."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from wherry.models.registry.detect import detect
from wherry.models.registry.tflite_metadata import TfliteMetadata, read_metadata

flatbuffers = pytest.importorskip("flatbuffers")
schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="pip install 'wherry[tflite]'"
)


def table(builder: Any, fields: int, **slots: int) -> int:
    """A table with offsets in its fields, by number."""
    builder.StartObject(fields)
    for slot, offset in slots.items():
        builder.PrependUOffsetTRelativeSlot(int(slot[1:]), offset, 0)
    return builder.EndObject()


def vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def floats(builder: Any, numbers: list[float]) -> int:
    builder.StartVector(4, len(numbers), 4)
    for number in reversed(numbers):
        builder.PrependFloat32(number)
    return builder.EndVector()


def metadata_bytes(mean: list[float], std: list[float]) -> bytes:
    """Of one graph with one input whose pixels are normalised."""
    builder = flatbuffers.Builder(256)
    options = table(builder, 2, _0=floats(builder, mean), _1=floats(builder, std))
    builder.StartObject(2)
    builder.PrependUint8Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(1, options, 0)
    unit = builder.EndObject()
    tensor = table(builder, 7, _4=vector(builder, [unit]))
    graph = table(builder, 6, _2=vector(builder, [tensor]))
    builder.Finish(table(builder, 8, _3=vector(builder, [graph])), b"M001")
    return bytes(builder.Output())


def write_model(path: Path, metadata: bytes) -> None:
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(metadata)
    entry.name, entry.buffer = "TFLITE_METADATA", 1
    model = schema.ModelT()
    model.version, model.buffers, model.metadata = 3, [schema.BufferT(), buffer], [entry]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def append_labels(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(names))


def test_labels_and_normalisation_become_the_manifests(tmp_path: Path):
    write_model(tmp_path / "m.tflite", metadata_bytes([127.5], [128.0]))
    append_labels(tmp_path / "m.tflite", "cat", "dog")
    manifest = detect(tmp_path, task="image-classification")
    assert manifest.labels == ("cat", "dog")
    assert manifest.options == {"pixel_scale": 1.0, "mean": [127.5], "std": [128.0]}


def test_what_the_importer_says_wins(tmp_path: Path):
    write_model(tmp_path / "m.tflite", metadata_bytes([0, 0, 0], [255, 255, 255]))
    append_labels(tmp_path / "m.tflite", "cat", "dog")
    manifest = detect(
        tmp_path, task="image-classification", labels=["a", "b"], options={"mean": [1.0]}
    )
    assert manifest.labels == ("a", "b")
    assert manifest.options["mean"] == [1.0]


def test_raw_tensors_need_no_labels(tmp_path: Path):
    write_model(tmp_path / "m.tflite", metadata_bytes([1.0], [2.0]))
    append_labels(tmp_path / "m.tflite", "cat", "dog")
    assert (detect(tmp_path).labels, detect(tmp_path).options) == ((), {})


@pytest.mark.parametrize("std", [[0.0], [1.0, 2.0], []])
def test_a_normalisation_that_cannot_be_is_not_taken(tmp_path: Path, std: list[float]):
    write_model(tmp_path / "m.tflite", metadata_bytes([1.0], std))
    assert read_metadata(tmp_path / "m.tflite").options == {}


def test_damaged_files_say_nothing_or_something(tmp_path: Path):
    path = tmp_path / "m.tflite"
    write_model(path, metadata_bytes([127.5], [128.0]))
    append_labels(path, "cat", "dog")
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data[: generator.randrange(1, len(data))])
        assert isinstance(read_metadata(path), TfliteMetadata)
