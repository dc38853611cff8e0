"""Pairs of ONNX files say what the same numbers say in numpy, however their decoders remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_translators
from tests.tiny_translators import SENTENCES, VOCABULARY

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput
from wherry.models.bundle import encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.languages import LanguagePair
from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.catalog import create_runtime
from wherry.worker.runtimes.graphs.pair import kind_of

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
KINDS = ("merged", "split", "plain")
MOST = 10
SEED = 194


def write_folder(folder: Path, kind: str, *, seed: int = SEED, **options: Any) -> Any:
    """A folder as a person has it; the manifest is what `detect` finds out."""
    weights = tiny_translators.write_onnx_pair(folder, kind, seed)
    tiny_translators.write_tokenizer(folder, has_languages=bool(options.get("language_tokens")))
    tiny_translators.write_generation_config(folder, max_length=MOST)
    manifest = detect(folder, options=options)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return weights


def load(folder: Path) -> Any:
    runtime = create_runtime("onnx")
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def answer(runtime: Any, folder: Path, *bodies: dict[str, Any]) -> list[Any]:
    manifest = open_bundle(folder).manifest
    task = find_task(manifest.task)
    items = [task.from_plain(body, manifest.task_config()) for body in bodies]
    return list(runtime.run([runtime.prepare(item) for item in items]))


def tokens_of(sentence: str) -> list[int]:
    ids = [
        VOCABULARY.index(word) if word in VOCABULARY else VOCABULARY.index("<unk>")
        for word in sentence.split()
    ]
    return [*ids, tiny_translators.END]


def words_of(ids: list[int], hidden: tuple[str, ...] = ()) -> str:
    special = (*tiny_translators.SPECIAL, *hidden)
    return " ".join(VOCABULARY[each] for each in ids if VOCABULARY[each] not in special)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_says_what_numpy_says_alone_and_in_a_batch(tmp_path: Path, kind: str):
    weights = write_folder(tmp_path, kind)
    runtime = load(tmp_path)
    expected = [
        tiny_translators.answer_by_numpy(weights, tokens_of(each), MOST) for each in SENTENCES
    ]
    assert len({str(each) for each in expected}) == len(SENTENCES)
    assert any(each[-1] == tiny_translators.END for each in expected)
    alone = [answer(runtime, tmp_path, {"text": each})[0] for each in SENTENCES]
    together = answer(runtime, tmp_path, *({"text": each} for each in SENTENCES))
    for found in (alone, together):
        assert [each.text for each in found] == [words_of(ids) for ids in expected]
        assert [each.usage.output_tokens for each in found] == [len(ids) for ids in expected]
        assert [each.is_cut for each in found] == [
            ids[-1] != tiny_translators.END for ids in expected
        ]
        assert [each.usage.characters for each in found] == [len(each) for each in SENTENCES]


def total(weights: Any, source: list[int], ids: list[int]) -> float:
    """Logarithm of the probability of an answer."""
    likelihood = 0.0
    for at in range(len(ids)):
        scores = tiny_translators.scores_by_numpy(weights, source, ids[:at])
        likelihood += scores[ids[at]] - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
    return likelihood


@pytest.mark.parametrize("kind", KINDS)
def test_beams_find_answers_that_are_as_likely_at_least(tmp_path: Path, kind: str):
    weights = write_folder(tmp_path, kind, length_penalty=0.0)
    runtime = load(tmp_path)
    settings = Decoding(max_tokens=MOST, num_beams=4, length_penalty=0.0)
    gains: list[float] = []
    for sentence in SENTENCES:
        source = tokens_of(sentence)
        # as ids: the text leaves special tokens out
        (found,) = runtime.model.generate([source], LanguagePair(), settings)
        greedy = tiny_translators.answer_by_numpy(weights, source, MOST)
        gains.append(total(weights, source, found.tokens) - total(weights, source, greedy))
    assert min(gains) > -1e-4
    assert max(gains) > 0.1
    many = answer(runtime, tmp_path, *({"text": each, "num_beams": 4} for each in SENTENCES))
    alone = [answer(runtime, tmp_path, {"text": each, "num_beams": 4})[0] for each in SENTENCES]
    assert [each.text for each in many] == [each.text for each in alone]


def test_languages_are_tokens_of_the_source_and_the_first_of_the_answer(tmp_path: Path):
    weights = write_folder(tmp_path, "merged", language_tokens=True)
    runtime = load(tmp_path)
    french, german = (VOCABULARY.index(each) for each in ("fra_Latn", "deu_Latn"))
    (found,) = answer(
        runtime,
        tmp_path,
        {"text": "the cat", "source_language": "de-AT", "target_language": "fr"},
    )
    source = [german, *tokens_of("the cat")]
    ids = tiny_translators.answer_by_numpy(weights, source, MOST + 1, first=french)
    assert found.text == words_of(ids, tiny_translators.LANGUAGES)
    assert (found.source_language, found.target_language) == ("de", "fr")
    with pytest.raises(InvalidInput, match="does not know the language 'nl'") as refused:
        answer(runtime, tmp_path, {"text": "a", "source_language": "en", "target_language": "nl"})
    assert refused.value.param == "target_language"
    with pytest.raises(InvalidInput, match="'source_language' is needed"):
        answer(runtime, tmp_path, {"text": "a", "target_language": "fr"})


def test_lines_are_translated_each_for_itself_and_blanks_stay(tmp_path: Path):
    write_folder(tmp_path, "merged")
    runtime = load(tmp_path)
    first, second = (answer(runtime, tmp_path, {"text": each})[0].text for each in SENTENCES[:2])
    (both,) = answer(runtime, tmp_path, {"text": f" {SENTENCES[0]}\n\n  {SENTENCES[1]}\n"})
    assert both.text == f" {first}\n\n  {second}\n"


def test_settings_of_the_search_hold(tmp_path: Path):
    write_folder(tmp_path, "split")
    runtime = load(tmp_path)
    body = {"text": SENTENCES[1]}
    (short,) = answer(runtime, tmp_path, body | {"max_tokens": 3})
    assert short.usage.output_tokens == 3
    assert short.is_cut
    for beams in (1, 3):
        (long,) = answer(
            runtime,
            tmp_path,
            body | {"min_tokens": 9, "no_repeat_ngram_size": 1, "num_beams": beams},
        )
        words = long.text.split()
        assert long.usage.output_tokens >= 9
        assert len(set(words)) == len(words), "no token occurs twice"


def test_a_text_that_is_too_long_is_refused_or_cut_as_the_bundle_says(tmp_path: Path):
    write_folder(tmp_path, "merged", max_input_tokens=8)
    runtime = load(tmp_path)
    with pytest.raises(ContextLengthExceeded, match="reads 8 tokens"):
        answer(runtime, tmp_path, {"text": "cat " * 8})
    assert answer(runtime, tmp_path, {"text": "cat " * 7})
    manifest = (tmp_path / "wherry.toml").read_text()
    (tmp_path / "wherry.toml").write_text(manifest + "truncate = true\n")
    runtime = load(tmp_path)
    assert answer(runtime, tmp_path, {"text": "cat " * 800})[0].usage.input_tokens == 8


def test_a_pair_without_its_decoder_or_its_start_is_refused(tmp_path: Path):
    write_folder(tmp_path, "merged")
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="decoder_start_token_id"):
        load(tmp_path)
    manifest = (tmp_path / "wherry.toml").read_text()
    (tmp_path / "wherry.toml").write_text(manifest.replace('"decoder_model_merged.onnx",', ""))
    with pytest.raises(FormatNotAllowed, match="no pair"):
        load(tmp_path)


@pytest.mark.parametrize("precision", ["", "_quantized", "_int8", "_fp16", "_q4f16"])
def test_a_graph_is_known_by_its_name_whatever_its_precision(precision: str):
    assert kind_of(f"onnx/decoder_model_merged{precision}.onnx") == "decoder_model_merged"
    assert kind_of(f"encoder_model{precision}.onnx") == "encoder_model"
