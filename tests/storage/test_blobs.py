"""One suite over every `Blobs`: whole or absent, verified, bounded by the disk with clear words."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidInput, NotFound, Unavailable
from wherry.storage.blobs import Blobs, LocalBlobs

HELLO = b"hello, wherry"
HELLO_SHA256 = hashlib.sha256(HELLO).hexdigest()
OTHER_SHA256 = hashlib.sha256(b"other").hexdigest()


@pytest.fixture(params=[LocalBlobs])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return request.param(tmp_path / "blobs")


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class BrokenStream:
    """Gives some bytes, then fails as the operating system would."""

    def __init__(self, error: Exception) -> None:
        self.left = 3
        self.error = error

    def read(self, _size: int, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return b"x" * 1000


def test_what_is_put_is_read(blobs: Blobs):
    blob = blobs.put(io.BytesIO(HELLO))
    assert (blob.sha256, blob.size) == (HELLO_SHA256, len(HELLO))
    assert blobs.has(HELLO_SHA256)
    with blobs.open(HELLO_SHA256) as file:
        assert file.read() == HELLO
    blobs.verify(HELLO_SHA256)


def test_putting_twice_stores_once(blobs: Blobs, tmp_path: Path):
    (tmp_path / "file").write_bytes(HELLO)
    first = blobs.put(io.BytesIO(HELLO), HELLO_SHA256)
    assert blobs.put_file(tmp_path / "file") == first
    assert blobs.put_file(tmp_path / "file", HELLO_SHA256) == first
    assert list(blobs.digests()) == [HELLO_SHA256]
    assert len(all_files(tmp_path / "blobs")) == 1


def test_an_empty_file_is_a_blob(blobs: Blobs):
    assert blobs.put(io.BytesIO(b"")).size == 0


def test_other_bytes_than_promised_are_refused_and_leave_nothing(blobs: Blobs, tmp_path: Path):
    with pytest.raises(InvalidInput, match=HELLO_SHA256):
        blobs.put(io.BytesIO(HELLO), OTHER_SHA256)
    assert not blobs.has(HELLO_SHA256)
    assert not blobs.has(OTHER_SHA256)
    assert all_files(tmp_path) == []


def test_a_broken_stream_leaves_nothing(blobs: Blobs, tmp_path: Path):
    with pytest.raises(ConnectionError):
        blobs.put(BrokenStream(ConnectionError("gone")))
    assert all_files(tmp_path) == []


def test_a_full_disk_is_said_and_leaves_nothing(blobs: Blobs, tmp_path: Path):
    with pytest.raises(Unavailable, match="disk is full"):
        blobs.put(BrokenStream(OSError(errno.ENOSPC, "no space")))
    assert all_files(tmp_path) == []


def test_a_file_size_limit_of_the_system_leaves_nothing(tmp_path: Path):
    """The kernel itself refuses the write here, in the middle of a large file."""
    code = f"""
import io, pathlib, resource, signal
from wherry.storage.blobs import LocalBlobs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
blobs = LocalBlobs(pathlib.Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
try:
    blobs.put(io.BytesIO(bytes(8 << 20)))
except OSError as error:
    print(error.errno)
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(output.stdout) == errno.EFBIG
    assert all_files(tmp_path) == []


def test_a_killed_put_is_invisible_and_swept_at_the_next_start(tmp_path: Path):
    code = f"""
import os, pathlib, signal
from wherry.storage.blobs import LocalBlobs
class Killer:
    calls = 0
    def read(self, size):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return b'x' * size
LocalBlobs(pathlib.Path({str(tmp_path)!r})).put(Killer())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(all_files(tmp_path)) == 1
    blobs = LocalBlobs(tmp_path)
    assert list(blobs.digests()) == []
    assert blobs.sweep_temporary(older_than_seconds=3600) == 0
    assert blobs.sweep_temporary() == 1
    assert all_files(tmp_path) == []


def test_a_damaged_blob_is_found(tmp_path: Path):
    blobs = LocalBlobs(tmp_path)
    blobs.put(io.BytesIO(HELLO))
    path = blobs.path(HELLO_SHA256)
    path.chmod(0o600)
    path.write_bytes(b"jello, wherry")
    with pytest.raises(Conflict, match="damaged"):
        blobs.verify(HELLO_SHA256)


def test_a_missing_blob_is_not_found(blobs: Blobs, tmp_path: Path):
    with pytest.raises(NotFound):
        blobs.open(OTHER_SHA256)
    with pytest.raises(NotFound):
        blobs.place(OTHER_SHA256, tmp_path / "target")
    assert blobs.delete(OTHER_SHA256) is False
    assert blobs.age_seconds(OTHER_SHA256) == 0


def test_a_deleted_blob_is_gone(blobs: Blobs):
    blobs.put(io.BytesIO(HELLO))
    assert blobs.delete(HELLO_SHA256) is True
    assert not blobs.has(HELLO_SHA256)


def test_a_blob_is_placed_read_only(blobs: Blobs, tmp_path: Path):
    blobs.put(io.BytesIO(HELLO))
    blobs.place(HELLO_SHA256, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == HELLO
    assert (tmp_path / "model.onnx").stat().st_mode & 0o222 == 0


def test_a_blob_is_copied_where_it_cannot_be_linked(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    blobs.put(io.BytesIO(HELLO))
    monkeypatch.setattr(os, "link", refuse)
    blobs.place(HELLO_SHA256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == HELLO
    assert (tmp_path / "copy").stat().st_mode & 0o222 == 0


def test_putting_again_makes_a_blob_young(tmp_path: Path):
    blobs = LocalBlobs(tmp_path)
    blobs.put(io.BytesIO(HELLO))
    os.utime(blobs.path(HELLO_SHA256), (1, 1))
    assert blobs.age_seconds(HELLO_SHA256) > time.time() - 100
    blobs.put(io.BytesIO(HELLO))
    assert blobs.age_seconds(HELLO_SHA256) < 100


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "/"]
)
def test_digests_never_become_other_paths(blobs: Blobs, digest: str):
    with pytest.raises(InvalidInput):
        blobs.open(digest)


def test_putting_a_damaged_blob_again_mends_it(tmp_path: Path):
    blobs = LocalBlobs(tmp_path)
    blobs.put(io.BytesIO(HELLO))
    path = blobs.path(HELLO_SHA256)
    path.chmod(0o600)
    path.write_bytes(b"jello, wherry")
    blobs.put(io.BytesIO(HELLO))
    blobs.verify(HELLO_SHA256)
