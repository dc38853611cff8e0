# pyright: standard, reportMissingImports=false
"""spaCy pipelines: entities of texts.

The bundle is a pipeline's folder as `nlp.to_disk` writes it, its `config.cfg` first. What the folder
may name and hold is checked when it is imported (`wherry.models.trust.spacy_folder`): spaCy's own
functions, and files without code.

Only what finds entities is loaded. Entities are spaCy's own (greedy) ones; the score of each is the
share of a beam of parses in which it occurs, which is a probability but not a calibrated one. Options:
`beam_width` (default 8; wider is slower and smoother), `aggregation_strategy` (the task's).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.token_classification import (
    OUTSIDE,
    TOKEN_CLASSIFICATION,
    Entities,
    Entity,
    TokensInput,
)
from wherry.worker.runtimes.runtime import ItemError, Prepared

MAX_CHARACTERS = 100_000
"""Longest text."""
MAX_TOKENS = 20_000
"""Of one text: spaCy takes 17 kilobytes for each."""
MAX_PARTS_OF_A_WORD = 1000
"""Of what has no space in it: for each sign that spaCy takes off its ends, it looks at all of it."""
_PART = re.compile(r"\w+|[^\w\s]")
"""Near enough what becomes a token."""
FINDERS = frozenset({"ner", "beam_ner"})
"""Factories of components that find entities by a network of their own."""
RULES = frozenset({"entity_ruler", "span_ruler", "future_entity_ruler"})
"""Those that find them by rules, which may look at all that others wrote."""
LEAST_DENSITY = 1e-4
"""Parses this much less likely than the best leave the beam."""


Shares = dict[tuple[int, int, str], float]
"""First token, token behind the last, label → how likely such an entity is."""


class SpacyOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    beam_width: int = 8


class SpacyRuntime:
    """One pipeline, for the task `token-classification`."""

    max_batch_rows = 64
    max_batch_cost = 4096

    def load(self, bundle: Bundle, device: str) -> None:
        """Read the components that find entities."""
        if bundle.manifest.task != TOKEN_CLASSIFICATION.name:
            raise InvalidInput(
                f"the spacy runtime does not do the task {bundle.manifest.task!r}",
                hint=f"it does {TOKEN_CLASSIFICATION.name}",
            )
        options = read_options(bundle.manifest.options, SpacyOptions)
        if not 1 <= options.beam_width <= 64:
            raise InvalidInput(f"beam_width must be 1 to 64, not {options.beam_width}")
        self._beam_width = options.beam_width
        self._nlp = open_pipeline(bundle.main_file.parent)
        self._nlp.max_length = MAX_CHARACTERS
        factories = {name: self._nlp.get_pipe_meta(name).factory for name in self._nlp.pipe_names}
        self._finders = {name for name, factory in factories.items() if factory in FINDERS}
        self._rules = RULES & set(factories.values())
        if not self._finders and not self._rules:
            raise FormatNotAllowed(f"no component finds entities: the pipeline has {[*factories]}")

    def prepare(self, item: TokensInput) -> Prepared:
        """Check the length; spaCy's tokenizer must not run in several threads."""
        if len(item.text) > MAX_CHARACTERS:
            raise InvalidInput(
                f"'text' has {len(item.text)} characters, the limit is {MAX_CHARACTERS}",
                hint="send it in parts",
                param="text",
            )
        longest = max(map(_count_parts, item.text.split()), default=0)
        if longest > MAX_PARTS_OF_A_WORD:
            raise InvalidInput(
                f"'text' has {longest} words and signs in a row without a space, "
                f"the limit is {MAX_PARTS_OF_A_WORD}",
                param="text",
            )
        return Prepared(item, length=_count_parts(item.text) + 1)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """The entities of each text."""
        items: list[TokensInput] = [prepared.payload for prepared in batch]
        with self._nlp.memory_zone():  # without it every new word is kept for ever
            docs = [self._nlp.make_doc(item.text) for item in items]
            short = [doc for doc in docs if len(doc) <= MAX_TOKENS]
            read = iter(zip(*self._read(short), strict=True) if short else ())
            return [
                self._answer(*next(read), item) if len(doc) <= MAX_TOKENS else _too_long(doc)
                for doc, item in zip(docs, items, strict=True)
            ]

    def _answer(self, doc: Doc, known: Shares, item: TokensInput) -> Entities:
        usage = Usage(input_tokens=len(doc), rows=1)
        return Entities(entities=self._entities_of(doc, known, item), usage=usage)

    def _read(self, docs: list[Doc]) -> tuple[list[Doc], list[Shares]]:
        """The documents behind the pipeline, and how likely each of their entities is."""
        shares: list[Shares] = [defaultdict(float) for _ in docs]
        for name, pipe in self._nlp.pipeline:
            if name in self._finders:  # before it has written entities, to which beams would keep
                self._add_shares(pipe, docs, shares)
            in_one_go = getattr(pipe, "pipe", None)
            docs = list(in_one_go(docs)) if in_one_go else [pipe(doc) for doc in docs]
        return docs, shares

    def _add_shares(self, finder: Any, docs: Sequence[Doc], shares: Sequence[Shares]) -> None:
        beams = finder.beam_parse(docs, beam_width=self._beam_width, beam_density=LEAST_DENSITY)
        for known, beam in zip(shares, beams, strict=True):
            for share, entities in finder.moves.get_beam_parses(beam):
                for found in entities:
                    known[found] += share

    def _entities_of(self, doc: Doc, shares: Shares, wish: TokensInput) -> list[Entity]:
        # what only rules found is certain; what is outside of the beam is next to impossible
        unknown = 1.0 if self._rules else 0.0
        spans = [
            (span, min(1.0, shares.get((span.start, span.end, span.label_), unknown)))
            for span in doc.ents
        ]
        whole = wish.aggregation != "none"
        found = [_whole(*each) for each in spans] if whole else _tokens(doc, spans)
        return [each for each in found if each.label not in wish.ignored]

    def close(self) -> None:
        """Let go of the pipeline."""
        del self._nlp, self._finders


