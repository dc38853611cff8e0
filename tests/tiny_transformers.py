"""Hugging Face folders of a few kilobytes, as `save_pretrained` writes them; weights by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tiny_translators import VOCABULARY, write_json, write_tokenizer

HOW = "pip install 'wherry[transformers]'"
torch = pytest.importorskip("torch", reason=HOW)
transformers = pytest.importorskip("transformers", reason=HOW)

CORPUS = ["the old river and the green house under the moon", "ships sail on the river", "a b c d"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_PAIR = {"d_model": 16, "max_position_embeddings": 64} | {
    f"{side}_{name}": count
    for side in ("encoder", "decoder")
    for name, count in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
"""Sizes of an encoder with a decoder."""


def write_words(folder: Path, **more: Any) -> None:
    """The tokenizer of whole words, as transformers keeps it."""
    write_tokenizer(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        **more,
    ).save_pretrained(folder)


def write_encoder(folder: Path, kind: str = "XLMRobertaModel", **settings: Any) -> Any:
    """An encoder of texts; with a head if its `kind` has one."""
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(VOCABULARY),
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=VOCABULARY.index("<pad>"),
        initializer_range=0.5,
        **SMALL,
        **settings,
    )
    model = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    write_words(folder, model_max_length=64)
    return model.eval()


def write_pooling(folder: Path, mode: str) -> None:
    """What sentence-transformers writes of how vectors of tokens become one."""
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{mode}": True})
    kinds = ("Transformer", "Pooling", "Normalize")
    write_json(
        folder / "modules.json",
        [
            {"idx": at, "type": f"sentence_transformers.models.{kind}"}
            for at, kind in enumerate(kinds)
        ],
    )


def write_bart(folder: Path, seed: int = 11, init_std: float = 1.5, **settings: Any) -> Any:
    """An encoder with a decoder."""
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=len(VOCABULARY),
        **SMALL_PAIR,
        init_std=init_std,
        tie_word_embeddings=False,
        forced_eos_token_id=None,
        **settings,
    )
    model = transformers.BartForConditionalGeneration(config)
    model.save_pretrained(folder)
    write_words(folder)
    return model.eval()


def write_marian(folder: Path, seed: int = 3, init_std: float = 0.3) -> Any:
    """A model with sentencepiece's tokenizers, as the translators of OPUS have them."""
    sentencepiece = pytest.importorskip("sentencepiece", reason=HOW)
    text = folder / "corpus.txt"
    text.write_text("\n".join(CORPUS * 20))
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(folder / side),
            vocab_size=28,
            character_coverage=1.0,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        (folder / f"{side}.vocab").unlink()
    text.unlink()
    words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    pieces = [words.id_to_piece(number) for number in range(len(words))]
    special = ["</s>", "<unk>"]
    known = [*special, *(each for each in pieces if each not in ("<s>", *special)), "<pad>"]
    write_json(folder / "vocab.json", {each: number for number, each in enumerate(known)})
    tokenizer = transformers.MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        source_lang="eng",
        target_lang="fra",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    pad = known.index("<pad>")
    config = transformers.MarianConfig(
        vocab_size=len(known),
        **SMALL_PAIR,
        pad_token_id=pad,
        eos_token_id=0,
        bos_token_id=0,
        decoder_start_token_id=pad,
        init_std=init_std,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config)
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
    return model.eval()


def write_llama(folder: Path, *, template: str = "", seed: int = 0) -> Any:
    """A language model with a vocabulary of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(CORPUS, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"turn": "<|im_start|>"},
    )
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=2,
        **SMALL,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.eval()
