"""Sequence-to-sequence models of a few kilobytes, with weights by chance: what they say is nonsense,
but every framework that computes them must say the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("the", "a", "cat", "dog", "ship", "sails", "sleeps", "eats", "on", "river", "green", "old")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn")
VOCABULARY = (*SPECIAL, *WORDS, *LANGUAGES)
SENTENCES = ("the old cat sleeps", "a green ship sails on the river and the moon", "dog")


def write_tokenizer(folder: Path, *, has_languages: bool = False) -> None:
    """Whole words; `</s>` at the end, and the source's language before, as NLLB has it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([*SPECIAL, *(LANGUAGES if has_languages else ())])
    single = "eng_Latn $A </s>" if has_languages else "$A </s>"
    named = [(token, numbers[token]) for token in ("eng_Latn", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=named)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_ctranslate2(folder: Path, seed: int = 0) -> None:
    """A Transformer of two layers in CTranslate2's format, made without PyTorch."""
    import ctranslate2
    from ctranslate2.specs import TransformerSpec

    width, inner = 16, 32
    random = np.random.default_rng(seed)
    spec = TransformerSpec.from_config((2, 2), num_heads=2)

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0, 0.6, shape).astype(np.float32)

    def set_linear(layer: Any, outputs: int, inputs: int) -> None:
        layer.weight, layer.bias = weight(outputs, inputs), weight(outputs)

    def set_norm(layer: Any) -> None:
        layer.gamma = np.ones(width, np.float32)
        layer.beta = np.zeros(width, np.float32)

    def set_attention(layer: Any, *, is_self: bool) -> None:
        set_norm(layer.layer_norm)
        sizes = [3 * width] if is_self else [width, 2 * width]
        for linear, size in zip(layer.linear, [*sizes, width], strict=False):
            set_linear(linear, size, width)

    positions = weight(64, width)
    for side in (spec.encoder, spec.decoder):
        embeddings = side.embeddings[0] if isinstance(side.embeddings, list) else side.embeddings
        embeddings.weight = weight(len(VOCABULARY), width)
        side.position_encodings.encodings = positions
        set_norm(side.layer_norm)
        for layer in side.layer:
            set_attention(layer.self_attention, is_self=True)
            if hasattr(layer, "attention"):
                set_attention(layer.attention, is_self=False)
            set_norm(layer.ffn.layer_norm)
            set_linear(layer.ffn.linear_0, inner, width)
            set_linear(layer.ffn.linear_1, width, inner)
    set_linear(spec.decoder.projection, len(VOCABULARY), width)
    spec.register_source_vocabulary(list(VOCABULARY))
    spec.register_target_vocabulary(list(VOCABULARY))
    spec.config.add_source_eos = False
    spec.config.decoder_start_token = "</s>"
    spec.validate()
    spec.save(str(folder))
    assert ctranslate2.contains_model(str(folder))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


# ------------------------------------------------------------------------------ pairs of ONNX files

WIDTH = 8
START, END = VOCABULARY.index("<pad>"), VOCABULARY.index("</s>")


def pair_weights(seed: int, words: int = len(VOCABULARY)) -> dict[str, np.ndarray]:
    """Of the pair that `write_onnx_pair` writes and `answer_by_numpy` computes."""
    random = np.random.default_rng(seed)
    shapes = dict.fromkeys(
        ("Read", "Query", "Key", "Value", "CrossQuery", "CrossKey", "CrossValue"), (WIDTH, WIDTH)
    )
    shapes |= {"Source": (words, WIDTH), "Target": (words, WIDTH), "Output": (WIDTH, words)}
    shapes |= {"Listen": (80, WIDTH), "See": (3, WIDTH)}
    return {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def answer_by_numpy(
    weights: dict[str, np.ndarray], source: list[int], most: int, first: int | None = None
) -> list[int]:
    """The likeliest tokens, one by one."""
    answer: list[int] = []
    while len(answer) < most:
        scores = scores_by_numpy(weights, source, answer)
        answer.append(int(scores.argmax()) if answer or first is None else first)
        if answer[-1] == END:
            break
    return answer


def scores_by_numpy(
    weights: dict[str, np.ndarray], source: list[int], answer: list[int]
) -> np.ndarray:
    """Of the token that comes next, the whole answer computed again."""
    states = np.tanh(weights["Source"][source] @ weights["Read"])
    x = weights["Target"][[START, *answer]]
    seen = np.tril(np.ones((len(x), len(x)), bool))
    x = x + _attend(x @ weights["Query"], x @ weights["Key"], x @ weights["Value"], seen)
    every = np.ones((len(x), len(source)), bool)
    keys, values = states @ weights["CrossKey"], states @ weights["CrossValue"]
    x = x + _attend(x @ weights["CrossQuery"], keys, values, every)
    return (x @ weights["Output"])[-1]


def _attend(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    scores = np.where(seen, queries @ keys.T, -1e9)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)) @ values


