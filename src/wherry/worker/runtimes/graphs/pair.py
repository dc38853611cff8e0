# pyright: standard
"""Pairs of graphs: an encoder that reads, hears or sees, and a decoder that writes, token by token.

As Hugging Face's optimum exports them: `encoder_model.onnx`, and `decoder_model_merged.onnx`, or
`decoder_model.onnx` with or without `decoder_with_past_model.onnx`. A decoder that gives its keys and
values takes them at the next step; one that does not reads its whole answer again each time.
`generation_config.json` and `config.json` lie beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.graphs.beams import (
    Constraints,
    Found,
    GenerationConfig,
    Step,
    search_by_beams,
    search_greedily,
)
from wherry.worker.runtimes.graphs.graph import Array, Graph, OpenGraph

ENCODER, MERGED = "encoder_model", "decoder_model_merged"
FIRST, NEXT = "decoder_model", "decoder_with_past_model"
PAST, PRESENT = "past_key_values.", "present."
USES_CACHE = "use_cache_branch"
CONFIGS = ("config.json", "generation_config.json")
PRECISIONS = re.compile(r"_(quantized|int8|uint8|fp16|q4|q4f16|bnb4)$")
"""How transformers.js ends the names of graphs of less than full precision."""


def kind_of(file: str) -> str:
    """`decoder_model` of `onnx/decoder_model_fp16.onnx`."""
    return PRECISIONS.sub("", PurePosixPath(file).stem)


def is_pair(files: Sequence[str]) -> bool:
    """Whether a bundle's files are an encoder and a decoder."""
    kinds = {kind_of(name) for name in files}
    return ENCODER in kinds and bool({MERGED, FIRST} & kinds)


class Pair:
    """The opened graphs of a bundle."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        files = bundle.manifest.files
        if not is_pair(files):
            raise FormatNotAllowed(
                "the bundle has no pair of an encoder and a decoder",
                hint=f"name {ENCODER}.onnx and {MERGED}.onnx or {FIRST}.onnx in 'files'",
            )
        found = {kind_of(name): name for name in files}
        graphs = {
            kind: open_graph(bundle.path(found[kind]))
            for kind in (ENCODER, MERGED, FIRST, NEXT)
            if kind in found and not (kind in (FIRST, NEXT) and MERGED in found)
        }
        self.encoder = graphs.pop(ENCODER)
        self._decoders = graphs

    def read(self, values: Mapping[str, Array]) -> Array:
        """What the encoder makes of its inputs, by their names: [rows, length, width]."""
        missing = [each.name for each in self.encoder.inputs if each.name not in values]
        if missing:
            raise FormatNotAllowed(
                f"{self.encoder.file_name!r} takes {missing[0]!r}, not only {', '.join(values)}"
            )
        feeds = {each.name: values[each.name].astype(each.dtype) for each in self.encoder.inputs}
        return self.encoder.run(feeds)[0]

    def write(self, states: Array, mask: Array, start: Sequence[int]) -> Decoder:
        """A decoder for what the encoder made, that has said `start` in every row."""
        return Decoder(self._decoders, states, mask, start)

    def search(
        self,
        states: Array,
        mask: Array,
        decoding: Decoding,
        config: GenerationConfig,
        most: int,
    ) -> list[Found]:
        """An answer of at most so many tokens for each row of `states`, searched for as wished."""
        width, count = decoding.num_beams or 1, len(states)
        constraints = Constraints(config, decoding, most)
        states, mask = (np.repeat(each, width, axis=0) for each in (states, mask))
        decoder = self.write(states, mask, (config.decoder_start_token_id,))
        if width == 1:
            return search_greedily(decoder.scores, count, constraints, config, most)
        return search_by_beams(decoder.scores, count, constraints, config, most, decoding)


class Decoder:
    """A decoder in the middle of answers: it remembers what it has computed of them."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        states: Array,
        mask: Array,
        start: Sequence[int],
    ) -> None:
        self._first = graphs.get(MERGED) or graphs[FIRST]
        self._next = graphs.get(MERGED) or graphs.get(NEXT)
        self._states, self._mask = states, mask
        self._answers = np.tile(np.array(start, np.int64), (len(states), 1))
        self._past: dict[str, Array] = {}

    def scores(self, step: Step | None) -> Array:
        """Of the next token, float32 [rows, vocabulary]; see `beams.Decode`."""
        if step is None:
            found = self._run(self._first, self._answers, uses_cache=False)
        else:
            self._go_on(step)
            if self._next is None or not self._past:
                found = self._run(self._first, self._answers, uses_cache=False)
            else:
                found = self._run(self._next, self._answers[:, -1:], uses_cache=True)
        scores = found[:, -1].astype(np.float32)
        if np.isnan(scores).any():
            raise ModelFailed("the model answered with numbers that are not finite")
        return scores

    def _go_on(self, step: Step) -> None:
        kept = self._answers[step.rows]
        self._answers = np.concatenate([kept, step.ids[:, np.newaxis]], axis=1)
        if not np.array_equal(step.rows, np.arange(len(step.rows))):
            self._past = {name: value[step.rows] for name, value in self._past.items()}

    def _run(self, graph: Graph, ids: Array, *, uses_cache: bool) -> Array:
        length = self._answers.shape[1]
        values: dict[str, Array] = {
            "input_ids": ids,
            "decoder_input_ids": ids,
            "encoder_hidden_states": self._states,
            "encoder_attention_mask": self._mask,
            "attention_mask": self._mask,
            "decoder_attention_mask": np.ones((len(ids), length), np.int64),
            "cache_position": np.arange(length - ids.shape[1], length),
            USES_CACHE: np.array([uses_cache]),
        }
        feeds: dict[str, Array] = {}
        for each in graph.inputs:
            if each.name.startswith(PAST):
                known = self._past.get(each.name) if uses_cache else None
                value = known if known is not None else _nothing(each.shape, len(ids))
            elif each.name in values:
                value = values[each.name]
            else:
                raise FormatNotAllowed(
                    f"{graph.file_name!r} takes {each.name!r}, which no decoder has"
                )
            feeds[each.name] = value.astype(each.dtype, copy=False)
        names = [each.name for each in graph.outputs]
        found = dict(zip(names, graph.run(feeds), strict=True))
        self._remember(found, uses_cache=uses_cache)
        return found.get("logits", found[names[0]])

    def _remember(self, found: Mapping[str, Array], *, uses_cache: bool) -> None:
        """Keys and values; those of the encoder's words stay what the first step made them."""
        for name, value in found.items():
            if name.startswith(PRESENT) and not (uses_cache and ".encoder." in name):
                self._past[PAST + name.removeprefix(PRESENT)] = value


