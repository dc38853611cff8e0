"""What sentence-transformers wrote of how vectors of tokens become one of the text: `modules.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherry.errors import InvalidInput
from wherry.models.registry.config_files import read_config, read_json

MODULES = "modules.json"
CONFIG = "config_sentence_transformers.json"
USUAL_POOLING = "1_Pooling"
POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
SHORT_NAMES = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}
"""How newer versions call them under `pooling_mode`, where that differs."""
DENSE_FILES = ("config.json", "model.safetensors")


def describe_modules(
    folder: Path, paths: Sequence[str], usual: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options of a `feature-extraction` bundle, and the files of dense layers.

    `usual` are the options of a folder that says nothing.

    Raises:
        InvalidInput: a module does what is not served.
    """
    modules = _read_modules(folder)
    pooling = next((path for kind, path in modules if kind == "Pooling" and path), USUAL_POOLING)
    stated = read_config(folder, f"{pooling}/config.json")
    options = {**usual, **_pooling_of(stated), **_prompt_of(folder, stated)}
    if not modules:
        return options, ()
    kinds = [kind for kind, _ in modules]
    options["normalise"] = kinds[-1] == "Normalize"
    if unknown := set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"}:
        raise InvalidInput(
            f"the model of sentence-transformers has a module {min(unknown)!r}, which is not served",
            hint="export it to ONNX as a whole",
        )
    if "Normalize" in kinds[:-1]:
        raise InvalidInput("the model scales its vectors before it has finished with them")
    dense = [path for kind, path in modules if kind == "Dense"]
    if dense:
        options["dense"] = dense
    return options, tuple(_find_file(paths, f"{at}/{name}") for at in dense for name in DENSE_FILES)


def _read_modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module, in order."""
    modules = read_json(folder, MODULES)
    found = modules if isinstance(modules, list) else []
    return [
        (str(each.get("type")).rpartition(".")[2], str(each.get("path", "")).rstrip("/"))
        for each in found
        if isinstance(each, dict)
    ]


def _pooling_of(config: Mapping[str, Any]) -> dict[str, Any]:
    named = [name for key, name in POOLINGS.items() if config.get(key)]
    if isinstance(short := config.get("pooling_mode"), str):
        named = [SHORT_NAMES.get(short, short)]
    if len(named) > 1:
        raise InvalidInput(f"the model pools in several ways at once: {', '.join(named)}")
    return {"pooling": named[0]} if named else {}


def _prompt_of(folder: Path, pooling: Mapping[str, Any]) -> dict[str, str]:
    """What sentence-transformers writes before every text, unless a caller names another prompt."""
    config = read_config(folder, CONFIG)
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str) or not prompt:
        return {}
    if pooling.get("include_prompt") is False:
        raise InvalidInput("the model leaves its prompt out of the pooling, which is not served")
    return {"prompt": prompt}


def _find_file(paths: Sequence[str], path: str) -> str:
    if path not in paths:
        raise InvalidInput(
            f"the dense layer of the model has no {path!r}",
            hint="save it again: SentenceTransformer(folder).save_pretrained(folder)",
        )
    return path
