"""Boxes: as a slow reading of the outputs finds them, and where the client's picture has them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.bad_pictures import lying_file
from tests.pictures import Served, corners, file_of, open_photo, overlap
from tests.real_models import catalog_folder, photo, run_recipe

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle, Manifest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - after importorskip

Box = tuple[int, float, list[float]]
"""Class, score, corners."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return run_recipe("nanodet", tmp_path_factory.mktemp("nanodet"))


@pytest.fixture(scope="module")
def nanodet(bundle: Bundle) -> Served:
    return Served(bundle)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(catalog_folder("layout", tmp_path_factory.mktemp("layout")))


def best(served: Served, label: str, picture: bytes, **body: Any) -> list[float]:
    """The surest box of a label."""
    found = served.ask(image=picture, **body)["objects"]
    assert label in [each["label"] for each in found], found
    return corners(next(each["box"] for each in found if each["label"] == label))


# ------------------------------------------------------------------------------ real answers


@pytest.mark.parametrize(
    ("name", "label", "box"),
    [
        ("astronaut", "person", [15, 14, 364, 507]),
        ("motorcycle_left", "motorcycle", [106, 77, 688, 454]),
        ("coffee", "cup", [140, 11, 427, 398]),
    ],
)
def test_what_is_on_a_photo_is_found_where_it_is(
    nanodet: Served, name: str, label: str, box: list[float]
) -> None:
    assert overlap(best(nanodet, label, photo(name).read_bytes()), box) > 0.9


def test_wrong_numbers_for_pixels_would_call_the_cup_something_else(
    bundle: Bundle, nanodet: Served
) -> None:
    # what the bundle says about pixels matters: the usual 0 to 1 in RGB does not find the cup
    wrong = {"channel_order": "RGB", "pixel_scale": 1 / 255, "mean": [0.0], "std": [1.0]}
    options = {**bundle.manifest.options, **wrong}
    manifest = msgspec.structs.replace(bundle.manifest, options=options)
    found = Served(msgspec.structs.replace(bundle, manifest=manifest)).ask(
        image=photo("coffee").read_bytes(), threshold=0.2
    )
    assert found["objects"][:1] == [] or found["objects"][0]["label"] != "cup"
    right = nanodet.ask(image=photo("coffee").read_bytes(), threshold=0.2)
    assert right["objects"][0]["label"] == "cup"


def test_the_parts_of_a_page_are_found(layout: Served) -> None:
    found = layout.ask(image=photo("page").read_bytes())
    assert (found["height"], found["width"]) == (191, 384)
    heading, paragraph = (corners(each["box"]) for each in found["objects"])
    assert overlap(heading, [11, 13, 291, 34]) > 0.9
    assert overlap(paragraph, [1, 49, 381, 137]) > 0.9


def test_a_picture_of_nothing_has_no_boxes(nanodet: Served) -> None:
    assert nanodet.ask(image=file_of(Image.new("RGB", (640, 480), "white")))["objects"] == []


def test_the_client_chooses_how_sure_and_how_many(nanodet: Served) -> None:
    picture = photo("chelsea").read_bytes()
    many = nanodet.ask(image=picture, threshold=0.05)["objects"]
    scores = [each["score"] for each in many]
    assert len(many) > 3
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.05
    assert nanodet.ask(image=picture, threshold=0.05, max_boxes=2)["objects"] == many[:2]
    assert nanodet.ask(image=picture, threshold=1)["objects"] == []


# ------------------------------------------------------------------------------ the same scene


def test_a_larger_or_smaller_file_of_the_same_scene_gives_the_same_box(nanodet: Served) -> None:
    scene = open_photo(photo("motorcycle_left"))
    box = best(nanodet, "motorcycle", file_of(scene))
    for factor in (0.5, 0.7, 4.0):
        size = (round(scene.width * factor), round(scene.height * factor))
        found = best(nanodet, "motorcycle", file_of(scene.resize(size), "JPEG", quality=95))
        assert overlap([value / factor for value in found], box) > 0.9, factor


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_lies_on_its_side_has_boxes_of_the_upright_one(
    nanodet: Served, orientation: int
) -> None:
    scene = open_photo(photo("motorcycle_left"))
    box = best(nanodet, "motorcycle", file_of(scene, "JPEG", quality=95))
    file = lying_file(scene, orientation, "JPEG")
    answer = nanodet.ask(image=file)
    assert (answer["width"], answer["height"]) == scene.size
    assert overlap(best(nanodet, "motorcycle", file), box) > 0.95