def open_pipeline(folder: Path) -> Language:
    """The pipeline without what no entity needs.

    Raises:
        FormatNotAllowed: spaCy cannot read it.
    """
    try:
        config = spacy.util.load_config(folder / "config.cfg")
        return spacy.load(folder, exclude=needless_components(config))
    except Exception as error:  # a damaged folder may fail anywhere in spaCy
        reason = str(error).replace(str(folder), folder.name)[:300]
        raise FormatNotAllowed(f"spaCy cannot read the pipeline: {reason}") from error


def needless_components(config: Mapping[str, Any]) -> list[str]:
    """Components that entities do not depend on; none if there are rules, which may use any."""
    components: Mapping[str, Any] = config["components"]
    by_factory = {name: each.get("factory", "") for name, each in components.items()}
    if RULES & set(by_factory.values()):
        return []
    finders = [name for name, factory in by_factory.items() if factory in FINDERS]
    listened = any("Listener" in str(components[name]) for name in finders)
    kept = {*finders, *(("tok2vec", "transformer") if listened else ())}
    return [name for name in config["nlp"]["pipeline"] if name not in kept]


def _count_parts(text: str) -> int:
    return sum(1 for _ in _PART.finditer(text))


def _too_long(doc: Doc) -> ItemError:
    return ItemError(
        "invalid_input",
        f"'text' has {len(doc)} tokens, the limit is {MAX_TOKENS}: send it in parts",
    )


def _whole(span: Span, score: float) -> Entity:
    return Entity(span.label_, score, span.start_char, span.end_char, span.text)


def _tokens(doc: Doc, spans: Sequence[tuple[Span, float]]) -> list[Entity]:
    """Every token, `B-` where an entity begins, `I-` in it, `O` outside of all."""
    label_by_token: dict[int, tuple[str, float]] = {}
    for span, score in spans:
        for token in span:
            prefix = "B" if token.i == span.start else "I"
            label_by_token[token.i] = f"{prefix}-{span.label_}", score
    return [
        Entity(
            *label_by_token.get(token.i, (OUTSIDE, 1.0)),
            token.idx,
            token.idx + len(token.text),
            token.text,
        )
        for token in doc
    ]
