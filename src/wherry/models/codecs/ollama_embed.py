"""Ollama's `/api/embed` and its older `/api/embeddings` ↔ the task `feature-extraction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.codecs.embedding_sizes import MAX_DIMENSIONS, check_dimensions, shorten
from wherry.models.codecs.ollama_common import KeepAlive
from wherry.models.tasks.classification import shortest_floats
from wherry.models.tasks.task import Task, TaskConfig, Usage
from wherry.models.tasks.text import Embedding, TextInput, check_text, embedding_dimensions

MAX_INPUTS = 2048


class EmbedRequest(msgspec.Struct, kw_only=True):
    """The body of `/api/embed`."""

    model: str
    input: str | Annotated[list[str], Meta(max_length=MAX_INPUTS)]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=0, le=MAX_DIMENSIONS)] | None = None
    keep_alive: KeepAlive = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """The body of `/api/embeddings`."""

    model: str
    prompt: str
    keep_alive: KeepAlive = None


_embed_decoder = msgspec.json.Decoder(EmbedRequest)
_embeddings_decoder = msgspec.json.Decoder(EmbeddingsRequest)


class OllamaEmbed:
    """Texts to vectors; `dimensions` as OpenAI's codec takes them, 0 for the model's own."""

    tasks = frozenset({"feature-extraction"})

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item for each text."""
        request: EmbedRequest = decode_json(body, _embed_decoder)
        if request.dimensions:
            check_dimensions(request.dimensions, embedding_dimensions(config), config)
        if request.truncate is False and config.options.get("truncate", True):
            raise InvalidInput(
                "this model cuts texts that are too long",
                hint="leave 'truncate' out, or publish it with the option truncate = false",
                param="truncate",
            )
        texts = [request.input] if isinstance(request.input, str) else request.input
        return Decoded([TextInput(check_text(each, config, "input")) for each in texts], request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Embedding],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """Vectors in the order of the texts."""
        request: EmbedRequest = decoded.context
        wanted = request.dimensions or None
        answer: dict[str, Any] = {
            "model": request.model,
            "embeddings": [
                shortest_floats(shorten(output.vector, wanted, config)) for output in outputs
            ],
            "prompt_eval_count": sum((each.usage for each in outputs), Usage()).input_tokens,
        }
        return Reply(msgspec.json.encode(answer))


class OllamaEmbeddings:
    """One text to its vector."""

    tasks = frozenset({"feature-extraction"})

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The one text."""
        request: EmbeddingsRequest = decode_json(body, _embeddings_decoder)
        return Decoded([TextInput(check_text(request.prompt, config, "prompt"))], request)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Embedding],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """Its vector."""
        return Reply(msgspec.json.encode({"embedding": shortest_floats(outputs[0].vector)}))


OLLAMA_EMBED = OllamaEmbed()
OLLAMA_EMBEDDINGS = OllamaEmbeddings()
