"""The task `zero-shot-classification`: which of the client's own labels fits a text.

A model that was trained to tell whether one sentence follows from another (NLI) is asked of each
label whether the text entails "This example is LABEL."; an embedder, how near the two are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wherry.errors import InvalidInput
from wherry.models.tasks.classification import (
    Classification,
    classification_to_plain,
    shortest_floats,
    sigmoid,
    softmax,
)
from wherry.models.tasks.task import (
    Signature,
    TaskConfig,
    TaskInput,
    TaskOutput,
    Tensors,
    TensorSpec,
    Usage,
)
from wherry.models.tasks.text import TextInput, check_text, check_texts, cosines
from wherry.models.tasks.text_pair import TextPair, pair_from_plain, pairs_from_tensors

MAX_CANDIDATES = 256
"""Most labels of one text."""
MAX_TEMPLATE_CHARACTERS = 1000
TEMPLATE = "This example is {}."
"""Hugging Face's own."""
TEMPERATURE = 0.05
"""Of an embedder's cosines; the bundle's option `zero_shot_temperature`. Measured on MiniLM, see
docs/tasks/zero-shot-classification.md."""
THRESHOLD = 0.1
"""Cosine from which a label by itself rather holds; the bundle's option `zero_shot_threshold`."""
KEYS = ("text", "hypothesis")


class Entailment(TaskOutput, kw_only=True):
    """Whether the second text follows from the first, as the model's logits."""

    entailment: float
    contradiction: float


class ZeroShotClassification:
    """Two texts in, whether the second follows from the first out; `Choice` asks it of labels."""

    name = "zero-shot-classification"
    input_type = TextPair
    output_type = Entailment

    def signature(self, config: TaskConfig) -> Signature:
        """Texts and hypotheses in; the logits of entailment and contradiction out."""
        inputs = tuple(TensorSpec(key, "BYTES", (-1,)) for key in KEYS)
        outputs = (
            TensorSpec("entailment", "FP32", (-1,)),
            TensorSpec("contradiction", "FP32", (-1,)),
        )
        return Signature(inputs, outputs)

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[TextPair]:
        """One item for each text and its hypothesis."""
        return pairs_from_tensors(tensors, KEYS, config)

    def to_tensors(
        self, outputs: Sequence[Entailment], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """The tensors `entailment` and `contradiction`, FP32 [rows]."""
        return {
            name: np.array([getattr(output, name) for output in outputs], dtype=np.float32)
            for name in ("entailment", "contradiction")
        }

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> TextPair:
        """`{"text": "…", "hypothesis": "…"}`; with `candidate_labels` see `Choice`."""
        return pair_from_plain(body, KEYS, config)

    def to_plain(self, output: Entailment, config: TaskConfig) -> dict[str, Any]:
        """`{"entailment": probability}`, of entailment against contradiction."""
        logit = np.array([output.entailment - output.contradiction])
        return {"entailment": shortest_floats(sigmoid(logit))[0]}


ZERO_SHOT_CLASSIFICATION = ZeroShotClassification()


class Choice:
    """A text and candidate labels, for an NLI model or an embedder.

    Args:
        text: What is to be labelled.
        labels: The client's own.
        task: Of the model: `zero-shot-classification` or `feature-extraction`.
        config: Of the model.
        multi_label: Whether any number of labels may hold, each by itself.
        template: A sentence with `{}` where the label belongs.
    """

    tasks = frozenset({ZERO_SHOT_CLASSIFICATION.name, "feature-extraction"})
    key = "candidate_labels"

    def __init__(
        self,
        text: str,
        labels: Sequence[str],
        task: str,
        config: TaskConfig,
        *,
        multi_label: bool = False,
        template: str = TEMPLATE,
    ) -> None:
        self.labels = tuple(labels)
        self.items: list[TaskInput]
        self._config = config
        self._is_alone = multi_label or len(labels) == 1
        self._reads_pairs = task == ZERO_SHOT_CLASSIFICATION.name
        hypotheses = [template.replace("{}", label) for label in labels]
        if self._reads_pairs:
            self.items = [TextPair(text, hypothesis) for hypothesis in hypotheses]
        else:
            self.items = [TextInput(text), *map(TextInput, hypotheses)]

    @classmethod
    def from_plain(cls, body: Mapping[str, Any], task: str, config: TaskConfig) -> Choice:
        """`{"text": "…", "candidate_labels": […], "multi_label"?, "hypothesis_template"?}`."""
        text = check_text(body.get("text"), config, "text")
        labels = check_labels(body["candidate_labels"], config)
        multi_label = body.get("multi_label", False)
        if not isinstance(multi_label, bool):
            raise InvalidInput("'multi_label' must be true or false", param="multi_label")
        template = check_template(body.get("hypothesis_template", TEMPLATE), config)
        return cls(text, labels, task, config, multi_label=multi_label, template=template)

    def answer(self, outputs: Sequence[Any]) -> Classification:
        """A score for each label, in the client's order; they sum to 1 unless each is alone."""
        if self._reads_pairs:
            logits = np.array([each.entailment for each in outputs])
            against = np.array([each.contradiction for each in outputs])
            scores = sigmoid(logits - against) if self._is_alone else softmax(logits)
        else:
            near = cosines(outputs) / self._option("zero_shot_temperature", TEMPERATURE)
            middle = self._option("zero_shot_threshold", THRESHOLD)
            middle /= self._option("zero_shot_temperature", TEMPERATURE)
            scores = sigmoid(near - middle) if self._is_alone else softmax(near)
        usage = sum((each.usage for each in outputs), Usage())
        return Classification(labels=self.labels, scores=scores.astype(np.float32), usage=usage)

    def to_plain(self, outputs: Sequence[Any]) -> dict[str, Any]:
        """As of a classifier with these labels."""
        return classification_to_plain(self.answer(outputs))

    def _option(self, name: str, default: float) -> float:
        stated = self._config.options.get(name, default)
        return float(stated) if isinstance(stated, int | float) and stated > 0 else default


def check_labels(values: object, config: TaskConfig) -> list[str]:
    """Candidate labels: a list, or a text that separates them by commas, as Hugging Face takes."""
    listed = [each.strip() for each in values.split(",")] if isinstance(values, str) else values
    labels = check_texts(listed, config, "candidate_labels", most=MAX_CANDIDATES)
    if len(set(labels)) != len(labels):
        raise InvalidInput("a label comes twice", param="candidate_labels")
    return labels


def check_template(value: object, config: TaskConfig) -> str:
    """A sentence with one place for the label."""
    template = check_text(value, config, "hypothesis_template")
    if template.count("{}") != 1 or len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidInput(
            "'hypothesis_template' must hold '{}' once",
            hint=f"as in {TEMPLATE!r}",
            param="hypothesis_template",
        )
    return template
