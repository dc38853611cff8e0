"""spaCy pipelines: the small English one, and what spaCy itself says of the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, open_bundle
from wherry.models.registry.catalog import fetch_entry, find_entry
from wherry.models.tasks.token_classification import TokensInput

pytest.importorskip("spacy", reason="pip install 'wherry[spacy]'")

import spacy
from tests.real_models import cache_folder

from wherry.worker.runtimes.spacy import MAX_CHARACTERS, SpacyRuntime, needless_components

TEXTS = [
    "Apple is opening an office in Berlin on 3 March 2025, said Tim Cook.",
    "My name is Sarah and I live in London",
    "😀 Angela Merkel visited Paris, e\u0301 שלום, in 2019.",
    "   ",
    "nothing here",
    "In January, Microsoft paid $3 million to 12 workers in Rome. " * 30,
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("ner") / "model"
    cache = cache_folder() / "sources"
    fetch_entry(find_entry("ner-en"), folder, cache=cache, progress=lambda *_: None)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> SpacyRuntime:
    runtime = SpacyRuntime()
    runtime.load(bundle, "cpu")
    return runtime


def answer(runtime: SpacyRuntime, *items: TokensInput) -> list[Any]:
    return list(runtime.run([runtime.prepare(item) for item in items]))


def test_names_dates_and_places_are_found(runtime: SpacyRuntime):
    (output,) = answer(runtime, TokensInput(TEXTS[0]))
    assert [(each.label, each.text) for each in output.entities] == [
        ("ORG", "Apple"),
        ("GPE", "Berlin"),
        ("DATE", "3 March 2025"),
        ("PERSON", "Tim Cook"),
    ]
    assert all(0.9 < each.score <= 1 for each in output.entities)


def test_entities_are_spacys_own_and_stand_where_it_says(runtime: SpacyRuntime, bundle: Bundle):
    config = spacy.util.load_config(bundle.folder / "config.cfg")
    pipeline = spacy.load(bundle.folder, exclude=needless_components(config))
    for text, output in zip(TEXTS, answer(runtime, *map(TokensInput, TEXTS)), strict=True):
        expected = [
            (each.label_, each.start_char, each.end_char, each.text) for each in pipeline(text).ents
        ]
        found = [(each.label, each.start, each.end, each.text) for each in output.entities]
        assert found == expected
        assert all(text[each.start : each.end] == each.text for each in output.entities)
        assert output.usage.input_tokens == len(pipeline(text))


def test_a_batch_answers_as_each_text_alone(runtime: SpacyRuntime):
    together = answer(runtime, *map(TokensInput, TEXTS))
    for text, joined in zip(TEXTS, together, strict=True):
        (alone,) = answer(runtime, TokensInput(text))
        assert [each.text for each in alone.entities] == [each.text for each in joined.entities]
        assert [each.score for each in alone.entities] == pytest.approx(
            [each.score for each in joined.entities], abs=1e-3
        )  # shares of a beam: float noise may move a parse in or out of it


def test_single_tokens_say_where_an_entity_begins(runtime: SpacyRuntime):
    (output,) = answer(runtime, TokensInput("said Tim Cook.", "none"))
    assert [(each.label, each.text) for each in output.entities] == [
        ("B-PERSON", "Tim"),
        ("I-PERSON", "Cook"),
    ]
    (output,) = answer(runtime, TokensInput("said Tim Cook.", "none", ignored=()))
    assert [each.label for each in output.entities] == ["O", "B-PERSON", "I-PERSON", "O"]


def test_labels_are_left_out_as_wished(runtime: SpacyRuntime):
    (output,) = answer(runtime, TokensInput(TEXTS[0], ignored=("PERSON", "DATE")))
    assert [each.label for each in output.entities] == ["ORG", "GPE"]


def test_a_text_over_the_limit_is_refused(runtime: SpacyRuntime):
    with pytest.raises(InvalidInput, match="the limit is"):
        runtime.prepare(TokensInput("a" * (MAX_CHARACTERS + 1)))


def test_words_that_were_seen_once_are_not_kept(runtime: SpacyRuntime):
    answer(runtime, TokensInput("warm up"))
    before = len(runtime._nlp.vocab.strings)
    for number in range(20):
        answer(runtime, TokensInput(f"a word{number}xyz that nobody wrote before{number}"))
    assert len(runtime._nlp.vocab.strings) == before


def test_only_what_finds_entities_is_loaded():
    config = {
        "nlp": {"pipeline": ["tok2vec", "tagger", "ner"]},
        "components": {
            "tok2vec": {"factory": "tok2vec"},
            "tagger": {"factory": "tagger"},
            "ner": {"factory": "ner"},
        },
    }
    assert needless_components(config) == ["tok2vec", "tagger"]
    listening: Any = {**config["components"], "ner": {"factory": "ner", "model": "Tok2VecListener"}}
    assert needless_components({**config, "components": listening}) == ["tagger"]
    ruled: Any = {**config["components"], "rules": {"factory": "entity_ruler"}}
    assert needless_components({**config, "components": ruled}) == []


def test_a_damaged_pipeline_is_refused_in_words(bundle: Bundle, tmp_path: Path):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(bundle.folder, folder)
    (folder / "ner" / "model").write_bytes(b"\x81\xa1a\x01")
    with pytest.raises(FormatNotAllowed, match="spaCy cannot read the pipeline"):
        SpacyRuntime().load(open_bundle(folder), "cpu")


def test_another_task_is_refused(bundle: Bundle):
    import msgspec

    manifest = msgspec.structs.replace(bundle.manifest, task="text-classification")
    with pytest.raises(InvalidInput, match="does not do the task"):
        SpacyRuntime().load(Bundle(bundle.folder, manifest), "cpu")


@pytest.mark.parametrize("text", ["[" * 100_000, "\U0001f468\u200d" * 5000, "a." * 2000])
def test_signs_without_end_are_refused_before_the_tokenizer_sees_them(
    runtime: SpacyRuntime, text: str
) -> None:
    with pytest.raises(InvalidInput, match="in a row without a space"):
        runtime.prepare(TokensInput(text))


def test_a_text_of_too_many_tokens_is_refused_and_its_neighbours_are_answered(
    runtime: SpacyRuntime,
) -> None:
    before, long, after = answer(
        runtime, TokensInput(TEXTS[0]), TokensInput("a " * 25_000), TokensInput(TEXTS[1])
    )
    assert long.code == "invalid_input"
    assert "25000 tokens" in long.message
    assert answer(runtime, TokensInput("a " * 25_000)) == [long]
    assert [before, after] == answer(runtime, TokensInput(TEXTS[0]), TokensInput(TEXTS[1]))


def test_a_long_address_is_one_word(runtime: SpacyRuntime) -> None:
    text = f"Sarah lives in London, see https://example.com/{'a-b_c=1&' * 120} for more."
    assert [each.text for each in answer(runtime, TokensInput(text))[0].entities][:1] == ["Sarah"]
