"""Reranking as Jina and Cohere ask for it (`/v1/rerank`, `/v2/rerank`), and as TEI does (`/rerank`).

Any embedder answers them too, with cosines: see `wherry.models.tasks.questions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Task, TaskConfig, Usage
from wherry.models.tasks.text import check_text, check_texts
from wherry.models.tasks.text_ranking import MAX_DOCUMENTS, Ranking, best_first

TopN = Annotated[int, Meta(ge=1, le=1 << 31)]


class RerankRequest(msgspec.Struct):
    """What is read of Jina's and Cohere's bodies; other fields are the door's, or ignored."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: TopN | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None


class Document(msgspec.Struct):
    """A document of the answer."""

    text: str


class RerankResult(msgspec.Struct):
    """One line of the answer."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankUsage(msgspec.Struct):
    """As Jina tells it."""

    prompt_tokens: int
    total_tokens: int


class RerankReply(msgspec.Struct):
    """What both clients read; each ignores the other's fields."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: dict[str, Any]
    object: str = "list"


class TeiRequest(msgspec.Struct):
    """What is read of TEI's body."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class TeiResult(msgspec.Struct):
    """One line of TEI's answer."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class RerankCodec:
    """One version of the shape that Jina and Cohere share.

    Args:
        version: Of Cohere's API; told in `meta`.
    """

    tasks = Ranking.tasks

    def __init__(self, version: str) -> None:
        self._version = version

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """What the model must be asked for all documents."""
        request: RerankRequest = decode_json(body, _decoder)
        if request.rank_fields not in (None, [], ["text"]):
            raise InvalidInput(
                "documents are ranked by their field 'text' alone",
                hint="put what counts into 'text'",
                param="rank_fields",
            )
        query = check_text(request.query, config, "query")
        documents = _read_documents(request.documents, config)
        ranking = Ranking(query, documents, task.name)
        return Decoded(ranking.items, (ranking, request))

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """The best documents first."""
        ranking, request = decoded.context
        scores = ranking.scores(outputs)
        results = [
            RerankResult(
                at,
                score,
                Document(ranking.documents[at]) if request.return_documents else UNSET,
            )
            for at, score in _best(scores, request.top_n)
        ]
        tokens = _tokens(outputs)
        meta = {
            "api_version": {"version": self._version},
            "billed_units": {"input_tokens": tokens},
            "tokens": {"input_tokens": tokens},
        }
        usage = RerankUsage(tokens, tokens)
        reply = RerankReply(call.request_id, call.deployment, results, usage, meta)
        return Reply(_encoder.encode(reply))


class TeiRerankCodec:
    """The shape of Text Embeddings Inference: a list, the best first."""

    tasks = Ranking.tasks

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """What the model must be asked for all texts."""
        request: TeiRequest = decode_json(body, _tei_decoder)
        query = check_text(request.query, config, "query")
        texts = check_texts(request.texts, config, "texts", most=MAX_DOCUMENTS)
        ranking = Ranking(query, texts, task.name)
        return Decoded(ranking.items, (ranking, request))

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """All texts; `raw_scores` shows a cross-encoder's own numbers."""
        ranking, request = decoded.context
        scores = ranking.scores(outputs, raw=request.raw_scores)
        results = [
            TeiResult(at, score, ranking.documents[at] if request.return_text else UNSET)
            for at, score in _best(scores, None)
        ]
        return Reply(_encoder.encode(results))


RERANK_V1 = RerankCodec("1")
RERANK_V2 = RerankCodec("2")
RERANK_TEI = TeiRerankCodec()
_decoder = msgspec.json.Decoder(RerankRequest)
_tei_decoder = msgspec.json.Decoder(TeiRequest)
_encoder = msgspec.json.Encoder()


def _read_documents(given: Sequence[str | Mapping[str, Any]], config: TaskConfig) -> list[str]:
    """Texts of documents that are texts, or objects with `text`."""
    texts = [each if isinstance(each, str) else each.get("text") for each in given]
    return check_texts(texts, config, "documents", most=MAX_DOCUMENTS)


def _best(scores: np.ndarray, top_n: int | None) -> list[tuple[int, float]]:
    shown = shortest_floats(scores)
    return [(at, shown[at]) for at in best_first(scores).tolist()[:top_n]]


def _tokens(outputs: Sequence[Any]) -> int:
    return sum((output.usage for output in outputs), Usage()).input_tokens
