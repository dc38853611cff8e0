# pyright: standard
"""Graphs that label every token of a text: the task `token-classification`.

A text that is longer than the model takes is read in windows that overlap; each token is labelled
by the window in which it stands further from the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from tokenizers import Encoding

from wherry.errors import ContextLengthExceeded, FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import softmax
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.token_classification import (
    Entities,
    Tag,
    TokensInput,
    find_entities,
)
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.text_encoder import Tokens
from wherry.worker.runtimes.graphs.texts import TextReader
from wherry.worker.runtimes.runtime import Prepared

OVERLAP = 4
"""One in so many tokens of a window is the next one's, too."""
MAX_WINDOWS = 64


class Place(msgspec.Struct, frozen=True):
    """Where a token stands in its text."""

    start: int
    end: int
    begins_word: bool


class TaggedText(msgspec.Struct):
    """A text in windows."""

    item: TokensInput
    places: list[Place]
    """Of all tokens."""
    starts: list[int]
    """First token of each window."""
    windows: list[Tokens]


class TokenTagger(TextReader):
    """A score of every label for every token."""

    outputs = ("logits",)

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        count = self.trial_row.shape[-1]
        self._labels = bundle.manifest.labels or tuple(f"LABEL_{at}" for at in range(count))
        if len(self._labels) != count:
            raise InvalidInput(
                f"the bundle names {len(self._labels)} labels, the model gives {count} scores"
            )

    def prepare(self, item: TokensInput) -> Prepared:
        """Tokenise; safe in many threads."""
        encoding = self.encoder.encode_bare(item.text)
        starts = window_starts(len(encoding.ids), self.encoder.room)
        if len(starts) > MAX_WINDOWS:
            raise ContextLengthExceeded(
                f"the text has {len(encoding.ids)} tokens, {MAX_WINDOWS} times this model's maximum "
                f"context length of {self.encoder.max_tokens} tokens is the limit",
                hint="send it in parts",
            )
        windows = [self._window(encoding.ids, start) for start in starts]
        text = TaggedText(item, places_of(encoding), starts, windows)
        length = self.fixed_tokens or max((len(each.ids) for each in windows), default=1)
        group = length if self.joining == "equal length" else ()
        return Prepared(text, rows=max(1, len(windows)), length=length, group=group)

    def _window(self, ids: Sequence[int], start: int) -> Tokens:
        found = self.encoder.surround(ids[start : start + self.encoder.room])
        return Tokens(found, np.zeros_like(found))

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """The entities of each text."""
        texts: list[TaggedText] = [prepared.payload for prepared in batch]
        windows = [window for text in texts for window in text.windows]
        numbers = iter(self._read(windows))
        return [self._answer_one(text, [next(numbers) for _ in text.windows]) for text in texts]

    def _read(self, windows: Sequence[Tokens]) -> list[Array]:
        """Scores of each window's tokens; as many windows at once as the model takes."""
        found: list[Array] = []
        for some in self._runs(windows) if windows else ():
            found += self.numbers_of(some)
        if not all(np.isfinite(each).all() for each in found):
            raise ModelFailed("the model answered with numbers that are not finite")
        return [softmax(each) for each in found]

    def _runs(self, windows: Sequence[Tokens]) -> list[Sequence[Tokens]]:
        if self.joining == "any":
            step = max(1, self.max_batch_cost // max(len(window.ids) for window in windows))
            return [windows[at : at + step] for at in range(0, len(windows), step)]
        return [[window] for window in windows]

    def _answer_one(self, text: TaggedText, scores: Sequence[Array]) -> TaskOutput:
        tags: list[Tag] = []
        if text.windows:
            before, room = self.encoder.prefix_length, self.encoder.room
            inner = [
                rows[before : before + min(room, len(text.places) - start)]
                for rows, start in zip(scores, text.starts, strict=True)
            ]
            rows = join_windows(inner, text.starts)
            tags = [
                Tag(row, place.start, place.end, place.begins_word)
                for row, place in zip(rows, text.places, strict=True)
            ]
        tokens = sum(len(window.ids) for window in text.windows)
        return Entities(
            entities=find_entities(text.item.text, tags, self._labels, text.item),
            usage=Usage(input_tokens=tokens, rows=1),
        )

    def pool(self, found: Array, mask: Array) -> Array:
        """Logits are one row a token already."""
        if found.ndim != 3:
            raise FormatNotAllowed(
                f"output {self.output.name!r} has {found.ndim} dimensions, not 3",
                hint="name another with the option 'output'",
            )
        return found

    def numbers_of(self, texts: Sequence[Tokens]) -> list[Array]:
        """One row a token of each text."""
        return [
            rows[: len(text.ids)] for rows, text in zip(self.forward(texts), texts, strict=True)
        ]


def places_of(encoding: Encoding) -> list[Place]:
    """Where each token stands; a word's later pieces are told from its first."""
    words = encoding.word_ids
    return [
        Place(start, end, at == 0 or words[at] is None or words[at] != words[at - 1])
        for at, (start, end) in enumerate(encoding.offsets)
    ]


def window_starts(count: int, room: int) -> list[int]:
    """Where windows of `room` tokens begin in a text of `count`."""
    if count <= room:
        return [0] if count else []
    overlap = room // OVERLAP
    return list(range(0, count - overlap, room - overlap))


def join_windows(windows: Sequence[Array], starts: Sequence[int]) -> Array:
    """Rows of all tokens [tokens, labels]; where two windows overlap, half of each."""
    ends = [start + len(rows) for start, rows in zip(starts, windows, strict=True)]
    cuts = [(start + end) // 2 for start, end in zip(starts[1:], ends, strict=False)]
    bounds = pairwise([0, *cuts, ends[-1]])
    return np.concatenate(
        [
            rows[first - start : last - start]
            for rows, start, (first, last) in zip(windows, starts, bounds, strict=True)
        ]
    )
