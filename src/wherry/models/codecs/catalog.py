"""Names of codecs → where they are; listing them loads none."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Codec

BUILT_IN: dict[str, str] = {
    "inference": "wherry.models.codecs.inference:INFERENCE",
    "inference.grpc": "wherry.models.codecs.inference_grpc:INFERENCE_GRPC",
    "anthropic.messages": "wherry.models.codecs.anthropic_messages:ANTHROPIC_MESSAGES",
    "anthropic.count_tokens": "wherry.models.codecs.anthropic_messages:ANTHROPIC_COUNT",
    "hf": "wherry.models.codecs.hf:HF",
    "native": "wherry.models.codecs.native:NATIVE",
    "predict": "wherry.models.codecs.predict:PREDICT",
    "kserve_v1": "wherry.models.codecs.kserve_v1:KSERVE_V1",
    "mlflow": "wherry.models.codecs.mlflow:MLFLOW",
    "ollama.chat": "wherry.models.codecs.ollama_chat:OLLAMA_CHAT",
    "ollama.embed": "wherry.models.codecs.ollama_embed:OLLAMA_EMBED",
    "ollama.embeddings": "wherry.models.codecs.ollama_embed:OLLAMA_EMBEDDINGS",
    "ollama.generate": "wherry.models.codecs.ollama_generate:OLLAMA_GENERATE",
    "openai.chat": "wherry.models.codecs.openai_chat:OPENAI_CHAT",
    "openai.completions": "wherry.models.codecs.openai_completions:OPENAI_COMPLETIONS",
    "openai.embeddings": "wherry.models.codecs.openai_embeddings:OPENAI_EMBEDDINGS",
    "openai.responses": "wherry.models.codecs.openai_responses:OPENAI_RESPONSES",
    "openai.responses.count": "wherry.models.codecs.openai_responses:OPENAI_RESPONSES_COUNT",
    "openai.responses.turn": "wherry.models.codecs.openai_responses:OPENAI_RESPONSES_TURN",
    "openai.moderations": "wherry.models.codecs.openai_moderations:OPENAI_MODERATIONS",
    "rerank.v1": "wherry.models.codecs.rerank:RERANK_V1",
    "rerank.v2": "wherry.models.codecs.rerank:RERANK_V2",
    "rerank.tei": "wherry.models.codecs.rerank:RERANK_TEI",
    "openai.images": "wherry.models.codecs.openai_images:OPENAI_IMAGES",
    "openai.speech": "wherry.models.codecs.openai_speech:OPENAI_SPEECH",
    "openai.transcriptions": "wherry.models.codecs.openai_transcription:OPENAI_TRANSCRIPTIONS",
    "openai.translations": "wherry.models.codecs.openai_transcription:OPENAI_TRANSLATIONS",
}


def find_codec(name: str) -> Codec:
    """The codec by its name."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group="wherry.codecs", name=name):
        return point.load()
    raise InvalidInput(f"unknown codec {name!r}")
