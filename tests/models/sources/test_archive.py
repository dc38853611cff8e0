"""Archives of strangers (S25): a named plain file comes out, or a clear refusal; never a surprise."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from wherry.errors import FormatNotAllowed, InvalidInput, NotFound
from wherry.models.registry.skops_schema import guess_task
from wherry.models.sources.archive import extract, list_members
from wherry.models.trust.archives import check_skops


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax
    return info


def zip_of(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def take(tmp_path: Path, data: bytes, *inner: str) -> bytes:
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    extract(archive, inner or ("model.onnx",), tmp_path / "out")
    return (tmp_path / "out").read_bytes()


GOOD_TAR = tar_of((member("a/model.onnx"), b"graph"), (member("b"), b"x" * 2000))
PACKERS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packer", PACKERS)
def test_tar_archives_of_every_compression_are_read(tmp_path: Path, packer: str):
    data = PACKERS[packer](GOOD_TAR)
    assert take(tmp_path, data, "a/model.onnx") == b"graph"
    assert list_members(tmp_path / "archive") == [("a/model.onnx", 5), ("b", 2000)]


def test_zip_archives_are_read(tmp_path: Path):
    data = zip_of(("a/model.onnx", b"graph"), ("b", b"x"))
    assert take(tmp_path, data, "a/model.onnx") == b"graph"
    assert list_members(tmp_path / "archive") == [("a/model.onnx", 5), ("b", 1)]


def test_archives_in_archives_are_read_a_few_levels_deep(tmp_path: Path):
    inner = gzip.compress(tar_of((member("z"), zip_of(("model.onnx", b"graph")))))
    data = zip_of(("x", inner))
    assert take(tmp_path, data, "x", "z", "model.onnx") == b"graph"
    with pytest.raises(InvalidInput, match="levels"):
        take(tmp_path, data, "x", "z", "model.onnx", "more")


def test_what_is_missing_lists_what_there_is(tmp_path: Path):
    for data in (GOOD_TAR, zip_of(("a/model.onnx", b"")), zip_of(("x", GOOD_TAR))):
        inner = ("x", "model.onnx") if b"PK" in data[:2] and b"ustar" in data else ("model.onnx",)
        with pytest.raises(NotFound) as refused:
            take(tmp_path, data, *inner)
        assert "model.onnx" in refused.value.message


def big(count: int) -> bytes:
    return bytes(count)


ATTACKS = {
    "symbolic link": tar_of((member("model.onnx", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "hard link": tar_of((member("model.onnx", tarfile.LNKTYPE, "../secret"), b"")),
    "pipe": tar_of((member("model.onnx", tarfile.FIFOTYPE), b"")),
    "device": tar_of((member("model.onnx", tarfile.CHRTYPE), b"")),
    "folder": tar_of((member("model.onnx", tarfile.DIRTYPE), b"")),
    "twice in a tar": tar_of((member("model.onnx"), b"a"), (member("model.onnx"), b"b")),
    "link and then file": tar_of(
        (member("model.onnx", tarfile.SYMTYPE, "/tmp/x"), b""), (member("model.onnx"), b"b")
    ),
    "sparse": tar_of(
        (member("model.onnx", **{"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}), b"a")
    ),
    "cut tar": GOOD_TAR[:1000].replace(b"a/model.onnx", b"model.onnx\0\0"),
    "cut gzip": gzip.compress(tar_of((member("model.onnx"), b"x" * 99_999)))[:-20],
    "wrong gzip checksum": gzip.compress(tar_of((member("model.onnx"), b"x")))[:-8] + bytes(8),
    "gzip bomb": gzip.compress(tar_of((member("model.onnx"), big(80 << 20))), 9),
    "gzip bomb before the file": gzip.compress(
        tar_of((member("big"), big(80 << 20)), (member("model.onnx"), b"x")), 9
    ),
    "zip bomb": zip_of(("model.onnx", big(80 << 20))),
    "zip link": zip_of((zip_info("model.onnx", 0o120777), b"/etc/passwd")),
    "zip folder": zip_of((zip_info("model.onnx", 0o040755), b"")),
    "cut zip": zip_of(("model.onnx", b"x" * 1000))[:-30],
    "wrong zip checksum": zip_of(("model.onnx", b"graph" * 50)).replace(
        zip_of(("model.onnx", b"graph" * 50))[14:18], b"\x00\x01\x02\x03"
    ),
    "other name in the member's header": zip_of(("model.onnx", b"x")).replace(
        b"model.onnx", b"modem.onnx", 1
    ),
    "no archive": b"hello " * 1000,
    "empty": b"",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_and_leaves_nothing(tmp_path: Path, attack: str):
    (tmp_path / "beside").write_text("untouched")
    with pytest.raises((InvalidInput, NotFound)):
        take(tmp_path, ATTACKS[attack])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "beside"]
    assert (tmp_path / "beside").read_text() == "untouched"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="two files"):
        take(tmp_path, zip_of(("model.onnx", b"a"), ("model.onnx", b"b")))


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "C:\\evil", "..\\evil"])
def test_an_archives_names_never_become_paths(tmp_path: Path, name: str):
    inside = tmp_path / "inside"
    inside.mkdir()
    for data in (tar_of((member(name), b"x")), zip_of((name, b"x"))):
        (inside / "archive").write_bytes(data)
        extract(inside / "archive", (name,), inside / "out")
        assert (inside / "out").read_bytes() == b"x"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "inside", "out"]


def test_a_header_that_claims_to_be_huge_takes_no_memory(tmp_path: Path):
    info = member("x", tarfile.XHDTYPE)
    header = bytearray(info.tobuf())
    header[124:136] = b"%011o\0" % (200 << 20)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    data = gzip.compress(bytes(header) + bytes(200 << 20), 1)
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="header"):
        take(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wherry.models.sources.archive.MAX_MEMBERS", 10)
    many = [(f"f{number}", b"") for number in range(11)]
    with pytest.raises(InvalidInput, match="over 10 members"):
        take(tmp_path, zip_of(*many), "f1")
    with pytest.raises(InvalidInput, match="over 10 members"):
        take(tmp_path, tar_of(*((member(name), data) for name, data in many)), "f1")


def test_a_directory_without_end_is_not_read(tmp_path: Path) -> None:
    """Its half a million names would take a hundred times the archive's memory."""
    archive = tmp_path / "archive"
    with archive.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26))
        entry = b"PK\x01\x02" + bytes(42)
        for _ in range(20):
            file.write(entry * 20_000)
        size = 20 * 20_000 * len(entry)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, size, 30, 0))
    tracemalloc.start()
    try:
        for look in (list_members, lambda path: extract(path, ("a",), tmp_path / "out")):
            with pytest.raises(InvalidInput, match="directory"):
                look(archive)
        with pytest.raises(FormatNotAllowed):
            check_skops(archive)
        assert guess_task(archive) is None
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
