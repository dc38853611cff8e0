"""CenterFace of a package: against its authors' way of reading the maps, and on photos."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.pictures import Served, file_of, open_photo
from tests.real_models import astronaut_png, run_recipe

from wherry.models.bundle import Bundle

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BOX, SIDE = ("xmin", "ymin", "xmax", "ymax"), 640


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return run_recipe("centerface", tmp_path_factory.mktemp("centerface"))


@pytest.fixture(scope="module")
def finder(bundle: Bundle) -> Served:
    return Served(bundle)


def astronaut() -> Image.Image:
    return open_photo(astronaut_png())


def corners_of(face: dict[str, Any]) -> list[float]:
    return [face["box"][side] for side in BOX]


def read_as_the_authors(bundle: Bundle, picture: Image.Image) -> list[tuple[float, ...]]:
    """Score, box and landmarks of the surest face, as the package's `decode` computes them."""
    session = onnxruntime.InferenceSession(bundle.main_file)
    padded = np.zeros((SIDE, SIDE, 3), np.float32)
    padded[: picture.height, : picture.width] = np.asarray(picture)
    name = session.get_inputs()[0].name
    heat, scale, offset, marks = session.run(None, {name: padded.transpose(2, 0, 1)[np.newaxis]})
    row, column = np.unravel_index(heat[0, 0].argmax(), heat[0, 0].shape)
    high, wide = (math.exp(scale[0, axis, row, column]) * 4 for axis in (0, 1))
    top = (row + offset[0, 0, row, column] + 0.5) * 4 - high / 2
    left = (column + offset[0, 1, row, column] + 0.5) * 4 - wide / 2
    points = [
        (marks[0, 2 * n + 1, row, column] * wide + left, marks[0, 2 * n, row, column] * high + top)
        for n in range(5)
    ]
    return [(heat[0, 0, row, column],), (left, top, left + wide, top + high), *points]


def test_a_face_is_where_the_authors_code_finds_it(bundle: Bundle, finder: Served):
    picture = astronaut().crop((100, 20, 420, 340)).resize((SIDE, SIDE))
    (face,) = finder.ask(image=file_of(picture))["faces"]
    (score,), box, *points = read_as_the_authors(bundle, picture)
    assert face["score"] == pytest.approx(score, abs=1e-5)
    assert corners_of(face) == pytest.approx(box, abs=0.01)
    found = [(each["x"], each["y"]) for each in face["landmarks"].values()]
    assert np.allclose(found, points, atol=0.01)


def test_a_face_is_told_in_the_clients_pixels(finder: Served):
    (face,) = finder.ask(image=astronaut_png().read_bytes())["faces"]
    assert face["score"] > 0.8
    left, top, right, bottom = corners_of(face)
    assert abs(left - 177) < 12
    assert abs(top - 64) < 20
    assert abs(right - 270) < 12
    assert abs(bottom - 178) < 20
    marks = face["landmarks"]
    assert marks["right_eye"]["x"] < marks["nose"]["x"] < marks["left_eye"]["x"]
    assert marks["right_eye"]["y"] < marks["nose"]["y"] < marks["mouth_right"]["y"]
    doubled = astronaut().resize((1024, 1024))
    (large,) = finder.ask(image=file_of(doubled))["faces"]
    assert np.allclose(corners_of(large), 2 * np.array(corners_of(face)), atol=16)


def test_every_face_of_a_crowd_is_found_once(finder: Served):
    face = astronaut().crop((150, 30, 300, 200))
    crowd = Image.new("RGB", (900, 680), "grey")
    for across in range(6):
        for down in range(4):
            crowd.paste(face, (150 * across, 170 * down))
    found = finder.ask(image=file_of(crowd))["faces"]
    assert len(found) == 24
    places = {
        (round((a + c) / 300 - 0.5), round((b + d) / 340 - 0.5))
        for a, b, c, d in map(corners_of, found)
    }
    assert len(places) == 24


def test_pictures_together_are_answered_as_alone(finder: Served):
    pictures = [file_of(astronaut()), file_of(astronaut().crop((100, 0, 400, 300)))]
    together = [
        finder.task.to_plain(each, finder.config)
        for each in finder.outputs(*({"image": each} for each in pictures))
    ]
    for alone, other in zip([finder.ask(image=each) for each in pictures], together, strict=True):
        for one, two in zip(alone["faces"], other["faces"], strict=True):
            assert np.allclose(corners_of(one), corners_of(two), atol=0.01)


def test_a_wall_has_no_faces(finder: Served):
    assert finder.ask(image=file_of(Image.new("RGB", (300, 200), "white")))["faces"] == []
