"""Recognises Hugging Face folders with weights as safetensors, which transformers opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wherry.errors import InvalidInput
from wherry.models.registry import huggingface, translators
from wherry.models.registry.config_files import architecture_of, read_config
from wherry.models.registry.huggingface import Details

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
GENERATORS = ("ForCausalLM", "LMHeadModel")


def find_weights(folder: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """The weights of a folder with a configuration of transformers; none if it has none."""
    config = read_config(folder, huggingface.CONFIG)
    if not (config.get("model_type") and architecture_of(config)):
        return ()
    if WEIGHTS in paths:
        return (WEIGHTS,)
    shards = sorted(path for path in paths if SHARD.fullmatch(path))
    if not shards or INDEX not in paths:
        return ()
    last = SHARD.fullmatch(shards[0])
    if last is None or len(shards) != int(last[2]):
        raise InvalidInput(f"the folder has {len(shards)} of {int(last[2]) if last else 0} weights")
    return (*shards, INDEX)


def describe_folder(folder: Path, paths: Sequence[str], task: str | None) -> tuple[str, Details]:
    """Task, labels, options and files beside the weights."""
    if translators.is_translator(folder) and task in (None, "translation", "summarization"):
        return translators.describe_translator(folder, paths, task)
    companions = translators.find_companions(paths)
    architecture = architecture_of(read_config(folder, huggingface.CONFIG))
    if task == "text-generation" or (task is None and _has(architecture, GENERATORS)):
        return "text-generation", Details((), {}, companions)
    if huggingface.PREPROCESSOR in paths:
        raise InvalidInput(
            f"the folder is of {architecture or 'a model'} that sees or hears: of PyTorch's weights, those "
            "of models of texts are served",
            hint="export it to ONNX (optimum-cli export onnx --model FOLDER OUT) and import OUT: Whisper, "
            "TrOCR and models of pictures are served so; those that chat about pictures by the runtime "
            "'vllm', named in wherry.toml",
        )
    if huggingface.TOKENIZER not in paths:
        raise InvalidInput(
            "the folder has no 'tokenizer.json'",
            hint="save it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    task, details = huggingface.describe_text_model(folder, paths, {}, task)
    files = tuple(dict.fromkeys((*companions, *details.files)))
    return task, Details(details.labels, details.options, files)


def _has(architecture: str, names: Sequence[str]) -> bool:
    return any(name in architecture for name in names)
