import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import digits_csv

from wherry.errors import Cancelled, InvalidInput
from wherry.models.bundle import open_bundle
from wherry.models.sources.source import parse_reference
from wherry.models.tasks.image_classification import IMAGE_CLASSIFICATION

pytest.importorskip("sklearn")
pytest.importorskip("skops")
Image = pytest.importorskip("PIL.Image")

import skops.io  # noqa: E402 - after importorskip

from wherry.learning.recipes.catalog import find_recipe  # noqa: E402
from wherry.learning.recipes.digits import (  # noqa: E402
    DIGITS,
    SOURCE,
    DigitsParameters,
    read_pictures,
    shift_pictures,
)
from wherry.learning.recipes.recipe import read_parameters  # noqa: E402
from wherry.worker.runtimes.catalog import create_runtime  # noqa: E402

QUICK = DigitsParameters(passes=40, hidden=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a quickly trained model."""
    target = tmp_path_factory.mktemp("digits")
    DIGITS.run(QUICK, {SOURCE: digits_csv()}, target, lambda *_: None)
    return target


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    return read_pictures(digits_csv())


class Served:
    """The bundle in its runtime, asked in plain JSON."""

    def __init__(self, folder: Path) -> None:
        bundle = open_bundle(folder)
        self.config = bundle.manifest.task_config()
        self.runtime: Any = create_runtime(bundle.manifest.runtime)
        self.runtime.load(bundle, "cpu")

    def ask(self, *images: Any) -> list[dict[str, Any]]:
        bodies = [json.loads(json.dumps({"image": image})) for image in images]
        items = [IMAGE_CLASSIFICATION.from_plain(body, self.config) for body in bodies]
        outputs = self.runtime.run([self.runtime.prepare(item) for item in items])
        return [IMAGE_CLASSIFICATION.to_plain(output, self.config) for output in outputs]

    def accuracy(self, images: list[Any], digits: np.ndarray) -> float:
        found = [int(answer["label"]) for answer in self.ask(*images)]
        return float(np.mean(np.array(found) == digits))


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder)


def test_the_catalogue_knows_the_recipe() -> None:
    assert find_recipe("digits") is DIGITS


def test_the_source_is_five_hundred_of_each_digit(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    images, digits = pictures
    assert images.shape == (5000, 28, 28)
    assert np.bincount(digits).tolist() == [500] * 10


def test_the_model_is_right_on_pictures_it_has_not_seen(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert manifest.options["accuracy"] >= 0.93
    assert f"{manifest.options['accuracy']:.3f}" in manifest.description


def test_its_file_holds_trusted_types_only(folder: Path) -> None:
    assert skops.io.get_untrusted_types(file=folder / "model.skops") == []


def test_the_sample_is_answered(served: Served, folder: Path) -> None:
    answer = served.ask(open_bundle(folder).manifest.sample["image"])[0]
    assert answer["label"] in "0123456789"
    assert answer["confidence"] == max(answer["scores"].values())
    assert sum(answer["scores"].values()) == pytest.approx(1.0, abs=1e-5)


def test_pictures_of_any_form_are_recognised(
    served: Served, pictures: tuple[np.ndarray, np.ndarray]
) -> None:
    images, digits = pictures[0][::10], pictures[1][::10]
    floats = [(image / 255).tolist() for image in images]
    assert served.accuracy(floats, digits) >= 0.94  # most were trained on
    assert served.accuracy([image.tolist() for image in images], digits) >= 0.94
    paper = [(1 - image / 255).tolist() for image in images]
    assert served.accuracy(paper, digits) >= 0.94
    colour = [np.repeat(image[:, :, np.newaxis], 3, axis=2).tolist() for image in images[::5]]
    assert served.accuracy(colour, digits[::5]) >= 0.9
    large = [np.asarray(Image.fromarray(image).resize((90, 90))).tolist() for image in images[::5]]
    assert served.accuracy(large, digits[::5]) >= 0.9


def test_the_source_is_pinned() -> None:
    reference = parse_reference(DIGITS.sources[SOURCE])
    assert reference.inner[-1].endswith(SOURCE)
    assert reference.sha256 == hashlib.sha256(digits_csv().read_bytes()).hexdigest()


def test_training_is_the_same_every_time(tmp_path: Path) -> None:
    quick = DigitsParameters(passes=2, hidden=16)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        DIGITS.run(quick, {SOURCE: digits_csv()}, tmp_path / name, lambda *_: None)
    one, two = (skops.io.load(tmp_path / name / "model.skops") for name in ("one", "two"))
    assert all(np.array_equal(a, b) for a, b in zip(one.coefs_, two.coefs_, strict=True))


def test_shifts_move_pictures_whole() -> None:
    dot = np.zeros((50, 28, 28), dtype=np.uint8)
    dot[:, 14, 14] = 9
    moved = shift_pictures(dot, 2, np.random.default_rng(0))
    _, rows, columns = np.nonzero(moved)
    assert len(rows) == 50
    assert set(rows) == set(columns) == {12, 13, 14, 15, 16}
    assert np.array_equal(shift_pictures(dot, 0, np.random.default_rng(0)), dot)


def test_a_cancelled_job_stops_training(tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(step: str, done: int, total: int) -> None:
        seen.append(done)
        if step == "training" and done == 1:
            raise Cancelled("the job was cancelled")

    with pytest.raises(Cancelled):
        DIGITS.run(QUICK, {SOURCE: digits_csv()}, tmp_path, progress)
    assert max(seen) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"passes": 0}, {"hidden": 1 << 30}, {"epochs": 3}])
def test_parameters_out_of_bounds_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="parameters of recipe 'digits'"):
        read_parameters(DIGITS, values)
