"""A folder of diffusers of a few hundred kilobytes, as `save_pretrained` writes it; weights by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny_translators import VOCABULARY

HOW = "pip install 'wherry[diffusers]'"
torch = pytest.importorskip("torch", reason=HOW)
diffusers = pytest.importorskip("diffusers", reason=HOW)
transformers = pytest.importorskip("transformers", reason=HOW)

TEXT_TOKENS = 16
WIDTHS = (32, 64)
NATIVE_SIDE = 32


def write_stable_diffusion(folder: Path) -> Any:
    """A pipeline of Stable Diffusion's kind that draws 32 x 32 pixels; the one that was saved."""
    from tests.tiny_transformers import write_words

    words = folder.with_name(f"{folder.name}-words")
    words.mkdir()
    write_words(words, model_max_length=TEXT_TOKENS)
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=NATIVE_SIDE,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                max_position_embeddings=TEXT_TOKENS,
                bos_token_id=VOCABULARY.index("<s>"),
                eos_token_id=VOCABULARY.index("</s>"),
                pad_token_id=VOCABULARY.index("<pad>"),
            )
        ),
        tokenizer=transformers.AutoTokenizer.from_pretrained(words),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=WIDTHS,
            layers_per_block=1,
            sample_size=NATIVE_SIDE // 2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline
