"""Uploads that continue where a broken connection left off, and imports of what was uploaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.client.twin import Twin

from wherry import Client, errors
from wherry.client.calls import uploads
from wherry.client.schema import Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with a file of several pieces, an empty one and hidden ones."""
    folder = tmp_path / "bundle"
    (folder / "parts").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "wherry.toml").write_text('task = "text-classification"\nruntime = "onnx"\n')
    (folder / "parts" / "weights 1.bin").write_bytes(bytes(range(256)) * 100)
    (folder / "empty").touch()
    return folder


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(uploads, "PIECE_BYTES", 10_000)


def contents(folder: Path) -> dict[str, bytes]:
    names = ["empty", "parts/weights 1.bin", "wherry.toml"]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_folder_arrives_as_it_is(client: Client, twin: Twin, folder: Path):
    seen: list[Progress] = []
    upload = client.models.upload(folder, on_progress=seen.append)
    assert twin.uploads[upload.id] == contents(folder)
    assert seen[-1].done == seen[-1].total == sum(map(len, contents(folder).values()))
    assert [each.done for each in seen] == sorted(each.done for each in seen)


def test_an_upload_goes_on_after_a_broken_connection(client: Client, twin: Twin, folder: Path):
    upload = client.models.upload(folder / "empty")
    twin.break_next = 2
    client.models.upload(folder, upload_id=upload.id)
    assert twin.uploads[upload.id] == contents(folder)


def test_an_upload_goes_on_from_what_the_server_has(client: Client, twin: Twin, folder: Path):
    upload = client.models.upload(folder / "empty")
    twin.uploads[upload.id]["parts/weights 1.bin"] = (bytes(range(256)) * 100)[:12_345]
    twin.requests.clear()
    client.models.upload(folder, upload_id=upload.id)
    assert twin.uploads[upload.id] == contents(folder)
    pieces = [path for method, path in twin.requests if method == "PUT"]
    assert len(pieces) == 3  # two of the weights, one of the manifest


def test_a_full_server_is_asked_again(client: Client, twin: Twin, folder: Path):
    twin.refusals = [errors.Unavailable("busy", retry_after_seconds=0.01)]
    upload = client.models.upload(folder)
    assert twin.uploads[upload.id] == contents(folder)


def test_a_bundle_becomes_a_version(client: Client, twin: Twin, folder: Path):
    version = client.models.import_model(
        folder, name="mood", task="text-classification", labels=["bad", "good"], alias="champion"
    )
    assert (version.model, version.number) == ("mood", 1)
    assert version.card.labels == ["bad", "good"]
    assert twin.models["mood"].aliases == {"champion": 1}
    assert folder.exists()


def test_a_missing_path_and_an_empty_folder_are_told(client: Client, twin: Twin, tmp_path: Path):
    with pytest.raises(errors.InvalidInput, match="no file or folder"):
        client.models.import_model(tmp_path / "nothing", name="x")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(errors.InvalidInput, match="has no files"):
        client.models.upload(tmp_path / "hollow")
    assert twin.uploads == {}
