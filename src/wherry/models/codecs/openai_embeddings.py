"""OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.embedding_sizes import MAX_DIMENSIONS, check_dimensions, shorten
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Task, TaskConfig, Usage
from wherry.models.tasks.text import (
    Embedding,
    TextInput,
    check_text,
    check_token_ids,
    embedding_dimensions,
)

MAX_INPUTS = 2048
"""Most texts in one request: OpenAI's own limit."""


class EmbeddingsRequest(msgspec.Struct):
    """What is read of the body; other fields (`model`, `user` …) are the door's, or ignored."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None


class EmbeddingItem(msgspec.Struct):
    """One vector of the answer."""

    object: str
    index: int
    embedding: list[float] | str


class TokenUsage(msgspec.Struct):
    """What the request cost."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct):
    """The answer."""

    object: str
    data: list[EmbeddingItem]
    model: str
    usage: TokenUsage


_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_encoder = msgspec.json.Encoder()


class OpenAIEmbeddings:
    """Texts, or token ids, to vectors.

    `dimensions` other than the model's own are refused unless the bundle's option `shortenable`
    says that its vectors may be cut (Matryoshka models); cut vectors are scaled to length 1.
    """

    tasks = frozenset({"feature-extraction", "image-feature-extraction"})
    """The second, where the model takes texts, too."""

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item for each text."""
        request: EmbeddingsRequest = decode_json(body, _decoder)
        if request.dimensions is not None:
            check_dimensions(request.dimensions, embedding_dimensions(config), config)
        return Decoded(_read_items(request.input, config), request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Embedding],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """Vectors in the order of the texts."""
        request: EmbeddingsRequest = decoded.context
        data = [
            EmbeddingItem("embedding", index, _encode_vector(output.vector, request, config))
            for index, output in enumerate(outputs)
        ]
        tokens = sum((output.usage for output in outputs), Usage()).input_tokens
        reply = EmbeddingsReply("list", data, call.deployment, TokenUsage(tokens, tokens))
        return Reply(_encoder.encode(reply))


OPENAI_EMBEDDINGS = OpenAIEmbeddings()


def _read_items(given: str | list[str | int | list[int]], config: TaskConfig) -> list[TextInput]:
    if isinstance(given, str):
        return [TextInput(check_text(given, config, "input"))]
    if not given:
        raise InvalidInput("'input' is empty", hint="send at least one text", param="input")
    kinds = {type(each) for each in given}
    if len(kinds) > 1:
        raise InvalidInput(
            "'input' must be a text, a list of texts, or token ids, not a mixture", param="input"
        )
    if kinds == {int}:
        return [TextInput(token_ids=check_token_ids(given, "input"))]
    if len(given) > MAX_INPUTS:
        raise InvalidInput(
            f"'input' has {len(given)} texts, the limit is {MAX_INPUTS}", param="input"
        )
    return [_read_item(each, config) for each in given]


def _read_item(given: Any, config: TaskConfig) -> TextInput:
    if isinstance(given, str):
        return TextInput(check_text(given, config, "input"))
    return TextInput(token_ids=check_token_ids(given, "input"))


def _encode_vector(
    vector: np.ndarray, request: EmbeddingsRequest, config: TaskConfig
) -> list[float] | str:
    vector = shorten(vector, request.dimensions, config)
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return shortest_floats(vector)
