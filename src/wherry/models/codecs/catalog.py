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
    "predict": "wherry.models.codecs.predict:PREDICT",
    "openai.chat": "wherry.models.codecs.openai_chat:OPENAI_CHAT",
    "openai.completions": "wherry.models.codecs.openai_completions:OPENAI_COMPLETIONS",
    "openai.embeddings": "wherry.models.codecs.openai_embeddings:OPENAI_EMBEDDINGS",
    "openai.images": "wherry.models.codecs.openai_images:OPENAI_IMAGES",
}


def find_codec(name: str) -> Codec:
    """The codec by its name."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group="wherry.codecs", name=name):
        return point.load()
    raise InvalidInput(f"unknown codec {name!r}")
