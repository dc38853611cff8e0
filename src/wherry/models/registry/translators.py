"""Recognises sequence-to-sequence models, and what their files say of languages and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.models.registry.config_files import (
    MAX_VOCABULARY_BYTES,
    read_config,
    read_json,
)
from wherry.models.registry.huggingface import Details
from wherry.models.registry.language_tags import find_languages, find_marian_targets, tag_of
from wherry.models.tasks.languages import TAG
from wherry.models.trust.ctranslate2 import check_ctranslate2, is_ctranslate2
from wherry.models.trust.files import open_regular

MODEL_TYPES: dict[str, str] = {
    "bart": "summarization",
    "bigbird_pegasus": "summarization",
    "led": "summarization",
    "longt5": "summarization",
    "m2m_100": "translation",
    "marian": "translation",
    "mbart": "translation",
    "mt5": "summarization",
    "nllb-moe": "translation",
    "pegasus": "summarization",
    "pegasus_x": "summarization",
    "prophetnet": "summarization",
    "t5": "summarization",
    "umt5": "translation",
}
"""`model_type` of encoders with decoders of texts → what they mostly do."""
CTRANSLATE2 = "model.bin"
TRANSFORMER_SPEC = "TransformerSpec"
HEAD_BYTES = 64
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "source.spm",
    "target.spm",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "chat_template.jinja",
    "shared_vocabulary.json",
    "source_vocabulary.json",
    "target_vocabulary.json",
    "shared_vocabulary.txt",
    "source_vocabulary.txt",
    "target_vocabulary.txt",
)
"""Files that may belong to a model of texts, beside its weights."""
T5_LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
MAX_ANSWER_TOKENS = 1 << 16


def find_companions(paths: Sequence[str], folder: str = ".") -> tuple[str, ...]:
    """What lies beside the weights and is needed to use them."""
    names = [str(PurePosixPath(folder) / name) for name in COMPANIONS]
    return tuple(name for name in names if name in paths)


# ------------------------------------------------------------------------------ CTranslate2


def find_ctranslate2(folder: Path, paths: Sequence[str]) -> str:
    """The file of a translator of CTranslate2; "" if there is none (Whisper is another kind)."""
    for path in paths:
        if PurePosixPath(path).name != CTRANSLATE2:
            continue
        with open_regular(folder / path) as file:
            is_model = is_ctranslate2(file.read(HEAD_BYTES))
        if is_model and check_ctranslate2(folder / path).spec == TRANSFORMER_SPEC:
            return path
    return ""


# ------------------------------------------------------------------------------ what files say


def is_translator(folder: Path) -> bool:
    """Whether the configuration is of an encoder with a decoder of texts."""
    return read_config(folder, "config.json").get("model_type") in MODEL_TYPES


def describe_translator(
    folder: Path, paths: Sequence[str], task: str | None
) -> tuple[str, Details]:
    """Task, options and files beside the weights.

    Raises:
        InvalidInput: a file says what cannot be.
    """
    config = read_config(folder, "config.json") | _without_nulls(
        read_config(folder, "generation_config.json")
    )
    task = task or _guess_task(config)
    options: dict[str, Any] = search_options(config)
    if limit := _input_limit(folder, config):
        options["max_input_tokens"] = limit
    own = _own_parameters(config, task)
    if task == "translation":
        options |= _language_options(folder, config)
    elif isinstance(own.get("prefix"), str):
        options["prefix"] = own["prefix"]
    options |= search_options(own)
    return task, Details((), options, find_companions(paths))


def _guess_task(config: Mapping[str, Any]) -> str:
    parameters = config.get("task_specific_params")
    named = list(parameters) if isinstance(parameters, dict) else []
    if any(str(name).startswith("summarization") for name in named):
        return "summarization"
    if any(str(name).startswith("translation") for name in named):
        return "translation"
    return MODEL_TYPES.get(str(config.get("model_type")), "translation")


def _own_parameters(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What the configuration says of a task."""
    parameters = config.get("task_specific_params")
    found = parameters.get(task) if isinstance(parameters, dict) else None
    return found if isinstance(found, dict) else {}


def search_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the model's makers search for answers, within what we allow."""
    options: dict[str, Any] = {}
    for key, name, most in (
        ("max_length", "max_tokens", MAX_ANSWER_TOKENS),
        ("max_new_tokens", "max_tokens", MAX_ANSWER_TOKENS),
        ("min_length", "min_tokens", MAX_ANSWER_TOKENS),
        ("num_beams", "num_beams", 16),
        ("no_repeat_ngram_size", "no_repeat_ngram_size", 64),
    ):
        value = config.get(key)
        if type(value) is int and 0 < value <= most:
            options[name] = value
    penalty = config.get("length_penalty")
    if isinstance(penalty, int | float) and abs(penalty) <= 10:
        options["length_penalty"] = float(penalty)
    return options


def _input_limit(folder: Path, config: Mapping[str, Any]) -> int:
    claimed = [
        read_config(folder, "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
        config.get("n_positions"),
    ]
    limits = [limit for limit in claimed if type(limit) is int and 4 <= limit <= 1 << 17]
    return min(limits, default=0)


def _language_options(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") == "t5":
        known = list(T5_LANGUAGES)
        return {
            "prefix": "translate {source} to {target}: ",
            "language_codes": T5_LANGUAGES,
            "source_language": known[0],
            "target_language": known[1],
        }
    if codes := find_languages(_special_tokens(folder)):
        return {"language_tokens": True, "language_codes": codes}
    if targets := find_marian_targets(_vocabulary(folder)):
        return {"prefix": ">>{target}<< ", "language_codes": targets} | {
            name: tag for name, tag in _stated_pair(folder).items() if name == "source_language"
        }
    return _stated_pair(folder)


def _stated_pair(folder: Path) -> dict[str, Any]:
    """Marian's tokenizers know the pair that they are for."""
    config = read_config(folder, "tokenizer_config.json")
    options: dict[str, Any] = {}
    for key, name in (("source_lang", "source_language"), ("target_lang", "target_language")):
        value = config.get(key)
        if isinstance(value, str) and TAG.fullmatch(tag_of(value)):
            options[name] = tag_of(value).replace("_", "-")
    return options


class _Added(msgspec.Struct):
    content: str = ""


class _TokenizerFile(msgspec.Struct):
    added_tokens: list[_Added] = []


def _special_tokens(folder: Path) -> list[str]:
    path = folder / "tokenizer.json"
    if path.is_file():
        with open_regular(path) as file:
            data = file.read(MAX_VOCABULARY_BYTES)
        try:
            return [
                each.content for each in msgspec.json.decode(data, type=_TokenizerFile).added_tokens
            ]
        except msgspec.MsgspecError as error:
            raise InvalidInput("'tokenizer.json' is not valid") from error
    found = read_json(folder, "shared_vocabulary.json", MAX_VOCABULARY_BYTES)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _vocabulary(folder: Path) -> list[str]:
    found = read_json(folder, "vocab.json", MAX_VOCABULARY_BYTES)
    return list(map(str, found)) if isinstance(found, dict) else []


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}
