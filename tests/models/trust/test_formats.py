"""What may be served is decided by content: pickles, code and archives under any name are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from wherry.errors import CodeNotAllowed, FormatNotAllowed, InvalidInput
from wherry.models.trust.formats import check_bundle, check_format

SAFETENSORS_HEADER = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'


class Attack:
    def __reduce__(self):
        return (os.system, ("touch CANARY",))


def safetensors(header: bytes = SAFETENSORS_HEADER, data: bytes = b"1234") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


PICKLE = pickle.dumps(Attack(), protocol=4)
BAD_CONTENT = {
    "pickle-2": pickle.dumps(Attack(), protocol=2),
    "pickle-5": pickle.dumps(Attack(), protocol=5),
    "pickle-0": pickle.dumps(Attack(), protocol=0),
    "pickle after NULs": b"\x00" * 4 + PICKLE,
    "joblib with zlib": zlib.compress(PICKLE * 20),
    "torch checkpoint": zipped({"archive/data.pkl": PICKLE, "archive/version": b"3"}),
    "zip of anything": zipped({"a.txt": b"hello"}),
    "keras": zipped({"config.json": b"{}", "model.weights.h5": b"\x89HDF"}),
    "torchscript": zipped({"m/code/a.py": b"", "m/constants.pkl": b"", "m/data.pkl": b""}),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "library": b"\x7fELF" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "empty": b"",
    "text": b"hello " * 100,
}


@pytest.mark.parametrize("name", ["model.onnx", "model.gguf", "model.safetensors", "model.skops"])
@pytest.mark.parametrize("content", BAD_CONTENT)
def test_other_content_under_a_good_name_is_refused(tmp_path: Path, name: str, content: str):
    path = write(tmp_path, name, BAD_CONTENT[content])
    with pytest.raises(FormatNotAllowed) as refused:
        check_format(path, allow_pickle=True, allow_code=True)
    assert refused.value.hint
    assert not Path("CANARY").exists()


@pytest.mark.parametrize("name", ["model.npy", "model.npz", "model.json", "weights.bin", "x.pt"])
@pytest.mark.parametrize(
    "content", ["pickle-4", "torch checkpoint", "library", "pickle after NULs"]
)
def test_code_is_refused_whatever_its_name(tmp_path: Path, name: str, content: str):
    data = {"pickle-4": PICKLE, **BAD_CONTENT}[content]
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, name, data), allow_pickle=True)


@pytest.mark.parametrize("name", ["model.pkl", "model.pickle", "model.joblib", "MODEL.PKL"])
def test_a_pickle_needs_the_operator(tmp_path: Path, name: str):
    path = write(tmp_path, name, PICKLE)
    with pytest.raises(CodeNotAllowed) as refused:
        check_format(path)
    assert "WHERRY_ALLOW_PICKLE" in refused.value.hint
    assert check_format(path, allow_pickle=True) == "pickle"


def test_python_needs_the_operator(tmp_path: Path):
    path = write(tmp_path, "model.py", b"class Model: ...\n")
    with pytest.raises(CodeNotAllowed) as refused:
        check_format(path)
    assert "WHERRY_ALLOW_CODE" in refused.value.hint
    assert check_format(path, allow_code=True) == "python"


def test_good_files_are_named_by_their_format(tmp_path: Path):
    files = {
        "a.safetensors": (safetensors(), "safetensors"),
        "a.skops": (zipped({"schema.json": b"{}", "1.npy": npy(np.zeros(3))}), "skops"),
        "a.npy": (npy(np.zeros((2, 3))), "npy"),
        "a.npz": (zipped({"x.npy": npy(np.zeros(3)), "y.npy": npy(np.array(["a", "b"]))}), "npz"),
        "records.npy": (npy(np.zeros(3, dtype=[("a", "<f4", (2, 3)), ("b", "<i8")])), "npy"),
        "times.npy": (npy(np.array(["2026-01-01"], dtype="datetime64[ns]")), "npy"),
        "scalar.npy": (npy(np.array(5.0)), "npy"),
        "config.json": (b'{"id2label": {"0": "A"}}', "json"),
        "labels.txt": ("第一\nzweite\n".encode(), "text"),
        "LICENSE": (b"Apache", "text"),
        "README.md": (b"# hi", "text"),
        "wherry.toml": (b"task = 'tensor'", "text"),
    }
    for name, (data, expected) in files.items():
        assert check_format(write(tmp_path, name, data)) == expected, name


def test_a_safetensors_header_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path):
    header = SAFETENSORS_HEADER.ljust(0x280)
    data = safetensors(header)
    assert data.startswith(b"\x80\x02")
    assert check_format(write(tmp_path, "a.safetensors", data)) == "safetensors"


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_that_loads_code_is_refused(tmp_path: Path, key: str, nested: bool):
    inner = {key: {"AutoModel": "evil.Model"}}
    config = {"layers": [{"text_config": inner}]} if nested else inner
    with pytest.raises(FormatNotAllowed, match=key):
        check_format(write(tmp_path, "config.json", json.dumps(config).encode()))


def test_a_tokenizer_may_know_any_word(tmp_path: Path):
    words = json.dumps({"model": {"vocab": {"auto_map": 1, "trust_remote_code": 2}}}).encode()
    assert check_format(write(tmp_path, "tokenizer.json", words)) == "json"


@pytest.mark.parametrize(
    "data", [b"{", b"[" * 100_000, b'{"a": "\xff"}', b'{"a": 1}\x00', b" " * (5 << 20) + b"{}"]
)
def test_bad_json_is_refused(tmp_path: Path, data: bytes):
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "config.json", data))


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "missing"])
def test_only_ordinary_files_are_opened(tmp_path: Path, kind: str):
    path = tmp_path / "model.onnx"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InvalidInput):
        check_format(path)


@pytest.mark.parametrize(
    "array",
    [
        np.array([Attack()], dtype=object),
        np.zeros(2, dtype=[("a", "<f4"), ("b", "O")]),
        np.zeros(2, dtype=[("a", [("c", "O")])]),
    ],
)
def test_arrays_of_objects_are_refused(tmp_path: Path, array: np.ndarray):
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "a.npy", npy(array)))
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "a.npz", zipped({"a.npy": npy(array)})))
    skops = zipped({"schema.json": b"{}", "a.npy": npy(array)})
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "a.skops", skops))


def npy_with(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "data",
    [
        npy_with("{'descr': __import__('os').system('touch CANARY'), 'shape': (1,)}"),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}") + bytes(4),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': 1}"),
        npy_with("{'descr': [('a',)], 'fortran_order': False, 'shape': (1,)}"),
        npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (0,)}"),
        npy_with("{'descr': '<f4', 'fortran_order': False}"),
        npy_with("(" * 5000),
        npy(np.zeros(4)) + PICKLE,
        npy(np.zeros(4))[:-1],
    ],
)
def test_arrays_that_lie_are_refused(tmp_path: Path, data: bytes):
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "a.npy", data))


def zip_with(change: str) -> bytes:
    data = zipped({"schema.json": b"{}" * 50, "other.bin": b"x" * 100})
    if change == "prefix":
        return b"MODELDATA" + data
    if change == "other name in the member's header":
        return data.replace(b"other.bin", b"othee.bin", 1)
    if change == "cut":
        return data[:-30]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        if change == "link":
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        elif change == "traversal":
            archive.writestr("../../x", "x")
        elif change == "absolute":
            archive.writestr("/etc/x", "x")
        elif change == "bomb":
            archive.writestr("big.bin", bytes(100 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        "prefix",
        "other name in the member's header",
        "cut",
        "link",
        "traversal",
        "absolute",
        "bomb",
    ],
)
def test_zip_tricks_are_refused(tmp_path: Path, change: str):
    with pytest.raises(FormatNotAllowed):
        check_format(write(tmp_path, "model.skops", zip_with(change)))


def test_a_bundle_is_checked_file_by_file(tmp_path: Path):
    write(tmp_path, "weights.safetensors", safetensors())
    write(tmp_path, "sub/labels.txt", b"a\nb")
    formats = check_bundle(tmp_path, ["weights.safetensors", "sub/labels.txt"])
    assert formats == {"weights.safetensors": "safetensors", "sub/labels.txt": "text"}
    write(tmp_path, "evil.bin", PICKLE)
    with pytest.raises(FormatNotAllowed, match="evil"):
        check_bundle(tmp_path, ["weights.safetensors", "evil.bin"], allow_pickle=True)


def test_a_bundle_of_code_may_bring_any_file_once_code_is_allowed(tmp_path: Path):
    write(tmp_path, "model.py", b"class Model: ...")
    write(tmp_path, "weights.pt", PICKLE)
    names = ["model.py", "weights.pt"]
    assert check_bundle(tmp_path, names, allow_code=True, is_code_bundle=True)
    with pytest.raises(CodeNotAllowed):
        check_bundle(tmp_path, names, is_code_bundle=True)
    with pytest.raises(FormatNotAllowed):
        check_bundle(tmp_path, names, allow_code=True)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\x00b", "a\\b", ""])
def test_a_bundle_reads_nothing_outside_of_its_folder(tmp_path: Path, name: str):
    with pytest.raises(InvalidInput):
        check_bundle(tmp_path, [name])


def test_a_tokenizer_of_brackets_takes_no_more_memory_than_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b"[" + b"[]," * (4 << 20) + '"é🙂"]'.encode())
    tracemalloc.start()
    try:
        assert check_format(file) == "json"
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [b"[1, 2", b'{"a": }', b"[" * 100_000, b"", b'{"a": "\xff"}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(text)
    with pytest.raises(FormatNotAllowed):
        check_format(file)


def test_a_character_may_lie_across_two_pieces(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(b"a" * ((1 << 20) - 1) + "字".encode())
    assert check_format(file) == "text"
    file.write_bytes(b"a" * (1 << 20) + "字".encode()[:2])
    with pytest.raises(FormatNotAllowed):
        check_format(file)
