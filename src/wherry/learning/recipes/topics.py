# pyright: standard
"""The recipe `topics`: does a sentence come from a film review, a shop, a newspaper or a tweet?

Words and letter sequences are hashed, not listed: the model stays small, has no word it does not
know, and takes languages without spaces (Chinese becomes its letter sequences).
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import sklearn
import skops.io
from msgspec import Meta
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from wherry.errors import InvalidInput
from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest

SOURCE = "hutto_ICWSM_2014.tar.gz"
FILE = "model.skops"
MAX_MEMBER_BYTES = 16 << 20

file_by_label = {
    "movie-review": "movieReviewSnippets_GroundTruth.txt",
    "product-review": "amazonReviewSnippets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}
"""The label is where a sentence comes from."""
LABELS = tuple(file_by_label)


class TopicsParameters(Parameters):
    """How the model is trained."""

    passes: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Times that all sentences are seen."""
    regularisation: Annotated[float, Meta(gt=0, le=1.0)] = 3e-6
    """Strength (`alpha`): larger is smoother and less sure."""
    test_share: Annotated[float, Meta(ge=0.1, le=0.5)] = 0.2
    """Share of the reviews, articles and tweets that the accuracy is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Decides which those are, and the order of training."""


class Sentences(NamedTuple):
    """Sentences with their label's number, and the text each was cut from."""

    texts: np.ndarray
    labels: np.ndarray
    origins: np.ndarray

    def take(self, rows: np.ndarray) -> Sentences:
        """The sentences in these rows."""
        return Sentences(self.texts[rows], self.labels[rows], self.origins[rows])


class TopicsRecipe:
    """See the module's docstring."""

    name = "topics"
    summary = "where a sentence comes from: film review, shop, newspaper, tweet (23 600, seconds)"
    parameters = TopicsParameters
    sources: Mapping[str, str] = {
        SOURCE: f"pypi:vaderSentiment==3.3.2!/vaderSentiment-3.3.2/additional_resources/{SOURCE}"
        "#sha256=d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
    }

    def run(
        self,
        parameters: TopicsParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train, measure, write the bundle."""
        progress("reading", 0, parameters.passes)
        train, test = split_sentences(read_sentences(sources[SOURCE]), parameters)
        model = train_model(train, parameters, progress)
        accuracy = float(np.mean(model.predict(test.texts) == test.labels))
        skops.io.dump(model, target / FILE)
        return write_manifest(target, describe_model(accuracy))


TOPICS = TopicsRecipe()


def read_sentences(path: Path) -> Sentences:
    """Every sentence once; the archive's members are read, never unpacked to disk."""
    found: dict[str, tuple[int, str]] = {}
    with tarfile.open(path) as archive:
        for number, label in enumerate(LABELS):
            text = read_member(archive, f"hutto_ICWSM_2014/{file_by_label[label]}")
            for line in text.splitlines():
                # identifier, mean rating, sentence; a review 12 has sentences 12_1, 12_2 …
                identifier, _, sentence = line.split("\t", 2)
                origin = f"{label} {identifier.partition('_')[0]}"
                found.setdefault(sentence.strip(), (number, origin))
    labels, origins = zip(*found.values(), strict=True)
    return Sentences(np.array(list(found), dtype=object), np.array(labels), np.array(origins))


def read_member(archive: tarfile.TarFile, name: str) -> str:
    """A text of the archive; it has a few bytes that are not UTF-8."""
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise InvalidInput(
            f"the archive has no file {name!r}", hint="it is not the recipe's source"
        )
    with file:
        return file.read(MAX_MEMBER_BYTES).decode("utf-8", errors="replace")


def split_sentences(
    sentences: Sentences, parameters: TopicsParameters
) -> tuple[Sentences, Sentences]:
    """For training and for measuring; sentences of one review are on the same side."""
    splitter = GroupShuffleSplit(
        n_splits=1, test_size=parameters.test_share, random_state=parameters.seed
    )
    train, test = next(splitter.split(sentences.texts, groups=sentences.origins))
    return sentences.take(train), sentences.take(test)


def train_model(sentences: Sentences, parameters: TopicsParameters, progress: Progress) -> Pipeline:
    """A fitted pipeline, texts in. Its averaged log-loss weights give calibrated scores."""
    hashing: dict[str, Any] = {"n_features": 1 << 16, "alternate_sign": False, "dtype": np.float32}
    features = make_pipeline(
        make_union(
            HashingVectorizer(ngram_range=(1, 2), **hashing),
            HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), **hashing),
        ),
        TfidfTransformer(sublinear_tf=True),
    )
    matrix = features.fit_transform(sentences.texts)
    classifier = SGDClassifier(
        loss="log_loss",
        alpha=parameters.regularisation,
        average=True,
        random_state=parameters.seed,
    )
    for done in range(parameters.passes):
        progress("training", done, parameters.passes)
        classifier.partial_fit(matrix, sentences.labels, classes=np.arange(len(LABELS)))
    progress("training", parameters.passes, parameters.passes)
    return make_pipeline(features, classifier)


def describe_model(accuracy: float) -> Manifest:
    """The manifest of the trained model."""
    return Manifest(
        task="text-classification",
        runtime="sklearn",
        description="Where an English sentence comes from: a film review, a product review, a "
        f"newspaper or a tweet; accuracy {accuracy:.3f} on unseen ones.",
        licence="MIT",
        source="recipe:topics",
        languages=("en",),
        good_at="whole English sentences",
        bad_at="single words, other languages, and sentences from anywhere else",
        labels=LABELS,
        files=(FILE,),
        options={"accuracy": round(accuracy, 4), "sklearn_version": sklearn.__version__},
        sample={"text": "The plot drags, but the acting is superb."},
    )