TEXT_ENCODER = """
    words = Gather (Source, input_ids)
    read = MatMul (words, Read)
    last_hidden_state = Tanh (read)
"""
SOUND_ENCODER = """
    frames = Transpose <perm = [0, 2, 1]> (input_features)
    read = MatMul (frames, Listen)
    last_hidden_state = Tanh (read)
"""
PICTURE_ENCODER = """
    points = Transpose <perm = [0, 2, 3, 1]> (pixel_values)
    shape = Constant <value_ints = [0, -1, 3]> ()
    row = Reshape (points, shape)
    read = MatMul (row, See)
    last_hidden_state = Tanh (read)
"""
ENCODERS = {
    "text": (["int64[b,s] input_ids", "int64[b,s] attention_mask"], TEXT_ENCODER),
    "sound": (["float[b,80,3000] input_features"], SOUND_ENCODER),
    "pictures": (["float[b,3,8,8] pixel_values"], PICTURE_ENCODER),
}
"""What a pair takes → its encoder's inputs and nodes."""
TARGET_NODES = """
    x = Gather (Target, input_ids)
    query = MatMul (x, Query)
    key3 = MatMul (x, Key)
    value3 = MatMul (x, Value)
    new_key = Unsqueeze (key3, one)
    new_value = Unsqueeze (value3, one)
"""
PAST_NODES = """
    {P}.decoder.key = Concat <axis = 2> (past_key_values.0.decoder.key, new_key)
    {P}.decoder.value = Concat <axis = 2> (past_key_values.0.decoder.value, new_value)
"""
FRESH_NODES = """
    {P}.decoder.key = Identity (new_key)
    {P}.decoder.value = Identity (new_value)
"""
CROSS_NODES = """
    cross_key3 = MatMul (encoder_hidden_states, CrossKey)
    cross_value3 = MatMul (encoder_hidden_states, CrossValue)
    {P}.encoder.key = Unsqueeze (cross_key3, one)
    {P}.encoder.value = Unsqueeze (cross_value3, one)
"""
KNOWN_CROSS_NODES = """
    {P}.encoder.key = Identity (past_key_values.0.encoder.key)
    {P}.encoder.value = Identity (past_key_values.0.encoder.value)
"""
ATTENTION_NODES = """
    query4 = Unsqueeze (query, one)
    turned = Transpose <perm = [0, 1, 3, 2]> ({P}.decoder.key)
    scores = MatMul (query4, turned)
    shape = Shape (scores)
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    new1 = Gather (shape, two)
    all1 = Gather (shape, three)
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    new0 = Squeeze (new1)
    all0 = Squeeze (all1)
    before = Sub (all0, new0)
    rows0 = Range (zero, new0, step)
    rows1 = Add (rows0, before)
    rows = Unsqueeze (rows1, one)
    columns = Range (zero, all0, step)
    seen = GreaterOrEqual (rows, columns)
    never = Constant <value_float = -1000000000.0> ()
    masked = Where (seen, scores, never)
    shares = Softmax <axis = -1> (masked)
    own4 = MatMul (shares, {P}.decoder.value)
    own = Squeeze (own4, one)
    y = Add (x, own)
    cross_query3 = MatMul (y, CrossQuery)
    cross_query = Unsqueeze (cross_query3, one)
    cross_turned = Transpose <perm = [0, 1, 3, 2]> ({P}.encoder.key)
    cross_scores = MatMul (cross_query, cross_turned)
    is_word0 = Cast <to = 9> (encoder_attention_mask)
    axes = Constant <value_ints = [1, 2]> ()
    is_word = Unsqueeze (is_word0, axes)
    cross_masked = Where (is_word, cross_scores, never)
    cross_shares = Softmax <axis = -1> (cross_masked)
    cross4 = MatMul (cross_shares, {P}.encoder.value)
    cross = Squeeze (cross4, one)
    z = Add (y, cross)
    logits = MatMul (z, Output)
"""


