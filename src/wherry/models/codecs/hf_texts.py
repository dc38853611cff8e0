"""Hugging Face's shapes of tasks that read texts."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Reply
from wherry.models.codecs.embedding_sizes import MAX_DIMENSIONS, check_dimensions, shorten
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.tasks.classification import Classification, shortest_floats
from wherry.models.tasks.sentence_similarity import Comparison
from wherry.models.tasks.task import TaskInput
from wherry.models.tasks.text import Embedding, TextInput, embedding_dimensions
from wherry.models.tasks.text_ranking import Ranking, best_first
from wherry.models.tasks.token_classification import Entities, TokensInput, read_aggregation
from wherry.models.tasks.zero_shot_classification import Choice

MAX_TOP_K = 1 << 20
OLD_CLIENT = re.compile(r"\bhf_hub/0\.")
"""In `User-Agent`: huggingface_hub before 1.0."""

TopK = Annotated[int, Meta(ge=1, le=MAX_TOP_K)]


class LabelParameters(msgspec.Struct):
    """Of classifiers, of texts and of pictures."""

    top_k: TopK | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


def read_label_parameters(request: HfRequest) -> LabelParameters:
    """Refuses a function that the model's scores were not made by."""
    parameters = request.read_parameters(LabelParameters)
    wanted = parameters.function_to_apply
    own = request.config.options.get("function", "auto")
    if wanted is not None and wanted != own:
        raise InvalidInput(
            f"the scores of this model are not made by {wanted!r}",
            hint="leave it out: they are as the model's author declared them",
            param="parameters.function_to_apply",
        )
    return parameters


class ScoredLabel(msgspec.Struct):
    """One line of an answer."""

    label: str
    score: float


def scored_labels(output: Classification, top_k: int | None) -> list[ScoredLabel]:
    """Labels by descending score, at most `top_k` of them."""
    order = best_first(output.scores)[:top_k]
    shown = shortest_floats(output.scores[order])
    return [ScoredLabel(output.labels[at], score) for at, score in zip(order, shown, strict=True)]


class TextLabels:
    """`text-classification`: a list of labels a text, also where there is one text only."""

    def __init__(self, request: HfRequest) -> None:
        self._top_k = read_label_parameters(request).top_k
        self.items: list[TaskInput] = [TextInput(text) for text in request.texts()]

    def answer(self, outputs: Sequence[Classification]) -> Reply:
        """`[[{"label", "score"}, …], …]`."""
        return reply_json([scored_labels(output, self._top_k) for output in outputs])


# ------------------------------------------------------------------------------ tokens


class TokenParameters(msgspec.Struct):
    """Of `token-classification`; `stride`, for texts longer than the model, has no meaning here."""

    ignore_labels: Annotated[list[str], Meta(max_length=1024)] | None = None


class FoundEntity(msgspec.Struct, omit_defaults=True):
    """One line of an answer: `entity` of a single token, `entity_group` of tokens that were joined."""

    score: float
    word: str
    start: int
    end: int
    entity: str | None = None
    entity_group: str | None = None


class TokenLabels:
    """`token-classification`: a list of entities; for a list of texts, a list of such lists."""

    def __init__(self, request: HfRequest) -> None:
        self._aggregation = read_aggregation(request.parameters, request.config)
        self._is_many = isinstance(request.inputs, list)
        ignored = request.read_parameters(TokenParameters).ignore_labels
        self.items: list[TaskInput] = [
            TokensInput(text, self._aggregation) for text in request.texts()
        ]
        if ignored is not None:
            for item in self.items:
                item.ignored = tuple(ignored)

    def answer(self, outputs: Sequence[Entities]) -> Reply:
        """Every entity with its place in the text, in characters."""
        found = [self._lines(output) for output in outputs]
        return reply_json(found if self._is_many else found[0])

    def _lines(self, output: Entities) -> list[FoundEntity]:
        scores = shortest_floats(np.array([each.score for each in output.entities]))
        key = "entity" if self._aggregation == "none" else "entity_group"
        return [
            FoundEntity(score, each.text, each.start, each.end, **{key: each.label})
            for each, score in zip(output.entities, scores, strict=True)
        ]


# ------------------------------------------------------------------------------ vectors


