"""Files of npm packages: verified, continued after a break, and never executed."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Cancelled, InvalidInput, MissingExtra, NotFound, Unavailable
from wherry.models.sources import download as download_module
from wherry.models.sources.catalog import fetch, pin
from wherry.models.sources.npm import parse_package
from wherry.models.sources.npm_registry import (
    choose_settings,
    parse_environment,
    parse_npmrc,
    read_npm_settings,
)

PackageIndex = Any
"""The class of `conftest.py`, which test modules cannot import."""
BIG = os.urandom(3 << 20)
NAME = "@demo/model"
MODEL = "npm:@demo/model@1.0.0!/models/model.onnx"


class Puller:
    def __init__(self, tmp_path: Path) -> None:
        self.target = tmp_path / "target"
        self.cache = tmp_path / "cache"

    def __call__(self, reference: str = MODEL, progress: Any = lambda *_: None) -> bytes:
        (path,) = fetch(reference, self.target, cache=self.cache, progress=progress)
        return path.read_bytes()

    def left(self) -> list[str]:
        return [path.name for path in self.cache.rglob("*.part")]


@pytest.fixture
def pull(tmp_path: Path) -> Puller:
    return Puller(tmp_path)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.01)


def test_a_file_of_a_scoped_package_is_taken_by_its_path_in_the_package(
    index: PackageIndex, pull: Puller
):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": b"graph", "index.js": b"throw 1"})
    assert pull() == b"graph"
    assert [path.name for path in pull.target.iterdir()] == ["model.onnx"]


def test_a_package_without_a_scope_and_with_another_folder_around_it(
    index: PackageIndex, pull: Puller
):
    index.add_package("plain.name", "2.0.0-rc.1", {"a/b.gguf": b"weights"}, folder="plain-2.0.0")
    assert pull("npm:plain.name@2.0.0-rc.1!/a/b.gguf") == b"weights"


def test_several_files_keep_their_paths(index: PackageIndex, pull: Puller):
    index.add_package(NAME, "1.0.0", {"m/model.onnx": b"graph", "m/tokenizer.json": b"{}"})
    files = fetch(
        "npm:@demo/model@1.0.0",
        pull.target,
        cache=pull.cache,
        progress=lambda *_: None,
        wanted_files=["m/model.onnx", "m/tokenizer.json"],
    )
    assert [file.relative_to(pull.target).as_posix() for file in files] == [
        "m/model.onnx",
        "m/tokenizer.json",
    ]


def test_a_tag_is_pinned_to_the_version_that_it_means(
    index: PackageIndex, pull: Puller, tmp_path: Path
):
    index.add_package(NAME, "1.0.0", {"model.onnx": b"old"})
    index.add_package(NAME, "1.1.0", {"model.onnx": b"new"})
    index.tags = {"latest": "1.1.0"}
    pinned = pin("npm:@demo/model@latest!/model.onnx", tmp_path)
    assert pinned == "npm:@demo/model@1.1.0!/model.onnx"
    index.tags = {"latest": "1.0.0"}
    assert pull(pinned) == b"new"
    assert pull("npm:@demo/model@latest!/model.onnx") == b"old"


def test_what_names_a_version_or_cannot_be_pinned_stays_as_it_is(tmp_path: Path):
    for reference in (MODEL, "pypi:demo-model==1.0!/model.onnx"):
        assert pin(reference, tmp_path) == reference


def test_a_broken_download_continues_where_it_stopped(index: PackageIndex, pull: Puller):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": BIG})
    index.cut_after = [1_000_000, 1_500_000]
    assert pull() == BIG
    assert index.starts == [0, 1_000_000, 2_500_000]


def test_a_later_pull_continues_an_interrupted_one_and_a_third_downloads_nothing(
    index: PackageIndex, pull: Puller
):
    def cancel(what: str, done: int, total: int) -> None:
        if done > 1 << 20:
            raise Cancelled("stop")

    index.add_package(NAME, "1.0.0", {"models/model.onnx": BIG})
    with pytest.raises(Cancelled):
        pull(progress=cancel)
    assert pull.left() == ["model-1.0.0.tgz.part"]
    assert pull() == BIG
    assert pull() == BIG
    assert len(index.starts) == 2
    assert index.starts[1] > 1 << 20


def test_other_bytes_than_the_registry_names_are_refused(index: PackageIndex, pull: Puller):
    name = index.add_package(NAME, "1.0.0", {"models/model.onnx": b"graph"})
    index.lie[name] = index.files[name][:-1] + b"\1"
    with pytest.raises(InvalidInput, match="has sha512"):
        pull()
    assert pull.left() == []
    assert not list(pull.cache.rglob("*.tgz"))
    index.lie.clear()
    assert pull() == b"graph"


@pytest.mark.parametrize("integrity", ["", "sha1-AAAA", "sha512-short", "sha512-!!!", "sha512"])
def test_a_package_without_a_sha512_is_refused(index: PackageIndex, pull: Puller, integrity: str):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": b"graph"})
    index.integrity = integrity
    with pytest.raises(InvalidInput, match="names no sha512"):
        pull()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b"])
def test_paths_that_leave_the_package_are_refused(pull: Puller, path: str):
    with pytest.raises(InvalidInput, match="not a file name"):
        pull(f"npm:{NAME}@1.0.0!/{path}")


def test_a_member_that_would_leave_the_folder_is_never_written(
    index: PackageIndex, pull: Puller, tmp_path: Path
):
    index.add_package(NAME, "1.0.0", {"../../escaped": b"x", "models/model.onnx": b"graph"})
    assert pull() == b"graph"
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_in_a_package_is_refused(index: PackageIndex, pull: Puller):
    name = index.add_package(NAME, "1.0.0", {})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("package/models/model.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    index.files[name] = buffer.getvalue()
    with pytest.raises(NotFound):
        pull()


def test_a_bomb_is_refused(index: PackageIndex, pull: Puller):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": bytes(100 << 20)})
    with pytest.raises(InvalidInput, match="would unpack"):
        pull()


def test_naming_no_file_lists_the_likely_ones(index: PackageIndex, pull: Puller):
    index.add_package(NAME, "1.0.0", {"index.js": b"", "a/model.onnx": b"", "b.gguf": b""})
    with pytest.raises(InvalidInput) as refused:
        pull("npm:@demo/model@1.0.0")
    assert refused.value.hint.endswith("with one of: a/model.onnx, b.gguf")


def test_an_absent_file_is_told_with_those_of_its_name(index: PackageIndex, pull: Puller):
    index.add_package(NAME, "1.0.0", {"onnx/model.onnx": b"", "b.gguf": b""})
    with pytest.raises(NotFound) as refused:
        pull()
    assert refused.value.hint == "it has: onnx/model.onnx"


def test_an_unknown_package_or_version_is_not_found(index: PackageIndex, pull: Puller):
    with pytest.raises(NotFound, match="no package '@demo/model'"):
        pull()
    index.add_package(NAME, "1.0.0", {"model.onnx": b""})
    with pytest.raises(NotFound) as refused:
        pull("npm:@demo/model@9.9.9!/x")
    assert refused.value.hint == "it has: latest, 1.0.0"


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_registry_that_fails_is_unavailable(index: PackageIndex, pull: Puller, status: int):
    index.status = status
    with pytest.raises(Unavailable, match=str(status)):
        pull()


def test_a_registry_that_is_off_or_talks_nonsense_is_unavailable(
    index: PackageIndex, pull: Puller, monkeypatch: pytest.MonkeyPatch
):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": b""})
    index.npm_page = lambda package: b'{"versions": [1]}'
    with pytest.raises(Unavailable, match="cannot be read"):
        pull()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(Unavailable) as refused:
        pull()
    assert "npm config get registry" in refused.value.hint


def test_a_registry_that_wants_a_token_gets_the_operators(
    index: PackageIndex, pull: Puller, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    index.add_package(NAME, "1.0.0", {"models/model.onnx": b"graph"})
    index.token = "secret-token"
    with pytest.raises(NotFound):
        pull()
    place = index.url.removeprefix("http:")
    config = tmp_path / "npmrc"
    config.write_text(f"; ours\n{place}/:_authToken=${{DEMO_TOKEN}}\n")
    monkeypatch.setenv("npm_config_userconfig", str(config))
    monkeypatch.setenv("DEMO_TOKEN", "secret-token")
    assert pull() == b"graph"


def test_a_token_goes_to_its_own_registry_only():
    import httpx

    settings = choose_settings(
        {
            "registry": "https://one.example/npm/",
            "@demo:registry": "https://two.example",
            "//one.example/npm/:_authToken": "secret",
        }
    )
    assert settings.registry_of("@demo/x") == "https://two.example/"
    assert settings.registry_of("x") == "https://one.example/npm/"
    urls = {
        "https://one.example/npm/x": True,
        "https://one.example/other": False,
        "https://one.example.evil/npm/x": False,
        "https://two.example/npm/x": False,
    }
    for url, expected in urls.items():
        request = settings.authorise(httpx.Request("GET", url))
        assert ("authorization" in request.headers) is expected, url


def test_without_npm_the_environment_and_the_file_decide(
    index: PackageIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_npm_settings().registry == f"{index.url}/npm"
    config = tmp_path / "npmrc"
    config.write_text("registry = https://file.example/\ncafile='/ca.pem'\n#x=1\nnoise\n")
    monkeypatch.setenv("npm_config_userconfig", str(config))
    monkeypatch.delenv("npm_config_registry")
    settings = read_npm_settings()
    assert (settings.registry, settings.certificates) == ("https://file.example/", "/ca.pem")
    config.write_text("")
    with pytest.raises(MissingExtra) as refused:
        read_npm_settings()
    assert "npm_config_registry" in refused.value.hint


def test_options_are_read_as_npm_reads_them():
    environment = {"NPM_CONFIG_CAFILE": "/a", "npm_config_@a:registry": "b", "npm_config_x": ""}
    assert parse_environment(environment) == {"cafile": "/a", "@a:registry": "b"}
    assert parse_npmrc("a=${HOME}/${UNSET}", {"HOME": "/h"}) == {"a": "/h/${UNSET}"}


@pytest.mark.parametrize(
    "place", ["x", "@x/y", "x@", "x@>=1", "x@1 || 2", "../x@1", "@../x@1", "a/b@1", "x@1/..", "@1"]
)
def test_only_a_name_with_a_version_or_a_tag_is_taken(place: str):
    with pytest.raises(InvalidInput):
        parse_package(place)