def write_onnx_pair(
    folder: Path, kind: str, seed: int = 0, takes: str = "text", words: int = len(VOCABULARY)
) -> dict[str, np.ndarray]:
    """An encoder and decoders as optimum exports them; `kind` is `merged`, `split` or `plain`."""
    weights = pair_weights(seed, words)
    folder.mkdir(exist_ok=True)
    ids, mask = "int64[b,s] input_ids", "int64[b,s] encoder_attention_mask"
    states = f"float[b,s,{WIDTH}] encoder_hidden_states"
    past = [
        f"float[b,1,{side[0]},{WIDTH}] past_key_values.0.{side}.{part}"
        for side in ("decoder", "encoder")
        for part in ("key", "value")
    ]
    presents = [each.replace("past_key_values", "present") for each in past]
    presents = [each.replace(",d,", ",t,") for each in presents]
    target = ids.replace("[b,s]", "[b,n]")
    save_onnx(
        folder / "encoder_model.onnx",
        ENCODERS[takes][0],
        [f"float[b,s,{WIDTH}] last_hidden_state"],
        ENCODERS[takes][1],
        weights,
    )
    logits = f"float[b,n,{words}] logits"
    first = TARGET_NODES + FRESH_NODES + CROSS_NODES + ATTENTION_NODES
    if kind == "merged":
        nodes = TARGET_NODES + PAST_NODES + CROSS_NODES + ATTENTION_NODES
        inputs = [mask, target, states, *past, "bool[1] use_cache_branch"]
        save_onnx(folder / "decoder_model_merged.onnx", inputs, [logits, *presents], nodes, weights)
        return weights
    outputs = [logits] if kind == "plain" else [logits, *presents]
    save_onnx(folder / "decoder_model.onnx", [mask, target, states], outputs, first, weights)
    if kind == "split":
        nodes = TARGET_NODES + PAST_NODES + KNOWN_CROSS_NODES + ATTENTION_NODES
        save_onnx(
            folder / "decoder_with_past_model.onnx",
            [mask, target, *past],
            [logits, *presents[:2]],
            nodes,
            weights,
        )
    return weights


SPEECH_TOKENS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|fr|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
)
HEARD = (*WORDS, *SPEECH_TOKENS)
"""What a tiny Whisper says."""


def write_onnx_whisper(folder: Path, kind: str, seed: int = 0, words: int = len(HEARD)) -> None:
    """A folder of a Whisper, its graphs in `onnx` as the Hub has them."""
    write_whole_words(folder, HEARD, SPEECH_TOKENS)
    write_onnx_pair(folder / "onnx", kind, seed, "sound", words)
    sizes = {"vocab_size": len(HEARD), "max_target_positions": 40}
    write_json(folder / "config.json", {"model_type": "whisper", "is_multilingual": True, **sizes})


def write_whole_words(folder: Path, words: Sequence[str], special: Sequence[str]) -> None:
    """A `tokenizer.json` that knows whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="the"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(list(special))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_onnx(
    path: Path,
    inputs: list[str],
    outputs: list[str],
    nodes: str,
    weights: dict[str, np.ndarray],
) -> None:
    """A graph of text; those of the weights that it names are in it."""
    import onnx

    body = nodes.replace("{P}", "present.0")
    names = {"present.0", "past_key_values.0"}
    text = (
        '<ir_version: 9, opset_import: ["" : 18]>\n'
        f"tiny ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n"
        f"    one = Constant <value_ints = [1]> (){body}}}"
    )
    for name in names:  # the parser takes no dots in names
        text = text.replace(name + ".", name.replace(".", "_") + "_")
    text = text.replace("decoder.", "decoder_").replace("encoder.", "encoder_")
    model = onnx.parser.parse_model(text)
    rename_all(model.graph)
    for name, value in weights.items():
        if name in body.replace("(", " ").replace(")", " ").replace(",", " ").split():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def rename_all(graph: Any) -> None:
    """Give keys and values the names with dots that exporters give them."""

    def dotted(name: str) -> str:
        for stem in ("present", "past_key_values"):
            if name.startswith(stem + "_0_"):
                side, part = name.removeprefix(stem + "_0_").split("_")
                return f"{stem}.0.{side}.{part}"
        return name

    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [dotted(each) for each in names]
    for tensor in (*graph.input, *graph.output):
        tensor.name = dotted(tensor.name)


def write_generation_config(folder: Path, **more: Any) -> None:
    write_json(
        folder / "generation_config.json",
        {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START, **more},
    )
