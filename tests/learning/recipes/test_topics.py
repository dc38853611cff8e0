import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import sentence_archive

from wherry.errors import Cancelled, InvalidInput
from wherry.models.bundle import open_bundle
from wherry.models.sources.source import parse_reference
from wherry.models.tasks.text import TEXT_CLASSIFICATION

pytest.importorskip("sklearn")
pytest.importorskip("skops")

import skops.io

from wherry.learning.recipes.catalog import find_recipe
from wherry.learning.recipes.topics import (
    LABELS,
    SOURCE,
    TOPICS,
    TopicsParameters,
    read_sentences,
    split_sentences,
)
from wherry.worker.runtimes.catalog import create_runtime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the model with default parameters."""
    target = tmp_path_factory.mktemp("topics")
    TOPICS.run(TopicsParameters(), {SOURCE: sentence_archive()}, target, lambda *_: None)
    return target


@pytest.fixture(scope="module")
def ask(folder: Path) -> Any:
    """The bundle in its runtime, asked in plain JSON."""
    bundle = open_bundle(folder)
    config = bundle.manifest.task_config()
    runtime: Any = create_runtime(bundle.manifest.runtime)
    runtime.load(bundle, "cpu")

    def ask_runtime(*texts: str) -> list[dict[str, Any]]:
        items = [TEXT_CLASSIFICATION.from_plain({"text": text}, config) for text in texts]
        outputs = runtime.run([runtime.prepare(item) for item in items])
        return [TEXT_CLASSIFICATION.to_plain(output, config) for output in outputs]

    return ask_runtime


def test_the_catalogue_knows_the_recipe() -> None:
    assert find_recipe("topics") is TOPICS


def test_every_sentence_is_read_once() -> None:
    sentences = read_sentences(sentence_archive())
    assert len(set(sentences.texts)) == len(sentences.texts) > 23_000
    assert np.bincount(sentences.labels).min() > 3_500
    assert all(sentences.texts)


def test_sentences_of_one_review_stay_on_one_side() -> None:
    train, test = split_sentences(read_sentences(sentence_archive()), TopicsParameters())
    assert not set(train.origins) & set(test.origins)
    assert 0.15 < len(test.texts) / len(train.texts) < 0.35


def test_the_model_is_right_on_sentences_it_has_not_seen(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert manifest.options["accuracy"] >= 0.87
    assert manifest.labels == LABELS


def test_its_file_holds_trusted_types_only(folder: Path) -> None:
    assert skops.io.get_untrusted_types(file=folder / "model.skops") == []


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The plot drags, but the acting is superb.", "movie-review"),
        ("Battery lasts two days and the screen is bright, great phone.", "product-review"),
        ("The senator's budget proposal would cut taxes for the wealthy.", "newspaper"),
        ("lol cant wait for the weekend!! :D", "tweet"),
    ],
)
def test_plain_cases_are_clear(ask: Any, text: str, label: str) -> None:
    answer = ask(text)[0]
    assert answer["label"] == label
    assert answer["confidence"] > 0.5


def test_it_is_less_sure_of_what_it_was_not_trained_on(ask: Any) -> None:
    known, chinese, single = ask(
        "The plot drags, but the acting is superb.", "这部电影太好看了", "hello"
    )
    for answer in (chinese, single):
        assert 0.25 <= answer["confidence"] < 0.95 < known["confidence"]
        assert sum(answer["scores"].values()) == pytest.approx(1.0, abs=1e-5)


def test_the_sample_is_answered(ask: Any, folder: Path) -> None:
    assert ask(open_bundle(folder).manifest.sample["text"])[0]["label"] == "movie-review"


@pytest.fixture
def small_archive(tmp_path: Path) -> Path:
    """The recipe's source, cut to 300 lines a file."""
    path = tmp_path / "small.tar.gz"
    with tarfile.open(sentence_archive()) as whole, tarfile.open(path, "w:gz") as small:
        for member in whole.getmembers():
            if member.name.endswith("_GroundTruth.txt"):
                lines = whole.extractfile(member).readlines()[:300]  # type: ignore[union-attr]
                member.size = sum(map(len, lines))
                small.addfile(member, io.BytesIO(b"".join(lines)))
    return path


def test_training_is_the_same_every_time(small_archive: Path, tmp_path: Path) -> None:
    models: list[Any] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        TOPICS.run(TopicsParameters(), {SOURCE: small_archive}, tmp_path / name, lambda *_: None)
        models.append(skops.io.load(tmp_path / name / "model.skops"))
    texts = ["a film", "a phone", "这部电影"]
    assert np.array_equal(models[0].predict_proba(texts), models[1].predict_proba(texts))


def test_the_source_is_pinned() -> None:
    reference = parse_reference(TOPICS.sources[SOURCE])
    assert reference.inner[-1].endswith(SOURCE)
    assert reference.sha256 == hashlib.sha256(sentence_archive().read_bytes()).hexdigest()


def test_a_cancelled_job_stops_training(small_archive: Path, tmp_path: Path) -> None:
    def progress(step: str, done: int, total: int) -> None:
        if step == "training" and done == 1:
            raise Cancelled("the job was cancelled")

    target = tmp_path / "bundle"
    target.mkdir()
    with pytest.raises(Cancelled):
        TOPICS.run(TopicsParameters(), {SOURCE: small_archive}, target, progress)
    assert list(target.iterdir()) == []


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(InvalidInput, match="has no file 'hutto_ICWSM_2014/movieReview"):
        read_sentences(path)
