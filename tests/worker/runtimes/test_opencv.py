"""Faces: YuNet and SFace of a package, on photos of a package."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import astronaut_png, faces_npy, sface_onnx, yunet_onnx

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.runtime import ItemError

cv2 = pytest.importorskip("cv2", reason="pip install 'wherry[opencv]'")
Image = pytest.importorskip("PIL.Image")

from PIL import ImageOps  # noqa: E402 - after importorskip

from wherry.worker.runtimes.opencv import OpencvRuntime  # noqa: E402

FILES = ("yunet.onnx", "sface.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for name, path in zip(FILES, (yunet_onnx(), sface_onnx()), strict=True):
        shutil.copyfile(path, folder / name)
    return folder


class Model:
    def __init__(self, folder: Path, task: str, **options: Any) -> None:
        self.manifest = Manifest(task=task, runtime="opencv", files=FILES, options=options)
        self.runtime = OpencvRuntime()
        self.runtime.load(Bundle(folder, self.manifest), "cpu")

    def output(self, **pictures: Any) -> Any:
        body = {name: as_png(picture) for name, picture in pictures.items()}
        item = find_task(self.manifest.task).from_plain(body, self.manifest.task_config())
        return self.runtime.run([self.runtime.prepare(item)])[0]

    def ask(self, **pictures: Any) -> dict[str, Any]:
        task = find_task(self.manifest.task)
        return task.to_plain(self.output(**pictures), self.manifest.task_config())


@pytest.fixture(scope="module")
def finder(folder: Path) -> Model:
    return Model(folder, "face-detection")


@pytest.fixture(scope="module")
def knower(folder: Path) -> Model:
    return Model(folder, "face-recognition")


def as_png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def astronaut() -> Any:
    return Image.open(astronaut_png()).convert("RGB")


def people(count: int) -> list[Any]:
    """Small grey portraits of as many people, made larger."""
    grey = np.load(faces_npy())[:count]
    return [
        ImageOps.expand(Image.fromarray((each * 255).astype(np.uint8)).resize((200, 200), 3), 60)
        for each in grey
    ]


def test_a_face_is_where_it_is(finder: Model):
    (face,) = finder.ask(image=astronaut())["faces"]
    assert face["score"] > 0.9
    # pixels of the 512 x 512 picture, read off by eye
    box = [face["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
    assert box == pytest.approx([180, 60, 268, 176], abs=12)
    landmarks = face["landmarks"]
    assert landmarks["right_eye"]["x"] < landmarks["nose"]["x"] < landmarks["left_eye"]["x"]
    assert landmarks["nose"]["y"] < landmarks["mouth_left"]["y"]


def test_boxes_equal_those_of_the_library(finder: Model):
    """Parity with OpenCV's own call: nothing is scaled, so all but the last digit is equal."""
    detector = cv2.FaceDetectorYN.create(str(yunet_onnx()), "", (512, 512), 0.8, 0.3, 500)
    row = detector.detect(cv2.imread(str(astronaut_png())))[1][0]
    (face,) = finder.ask(image=astronaut())["faces"]
    left, top, right, bottom = (face["box"][each] for each in ("xmin", "ymin", "xmax", "ymax"))
    assert [left, top, right - left, bottom - top] == pytest.approx(row[:4].tolist(), rel=1e-4)
    assert face["score"] == pytest.approx(float(row[14]), rel=1e-4)


@pytest.mark.parametrize("side", [200, 512, 2400])
def test_a_large_picture_is_told_in_its_own_pixels(finder: Model, side: int):
    (face,) = finder.ask(image=astronaut().resize((side, side)))["faces"]
    assert face["box"]["xmin"] / side == pytest.approx(0.35, abs=0.03)
    assert face["box"]["ymax"] / side == pytest.approx(0.345, abs=0.03)


def test_several_faces_are_found_the_surest_first(finder: Model):
    canvas = Image.new("RGB", (1100, 512))
    canvas.paste(astronaut(), (0, 0))
    canvas.paste(ImageOps.mirror(astronaut()).resize((400, 400)), (600, 50))
    faces = finder.ask(image=canvas)["faces"]
    assert len(faces) == 2
    assert faces[0]["score"] >= faces[1]["score"]


def test_a_picture_without_faces_has_none(finder: Model, knower: Model):
    for empty in (Image.new("RGB", (90, 70), "grey"), Image.new("L", (1, 1))):
        assert finder.ask(image=empty) == {"faces": []}
        assert knower.ask(image=empty) == {"faces": []}


def test_one_person_in_two_photos_is_the_same(knower: Model):
    other = ImageOps.mirror(astronaut()).point(lambda value: int(value * 0.7))
    answer = knower.ask(image=astronaut(), other=other)
    assert answer["same"] is True
    assert answer["similarity"] > 0.9
    assert answer["threshold"] == 0.363


def test_different_people_are_told_apart(knower: Model):
    vectors = [
        face["embedding"] for person in people(16) for face in knower.ask(image=person)["faces"][:1]
    ]
    assert len(vectors) >= 8, "most portraits are found to be faces"
    likeness = np.array(vectors) @ np.array(vectors).T
    assert np.allclose(np.diag(likeness), 1.0, atol=1e-5)
    assert np.triu(likeness, 1).max() < 0.5
    assert np.mean(np.triu(likeness, 1) >= 0.363) < 0.02


def test_vectors_equal_those_of_the_library(knower: Model):
    """Parity with OpenCV's own calls; both compute in 32 bits."""
    picture = cv2.imread(str(astronaut_png()))
    detector = cv2.FaceDetectorYN.create(str(yunet_onnx()), "", (512, 512), 0.8, 0.3, 500)
    recogniser = cv2.FaceRecognizerSF.create(str(sface_onnx()), "")
    row = detector.detect(picture)[1][0]
    expected = recogniser.feature(recogniser.alignCrop(picture, row))[0]
    (face,) = knower.ask(image=astronaut())["faces"]
    assert np.array(face["embedding"]) @ expected / np.linalg.norm(expected) > 0.9999


def test_what_shows_no_face_cannot_be_compared(knower: Model):
    failed = knower.output(image=astronaut(), other=Image.new("RGB", (80, 80), "white"))
    assert failed == ItemError("invalid_input", "no face was found in 'other'")


def test_files_that_are_not_these_models_are_refused(folder: Path, tmp_path: Path):
    for name in FILES:
        shutil.copyfile(sface_onnx(), tmp_path / name)
    with pytest.raises(FormatNotAllowed, match="YuNet"):
        Model(tmp_path, "face-recognition")
    with pytest.raises(InvalidInput, match="does not do the task"):
        Model(folder, "image-classification")


@pytest.mark.parametrize("wrong", [{"threshold": "high"}, {"max_side": None}])
def test_options_that_mean_nothing_are_refused(folder: Path, wrong: dict[str, Any]):
    with pytest.raises(InvalidInput, match="option"):
        Model(folder, "face-detection", **wrong)
