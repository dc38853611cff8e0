"""A bundle's folder is made whole or not at all, and verified byte by byte each time."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidInput
from wherry.models.trust.files import BundleFile, bundle_digest, hash_file, list_paths
from wherry.models.trust.materialise import (
    bundle_folder,
    materialise,
    remove_bundle,
    sweep_unfinished,
    verify_folder,
)
from wherry.storage.blobs import LocalBlobs

CONTENT = {
    "wherry.toml": b"task = 'tensor'",
    "model.onnx": b"graph" * 100,
    "sub/labels.txt": b"a\nb",
}


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def files(blobs: LocalBlobs) -> list[BundleFile]:
    stored = {path: blobs.put(io.BytesIO(data)) for path, data in CONTENT.items()}
    return [BundleFile(path, blob.size, blob.sha256) for path, blob in stored.items()]


@pytest.fixture
def target(tmp_path: Path, files: list[BundleFile]) -> Path:
    return bundle_folder(tmp_path / "bundles", bundle_digest(files))


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_the_folder_holds_the_files_read_only(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    materialise(blobs, files, target)
    assert {path: (target / path).read_bytes() for path in list_paths(target)} == CONTENT
    assert all((target / path).stat().st_mode & 0o222 == 0 for path in CONTENT)
    assert names_in(target.parent) == [target.name]


def test_making_it_again_keeps_it(blobs: LocalBlobs, files: list[BundleFile], target: Path):
    materialise(blobs, files, target)
    before = (target / "model.onnx").stat().st_ino
    materialise(blobs, files, target)
    assert (target / "model.onnx").stat().st_ino == before


def test_a_changed_byte_is_refused_by_name(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    materialise(blobs, files, target)
    overwrite(target / "model.onnx", b"grapf" + CONTENT["model.onnx"][5:])
    with pytest.raises(Conflict, match=r"'model\.onnx' is damaged"):
        materialise(blobs, files, target)


def test_a_damaged_blob_is_refused_at_the_first_load(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    wanted = next(file for file in files if file.path == "model.onnx")
    overwrite(blobs.path(wanted.sha256), b"other")
    with pytest.raises(Conflict, match=r"model\.onnx"):
        materialise(blobs, files, target)


def test_a_missing_blob_is_refused_and_leaves_nothing(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    blobs.delete(files[1].sha256)
    with pytest.raises(Conflict, match="missing"):
        materialise(blobs, files, target)
    assert names_in(target.parent) == []


def test_a_missing_file_is_refused_by_name(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    materialise(blobs, files, target)
    (target / "sub" / "labels.txt").unlink()
    with pytest.raises(Conflict, match=r"'sub/labels\.txt' is missing"):
        verify_folder(target, files)


def test_a_planted_file_is_refused_by_name(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    materialise(blobs, files, target)
    (target / "numpy.py").write_text("evil")
    with pytest.raises(Conflict, match=r"'numpy\.py' does not belong"):
        verify_folder(target, files)


def test_a_file_replaced_by_a_link_is_refused(
    blobs: LocalBlobs, files: list[BundleFile], target: Path, tmp_path: Path
):
    materialise(blobs, files, target)
    (tmp_path / "same").write_bytes(CONTENT["model.onnx"])
    (target / "model.onnx").unlink()
    (target / "model.onnx").symlink_to(tmp_path / "same")
    with pytest.raises(InvalidInput, match="link"):
        verify_folder(target, files)


def test_what_python_compiled_is_thrown_away(
    blobs: LocalBlobs, files: list[BundleFile], target: Path
):
    materialise(blobs, files, target)
    (target / "__pycache__").mkdir()
    planted = target / "__pycache__" / "model.cpython-311.pyc"
    planted.write_bytes(b"maybe evil")
    verify_folder(target, files)
    assert not planted.exists()


def test_many_may_make_it_at_once(blobs: LocalBlobs, files: list[BundleFile], target: Path):
    failures: list[Exception] = []

    def run() -> None:
        try:
            materialise(blobs, files, target)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names_in(target.parent) == [target.name]


def test_leftovers_of_a_killed_process_are_swept(target: Path):
    leftover = target.with_name(".unfinished-0123")
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    assert sweep_unfinished(target.parent) == 1
    assert names_in(target.parent) == []


def test_a_removed_bundle_is_gone(blobs: LocalBlobs, files: list[BundleFile], target: Path):
    materialise(blobs, files, target)
    remove_bundle(target.parent, bundle_digest(files))
    remove_bundle(target.parent, bundle_digest(files))
    assert names_in(target.parent) == []
    assert all(blobs.has(file.sha256) for file in files)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a\x00b", "", "a//b", "./a", "wherry.toml/x"]
)
def test_files_with_unsafe_names_are_refused(
    blobs: LocalBlobs, files: list[BundleFile], target: Path, path: str
):
    evil = BundleFile(path, files[0].size, files[0].sha256)
    with pytest.raises(InvalidInput):
        materialise(blobs, [*files, evil], target)
    assert not target.parent.exists()


def test_the_digest_depends_on_names_sizes_and_bytes_but_not_on_order(files: list[BundleFile]):
    digest = bundle_digest(files)
    assert digest == bundle_digest(files[::-1])
    assert len(digest) == len("sha256:") + 64
    first, *rest = files
    for changed in (
        BundleFile("other", first.size, first.sha256),
        BundleFile(first.path, first.size + 1, first.sha256),
        BundleFile(first.path, first.size, "0" * 64),
    ):
        assert bundle_digest([changed, *rest]) != digest
    assert bundle_digest(rest) != digest


def test_a_file_is_hashed_with_its_size(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    size, sha256 = hash_file(tmp_path / "x")
    assert (size, sha256[:8]) == (3, "ba7816bf")
