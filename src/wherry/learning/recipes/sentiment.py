# pyright: standard
"""The recipe `sentiment`: is a sentence for or against something?

Learned from sentences of reviews, newspapers and tweets that people rated from -4 to 4; the label is
the sign of their mean. Those near zero are left out: people do not agree on them either.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from sklearn.model_selection import GroupShuffleSplit

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.learning.recipes.sentence_classifier import (
    ENCODER_SOURCES,
    MAX_TOKENS,
    Encoder,
    LabelledTexts,
    calibrate_head,
    fit_head,
    measure,
    reliability,
    write_classifier,
)
from wherry.learning.recipes.topics import SOURCE, TOPICS, file_by_label, read_member
from wherry.models.bundle import Manifest

LABELS = ("negative", "positive")
CALIBRATION_SHARE = 0.15
LEAST_RATING = 0.5
"""Sentences nearer to zero say neither."""


class SentimentParameters(Parameters):
    """How the model is trained."""

    regularisation: Annotated[float, Meta(gt=0, le=1000.0)] = 1.0
    """Strength: larger is smoother."""
    most_texts: Annotated[int, Meta(ge=0, le=1 << 20)] = 10_000
    """So many sentences are used; 0 = all 19 000, which takes minutes for a point of accuracy."""
    test_share: Annotated[float, Meta(ge=0.1, le=0.5)] = 0.2
    """Share of the reviews, articles and tweets that the accuracy is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Decides which sentences are used, and for what."""


class SentimentRecipe:
    """See the module's docstring."""

    name = "sentiment"
    summary = (
        "for or against: English sentences of reviews, newspapers and tweets (10 000, minutes)"
    )
    parameters = SentimentParameters
    sources: Mapping[str, str] = {**ENCODER_SOURCES, SOURCE: TOPICS.sources[SOURCE]}

    def run(
        self,
        parameters: SentimentParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train, calibrate, measure, write the bundle."""
        rated, origins = read_rated(sources[SOURCE])
        chosen = np.random.default_rng(parameters.seed).permutation(len(rated.texts))
        chosen = chosen[: parameters.most_texts or None]
        rated, origins = take(rated, chosen), origins[chosen]
        vectors = Encoder(sources, target).embed(list(rated.texts), progress, "reading sentences")
        train, held, test = split(origins, parameters)
        head = fit_head(vectors[train], rated.labels[train], parameters.regularisation)
        head = calibrate_head(head, vectors[held], rated.labels[held])
        found, labels = head.probabilities(vectors[test]), rated.labels[test]
        write_classifier(target, head)
        return write_manifest(
            target, describe_model(measure(found, labels), reliability(found, labels))
        )


SENTIMENT = SentimentRecipe()


def read_rated(path: Path) -> tuple[LabelledTexts, np.ndarray]:
    """Every sentence once that is clearly rated, and the review, article or tweet it is from."""
    found: dict[str, tuple[int, str]] = {}
    with tarfile.open(path) as archive:
        for kind, name in file_by_label.items():
            for line in read_member(archive, f"hutto_ICWSM_2014/{name}").splitlines():
                # a review 12 has sentences 12_1, 12_2
                identifier, rating, sentence = line.split("\t", 2)
                text = sentence.strip()
                if text and abs(float(rating)) >= LEAST_RATING:
                    origin = f"{kind} {identifier.partition('_')[0]}"
                    found.setdefault(text, (int(float(rating) > 0), origin))
    labels, origins = zip(*found.values(), strict=True)
    texts = np.array(list(found), dtype=object)
    return LabelledTexts(texts, np.array(labels)), np.array(origins)


def take(texts: LabelledTexts, rows: np.ndarray) -> LabelledTexts:
    """The texts in these rows."""
    return LabelledTexts(texts.texts[rows], texts.labels[rows])


def split(
    origins: np.ndarray, parameters: SentimentParameters
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to learn from, to calibrate on and to measure; what one person wrote is on one side."""
    others, test = _split_groups(origins, parameters.test_share, parameters.seed)
    train, held = _split_groups(origins[others], CALIBRATION_SHARE, parameters.seed)
    return others[train], others[held], test


def _split_groups(groups: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    return next(splitter.split(groups, groups=groups))


def describe_model(found: Mapping[str, float], table: list[tuple[float, float, int]]) -> Manifest:
    """The manifest of the trained model."""
    options: dict[str, Any] = {
        "max_tokens": MAX_TOKENS,
        **found,
        "reliability": [list(row) for row in table],
    }
    return Manifest(
        task="text-classification",
        runtime="onnx",
        description="Whether an English sentence is for or against something: of unseen ones "
        f"{found['accuracy']:.1%} right; scores are off by {found['calibration_error']:.1%} in the "
        "mean.",
        licence="Apache-2.0 AND MIT",
        source="recipe:sentiment",
        languages=("en",),
        good_at="single English sentences of reviews, newspapers and tweets",
        bad_at="irony, mixed feelings and neutral sentences, for which it has no label; other "
        "languages; whole reviews of many sentences",
        labels=LABELS,
        files=tuple(ENCODER_SOURCES),
        options=options,
        sample={"text": "The plot drags, but the acting is superb."},
    )
