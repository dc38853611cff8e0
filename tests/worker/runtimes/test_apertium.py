"""Apertium's programs in a row say what its own command says, request after request."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import InvalidInput, MissingExtra
from wherry.models.bundle import Manifest, encode_manifest, open_bundle
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.apertium import MODES, ApertiumOptions, from_stream, to_stream
from wherry.worker.runtimes.catalog import create_runtime

needs_apertium = pytest.mark.skipif(
    not (MODES / "eng-spa.mode").is_file() or shutil.which("apertium") is None,
    reason="apt-get install apertium-eng-spa",
)
TEXTS = (
    "The meeting begins tomorrow at nine.",
    "a  b",
    "a\tb",
    "a.\n\nb",
    "x/y {z} <b> $5 a@b ~ ^c [d]",
    "end\n",
    " lead",
    "A? B! C",
    "back\\slash",
    "café — 日本 😀",
    "Hello world  and\nall [that] jazz.\n\n\n  The end.",
    "~",
    "word " * 5000,
    "\u202eabc",
    "a\x01b",
)


def write_bundle(folder: Path, **options: Any) -> Path:
    usual = {"pair": "eng-spa", "source_language": "en", "target_language": "es"}
    manifest = Manifest(task="translation", runtime="apertium", options=usual | options)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    runtime: Any = create_runtime("apertium")
    runtime.load(open_bundle(write_bundle(tmp_path_factory.mktemp("pair"))), "cpu")
    yield runtime
    runtime.close()


def answer(runtime: Any, *bodies: dict[str, Any]) -> list[Any]:
    task = find_task("translation")
    config = Manifest(task="translation", runtime="apertium").task_config()
    return list(runtime.run([runtime.prepare(task.from_plain(each, config)) for each in bodies]))


def say_by_command(text: str) -> str:
    command = ["apertium", "-u", "eng-spa"]
    return subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout


@needs_apertium
def test_answers_are_those_of_apertiums_own_command(runtime: Any):
    expected = [say_by_command(text) for text in TEXTS]
    bodies = [{"text": text} for text in TEXTS]
    assert [each.text for each in answer(runtime, *bodies)] == expected
    assert [answer(runtime, body)[0].text for body in reversed(bodies)] == expected[::-1]
    assert expected[0] == "La reunión empieza mañana en nueve."


@needs_apertium
def test_answers_are_metered_by_characters_and_say_their_languages(runtime: Any):
    (found,) = answer(runtime, {"text": "The house.", "source_language": "en-GB"})
    assert found.usage.characters == 10
    assert (found.source_language, found.target_language) == ("en", "es")


@needs_apertium
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "a\0b"}, "text"),
        ({"text": " \n "}, "text"),
        ({"text": "a", "target_language": "fr"}, "target_language"),
        ({"text": "a", "source_language": "$(id)"}, "source_language"),
        ({"text": "a", "num_beams": 2}, "num_beams"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(runtime: Any, body: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        answer(runtime, body)
    assert refused.value.param == param
    assert answer(runtime, {"text": "a"})


def test_a_pair_that_is_not_installed_says_how_to_get_it(tmp_path: Path):
    bundle = open_bundle(write_bundle(tmp_path, pair="qq-zz", package="apertium-qq-zz"))
    with pytest.raises(MissingExtra) as missing:
        create_runtime("apertium").load(bundle, "cpu")
    assert missing.value.hint == "apt-get install apertium-qq-zz"
    for pair in ("../../etc/passwd", "eng-spa; id", ""):
        with pytest.raises(InvalidInput, match="no pair of languages"):
            create_runtime("apertium").load(open_bundle(write_bundle(tmp_path, pair=pair)), "cpu")


def test_the_stream_format_keeps_every_character():
    for text in TEXTS:
        assert from_stream(to_stream(text)) == text
    assert to_stream("a/b  c") == "a\\/b[  ]c.[]"
    assert ApertiumOptions("eng-spa").mark_unknown is False
