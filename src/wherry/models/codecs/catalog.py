"""Names of codecs → where they are; listing them loads none."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Codec

BUILT_IN: dict[str, str] = {
    "inference": "wherry.models.codecs.inference:INFERENCE",
    "predict": "wherry.models.codecs.predict:PREDICT",
    "openai.chat": "wherry.models.codecs.openai_chat:OPENAI_CHAT",
    "openai.completions": "wherry.models.codecs.openai_completions:OPENAI_COMPLETIONS",
    "openai.embeddings": "wherry.models.codecs.openai_embeddings:OPENAI_EMBEDDINGS",
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
