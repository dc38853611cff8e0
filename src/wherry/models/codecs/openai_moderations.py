"""OpenAI's `/v1/moderations`, over any classifier of texts that says which labels are harmful.

The bundle's options say it: `flagged_labels` lists them, `flag_threshold` (default 0.5) is the score
from which a text is flagged. OpenAI's own categories are always there, because its clients expect
them; one that the model does not judge is false, with score 0 and no applied input type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from wherry.errors import InvalidInput
from wherry.models.codecs.codec import Call, Decoded, Reply, decode_json
from wherry.models.tasks.classification import Classification, shortest_floats
from wherry.models.tasks.task import Task, TaskConfig
from wherry.models.tasks.text import TextInput, check_text

MAX_INPUTS = 2048
"""Most texts in one request."""
FLAG_THRESHOLD = 0.5

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""OpenAI's."""


class Part(msgspec.Struct):
    """A part of an input; only texts can be judged."""

    type: str
    text: str | None = None


class ModerationsRequest(msgspec.Struct):
    """What is read of the body."""

    input: str | list[str | Part]


class ModerationResult(msgspec.Struct):
    """What is said of one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class ModerationsReply(msgspec.Struct):
    """The answer."""

    id: str
    model: str
    results: list[ModerationResult]


class OpenAIModerations:
    """Texts in, one verdict a text; of a list of parts, one for them all."""

    tasks = frozenset({"text-classification"})

    def decode(self, body: memoryview, call: Call, task: Task, config: TaskConfig) -> Decoded:
        """One item for each text or part."""
        harmful_labels(config)
        request: ModerationsRequest = decode_json(body, _decoder)
        texts, are_parts = _read_input(request.input)
        items = [
            TextInput(
                check_text(text, config, "input" if text is request.input else f"input[{at}]")
            )
            for at, text in enumerate(texts)
        ]
        return Decoded(items, are_parts)

    def encode(
        self,
        decoded: Decoded,
        outputs: Sequence[Classification],
        call: Call,
        task: Task,
        config: TaskConfig,
    ) -> Reply:
        """Verdicts in the order of the texts."""
        groups = [outputs] if decoded.context else [[output] for output in outputs]
        results = [_judge(group, config) for group in groups]
        reply = ModerationsReply(f"modr-{call.request_id}", call.deployment, results)
        return Reply(_encoder.encode(reply))


OPENAI_MODERATIONS = OpenAIModerations()
_decoder = msgspec.json.Decoder(ModerationsRequest)
_encoder = msgspec.json.Encoder()


def harmful_labels(config: TaskConfig) -> tuple[str, ...]:
    """The bundle's option `flagged_labels`.

    Raises:
        InvalidInput: it says none, so that nobody can know what its labels mean.
    """
    stated = config.options.get("flagged_labels")
    if not isinstance(stated, list | tuple) or not stated:
        raise InvalidInput(
            "the model does not say which of its labels are harmful",
            hint="say it under [options] of its wherry.toml: flagged_labels = […], of "
            + ", ".join(config.labels[:10]),
            param="model",
        )
    return tuple(map(str, stated))


def _read_input(given: str | list[str | Part]) -> tuple[list[str], bool]:
    """The texts, and whether they are parts of one input."""
    if isinstance(given, str):
        return [given], False
    if not given:
        raise InvalidInput("'input' is empty", hint="send at least one text", param="input")
    if len(given) > MAX_INPUTS:
        raise InvalidInput(
            f"'input' has {len(given)} texts, the limit is {MAX_INPUTS}", param="input"
        )
    are_parts = {isinstance(each, Part) for each in given}
    if len(are_parts) > 1:
        raise InvalidInput("'input' must be texts or parts, not a mixture", param="input")
    return [_text_of(each, at) for at, each in enumerate(given)], are_parts.pop()


def _text_of(given: str | Part, at: int) -> str:
    if isinstance(given, str):
        return given
    if given.type != "text" or given.text is None:
        raise InvalidInput(
            f"a part of type {given.type!r:.60} cannot be judged",
            hint='send {"type": "text", "text": "…"}',
            param=f"input[{at}]",
        )
    return given.text


def _judge(outputs: Sequence[Classification], config: TaskConfig) -> ModerationResult:
    """The worst of what is said of the parts."""
    harmful = harmful_labels(config)
    stated = config.options.get("flag_threshold")
    threshold = stated if isinstance(stated, int | float) else FLAG_THRESHOLD
    scores: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    known: set[str] = set()
    for output in outputs:
        shown = dict(zip(output.labels, shortest_floats(output.scores), strict=True))
        for label in harmful:
            if label in shown:
                known.add(label)
                scores[label] = max(scores.get(label, 0.0), shown[label])
    flags = {label: label in known and score >= threshold for label, score in scores.items()}
    applied: dict[str, list[Literal["text"]]] = {
        label: ["text"] if label in known else [] for label in scores
    }
    return ModerationResult(any(flags.values()), flags, scores, applied)