def test_a_letterbox_of_another_size_leaves_boxes_where_they_are(
    bundle: Bundle, nanodet: Served
) -> None:
    scene = open_photo(photo("motorcycle_left"))
    box = best(nanodet, "motorcycle", file_of(scene))
    for place in ("both", "end"):
        options = {**bundle.manifest.options, "image_fit": "pad", "pad_place": place}
        manifest = msgspec.structs.replace(bundle.manifest, options=options)
        padded = Served(msgspec.structs.replace(bundle, manifest=manifest))
        assert overlap(best(padded, "motorcycle", file_of(scene)), box) > 0.85
        tall = scene.transpose(Image.Transpose.ROTATE_90)
        for each in padded.ask(image=file_of(tall), threshold=0.01)["objects"]:
            low_x, low_y, high_x, high_y = corners(each["box"])
            assert 0 <= low_x < high_x <= tall.width
            assert 0 <= low_y < high_y <= tall.height


def test_something_moved_on_a_larger_canvas_moves_its_box(nanodet: Served) -> None:
    scene = open_photo(photo("astronaut"))
    box = best(nanodet, "person", file_of(scene))
    canvas = Image.new("RGB", (900, 700), (90, 90, 90))
    canvas.paste(scene, (300, 150))
    found = best(nanodet, "person", file_of(canvas))
    moved = [found[0] - 300, found[1] - 150, found[2] - 300, found[3] - 150]
    assert overlap(moved, box) > 0.75


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (5000, 3000)])
def test_pictures_of_any_shape_are_answered(nanodet: Served, size: tuple[int, int]) -> None:
    answer = nanodet.ask(image=file_of(Image.new("RGB", size, "grey")))
    assert (answer["width"], answer["height"]) == size


# ------------------------------------------------------------------------------ parity


def read_distances_slowly(
    outputs: list[np.ndarray], size: tuple[int, int], threshold: float
) -> list[Box]:
    """NanoDet's and PicoDet's outputs, cell by cell."""
    boxes: list[Box] = []
    maps = sorted(
        (
            (scores[0], distances[0])
            for scores in outputs
            for distances in outputs
            if scores is not distances
            and scores.shape[1] == distances.shape[1]
            and scores.shape[2] in (10, 80)
        ),
        key=lambda pair: -len(pair[0]),
    )
    for (scores, distances), stride in zip(maps, (8, 16, 32, 64), strict=False):
        columns = math.ceil(size[1] / stride)
        for cell in range(len(scores)):
            for number in range(scores.shape[1]):
                score = float(scores[cell, number])
                if score < threshold:
                    continue
                x = (cell % columns + 0.5) * stride
                y = (cell // columns + 0.5) * stride
                sides: list[float] = []
                for side in range(4):
                    bins = distances.shape[1] // 4
                    chances = [
                        math.exp(v) for v in distances[cell, side * bins : (side + 1) * bins]
                    ]
                    mean = sum(step * chance for step, chance in enumerate(chances)) / sum(chances)
                    sides.append(mean * stride)
                corner = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]
                boxes.append((number, score, corner))
    return boxes