class VectorParameters(msgspec.Struct):
    """Of embedders."""

    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Vectors:
    """`feature-extraction`: a vector a text."""

    def __init__(self, request: HfRequest) -> None:
        self._config = request.config
        self._parameters = read_vector_parameters(request)
        self.items = self.read_items(request)

    def read_items(self, request: HfRequest) -> list[TaskInput]:
        """What becomes a vector each."""
        return [TextInput(text) for text in request.texts()]

    def answer(self, outputs: Sequence[Embedding]) -> Reply:
        """`[[numbers], …]`."""
        return reply_json([self._show(output.vector) for output in outputs])

    def _show(self, vector: np.ndarray) -> list[float] | str:
        vector = shorten(vector, self._parameters.dimensions, self._config)
        if self._parameters.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        if self._parameters.encoding_format == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return shortest_floats(vector)


def read_vector_parameters(request: HfRequest) -> VectorParameters:
    """Refuses what would change the vectors and is not done."""
    parameters = request.read_parameters(VectorParameters)
    if parameters.prompt_name is not None:
        raise InvalidInput(
            "the model has no named prompts", hint="put it before the text", param="prompt_name"
        )
    if parameters.truncate is False and request.config.options.get("truncate", True):
        raise InvalidInput(
            "this model cuts texts that are too long",
            hint="leave 'truncate' out, or publish it with the option truncate = false",
            param="truncate",
        )
    if parameters.truncation_direction in ("left", "Left"):
        raise InvalidInput(
            "texts that are too long lose their end, not their beginning",
            hint="cut the text yourself",
            param="truncation_direction",
        )
    if parameters.dimensions is not None:
        check_dimensions(
            parameters.dimensions, embedding_dimensions(request.config), request.config
        )
    return parameters


def ask_embedder(request: HfRequest) -> Vectors | Similarities | Ranked | ChosenLabels:
    """The body says which of its questions an embedder is asked."""
    if "candidate_labels" in request.parameters:
        return ChosenLabels(request)
    if not isinstance(request.inputs, dict):
        return Vectors(request)
    return Ranked(request) if "query" in request.inputs else Similarities(request)


# ------------------------------------------------------------------------------ questions


class Similarities:
    """`sentence-similarity`: how near each sentence is to the first."""

    def __init__(self, request: HfRequest) -> None:
        fields = request.fields()
        self._question = Comparison.from_plain(
            {"source_sentence": None, "sentences": None, **fields},
            request.task.name,
            request.config,
        )
        self.items = self._question.items

    def answer(self, outputs: Sequence[Any]) -> Reply:
        """`[number, …]`, in the order of the sentences."""
        return reply_json(shortest_floats(self._question.scores(outputs)))


class RankedText(msgspec.Struct):
    """One line of an answer."""

    index: int
    score: float


class Ranked:
    """`text-ranking`: `{"query", "texts"}`."""

    def __init__(self, request: HfRequest) -> None:
        fields = request.fields()
        documents = fields.get("texts", fields.get("documents"))
        self._top_k = request.read_parameters(LabelParameters).top_k
        self._question = Ranking.from_plain(
            {"query": fields.get("query"), "documents": documents},
            request.task.name,
            request.config,
        )
        self.items = self._question.items

    def answer(self, outputs: Sequence[Any]) -> Reply:
        """`[{"index", "score"}, …]`, the best first."""
        scores = self._question.scores(outputs)
        order = best_first(scores)[: self._top_k]
        shown = shortest_floats(scores[order])
        return reply_json(
            [RankedText(at, score) for at, score in zip(order.tolist(), shown, strict=True)]
        )


class OldChoice(msgspec.Struct):
    """What clients before 1.0 read, and no others."""

    sequence: str
    labels: list[str]
    scores: list[float]


class ChosenLabels:
    """`zero-shot-classification`: the client's own labels for a text."""

    def __init__(self, request: HfRequest) -> None:
        self._text = request.text()
        self._is_old = bool(OLD_CLIENT.search(request.call.headers.get("user-agent", "")))
        self._question = Choice.from_plain(
            {"candidate_labels": None, **request.parameters, "text": self._text},
            request.task.name,
            request.config,
        )
        self.items = self._question.items

    def answer(self, outputs: Sequence[Any]) -> Reply:
        """`[{"label", "score"}, …]`, the best first; old clients' shape is another."""
        lines = scored_labels(self._question.answer(outputs), None)
        if not self._is_old:
            return reply_json(lines)
        labels, scores = [each.label for each in lines], [each.score for each in lines]
        return reply_json(OldChoice(self._text, labels, scores))
