# pyright: standard, reportMissingImports=false
"""Opens a Hugging Face folder with transformers: its weights are numbers only, it brings no code.

Code in folders is never run (`trust_remote_code`), pickles are never read (`use_safetensors`), and
nothing is downloaded. Kernels from the Hub are off for lack of a network.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
import transformers
from msgspec import Meta

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options

KIND_BY_TASK = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "text-ranking": "AutoModelForSequenceClassification",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "translation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "feature-extraction": "AutoModel",
    "sentence-similarity": "AutoModelForSequenceClassification",
}
"""Task → what transformers calls a model of it."""
WEIGHTS = "*.safetensors"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
"""What transformers raises of a folder that it cannot open."""


class TransformersOptions(msgspec.Struct, frozen=True):
    """Options of a bundle that say how it is computed."""

    dtype: Literal["float32", "float16", "bfloat16", "auto"] = "float32"
    """Of weights and sums; `auto` as the file has it, which takes less memory and, on processors
    without such arithmetic, more time."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 1


def open_model(bundle: Bundle, device: str) -> Any:
    """The model of a bundle, ready to compute.

    Raises:
        FormatNotAllowed: transformers cannot open it, or weights are missing.
        InvalidInput: the runtime has no such task.
    """
    kind = KIND_BY_TASK.get(bundle.manifest.task)
    if kind is None:
        raise InvalidInput(
            f"the runtime 'transformers' does not do the task {bundle.manifest.task!r}",
            hint="it does " + ", ".join(KIND_BY_TASK),
        )
    options = read_options(bundle.manifest.options, TransformersOptions)
    torch.set_num_threads(options.threads)  # more workers rather than more threads
    folder = bundle.main_file.parent
    if not list(folder.glob(WEIGHTS)):
        raise FormatNotAllowed(
            "the folder has no weights as safetensors",
            hint="save the model again with save_pretrained(…, safe_serialization=True)",
        )
    silence()
    model, missing = _load(getattr(transformers, kind), folder, options.dtype)
    if missing:
        raise FormatNotAllowed(
            f"the weights lack {len(missing)} tensors, such as {missing[0]!r}: they would be made "
            f"up by chance",
            hint="the folder may be of another task",
        )
    return model.to(device).eval()


def _load(kind: Any, folder: Path, dtype: str) -> tuple[Any, list[str]]:
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise FormatNotAllowed(
            f"transformers cannot open the folder: {_reason(error, folder)}"
        ) from error
    # a pooler is no part of what is served
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    return model, missing


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer.

    Raises:
        FormatNotAllowed: transformers cannot open it.
    """
    silence()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except UNREADABLE as error:
        raise FormatNotAllowed(
            f"transformers cannot open the folder's tokenizer: {_reason(error, folder)}",
            hint="put tokenizer.json, or the model of sentencepiece, beside the weights",
        ) from error


def _reason(error: Exception, folder: Path) -> str:
    return " ".join(str(error).replace(str(folder), folder.name).split())[:300]


def silence() -> None:
    """What transformers has to say is not for the log of every load."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
