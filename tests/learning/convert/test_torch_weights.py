"""Weights are read as torch writes them, and nothing else is built of what a file names."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import recipe_sources

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.learning.convert.torch_weights import read_torch_weights


class FakeStorage:
    """What a file says of a storage."""

    def __init__(self, kind: Any, key: str, length: int) -> None:
        self.pid = ("storage", kind, key, "cpu", length)


class FakePickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, FakeStorage) else None


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The names that a file of torch's holds, without torch."""

    def rebuild(*_: object) -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils = types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    torch = types.ModuleType("torch")
    for name in ("FloatStorage", "HalfStorage", "LongStorage", "ComplexFloatStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return types.SimpleNamespace(torch=torch, rebuild=rebuild)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def save(path: Path, value: Any, storages: dict[str, np.ndarray]) -> Path:
    """A zip archive as torch writes it."""
    buffer = io.BytesIO()
    FakePickler(buffer, protocol=2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def tensor(names: Any, kind: str, key: str, array: np.ndarray, *view: Any) -> Call:
    offset, shape, strides = view or (0, array.shape, [s // array.itemsize for s in array.strides])
    storage = FakeStorage(getattr(names.torch, kind), key, array.size)
    return Call(names.rebuild, storage, offset, tuple(shape), tuple(strides), False, OrderedDict())


def test_the_older_layout_is_read_whole(tmp_path: Path) -> None:
    from wherry.learning.recipes.efficientnet_lite import EFFICIENTNET_LITE0, WEIGHTS

    found = read_torch_weights(recipe_sources(EFFICIENTNET_LITE0)[WEIGHTS])
    assert len(found) == 296
    assert found["_fc.weight"].shape == (1000, 1280)
    assert found["_fc.weight"].dtype == np.float32
    assert found["_bn0.num_batches_tracked"].dtype == np.int64
    assert all(np.isfinite(each).all() for each in found.values())
    assert (found["_bn0.running_var"] >= 0).all()


def test_the_zip_layout_is_read_with_views_types_and_shared_storages(
    tmp_path: Path, names: Any
) -> None:
    base = np.arange(12, dtype=np.float32)
    half, long = np.array([1.5, -2], dtype=np.float16), np.array([7], dtype=np.int64)
    path = save(
        tmp_path / "w.pt",
        OrderedDict(
            whole=tensor(names, "FloatStorage", "0", base, 0, (3, 4), (4, 1)),
            turned=tensor(names, "FloatStorage", "0", base, 1, (2, 3), (1, 4)),
            half=tensor(names, "HalfStorage", "1", half),
            long=tensor(names, "LongStorage", "2", long, 0, (), ()),
            empty=tensor(names, "FloatStorage", "0", base, 0, (0, 4), (4, 1)),
        ),
        {"0": base, "1": half, "2": long},
    )
    found = read_torch_weights(path)
    assert np.array_equal(found["whole"], base.reshape(3, 4))
    assert np.array_equal(found["turned"], [[1, 5, 9], [2, 6, 10]])
    assert found["half"].tolist() == [1.5, -2]
    assert found["half"].dtype == np.float16
    assert found["long"].shape == ()
    assert found["empty"].shape == (0, 4)
    found["turned"][:] = 0
    assert found["whole"].sum() == base.sum(), "each has memory of its own"


def test_a_file_that_names_a_function_is_refused_and_it_is_not_called(
    tmp_path: Path, names: Any
) -> None:
    target = tmp_path / "harm"
    for harm in (Call(os.mkdir, str(target)), Call(eval, f"__import__('os').mkdir('{target}')")):
        with pytest.raises(FormatNotAllowed, match="not part of plain weights"):
            read_torch_weights(save(tmp_path / "w.pt", {"w": harm}, {}))
    assert not target.exists()


def test_a_file_cannot_change_the_function_that_makes_tensors(tmp_path: Path, names: Any) -> None:
    # BUILD: sets attributes of what lies on the stack, here of the function itself
    evil = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01sb."
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", evil)
    with pytest.raises(InvalidInput):
        read_torch_weights(path)


def test_tensors_outside_their_storage_are_refused(tmp_path: Path, names: Any) -> None:
    base = np.arange(4, dtype=np.float32)
    for view in ((1, (4,), (1,)), (3, (2,), (1,)), (0, (2, 2), (1 << 40, 1)), (-1, (1,), (1,))):
        path = save(
            tmp_path / "w.pt", {"w": tensor(names, "FloatStorage", "0", base, *view)}, {"0": base}
        )
        with pytest.raises(InvalidInput, match="past the end"):
            read_torch_weights(path)
    path = save(
        tmp_path / "w.pt",
        {"w": tensor(names, "FloatStorage", "0", base, 0, (1 << 20, 1 << 20), (0, 0))},
        {"0": base},
    )
    with pytest.raises(InvalidInput, match="more elements than its storage"):
        read_torch_weights(path)


def test_what_is_no_state_dict_is_refused(tmp_path: Path, names: Any) -> None:
    base = np.arange(4, dtype=np.float32)
    weight = tensor(names, "FloatStorage", "0", base)
    for value in ([weight], {"epoch": 3, "w": weight}, {"model": {"w": weight}}, {1: weight}):
        with pytest.raises(InvalidInput):
            read_torch_weights(save(tmp_path / "w.pt", value, {"0": base}))
    with pytest.raises(FormatNotAllowed, match="ComplexFloatStorage"):
        read_torch_weights(
            save(tmp_path / "w.pt", {"w": tensor(names, "ComplexFloatStorage", "0", base)}, {})
        )


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    from wherry.learning.recipes.efficientnet_lite import EFFICIENTNET_LITE0, WEIGHTS

    data = recipe_sources(EFFICIENTNET_LITE0)[WEIGHTS].read_bytes()
    path = tmp_path / "w.pth"
    for kept in (0, 1, 13, 40, 500, 20_000, 100_000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:kept])
        with pytest.raises(InvalidInput):
            read_torch_weights(path)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "w.pth"
    for size in (1, 10, 100, 1000) * 20:
        path.write_bytes(random.bytes(size))
        with pytest.raises(InvalidInput):
            read_torch_weights(path)


@pytest.mark.slow
def test_torch_reads_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch")
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        found = read_torch_weights(path)
        assert list(found) == list(state)
        assert all(np.array_equal(found[name], state[name].numpy()) for name in state)
