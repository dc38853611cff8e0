"""Encoders of texts made on the spot: tokenizer and ONNX graph as Hugging Face's exporters lay them.

They are real in all but size: word pieces, special tokens, token types, an attention mask that
counts; so what a runtime must get right (pairs, padding, offsets, cutting) can be wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = [
    "a",
    "the",
    "is",
    "in",
    "at",
    "of",
    "and",
    "to",
    "who",
    "what",
    "where",
    "boat",
    "ship",
    "river",
    "rain",
    "sun",
    "bread",
    "king",
    "queen",
    "city",
    "paris",
    "rome",
    "ada",
    "love",
    "lace",
    "works",
    "live",
    "s",
    "name",
    "my",
    "sails",
    "cooks",
    "space",
    "food",
    "this",
    "example",
    "tennis",
    "about",
]
PIECES = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz.,!?'0123456789-")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *PIECES, "##lace"]
WIDTH = 12
STATIC_DIMENSIONS = 64


def make_tokenizer() -> Tokenizer:
    """Word pieces in BERT's manner; unknown letters are [UNK]."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(VOCABULARY))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def write_encoder(
    folder: Path, *, columns: int, per_token: bool = False, config: dict[str, Any] | None = None
) -> Path:
    """A folder with `model.onnx`, `tokenizer.json` and `config.json`.

    Each token's vector depends on the token, on which text it belongs to and on the mean of all
    unmasked tokens; logits are of the sequence or of each token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    tokenizer = make_tokenizer()
    constants = {
        "words": random.normal(size=(tokenizer.get_vocab_size(), WIDTH)),
        "types": random.normal(size=(2, WIDTH)),
        "mix": random.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5,
        "head": random.normal(size=(WIDTH, columns)),
        "bias": random.normal(size=(columns,)),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["word"]),
        node("Gather", ["types", "token_type_ids"], ["type"]),
        node("Add", ["word", "type"], ["sum"]),
        node("Tanh", ["sum"], ["hidden"]),
        node("Cast", ["attention_mask"], ["flags"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["flags", "last"], ["mask"]),
        node("Mul", ["hidden", "mask"], ["seen"]),
        node("ReduceSum", ["seen", "tokens"], ["total"], keepdims=1),
        node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["mean"]),
        node("MatMul", ["mean", "mix"], ["mixed"]),
        node("Add", ["hidden", "mixed"], ["rows"])
        if per_token
        else node("Squeeze", ["mixed", "tokens"], ["rows"]),
        node("Tanh", ["rows"], ["bent"]),
        node("MatMul", ["bent", "head"], ["scaled"]),
        node("Add", ["scaled", "bias"], ["logits"]),
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = ["n", "t", columns] if per_token else ["n", columns]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            *(
                numpy_helper.from_array(array.astype(np.float32), name)
                for name, array in constants.items()
            ),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def reference_logits(folder: Path, texts: list[Any], *, max_tokens: int = 512) -> list[np.ndarray]:
    """Logits of each text or pair, by onnxruntime and tokenizers alone: each runs by itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens, strategy="longest_first")
    found: list[np.ndarray] = []
    for text in texts:
        encoding = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        feeds = {
            "input_ids": np.array([encoding.ids]),
            "attention_mask": np.array([encoding.attention_mask]),
            "token_type_ids": np.array([encoding.type_ids]),
        }
        found.append(session.run(["logits"], feeds)[0][0])
    return found


def save_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, by its specification."""
    names = {"float32": "F32", "float16": "F16", "int64": "I64", "float64": "F64"}
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_static_embedder(
    folder: Path, *, columns: bool = False, **config: Any
) -> dict[str, np.ndarray]:
    """A model in model2vec's layout; with `columns` its vocabulary is folded and weighted."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(5)
    tokens = tokenizer.get_vocab_size()
    rows = 40 if columns else tokens
    tensors = {"embeddings": random.normal(size=(rows, STATIC_DIMENSIONS)).astype(np.float32)}
    if columns:
        tensors["weights"] = random.random(tokens)
        tensors["mapping"] = random.integers(0, rows, tokens)
    save_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"normalize": True, **config}))
    return tensors
