"""CTranslate2 folders: what the runtime answers is what the library answers to the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import tiny_translators
from tests.tiny_translators import SENTENCES

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime

ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install 'wherry[ctranslate2]'")
MOST = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without languages; its manifest is what `detect` finds out."""
    folder = tmp_path_factory.mktemp("translator")
    tiny_translators.write_ctranslate2(folder, seed=5)
    tiny_translators.write_tokenizer(folder)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **options: Any) -> None:
    manifest = detect(folder, options={"max_tokens": MOST, **options})
    assert (manifest.runtime, manifest.task) == ("ctranslate2", "translation")
    (folder / "wherry.toml").write_text(encode_manifest(manifest))


def load(folder: Path) -> Any:
    runtime: Any = create_runtime("ctranslate2")
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def answer(runtime: Any, folder: Path, *bodies: dict[str, Any]) -> list[Any]:
    manifest = open_bundle(folder).manifest
    task = find_task(manifest.task)
    items = [task.from_plain(body, manifest.task_config()) for body in bodies]
    return list(runtime.run([runtime.prepare(item) for item in items]))


def say_by_library(folder: Path, tokens: list[str], prefix: list[str], **settings: Any) -> str:
    """The library's own call, decoded word by word."""
    translator = ctranslate2.Translator(str(folder), device="cpu")
    prefixes = [prefix] if prefix else None
    (found,) = translator.translate_batch([tokens], prefixes, **settings)
    special = (*tiny_translators.SPECIAL, *tiny_translators.LANGUAGES)
    return " ".join(each for each in found.hypotheses[0] if each not in special)


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_are_the_librarys_alone_and_in_a_batch(folder: Path, beams: int):
    runtime = load(folder)
    expected = [
        say_by_library(
            folder, [*each.split(), "</s>"], [], beam_size=beams, max_decoding_length=MOST
        )
        for each in SENTENCES
    ]
    assert len(set(expected)) > 1
    bodies = [{"text": each, "num_beams": beams} for each in SENTENCES]
    alone = [answer(runtime, folder, body)[0].text for body in bodies]
    hide = tiny_translators.LANGUAGES
    for found in (alone, [each.text for each in answer(runtime, folder, *bodies)]):
        shown = [" ".join(w for w in each.split() if w not in hide) for each in found]
        assert shown == expected


def test_languages_of_a_multilingual_model_are_tokens(tmp_path: Path):
    tiny_translators.write_ctranslate2(tmp_path, seed=5)
    tiny_translators.write_tokenizer(tmp_path, has_languages=True)
    write_manifest(tmp_path)
    assert open_bundle(tmp_path).manifest.options["language_codes"]["fr"] == "fra_Latn"
    runtime = load(tmp_path)
    body = {"text": "the old cat", "source_language": "de"}
    told = [answer(runtime, tmp_path, body | {"target_language": each})[0] for each in ("en", "fr")]
    for found, code in zip(told, ("eng_Latn", "fra_Latn"), strict=True):
        tokens = ["deu_Latn", "the", "old", "cat", "</s>"]
        assert found.text == say_by_library(
            tmp_path, tokens, [code], beam_size=1, max_decoding_length=MOST + 1
        )


def test_usage_counts_characters_and_tokens(folder: Path):
    (found,) = answer(load(folder), folder, {"text": "the cat\n\ndog", "max_tokens": 4})
    assert found.usage.characters == 12
    assert found.usage.input_tokens == 5
    assert 0 < found.usage.output_tokens <= 8
    assert found.usage.rows == 1


def test_a_model_that_names_no_languages_takes_none(folder: Path):
    with pytest.raises(InvalidInput, match="does not say which languages") as refused:
        answer(load(folder), folder, {"text": "dog", "target_language": "fr"})
    assert refused.value.param == "target_language"


def test_a_folder_without_its_vocabulary_or_words_is_refused(folder: Path, tmp_path: Path):
    for name in ("model.bin", "config.json", "tokenizer.json", "wherry.toml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text = (tmp_path / "wherry.toml").read_text()
    (tmp_path / "wherry.toml").write_text(text.replace('"shared_vocabulary.json",', ""))
    with pytest.raises(FormatNotAllowed, match="cannot open the folder"):
        load(tmp_path)
    (tmp_path / "shared_vocabulary.json").write_bytes(
        (folder / "shared_vocabulary.json").read_bytes()
    )
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match=r"no 'tokenizer\.json'"):
        load(tmp_path)