def drop_overlapping_slowly(boxes: list[Box], max_overlap: float) -> list[Box]:
    """Greedy, box by box."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda each: -each[1]):
        same = [each for each in kept if each[0] == box[0]]
        if all(overlap(each[2], box[2]) <= max_overlap for each in same):
            kept.append(box)
    return kept


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("astronaut", 0.1), ("coffee", 0.05), ("chelsea", 0.1), ("motorcycle_left", 0.1)],
)
def test_nanodet_is_read_as_slowly_by_hand(
    bundle: Bundle, nanodet: Served, name: str, threshold: float
) -> None:
    check_parity(nanodet, bundle.main_file, photo(name), (416, 416), threshold)


def test_picodet_is_read_as_slowly_by_hand(layout: Served) -> None:
    check_parity(layout, layout.bundle.main_file, photo("page"), (800, 608), 0.05)


def check_parity(
    served: Served, model: Path, picture: Path, size: tuple[int, int], threshold: float
) -> None:
    """Our boxes are those of the slow reading of the same graph for the same numbers."""
    body = {"image": picture.read_bytes(), "threshold": threshold, "max_boxes": 1000}
    item = served.task.from_plain(body, served.config)
    prepared = served.runtime.prepare(item)
    session = onnxruntime.InferenceSession(model)
    numbers = prepared.payload.sight.numbers[np.newaxis]
    outputs = session.run(None, {session.get_inputs()[0].name: numbers})
    expected = drop_overlapping_slowly(read_distances_slowly(outputs, size, threshold), 0.5)
    (found,) = served.runtime.run([prepared])
    height, width = found.size
    scale = np.array([width / size[1], height / size[0]] * 2)
    limits = np.array([width, height] * 2)
    clipped = [np.clip(np.array(corner) * scale, 0, limits) for _, _, corner in expected]
    shown = [
        (served.runtime.model.labels[number], score, box)
        for (number, score, _), box in zip(expected, clipped, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]
    assert len(found.scores) == len(shown) > 1
    for index, (label, score, box) in enumerate(shown):
        assert found.labels[index] == label
        assert found.scores[index] == pytest.approx(score, abs=1e-6)
        # float32 against float64, in pixels
        assert found.boxes[index] == pytest.approx(box, abs=0.02)


# ------------------------------------------------------------------------------ other families


def constant_graph(folder: Path, side: int, **outputs: np.ndarray) -> None:
    """A graph that gives the same outputs for every picture."""
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
    nodes = [
        helper.make_node(
            "Constant", [], [name], value=onnx.numpy_helper.from_array(value.astype(np.float32))
        )
        for name, value in outputs.items()
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in outputs.items()
    ]
    graph = helper.make_graph(nodes, "constant", [picture], infos)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")


def detector(folder: Path, family: str, **options: Any) -> Served:
    manifest = Manifest(
        task="object-detection",
        runtime="onnx",
        files=("model.onnx",),
        labels=("cat", "dog"),
        options={"family": family, **options},
    )
    return Served(Bundle(folder, manifest))


WIDE = file_of(Image.new("RGB", (200, 50)))
"""Twice as wide and half as high as the graphs' pictures of 100 x 100."""


def check_families_boxes(served: Served) -> None:
    """A dog of .9 and a cat of .6 at their places; the second dog lay on the first."""
    found = served.ask(image=WIDE)["objects"]
    assert [(each["label"], round(each["score"], 3)) for each in found] == [
        ("dog", 0.9),
        ("cat", 0.6),
    ]
    assert corners(found[0]["box"]) == pytest.approx([20, 5, 120, 30], abs=0.01)
    assert corners(found[1]["box"]) == pytest.approx([160, 40, 200, 50], abs=0.01)


CENTRES = np.array([[35, 35, 50, 50], [36, 35, 50, 50], [90, 90, 20, 20], [50, 50, 9, 9]])
SCORES = np.array([[0.1, 0.9], [0.1, 0.8], [0.6, 0.2], [0.3, 0.1]])


def test_yolov5_multiplies_by_whether_there_is_anything(tmp_path: Path) -> None:
    objectness = np.array([1, 1, 0.75, 1])[:, np.newaxis]
    classes = SCORES / objectness
    table = np.concatenate([CENTRES, objectness, classes], axis=1)[np.newaxis]
    constant_graph(tmp_path, 100, output0=table)
    check_families_boxes(detector(tmp_path, "yolov5"))


def test_yolov8_has_its_places_last(tmp_path: Path) -> None:
    table = np.concatenate([CENTRES, SCORES], axis=1).T[np.newaxis]
    constant_graph(tmp_path, 100, output0=table)
    check_families_boxes(detector(tmp_path, "yolov8"))


def test_detr_tells_shares_of_the_picture_and_a_class_for_nothing(tmp_path: Path) -> None:
    chances = np.concatenate([SCORES, 1 - SCORES.sum(axis=1, keepdims=True)], axis=1)
    logits = np.log(np.maximum(chances, 1e-9))[np.newaxis]
    constant_graph(tmp_path, 100, logits=logits, pred_boxes=CENTRES[np.newaxis] / 100)
    check_families_boxes(detector(tmp_path, "detr"))


def test_ssd_gives_boxes_that_are_chosen_already(tmp_path: Path) -> None:
    boxes = np.array([[0.1, 0.1, 0.6, 0.6], [0.8, 0.8, 1, 1], [0, 0, 0.1, 0.1]])[np.newaxis]
    constant_graph(
        tmp_path,
        100,
        boxes=boxes,
        classes=np.array([[1, 0, 0]]),
        scores=np.array([[0.9, 0.6, 0.1]]),
    )
    check_families_boxes(detector(tmp_path, "ssd"))


