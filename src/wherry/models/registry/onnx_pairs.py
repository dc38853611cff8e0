"""Recognises pairs of ONNX graphs as optimum exports them: an encoder, and a decoder that writes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePosixPath

from wherry.errors import InvalidInput
from wherry.models.registry.config_files import read_config
from wherry.models.registry.huggingface import (
    CONFIG,
    PREPROCESSOR,
    TOKENIZER,
    Details,
    describe_pixels,
)
from wherry.models.registry.translators import find_companions, search_options
from wherry.models.trust.onnx import check_onnx

ENCODER = "encoder_model"
DECODERS = (
    ("decoder_model_merged",),
    ("decoder_model", "decoder_with_past_model"),
    ("decoder_model",),
)
PRECISIONS = ("", "_fp16", "_quantized", "_int8", "_uint8", "_q4", "_q4f16", "_bnb4")
"""How transformers.js ends the names of files; the nearest to full precision first."""
PROCESSOR = "processor_config.json"
TASK_BY_INPUT = {
    "input_ids": "translation",
    "input_features": "automatic-speech-recognition",
    "pixel_values": "image-to-text",
}
"""What an encoder takes → what is made of it; of texts it may be a summary, too."""


def find_onnx_pair(folder: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """The encoder's file, the decoder's, and what hold their tensors; none if there is no pair.

    Of several precisions the fullest of each; a decoder may have another than its encoder.
    """
    for precision in PRECISIONS:
        for path in paths:
            if PurePosixPath(path).name == f"{ENCODER}{precision}.onnx":
                for other, names in product((precision, *PRECISIONS), DECODERS):
                    beside = [
                        str(PurePosixPath(path).with_name(f"{name}{other}.onnx")) for name in names
                    ]
                    if all(each in paths for each in beside):
                        return _with_tensors(folder, (path, *beside))
    return ()


def find_task(folder: Path, encoder: str) -> str:
    """What a pair does, by what its encoder takes; `InvalidInput` for what no runtime can feed."""
    inputs = [each.name for each in check_onnx(folder / encoder).signature.inputs]
    task = next((TASK_BY_INPUT[name] for name in inputs if name in TASK_BY_INPUT), "")
    kind = read_config(folder, CONFIG).get("model_type", "unknown type")
    if not task or (task == "automatic-speech-recognition" and kind != "whisper"):
        raise InvalidInput(
            f"{encoder!r} takes {', '.join(map(repr, inputs))}, and the model is of {kind!r}: pairs "
            "of graphs are served that read texts, that see, and Whisper",
            hint="a Python class can run both graphs (docs/custom-models.md), or serve each by itself "
            "as tensors",
        )
    return task


def describe_listener(folder: Path, paths: Sequence[str]) -> Details:
    """Options and files of a Whisper."""
    _require_tokenizer(paths)
    return Details(files=(*find_companions(paths), *_present(paths, PREPROCESSOR)))


def describe_seer(folder: Path, paths: Sequence[str]) -> Details:
    """Options and files of a model that writes of pictures."""
    _require_tokenizer(paths)
    steps = read_config(folder, PREPROCESSOR)
    steps = steps or read_config(folder, PROCESSOR).get("image_processor") or {}
    options = search_options(
        read_config(folder, CONFIG) | read_config(folder, "generation_config.json")
    )
    options |= describe_pixels(steps) if isinstance(steps, dict) and steps else {}
    return Details(
        options=options,
        files=(*find_companions(paths), *_present(paths, PREPROCESSOR, PROCESSOR)),
    )


def _require_tokenizer(paths: Sequence[str]) -> None:
    if TOKENIZER not in paths:
        raise InvalidInput(
            f"the pair of graphs has no {TOKENIZER!r}",
            hint="it is part of the original model's folder; AutoTokenizer's save_pretrained writes it",
        )


def _present(paths: Sequence[str], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in paths)


def _with_tensors(folder: Path, paths: Sequence[str]) -> tuple[str, ...]:
    found = list(paths)
    for path in paths:
        parent = PurePosixPath(path).parent
        found += [str(parent / each) for each in check_onnx(folder / path).external_files]
    return tuple(dict.fromkeys(found))
