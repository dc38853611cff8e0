"""Hugging Face's shapes of tasks that write a text anew: `translation` and `summarization`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry.models.codecs.codec import Reply
from wherry.models.codecs.hf_request import HfRequest, reply_json
from wherry.models.tasks.text_to_text import (
    SUMMARIZATION,
    TRANSLATION,
    TextToText,
    TextToTextOutput,
)

NAMES = {
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "min_length": "min_tokens",
    "min_new_tokens": "min_tokens",
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
}
"""What `transformers` calls a setting → what the task calls it."""


class RewritingParameters(msgspec.Struct):
    """What is read beside the settings."""

    src_lang: str | None = None
    tgt_lang: str | None = None
    generate_parameters: dict[str, Any] | None = None


class RewrittenText:
    """Texts out of texts; the answer is a list, also for one."""

    task: TextToText

    def __init__(self, request: HfRequest) -> None:
        asked = request.read_parameters(RewritingParameters)
        given = {**request.parameters, **(asked.generate_parameters or {})}
        settings = {NAMES[name]: value for name, value in given.items() if name in NAMES}
        languages = {"source_language": asked.src_lang, "target_language": asked.tgt_lang}
        self.items = [
            self.task.from_plain({**settings, **languages, "text": text}, request.config)
            for text in request.texts()
        ]

    def answer(self, outputs: Sequence[TextToTextOutput]) -> Reply:
        """`[{"translation_text"}]`, or `summary_text`."""
        return reply_json([{self.task.output_key: output.text} for output in outputs])


class Translation(RewrittenText):
    """`translation`."""

    task = TRANSLATION


class Summary(RewrittenText):
    """`summarization`."""

    task = SUMMARIZATION
