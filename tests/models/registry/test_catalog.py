"""The built-in catalogue is complete, pinned, and its models can be served."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wherry.errors import InvalidInput, NotFound
from wherry.jobs.samples import make_sample
from wherry.models.registry.catalog import (
    CatalogModel,
    catalog,
    describe_entries,
    fetch_entry,
    find_entry,
)
from wherry.models.registry.detect import detect
from wherry.models.registry.manifest import check_manifest
from wherry.models.registry.names import check_name
from wherry.models.sources.source import parse_reference
from wherry.storage.blobs import check_sha256

PINNED = {
    "npm": re.compile(r"@?[^@]+@\d+\.\d+\.\d+"),
    "pypi": re.compile(r"[^=]+==\d[\w.]*"),
}
"""What a place looks like that always means the same release."""


@pytest.mark.parametrize("name", catalog())
def test_every_entry_is_pinned_and_says_what_people_ask(name: str):
    entry = find_entry(name)
    check_name(entry.name, "model")
    assert all((entry.description, entry.licence, entry.good_at, entry.bad_at))
    assert entry.memory_mib > 0
    for file in entry.files:
        check_sha256(file.sha256)
        reference = parse_reference(file.source)
        assert PINNED[reference.scheme].fullmatch(reference.place)
        assert reference.inner
        assert file.size > 0
    if not entry.recipe:
        check_manifest(entry.manifest, [file.name for file in entry.files])
        assert entry.manifest.sample or make_sample(entry.manifest)
        assert entry.size_bytes == sum(file.size for file in entry.files)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFound) as refused:
        find_entry("gpt-9")
    assert "smollm2" in refused.value.hint


def test_a_recipe_has_no_manifest_yet():
    with pytest.raises(InvalidInput):
        _ = find_entry("iris").manifest


def test_entries_tell_whether_they_fit_and_are_there():
    source = find_entry("minilm").source
    entries = {each.name: each for each in describe_entries({source}, free_memory_mib=250)}
    assert entries["minilm"].installed
    assert entries["minilm"].fits
    assert not entries["smollm2"].installed
    assert not entries["smollm2"].fits
    assert "250 MiB are free" in entries["smollm2"].fit_reason


def entry_from(file: Path, sha256: str) -> CatalogModel:
    return CatalogModel(
        name="x",
        description="x",
        licence="MIT",
        size_bytes=1,
        memory_mib=1,
        task="tensor",
        runtime="onnx",
        good_at="x",
        bad_at="x",
        files=({"name": "renamed.onnx", "source": f"file:{file}", "sha256": sha256, "size": 1},),  # type: ignore[arg-type]
    )


def test_files_are_checked_and_named_as_the_entry_says(tmp_path: Path):
    import hashlib

    import msgspec

    original = tmp_path / "original"
    original.write_bytes(b"graph")
    good = hashlib.sha256(b"graph").hexdigest()
    keywords = {"cache": tmp_path / "cache", "progress": lambda *_: None}
    for sha256 in (good, "0" * 64):
        entry = msgspec.convert(msgspec.to_builtins(entry_from(original, sha256)), CatalogModel)
        if sha256 == good:
            files = fetch_entry(entry, tmp_path / "good", **keywords)
            assert files == {"renamed.onnx": tmp_path / "good" / "renamed.onnx"}
            assert (tmp_path / "good" / "wherry.toml").is_file()
        else:
            with pytest.raises(InvalidInput, match="sha256"):
                fetch_entry(entry, tmp_path / "bad", **keywords)
            assert list((tmp_path / "bad").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog())
def test_every_entry_can_be_fetched_and_is_what_it_says(name: str, tmp_path: Path):
    entry = find_entry(name)
    files = fetch_entry(
        entry, tmp_path / "model", cache=tmp_path / "cache", progress=lambda *_: None
    )
    assert {file.name: file.size for file in entry.files} == {
        each: path.stat().st_size for each, path in files.items()
    }
    if not entry.recipe:
        assert detect(tmp_path / "model") == entry.manifest
