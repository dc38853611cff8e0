"""What folders of translators, summarizers and language models say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_encoders import save_tensors

from wherry.errors import InvalidInput
from wherry.jobs.samples import make_sample
from wherry.models.bundle import Manifest
from wherry.models.registry.detect import detect
from wherry.models.registry.language_tags import find_languages, find_marian_targets


def fill(folder: Path, config: dict[str, Any], **files: Any) -> Path:
    save_tensors(folder / "model.safetensors", {"w": np.zeros(2, np.float32)})
    for name, content in ({"config": config} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def tokens(*names: str) -> dict[str, Any]:
    return {"added_tokens": [{"id": at, "content": name} for at, name in enumerate(names)]}


def test_nllb_tells_its_languages_as_tokens(tmp_path: Path):
    config = {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"]}
    known = tokens("</s>", "eng_Latn", "fra_Latn", "zho_Hans", "zho_Hant")
    search = {"max_length": 200, "num_beams": 5, "early_stopping": None}
    found = detect(fill(tmp_path, config, tokenizer=known, generation_config=search))
    assert (found.task, found.runtime) == ("translation", "transformers")
    assert found.files[0] == "model.safetensors"
    assert "tokenizer.json" in found.files
    assert found.options["language_tokens"] is True
    assert found.options["language_codes"] == {
        "en": "eng_Latn",
        "fr": "fra_Latn",
        "zh-Hans": "zho_Hans",
        "zh-Hant": "zho_Hant",
    }
    assert (found.options["max_tokens"], found.options["num_beams"]) == (200, 5)
    assert make_sample(found) == {
        "text": "hello",
        "source_language": "en",
        "target_language": "zh-Hant",
    }


def test_marian_tells_its_pair_or_its_targets(tmp_path: Path):
    config = {"model_type": "marian", "architectures": ["MarianMTModel"]}
    words = {"source_lang": "en", "target_lang": "ROMANCE"}
    vocabulary = {"</s>": 0, ">>fra<<": 1, ">>pt_BR<<": 2}
    fill(tmp_path, config, tokenizer_config=words, vocab=vocabulary)
    found = detect(tmp_path)
    assert found.options["prefix"] == ">>{target}<< "
    assert found.options["language_codes"] == {"fr": "fra", "pt-BR": "pt_BR"}
    assert found.options["source_language"] == "en"
    (tmp_path / "vocab.json").write_text('{"</s>": 0}')
    assert detect(tmp_path).options["target_language"] == "ROMANCE"


def test_t5_tells_its_prefix(tmp_path: Path):
    summary = {"prefix": "summarize: ", "num_beams": 4, "length_penalty": 2.0, "min_length": 30}
    config = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "n_positions": 512,
        "task_specific_params": {"summarization": summary},
    }
    fill(tmp_path, config)
    found = detect(tmp_path)
    assert found.task == "summarization"
    assert found.options["prefix"] == "summarize: "
    assert found.options["length_penalty"] == 2.0
    assert found.options["max_input_tokens"] == 512
    assert detect(tmp_path, task="translation").options["language_codes"]["de"] == "German"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_language_models_are_found_whatever_their_kind(tmp_path: Path, name: str):
    fill(tmp_path, {"model_type": "some", "architectures": [name]}, tokenizer=tokens())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    found = detect(tmp_path)
    assert (found.task, found.runtime) == ("text-generation", "transformers")
    assert "chat_template.jinja" in found.files
    assert "pytorch_model.bin" not in found.files


def test_encoders_need_their_tokenizer(tmp_path: Path):
    fill(tmp_path, {"model_type": "bert", "architectures": ["BertModel"]})
    with pytest.raises(InvalidInput, match="no 'tokenizer.json'"):  # noqa: RUF043
        detect(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens()))
    assert detect(tmp_path).task == "feature-extraction"


def test_weights_in_parts_are_taken_together_or_not_at_all(tmp_path: Path):
    fill(tmp_path, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(weights)
    with pytest.raises(InvalidInput, match="1 of 2"):
        detect(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(weights)
    assert detect(tmp_path).files[:3] == (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    )


def test_what_models_call_languages_becomes_tags():
    assert find_languages(["en_XX", "fr_XX", "<s>"]) == {"en": "en_XX", "fr": "fr_XX"}
    assert find_languages(["eng_Latn"]) == {}, "one may be a word like others"
    assert find_marian_targets([">>deu<<", "a", ">>id<<"]) == {"de": "deu", "id": "id"}


def test_a_translator_of_one_pair_needs_no_languages_in_its_sample():
    assert make_sample(Manifest(task="translation", runtime="x")) == {"text": "hello"}
