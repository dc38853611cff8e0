"""Pairs that hear and see, of a few kilobytes: transformers' folders, exported as optimum does.

Their weights are by chance: what they say is nonsense, but graphs and transformers must say the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny_translators import (
    HEARD,
    SPEECH_TOKENS,
    WORDS,
    write_json,
    write_whole_words,
)

HOW = "pip install 'wherry[transformers]' onnx onnxscript"
torch = pytest.importorskip("torch", reason=HOW)
transformers = pytest.importorskip("transformers", reason=HOW)
SIZES = {"d_model": 16} | {
    f"{side}_{name}": count
    for side in ("encoder", "decoder")
    for name, count in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
}


class Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.get_encoder()

    def forward(self, given: Any) -> Any:
        return self.model(given).last_hidden_state


class Decoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, states: Any) -> Any:
        return self.model(
            decoder_input_ids=ids,
            decoder_attention_mask=torch.ones_like(ids),  # without one, positions are looked at
            encoder_outputs=(states,),
            use_cache=False,
        ).logits


def export(model: Any, folder: Path, name: str, given: Any) -> None:
    """The encoder that takes `name`, and a decoder without a memory."""
    folder.mkdir(parents=True, exist_ok=True)
    states = Encoder(model)(given).detach()
    ids = torch.ones(1, 3, dtype=torch.long)
    save(Encoder(model), (given,), folder / "encoder_model.onnx", {name: {0: "batch"}})
    axes = {
        "input_ids": {0: "batch", 1: "answered"},
        "encoder_hidden_states": {0: "batch", 1: "length"},
    }
    save(Decoder(model), (ids, states), folder / "decoder_model.onnx", axes)


def save(part: Any, given: tuple[Any, ...], path: Path, axes: dict[str, Any]) -> None:
    torch.onnx.export(
        part.eval(),
        given,
        str(path),
        input_names=list(axes),
        output_names=["last_hidden_state" if "encoder" in path.name else "logits"],
        dynamic_axes=axes,
        dynamo=False,
    )


def write_whisper(folder: Path, seed: int = 0, init_std: float = 0.5) -> Any:
    """Configuration, tokenizer and feature extractor of a Whisper that speaks a dozen words."""
    number = {token: at for at, token in enumerate(HEARD)}
    write_whole_words(folder, HEARD, SPEECH_TOKENS)
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=len(HEARD),
        num_mel_bins=80,
        max_target_positions=48,
        init_std=init_std,
        decoder_start_token_id=number["<|startoftranscript|>"],
        bos_token_id=number["<|endoftext|>"],
        eos_token_id=number["<|endoftext|>"],
        pad_token_id=number["<|endoftext|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
        attn_implementation="eager",
        **SIZES,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    set_all(
        model.generation_config,
        lang_to_id={f"<|{code}|>": number[f"<|{code}|>"] for code in ("en", "fr")},
        task_to_id={task: number[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=number["<|notimestamps|>"],
        is_multilingual=True,
        max_initial_timestamp_index=50,
        max_length=48,
        suppress_tokens=[number["cat"], *(number[each] for each in SPEECH_TOKENS[1:8])],
        begin_suppress_tokens=[number["<|endoftext|>"]],
    )
    write_configs(model, folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return model


def write_trocr(folder: Path, seed: int = 0) -> Any:
    """Configuration, tokenizer and image processor of a pair that sees and writes."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    write_whole_words(folder, (*special, *WORDS), special)
    torch.manual_seed(seed)
    sight = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=24,
        patch_size=8,
        initializer_range=0.7,
    )
    writing = transformers.TrOCRConfig(
        vocab_size=len(special) + len(WORDS),
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.7,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(sight, writing)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    model.config.update({"decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2})
    set_all(
        model.generation_config,
        decoder_start_token_id=2,
        pad_token_id=1,
        eos_token_id=2,
        max_length=12,
    )
    write_configs(model, folder)
    steps = {"size": {"height": 24, "width": 24}, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    write_json(folder / "preprocessor_config.json", {"do_resize": True, **steps})
    return model


def set_all(config: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(config, name, value)


def write_configs(model: Any, folder: Path) -> None:
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
