"""Reads the configuration files of a Hugging Face folder; every value in them is only a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry.models.registry.config_files import (
    MAX_VOCABULARY_BYTES,
    architecture_of,
    read_config,
    read_json,
)
from wherry.models.registry.picture_steps import fit_options
from wherry.models.registry.sentence_modules import MODULES, describe_modules
from wherry.models.trust.files import open_regular
from wherry.models.trust.onnx import OnnxModel
from wherry.models.trust.safetensors import tensor_names

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
MAX_TOKENS = 1 << 17
STATIC_TABLES = frozenset({"embeddings", "embedding.weight"})
PAIR_TASKS = ("text-ranking", "sentence-similarity")
LABEL_TASKS = ("text-classification", "token-classification", "zero-shot-classification")
USUAL_POOLING = {"pooling": "mean", "normalise": True}
"""Of a folder that sentence-transformers did not write."""
OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Model types whose position ids begin at 2, so that two of their positions are never used."""


IMAGE_KINDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ForImageClassification": ("image-classification", {"function": "softmax"}),
    "ForSemanticSegmentation": ("image-segmentation", {"function": "softmax"}),
    "DetrForObjectDetection": ("object-detection", {"family": "detr", "max_overlap": 1.0}),
}
"""Ends of architectures' names → task and options."""


class Details(msgspec.Struct, frozen=True):
    """What the configuration adds to a manifest."""

    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}
    files: tuple[str, ...] = ()
    """Beside the graph."""


def is_text_model(paths: Sequence[str], model: OnnxModel) -> bool:
    """Whether there is a tokenizer and the graph takes what it gives."""
    return TOKENIZER in paths and any(
        tensor.name == "input_ids" for tensor in model.signature.inputs
    )


def is_image_model(folder: Path, paths: Sequence[str]) -> bool:
    """Whether the configuration is of a model of pictures that is known here."""
    if not {CONFIG, PREPROCESSOR} <= set(paths):
        return False
    return _find_image_kind(read_config(folder, CONFIG)) is not None


def _find_image_kind(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Task and options of an architecture."""
    name = architecture_of(config)
    return next((kind for ending, kind in IMAGE_KINDS.items() if ending in name), None)


def describe_text_model(
    folder: Path, paths: Sequence[str], outputs: Mapping[str, int], task: str | None
) -> tuple[str, Details]:
    """Task, labels, options and files of an encoder of texts, whose outputs' ranks may tell its task."""
    config = read_config(folder, CONFIG)
    task = task or _find_text_task(config, outputs)
    options: dict[str, Any] = {}
    if limit := _max_tokens(folder, config):
        options["max_tokens"] = limit
    if task in ("text-classification", *PAIR_TASKS):
        options |= _score_options(config, task)
    layers: tuple[str, ...] = ()
    if task == "feature-extraction":
        found, layers = describe_modules(folder, paths, USUAL_POOLING)
        options |= found
    labels = _labels(config) if task in LABEL_TASKS else ()
    files = tuple(path for path in (TOKENIZER, CONFIG) if path in paths)
    return task, Details(labels, options, (*files, *layers))


def find_static_table(folder: Path, paths: Sequence[str]) -> str:
    """The file of a static embedder: a table of vectors with a tokenizer beside it; "" if none is."""
    for path in paths:
        tokenizer = (folder / path).with_name(TOKENIZER)
        if tokenizer.is_file() and STATIC_TABLES & set(tensor_names(folder / path)):
            return path
    return ""


def static_options(folder: Path, table: str) -> dict[str, Any]:
    """What model2vec or sentence-transformers wrote of it."""
    config = read_config(folder, CONFIG)
    is_model2vec = "embeddings" in tensor_names(folder / table)
    options: dict[str, Any] = {"drop_unknown": is_model2vec}
    if not is_model2vec:  # sentence-transformers cuts where the tokenizer's file says, or nowhere
        options["max_tokens"] = _truncation((folder / table).with_name(TOKENIZER)) or MAX_TOKENS
    modules = read_json(folder, MODULES)
    if isinstance(config.get("normalize"), bool):
        options["normalise"] = config["normalize"]
    elif isinstance(modules, list):
        options["normalise"] = any("Normalize" in str(each) for each in modules)
    limit = config.get("max_length")
    if type(limit) is int and 0 < limit <= MAX_TOKENS:
        options["max_tokens"] = limit
    return options


class _Truncation(msgspec.Struct):
    max_length: int = 0


class _TokenizerFile(msgspec.Struct):
    truncation: _Truncation | None = None


def _truncation(tokenizer: Path) -> int:
    """How many tokens a tokenizer's file leaves; 0 if it says nothing."""
    with open_regular(tokenizer) as file:
        data = file.read(MAX_VOCABULARY_BYTES)
    try:
        found = msgspec.json.decode(data, type=_TokenizerFile).truncation
    except msgspec.MsgspecError:
        return 0
    return found.max_length if found and 0 < found.max_length <= MAX_TOKENS else 0


def describe_image_model(folder: Path) -> tuple[str, Details]:
    """Task, labels, options and files of a model of pictures; see `is_image_model`."""
    config = read_config(folder, CONFIG)
    kind = _find_image_kind(config)
    assert kind is not None
    task, options = kind[0], {**kind[1], **describe_pixels(read_config(folder, PREPROCESSOR))}
    details = Details(_labels(config), options, (CONFIG, PREPROCESSOR))
    return task, details


def describe_pixels(steps: Mapping[str, Any]) -> dict[str, Any]:
    """Options that say what a `preprocessor_config.json` says of pictures."""
    options = fit_options(steps)
    if steps.get("do_rescale", True):
        options["pixel_scale"] = _number(steps.get("rescale_factor")) or 1 / 255
    else:
        options["pixel_scale"] = 1.0
    if steps.get("do_normalize", True):
        for name, key in (("mean", "image_mean"), ("std", "image_std")):
            if values := _numbers(steps.get(key)):
                options[name] = values
    return options


def _find_text_task(config: Mapping[str, Any], outputs: Mapping[str, int]) -> str:
    """What the architecture says; a head for sequences may do three things."""
    architecture = architecture_of(config)
    if "ForTokenClassification" in architecture:
        return "token-classification"
    if "ForSequenceClassification" not in architecture:
        return _guess_text_task(config, outputs)
    labels = _labels(config)
    if any(label.lower().startswith("entail") for label in labels):
        return "zero-shot-classification"
    # sentence-transformers' cross-encoders: one number without a name
    if "sentence_transformers" in config or labels == ("LABEL_0",):
        return "text-ranking" if len(labels) == 1 else "text-classification"
    return "text-classification"


def _guess_text_task(config: Mapping[str, Any], outputs: Mapping[str, int]) -> str:
    rank = outputs.get("logits")
    if rank == 3 and "ForMaskedLM" not in architecture_of(config):
        return "token-classification"  # numbers for each token, of which no mean says anything
    if rank is not None and _has_own_labels(config):
        return "text-classification"
    return "feature-extraction"


def _has_own_labels(config: Mapping[str, Any]) -> bool:
    labels = _labels(config)
    return bool(labels) and labels != ("LABEL_0", "LABEL_1")  # transformers' default


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """`id2label` in the order of its numbers; none if they have gaps."""
    by_id = config.get("id2label")
    if not isinstance(by_id, dict):
        return ()
    try:
        ordered = sorted((int(key), str(value)) for key, value in by_id.items())
    except ValueError:
        return ()
    if [number for number, _ in ordered] != list(range(len(ordered))):
        return ()
    return tuple(label for _, label in ordered)


def _score_options(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    if task in PAIR_TASKS:
        return _pair_options(config)
    many = config.get("problem_type") == "multi_label_classification"
    return {"function": "sigmoid" if many else "softmax"}


def _pair_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A cross-encoder's own activation, where sentence-transformers wrote one."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    return {"function": "none"} if str(named).endswith(".Identity") else {}


def _max_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """The least of the limits that the files claim; 0 if they claim none."""
    claimed = [
        read_config(folder, "sentence_bert_config.json").get("max_seq_length"),
        read_config(folder, "tokenizer_config.json").get("model_max_length"),
    ]
    positions = config.get("max_position_embeddings")
    if type(positions) is int:
        unused = 2 if config.get("model_type") in OFFSET_POSITIONS else 0
        claimed.append(positions - unused)
    limits = [limit for limit in claimed if type(limit) is int and 3 <= limit <= MAX_TOKENS]
    return min(limits, default=0)


def _numbers(value: Any) -> list[float] | None:
    if isinstance(value, list) and all(_number(each) is not None for each in value):
        return [float(each) for each in value]
    return None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None
