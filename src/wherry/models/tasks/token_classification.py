"""The task `token-classification`: which parts of a text are names, dates, sums.

Offsets count characters as Python does (Unicode code points): `text[start:end]` is what was found.
JavaScript counts some characters twice (emoji), UTF-8 counts bytes: convert there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec
from wherry.models.tasks.text import TEXT_KEYS, check_text, texts_from_tensors

Aggregation = Literal["none", "simple", "first", "average", "max"]
"""How tokens become entities, as Hugging Face names it; `none` gives each token by itself."""
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
DEFAULT_AGGREGATION: Aggregation = "simple"
OUTSIDE = "O"
"""The label of tokens that belong to nothing."""


class TokensInput(msgspec.Struct):
    """A text, and in which form its entities are wanted."""

    text: str
    aggregation: Aggregation = DEFAULT_AGGREGATION
    ignored: tuple[str, ...] = (OUTSIDE,)
    """Labels that are left out."""


class Entity(msgspec.Struct):
    """A part of a text."""

    label: str
    """`PER`; of a single token (`none`) the model's own, e.g. `B-PER`."""
    score: float
    """0 to 1."""
    start: int
    end: int
    text: str


class Entities(TaskOutput, kw_only=True):
    """What was found in one text, in the order of the text."""

    entities: list[Entity]


class TokenClassification:
    """A text in, its entities out."""

    name = "token-classification"
    input_type = TokensInput
    output_type = Entities

    def signature(self, config: TaskConfig) -> Signature:
        """Texts in; out the entities of all texts, one after another, each with its text's row."""
        outputs = (
            TensorSpec("row", "INT64", (-1,)),
            TensorSpec("label", "BYTES", (-1,)),
            TensorSpec("score", "FP32", (-1,)),
            TensorSpec("start", "INT64", (-1,)),
            TensorSpec("end", "INT64", (-1,)),
        )
        return Signature((TensorSpec("text", "BYTES", (-1,)),), outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TokensInput]:
        """One item for each element of the tensor `text`."""
        chosen = default_aggregation(config)
        return [
            TokensInput(item.text or "", chosen) for item in texts_from_tensors(tensors, config)
        ]

    def to_tensors(self, outputs: Sequence[Entities], config: TaskConfig) -> dict[str, np.ndarray]:
        """Five tensors of as many elements as there are entities."""
        found = [(row, entity) for row, output in enumerate(outputs) for entity in output.entities]
        label = np.empty(len(found), dtype=object)
        label[:] = [entity.label.encode() for _, entity in found]
        return {
            "row": np.array([row for row, _ in found], dtype=np.int64),
            "label": label,
            "score": np.array([entity.score for _, entity in found], dtype=np.float32),
            "start": np.array([entity.start for _, entity in found], dtype=np.int64),
            "end": np.array([entity.end for _, entity in found], dtype=np.int64),
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TokensInput:
        """`{"text": "…", "aggregation_strategy"?: "simple"}`."""
        for key in TEXT_KEYS:
            if key in body:
                text = check_text(body[key], config, key)
                return TokensInput(text, read_aggregation(body, config))
        raise InvalidInput("the request has no 'text'", hint='send {"text": "…"}', param="text")

    def to_plain(self, output: Entities, config: TaskConfig) -> dict[str, Any]:
        """`{"entities": [{"label", "score", "start", "end", "text"}]}`."""
        scores = shortest_floats(np.array([each.score for each in output.entities]))
        return {
            "entities": [
                {**msgspec.structs.asdict(each), "score": score}
                for each, score in zip(output.entities, scores, strict=True)
            ]
        }


TOKEN_CLASSIFICATION = TokenClassification()


def default_aggregation(config: TaskConfig) -> Aggregation:
    """The bundle's option `aggregation_strategy`."""
    stated = config.options.get("aggregation_strategy", DEFAULT_AGGREGATION)
    return stated if stated in AGGREGATIONS else DEFAULT_AGGREGATION


def read_aggregation(body: Mapping[str, Any], config: TaskConfig) -> Aggregation:
    """The client's wish, else the bundle's."""
    wish = body.get("aggregation_strategy")
    if wish is None:
        return default_aggregation(config)
    if wish not in AGGREGATIONS:
        raise InvalidInput(
            f"unknown aggregation_strategy {wish!r:.100}",
            hint="known: " + ", ".join(AGGREGATIONS),
            param="aggregation_strategy",
        )
    return wish


# ------------------------------------------------------------------------------ tokens → entities


class Tag(msgspec.Struct):
    """What a model says of one token."""

    scores: np.ndarray
    """float32 [labels], 0 to 1."""
    start: int
    end: int
    begins_word: bool = True
    """False for the second and later pieces of a word."""


def find_entities(
    text: str, tags: Sequence[Tag], labels: Sequence[str], wish: TokensInput
) -> list[Entity]:
    """Tokens as the entities that a client wants; the rules are Hugging Face's.

    `simple` joins neighbouring tokens whose labels are alike (`B-` begins anew). `first`, `average`
    and `max` first give each word one label: its first token's, that of the mean of its tokens'
    scores, or that of its surest token.
    """
    if wish.aggregation in ("first", "average", "max"):
        tags = [_join_word(word, wish.aggregation) for word in _words(tags)]
    singles = [_single(text, tag, labels) for tag in tags]
    if wish.aggregation != "none":
        singles = [_join(text, group) for group in _groups(singles)]
    return [each for each in singles if each.label not in wish.ignored]


def _words(tags: Sequence[Tag]) -> list[list[Tag]]:
    words: list[list[Tag]] = []
    for tag in tags:
        if tag.begins_word or not words:
            words.append([])
        words[-1].append(tag)
    return words


def _join_word(word: Sequence[Tag], aggregation: Aggregation) -> Tag:
    if aggregation == "first":
        scores = word[0].scores
    elif aggregation == "max":
        scores = max(word, key=lambda tag: float(tag.scores.max())).scores
    else:
        scores = np.mean([tag.scores for tag in word], axis=0)
    return Tag(scores, word[0].start, word[-1].end)


def _single(text: str, tag: Tag, labels: Sequence[str]) -> Entity:
    best = int(tag.scores.argmax())
    return Entity(
        labels[best], float(tag.scores[best]), tag.start, tag.end, text[tag.start : tag.end]
    )


def _groups(singles: Sequence[Entity]) -> list[list[Entity]]:
    """Neighbours with one label; `B-` begins a group."""
    groups: list[list[Entity]] = []
    for each in singles:
        prefix, kind = split_label(each.label)
        if groups and split_label(groups[-1][-1].label)[1] == kind and prefix != "B":
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _join(text: str, group: Sequence[Entity]) -> Entity:
    start, end = group[0].start, group[-1].end
    score = float(np.mean([each.score for each in group]))
    return Entity(split_label(group[0].label)[1], score, start, end, text[start:end])


def split_label(label: str) -> tuple[str, str]:
    """Prefix and kind: `B-PER` is `B` and `PER`; a label without prefix is inside (`I`)."""
    if label[:2] in ("B-", "I-"):
        return label[0], label[2:]
    return "I", label