def test_of_what_tensorflow_gives_beside_its_boxes_nothing_is_taken_for_them(tmp_path: Path):
    boxes = np.array([[0.1, 0.1, 0.6, 0.6], [0.8, 0.8, 1, 1], [0, 0, 0.1, 0.1]])[np.newaxis]
    constant_graph(
        tmp_path,
        100,
        **{
            "detection_anchor_indices:0": np.array([[7, 8, 9]]),
            "detection_boxes:0": boxes,
            "detection_classes:0": np.array([[1, 0, 0]]),
            "detection_scores:0": np.array([[0.9, 0.6, 0.1]]),
            "num_detections:0": np.array([3]),
        },
    )
    check_families_boxes(detector(tmp_path, "ssd"))


def test_a_class_that_has_no_name_is_told_by_its_number(tmp_path: Path) -> None:
    constant_graph(
        tmp_path,
        100,
        boxes=np.array([[[0.1, 0.1, 0.6, 0.6], [0.8, 0.8, 1, 1]]]),
        classes=np.array([[1, 0]]),
        scores=np.array([[0.9, 0.6]]),
    )
    served = detector(tmp_path, "ssd")
    served.runtime.model.labels = ("cat",)  # as many as the trial's picture showed
    found = served.ask(image=WIDE)["objects"]
    assert [each["label"] for each in found] == ["LABEL_1", "cat"]


def test_without_a_family_the_known_ones_are_named(tmp_path: Path) -> None:
    constant_graph(tmp_path, 100, output0=np.zeros((1, 6, 8)))
    with pytest.raises(InvalidInput, match="no family") as refused:
        detector(tmp_path, "")
    assert "yolov8" in refused.value.hint


def test_boxes_of_other_labels_may_lie_on_one_another(tmp_path: Path) -> None:
    table = np.concatenate([CENTRES[:1], [[0.8, 0.9]]], axis=1).T[np.newaxis]
    constant_graph(tmp_path, 100, output0=table)
    found = detector(tmp_path, "yolov8").ask(image=WIDE)["objects"]
    assert [each["label"] for each in found] == ["dog", "cat"]
    assert found[0]["box"] == found[1]["box"]


def test_thousands_of_boxes_are_bounded(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    centres = random.uniform(0, 100, (20_000, 4))
    table = np.concatenate([centres, random.uniform(0.5, 1, (20_000, 2))], axis=1)
    constant_graph(tmp_path, 100, output0=table.T[np.newaxis])
    served = detector(tmp_path, "yolov8", max_overlap=1.0, max_boxes=1000)
    assert len(served.ask(image=WIDE)["objects"]) <= 1000
    assert len(served.ask(image=WIDE, max_boxes=7)["objects"]) == 7


def test_numbers_that_are_not_finite_are_a_failure_of_the_model(tmp_path: Path) -> None:
    table = np.concatenate([CENTRES, SCORES], axis=1).T[np.newaxis].copy()
    table[0, 0, 0] = np.nan
    constant_graph(tmp_path, 100, output0=table)
    with pytest.raises(ModelFailed, match="not finite"):
        detector(tmp_path, "yolov8").ask(image=WIDE)


def test_a_bundle_that_does_not_fit_its_graph_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copyfile(bundle.main_file, tmp_path / "model.onnx")
    for family, options, message in (
        ("nanodet", {}, "names 2 labels, the model tells 80 apart"),
        ("yolov8", {}, "family|labels"),
        ("detr", {}, "gives no logits"),
        ("centernet", {}, "unknown family 'centernet'"),
        ("nanodet", {"threshold": 2}, "0 to 1"),
        ("nanodet", {"max_boxes": 0}, "max_boxes"),
    ):
        with pytest.raises(Exception, match=message) as refused:
            detector(tmp_path, family, **options)
        assert type(refused.value).__module__ == "wherry.errors"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.5),
        ("threshold", "0.5"),
        ("threshold", float("nan")),
        ("threshold", True),
        ("max_boxes", 0),
        ("max_boxes", 10**9),
        ("max_boxes", 2.5),
    ],
)
def test_what_the_client_asks_for_is_bounded(nanodet: Served, name: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        nanodet.ask(image=WIDE, **{name: value})
    assert refused.value.param == name