def read_configs(folder: Path) -> dict[str, Any]:
    """`config.json`, with what `generation_config.json` says instead."""
    merged: dict[str, Any] = {}
    for name in CONFIGS:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_bytes())
            if isinstance(found, dict):
                merged |= {key: value for key, value in found.items() if value is not None}
    return merged


def read_generation_config(folder: Path) -> GenerationConfig:
    """What the folder says of its special tokens; `InvalidInput` if it does not."""
    merged = read_configs(folder)
    start = merged.get("decoder_start_token_id", merged.get("bos_token_id"))
    end = merged.get("eos_token_id")
    ends = tuple(each for each in (end if isinstance(end, list) else [end]) if type(each) is int)
    if type(start) is not int or not ends:
        raise InvalidInput(
            "neither generation_config.json nor config.json has 'decoder_start_token_id' and "
            "'eos_token_id'",
            hint="they are part of the original model's folder",
        )
    pad = merged.get("pad_token_id")
    banned = merged.get("bad_words_ids") or []
    return GenerationConfig(
        decoder_start_token_id=start,
        eos_token_ids=ends,
        pad_token_id=pad if type(pad) is int else ends[0],
        forced_bos_token_id=_number(merged.get("forced_bos_token_id")),
        forced_eos_token_id=_number(merged.get("forced_eos_token_id")),
        banned_token_ids=tuple(each[0] for each in banned if len(each) == 1),
        early_stopping=merged.get("early_stopping") is True,
    )


def _number(value: Any) -> int | None:
    return value if type(value) is int else None


def _nothing(shape: Sequence[Any], rows: int) -> Array:
    """Keys or values of no tokens: [rows, heads, 0, width]."""
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    return np.zeros((rows, *sizes[1:]), np.float32)
