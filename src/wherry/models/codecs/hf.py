"""Hugging Face's task API: what `huggingface_hub.InferenceClient` posts to the URL of a model.

`SHAPES` says how each task looks to its clients; a task that is not in it takes its plain form under
`inputs` and answers with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wherry.models.codecs.codec import Call, Decoded, Reply, StreamEncoder
from wherry.models.codecs.hf_generation import Continuation
from wherry.models.codecs.hf_pictures import (
    ChosenPictureLabels,
    MadePicture,
    Objects,
    PictureLabels,
    PictureText,
    PictureVectors,
    Segments,
)
from wherry.models.codecs.hf_request import Asked, HfRequest, read_request
from wherry.models.codecs.hf_rewriting import Summary, Translation
from wherry.models.codecs.hf_sound import SpokenText, SpokenWords
from wherry.models.codecs.hf_tables import RowLabels, RowNumbers
from wherry.models.codecs.hf_texts import (
    ChosenLabels,
    Ranked,
    Similarities,
    TextLabels,
    TokenLabels,
    ask_embedder,
)
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.task import Task, TaskConfig, TaskInput, media_of

SHAPES: dict[str, Callable[[HfRequest], Asked]] = {
    "automatic-speech-recognition": SpokenWords,
    "feature-extraction": ask_embedder,
    "image-classification": PictureLabels,
    "image-feature-extraction": PictureVectors,
    "image-segmentation": Segments,
    "image-text-to-text": Continuation,
    "image-to-text": PictureText,
    "object-detection": Objects,
    "sentence-similarity": Similarities,
    "summarization": Summary,
    "tabular-classification": RowLabels,
    "tabular-regression": RowNumbers,
    "text-classification": TextLabels,
    "text-generation": Continuation,
    "text-ranking": Ranked,
    "text-to-image": MadePicture,
    "text-to-speech": SpokenText,
    "token-classification": TokenLabels,
    "translation": Translation,
    "zero-shot-classification": ChosenLabels,
    "zero-shot-image-classification": ChosenPictureLabels,
}
"""Name of a task → what is made of a request."""


class HfCodec:
    """See the module's docstring. Its context is what is asked."""

    tasks: frozenset[str] = frozenset()

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """The items that a request asks for, by the shape of the model's task."""
        request = read_request(body, call, task, config)
        asked = SHAPES.get(task.name, PlainAnswers)(request)
        return Decoded(asked.items, asked)

    def encode(
        self, decoded: Decoded, outputs: Sequence[Any], call: Call, task: Task, config: TaskConfig
    ) -> Reply:
        """What the task's clients read."""
        return decoded.context.answer(outputs)

    def stream(self, decoded: Decoded, call: Call) -> StreamEncoder:
        """An encoder of events, where the task has them."""
        return decoded.context.stream()


HF = HfCodec()


class PlainAnswers:
    """The plain form of a task that Hugging Face's clients do not know."""

    def __init__(self, request: HfRequest) -> None:
        self._task, self._config = request.task, request.config
        inputs, key = request.inputs, media_of(request.task) or "inputs"
        fields = inputs if isinstance(inputs, dict) else {key: inputs}
        self.items: list[TaskInput] = [
            self._task.from_plain({**fields, **request.parameters}, self._config)
        ]

    def answer(self, outputs: Sequence[Any]) -> Reply:
        """The one plain object."""
        return Reply(encode_plain(self._task.to_plain(outputs[0], self._config)))
