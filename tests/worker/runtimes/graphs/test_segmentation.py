"""Masks: of a real model on a real photo, and in the client's pixels whatever its picture is."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.pictures import Served, file_of, open_photo
from tests.real_models import photo, run_recipe

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import Frame, frame_of, image_options
from wherry.models.tasks.image_segmentation import Segmentation, check_size

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - after importorskip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return run_recipe("selfie", tmp_path_factory.mktemp("selfie"))


@pytest.fixture(scope="module")
def selfie(bundle: Bundle) -> Served:
    return Served(bundle)


def read_masks(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    """Masks by label, as a client reads them."""
    found: dict[str, np.ndarray] = {}
    for segment in answer["segments"]:
        with Image.open(io.BytesIO(base64.b64decode(segment["mask"]))) as picture:
            assert picture.format == "PNG"
            assert picture.mode == "L"
            found[segment["label"]] = np.asarray(picture) > 127
    return found


def share(one: np.ndarray, other: np.ndarray) -> float:
    """What two masks have in common, as a share of their union."""
    return float((one & other).sum() / (one | other).sum())


def test_the_astronaut_stands_out_from_the_background(selfie: Served) -> None:
    answer = selfie.ask(image=photo("astronaut").read_bytes())
    masks = read_masks(answer)
    assert list(masks) == ["background", "person"]
    person = masks["person"]
    assert person.shape == (512, 512) == (answer["height"], answer["width"])
    assert np.array_equal(person, ~masks["background"])
    assert person[60:140, 190:270].all(), "her face"
    assert person[400:500, 150:300].mean() > 0.95, "her suit"
    assert not person[:60, :100].any(), "the flag behind her"
    assert not person[100:200, 350:500].any(), "the model of the shuttle"
    assert all(0.9 < segment["score"] <= 1 for segment in answer["segments"])


@pytest.mark.parametrize("size", [(512, 512), (301, 777), (2048, 1024), (256, 200)])
def test_a_mask_is_as_large_as_the_clients_picture(selfie: Served, size: tuple[int, int]) -> None:
    scene = open_photo(photo("astronaut"))
    usual = read_masks(selfie.ask(image=file_of(scene)))["person"]
    found = read_masks(selfie.ask(image=file_of(scene.resize(size))))["person"]
    assert found.shape == (size[1], size[0])
    back = np.asarray(Image.fromarray(found).resize((512, 512)))
    assert share(back, usual) > 0.9


def test_a_photo_that_lies_on_its_side_has_an_upright_mask(selfie: Served) -> None:
    scene = open_photo(photo("astronaut")).crop((0, 0, 400, 512))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = scene.transpose(Image.Transpose.ROTATE_90)
    usual = read_masks(selfie.ask(image=file_of(scene, "JPEG", quality=95)))["person"]
    found = read_masks(selfie.ask(image=file_of(lying, "JPEG", quality=95, exif=exif)))["person"]
    assert found.shape == (512, 400)
    assert share(found, usual) > 0.97


@pytest.mark.parametrize("fit", [{"image_fit": "pad"}, {"image_fit": "pad", "pad_place": "end"}])
def test_a_letterbox_leaves_masks_where_they_are(
    bundle: Bundle, selfie: Served, fit: dict[str, Any]
) -> None:
    scene = open_photo(photo("astronaut")).crop((0, 0, 500, 400))
    manifest = msgspec.structs.replace(bundle.manifest, options={**bundle.manifest.options, **fit})
    padded = Served(msgspec.structs.replace(bundle, manifest=manifest))
    usual = read_masks(selfie.ask(image=file_of(scene)))["person"]
    assert share(read_masks(padded.ask(image=file_of(scene)))["person"], usual) > 0.9


# ------------------------------------------------------------------------------ the way back


def segmentation(planes: np.ndarray, frame: Frame, size: tuple[int, int]) -> Segmentation:
    labels = tuple(f"label {number}" for number in range(len(planes)))
    return Segmentation(labels=labels, probabilities=planes, frame=frame, size=size)


def half_planes(height: int, width: int) -> np.ndarray:
    """Probabilities of two labels: left and right."""
    right = np.zeros((height, width), dtype=np.float32)
    right[:, width // 2 :] = 1
    return np.stack([1 - right, right])


def test_a_stretched_map_is_stretched_back() -> None:
    classes, scores = segmentation(half_planes(4, 8), Frame(25.0, 12.5), (100, 100)).class_map()
    assert (classes[:, :50] == 0).all()
    assert (classes[:, 50:] == 1).all()
    assert scores.min() >= 0.5


def test_the_border_of_a_letterbox_is_left_out() -> None:
    planes = half_planes(8, 8)
    planes[:, :2] = planes[:, 6:] = np.array([0, 1])[:, None, None]  # the border says label 1
    classes, _ = segmentation(planes, Frame(10.0, 10.0, top=-2.0), (40, 80)).class_map()
    assert (classes[10:30, :35] == 0).all()
    assert (classes[10:30, 45:] == 1).all()


def test_what_a_crop_cut_off_has_what_is_nearest() -> None:
    # the model saw the middle 100 of 300 columns
    classes, _ = segmentation(
        half_planes(10, 10), Frame(10.0, 10.0, left=10.0), (100, 300)
    ).class_map()
    assert classes.shape == (100, 300)
    assert (classes[:, :145] == 0).all()
    assert (classes[:, 155:] == 1).all()


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (1, 1), (1, 60_000)])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_very_long_picture_costs_no_more_than_its_pixels(size: tuple[int, int], fit: str) -> None:
    options = image_options({"image_size": [256, 256], "image_fit": fit})
    frame = frame_of(size, options)
    classes, scores = segmentation(half_planes(256, 256), frame, size).class_map()
    assert classes.shape == scores.shape == size
    if fit == "stretch" and size[1] > 1:
        assert (classes[0, 0], classes[0, -1]) == (0, 1)


def test_a_map_is_as_a_slow_reading_of_it() -> None:
    random = np.random.default_rng(0)
    planes = random.uniform(size=(3, 6, 5)).astype(np.float32)
    height, width = 30, 20
    classes, scores = segmentation(planes, Frame(5.0, 4.0), (height, width)).class_map()

    def at(plane: np.ndarray, row: float, column: float) -> float:
        rows = np.clip([np.floor(row), np.floor(row) + 1], 0, 5).astype(int)
        columns = np.clip([np.floor(column), np.floor(column) + 1], 0, 4).astype(int)
        down, across = row - np.floor(row), column - np.floor(column)
        upper = plane[rows[0], columns[0]] * (1 - across) + plane[rows[0], columns[1]] * across
        lower = plane[rows[1], columns[0]] * (1 - across) + plane[rows[1], columns[1]] * across
        return upper * (1 - down) + lower * down

    for row in range(height):
        for column in range(width):
            place = (row + 0.5) / 5 - 0.5, (column + 0.5) / 4 - 0.5
            slow = [at(plane, *place) for plane in planes]
            assert scores[row, column] == pytest.approx(max(slow), abs=1e-5)
            assert slow[classes[row, column]] == pytest.approx(max(slow), abs=1e-5)


# ------------------------------------------------------------------------------ tiny graphs


def channel_graph(folder: Path, layout: str, *, single: bool = False) -> None:
    """Three labels, red, green and blue: each has the light of its channel; or one, of the red."""
    count = 1 if single else 3
    shape = ["n", "h", "w", 3] if layout == "NHWC" else ["n", 3, "h", "w"]
    axis = 3 if layout == "NHWC" else 1
    shape_out = [*shape]
    shape_out[axis] = count
    ends = onnx.numpy_helper.from_array(np.array([0, count, axis], dtype=np.int64), "e")
    slices = [
        onnx.numpy_helper.from_array(np.array([value], dtype=np.int64), name)
        for name, value in (("a", 0), ("b", count), ("c", axis))
    ]
    graph = helper.make_graph(
        [helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])],
        "channels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [*slices, ends],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")


def segmenter(folder: Path, *labels: str, **options: Any) -> Served:
    return Served(
        Bundle(
            folder,
            Manifest(
                task="image-segmentation",
                runtime="onnx",
                files=("model.onnx",),
                labels=labels,
                options=options,
            ),
        )
    )


def stripes() -> Image.Image:
    """Red, green and blue, 20 columns each."""
    pixels = np.zeros((30, 60, 3), dtype=np.uint8)
    for channel in range(3):
        pixels[:, 20 * channel : 20 * channel + 20, channel] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_label_has_its_place(tmp_path: Path, layout: str) -> None:
    channel_graph(tmp_path, layout)
    served = segmenter(tmp_path, "red", "green", "blue", layout=layout, output_layout=layout)
    masks = read_masks(served.ask(image=file_of(stripes())))
    for number, label in enumerate(("red", "green", "blue")):
        expected = np.zeros((30, 60), dtype=bool)
        expected[:, 20 * number : 20 * number + 20] = True
        assert np.array_equal(masks[label], expected)


def test_one_channel_tells_foreground_from_background(tmp_path: Path) -> None:
    channel_graph(tmp_path, "NCHW", single=True)
    options = {"layout": "NCHW", "function": "sigmoid", "mean": [0.4], "std": [0.1]}
    masks = read_masks(segmenter(tmp_path, "other", "red", **options).ask(image=file_of(stripes())))
    assert masks["red"][:, :20].all()
    assert not masks["red"][:, 20:].any()


def test_pictures_of_one_batch_do_not_touch_each_other(tmp_path: Path) -> None:
    channel_graph(tmp_path, "NCHW")
    served = segmenter(tmp_path, "red", "green", "blue", layout="NCHW", image_size=[30, 60])
    bodies = [{"image": file_of(stripes().rotate(angle))} for angle in (0, 90, 180)]
    together = served.outputs(*bodies)
    for body, joined in zip(bodies, together, strict=True):
        (alone,) = served.outputs(body)
        assert np.array_equal(alone.class_map()[0], joined.class_map()[0])


def test_a_bundle_that_does_not_fit_its_graph_is_refused(tmp_path: Path) -> None:
    channel_graph(tmp_path, "NCHW")
    with pytest.raises(FormatNotAllowed, match="names 4 labels"):
        segmenter(tmp_path, "a", "b", "c", "d", layout="NCHW")
    with pytest.raises(InvalidInput, match="2 to 256"):
        segmenter(tmp_path, layout="NCHW")


def test_tensors_carry_the_number_of_each_pixels_label(selfie: Served) -> None:
    items = selfie.task.from_tensors(
        {"image": np.array([photo("astronaut").read_bytes()] * 2, dtype=object)}, selfie.config
    )
    outputs = selfie.runtime.run([selfie.runtime.prepare(item) for item in items])
    tensors = selfie.task.to_tensors(outputs, selfie.config)
    assert tensors["class_map"].shape == tensors["scores"].shape == (2, 512, 512)
    assert np.array_equal(tensors["class_map"][0], tensors["class_map"][1])
    assert 0.4 < tensors["class_map"][0].mean() < 0.7


def test_pictures_of_several_sizes_are_no_tensor(selfie: Served) -> None:
    outputs = [segmentation(half_planes(4, 4), Frame(1.0, 1.0), size) for size in ((4, 4), (4, 5))]
    with pytest.raises(InvalidInput, match="different sizes"):
        selfie.task.to_tensors(outputs, selfie.config)


def test_a_mask_larger_than_we_make_is_refused_before_the_model_works() -> None:
    item = ImageInput(np.zeros((8, 8, 3), np.uint8), (40_000, 40_000))
    with pytest.raises(InvalidInput, match="40000 x 40000"):
        check_size(item)
