"""TensorFlow Lite models: MediaPipe's pose as it ships, and small ones made here."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import astronaut_png, pose_landmark_tflite

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.tensor import TensorInput

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="pip install 'wherry[tflite]'"
)
flatbuffers = pytest.importorskip("flatbuffers")
Image = pytest.importorskip("PIL.Image")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402 - after importorskip

from wherry.worker.runtimes.tflite import TfliteRuntime  # noqa: E402


def make_tensor(name: str, shape: list[int], kind: int, scale: float = 0, zero: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.buffer = name, kind, 0
    tensor.shape, tensor.shapeSignature = [abs(size) for size in shape], shape
    if scale:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero]
    return tensor


def write_adder(path: Path, shape: list[int], kind: int, scale: float = 0, zero: int = 0) -> None:
    """A model that adds its two inputs `a` and `b`; -1 in `shape` is a free size."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    add = schema.OperatorT()
    add.inputs, add.outputs = [0, 1], [2]
    add.builtinOptionsType, add.builtinOptions = (
        schema.BuiltinOptions.AddOptions,
        schema.AddOptionsT(),
    )
    graph = schema.SubGraphT()
    graph.tensors = [make_tensor(each, shape, kind, scale, zero) for each in ("a", "b", "sum")]
    graph.inputs, graph.outputs, graph.operators = [0, 1], [2], [add]
    model = schema.ModelT()
    model.version, model.operatorCodes = 3, [code]
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def load(path: Path, task: str = "tensor", **manifest: Any) -> TfliteRuntime:
    runtime = TfliteRuntime()
    runtime.load(
        Bundle(path.parent, Manifest(task=task, runtime="tflite", files=(path.name,), **manifest)),
        "cpu",
    )
    return runtime


def load_as_imported(path: Path) -> TfliteRuntime:
    """The file has been looked at before it is loaded."""
    detect(path.parent)
    return load(path)


def add(runtime: TfliteRuntime, a: Any, b: Any) -> np.ndarray:
    item = TensorInput({"a": np.asarray(a), "b": np.asarray(b)})
    (output,) = runtime.run([runtime.prepare(item)])
    return output.tensors["sum"]


def test_raw_tensors_are_answered_as_the_framework_answers_them(tmp_path: Path):
    write_adder(tmp_path / "m.tflite", [1, 3], schema.TensorType.FLOAT32)
    runtime = load(tmp_path / "m.tflite")
    assert [each.name for each in runtime.signature.inputs] == ["a", "b"]
    total = add(runtime, np.float32([[1, 2, 3]]), np.float32([[10, 20, 30]]))
    assert total.tolist() == [[11, 22, 33]]


def test_rows_that_are_free_may_share_a_run(tmp_path: Path):
    write_adder(tmp_path / "m.tflite", [-1, 2], schema.TensorType.FLOAT32)
    runtime = load(tmp_path / "m.tflite")
    assert runtime.signature.inputs[0].shape == (-1, 2)
    assert runtime.joins_rows
    sizes = (1, 3, 2, 1)
    items = [
        TensorInput(
            {"a": np.full((rows, 2), rows, np.float32), "b": np.ones((rows, 2), np.float32)}
        )
        for rows in sizes
    ]
    outputs = runtime.run([runtime.prepare(item) for item in items])
    for rows, output in zip(sizes, outputs, strict=True):
        assert output.tensors["sum"].tolist() == [[rows + 1.0] * 2] * rows


def test_whole_numbers_with_a_scale_are_left_to_who_asks_for_raw_tensors(tmp_path: Path):
    write_adder(tmp_path / "m.tflite", [1, 2], schema.TensorType.INT8, scale=0.5, zero=3)
    runtime = load(tmp_path / "m.tflite")
    assert runtime.signature.inputs[0].datatype == "INT8"
    # 2.0 and 1.0 are 7 and 5; 3.0 is 9
    assert add(runtime, np.int8([[7, 3]]), np.int8([[5, 3]])).tolist() == [[9, 3]]


def test_whole_numbers_with_a_scale_are_values_to_the_other_tasks(tmp_path: Path):
    write_adder(tmp_path / "m.tflite", [1, 2], schema.TensorType.INT8, scale=0.5, zero=3)
    runtime = TfliteRuntime()
    graph = runtime.open_graph(tmp_path / "m.tflite", "cpu")
    assert graph.inputs[0].datatype == "FP32"
    feeds = {"a": np.float32([[2.0, -200.0]]), "b": np.float32([[1.0, 0.0]])}
    (total,) = graph.run(feeds)
    assert total.tolist() == [[3.0, -65.5]], "what the numbers cannot hold is cut at their limits"


@pytest.mark.parametrize(
    "wrong", [np.ones((1, 3), np.float32), np.ones((1, 2), np.int32), np.ones((2,), np.float32)]
)
def test_input_of_another_form_is_refused(tmp_path: Path, wrong: np.ndarray):
    write_adder(tmp_path / "m.tflite", [1, 2], schema.TensorType.FLOAT32)
    runtime = load(tmp_path / "m.tflite")
    with pytest.raises(InvalidInput):
        add(runtime, wrong, np.ones((1, 2), np.float32))
    assert add(runtime, np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)).sum() == 4


def test_only_whole_models_are_opened(tmp_path: Path):
    path = tmp_path / "m.tflite"
    write_adder(path, [1, 2], schema.TensorType.FLOAT32)
    whole = path.read_bytes()
    for broken in (b"", whole[:6], whole[: len(whole) // 2], b"\0" * 64, b"TFL3" + whole):
        path.write_bytes(broken)
        with pytest.raises(FormatNotAllowed):
            load_as_imported(path)


def test_a_file_says_which_runtime_it_wants(tmp_path: Path):
    write_adder(tmp_path / "anything.tflite", [1, 2], schema.TensorType.FLOAT32)
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.runtime) == ("tensor", "tflite")
    assert manifest.files == ("anything.tflite",)


def test_another_device_is_refused(tmp_path: Path):
    write_adder(tmp_path / "m.tflite", [1, 2], schema.TensorType.FLOAT32)
    with pytest.raises(InvalidInput, match="cuda"):
        TfliteRuntime().open_graph(tmp_path / "m.tflite", "cuda:0")


# ------------------------------------------------------------------------------ MediaPipe's pose

POSE = {"family": "mediapipe", "image_fit": "pad"}


@pytest.fixture(scope="module")
def pose() -> TfliteRuntime:
    return load(pose_landmark_tflite(), "keypoint-detection", options=POSE)


def find_poses(runtime: TfliteRuntime, image: Any) -> list[dict[str, Any]]:
    task = find_task("keypoint-detection")
    config = Manifest(task=task.name, runtime="tflite", options=POSE).task_config()
    item = task.from_plain({"image": image}, config)
    (output,) = runtime.run([runtime.prepare(item)])
    return task.to_plain(output, config)["poses"]


def as_png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_joints_of_a_person_are_where_they_are(pose: TfliteRuntime):
    (body,) = find_poses(pose, astronaut_png().read_bytes())
    joints = body["keypoints"]
    assert len(joints) == 33
    assert body["score"] > 0.8
    # pixels of the 512 x 512 picture, read off by eye
    for joint, x, y in (("nose", 230, 115), ("left_shoulder", 280, 195), ("right_eye", 210, 100)):
        assert joints[joint]["x"] == pytest.approx(x, abs=20)
        assert joints[joint]["y"] == pytest.approx(y, abs=20)
        assert joints[joint]["score"] > 0.9
    assert joints["right_shoulder"]["x"] < joints["left_shoulder"]["x"], "their own left, not ours"


def test_joints_equal_what_the_interpreter_gives(pose: TfliteRuntime):
    """Parity with the framework's own call on pixels prepared by Pillow alone; half a pixel of 512
    is a quarter of the model's own pixel."""
    picture = Image.open(astronaut_png()).convert("RGB").resize((256, 256), 2)
    raw = interpreter.Interpreter(str(pose_landmark_tflite()), num_threads=1)
    raw.allocate_tensors()
    raw.set_tensor(raw.get_input_details()[0]["index"], np.float32(picture)[np.newaxis] / 255)
    raw.invoke()
    places = {each["name"]: each["index"] for each in raw.get_output_details()}
    landmarks = raw.get_tensor(places["Identity"]).reshape(39, 5)
    (body,) = find_poses(pose, astronaut_png().read_bytes())
    for row, joint in enumerate(body["keypoints"].values()):
        assert joint["x"] == pytest.approx(landmarks[row, 0] * 2, abs=0.5)
        assert joint["y"] == pytest.approx(landmarks[row, 1] * 2, abs=0.5)


@pytest.mark.parametrize("size", [(1024, 1024), (256, 256), (512, 800), (900, 512)])
def test_joints_are_told_in_pixels_of_the_picture_that_was_sent(
    pose: TfliteRuntime, size: tuple[int, int]
):
    height, width = size
    side = min(size)
    canvas = Image.new("RGB", (width, height))
    left, top = (width - side) // 2, (height - side) // 2
    canvas.paste(Image.open(astronaut_png()).convert("RGB").resize((side, side)), (left, top))
    (body,) = find_poses(pose, as_png(canvas))
    nose = body["keypoints"]["nose"]
    assert nose["x"] == pytest.approx(left + side * 0.457, abs=side * 0.04)
    assert nose["y"] == pytest.approx(top + side * 0.227, abs=side * 0.04)


def test_a_picture_without_a_body_has_no_pose(pose: TfliteRuntime):
    assert find_poses(pose, as_png(Image.new("RGB", (300, 200), "grey"))) == []


# ------------------------------------------------------------------------------ quantised pictures


def write_flattener(path: Path, kind: int, scale: float, zero: int) -> None:
    """A classifier of 2 x 2 pixels that tells its own pixels, as probabilities in 256 steps."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    flatten = schema.OperatorT()
    flatten.inputs, flatten.outputs = [0], [1]
    flatten.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    flatten.builtinOptions = schema.ReshapeOptionsT()
    flatten.builtinOptions.newShape = [1, 12]
    least = 0 if kind == schema.TensorType.UINT8 else -128
    graph = schema.SubGraphT()
    graph.tensors = [
        make_tensor("pixels", [1, 2, 2, 3], kind, scale, zero),
        make_tensor("scores", [1, 12], kind, 1 / 256, least),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [flatten]
    model = schema.ModelT()
    model.version, model.operatorCodes = 3, [code]
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def classify(runtime: TfliteRuntime, pixels: np.ndarray) -> np.ndarray:
    task = find_task("image-classification")
    (item,) = task.from_tensors({"image": pixels[np.newaxis]}, task_config())
    (output,) = runtime.run([runtime.prepare(item)])
    return output.scores


def task_config() -> Any:
    return Manifest(task="image-classification", runtime="tflite").task_config()


@pytest.mark.parametrize(
    ("kind", "scale", "zero"),
    [
        (schema.TensorType.UINT8, 1 / 255, 0),  # 0 to 1
        (schema.TensorType.UINT8, 1 / 128, 128),  # -1 to 1, as MobileNet
        (schema.TensorType.INT8, 1 / 128, 0),
        (schema.TensorType.UINT8, 0.0126, 131),  # wider than the pixels it was trained with
    ],
)
def test_quantised_pixels_go_in_as_they_are_if_nobody_says_else(
    tmp_path: Path, kind: int, scale: float, zero: int
):
    write_flattener(tmp_path / "m.tflite", kind, scale, zero)
    runtime = load(tmp_path / "m.tflite", "image-classification")
    pixels = np.arange(0, 240, 20, dtype=np.uint8).reshape(2, 2, 3)
    # probabilities of a quantised softmax need not sum to 1, and are probabilities all the same
    assert np.allclose(classify(runtime, pixels), pixels.ravel() / 256, atol=1 / 512)


def test_a_bundle_that_says_how_pixels_go_in_is_believed(tmp_path: Path):
    write_flattener(tmp_path / "m.tflite", schema.TensorType.UINT8, 1 / 255, 0)
    pixels = np.full((2, 2, 3), 200, dtype=np.uint8)
    for options in ({"pixel_scale": 1 / 510}, {"std": 2}, {"std": [2, 2, 2], "mean": 0}):
        runtime = load(tmp_path / "m.tflite", "image-classification", options=options)
        assert np.allclose(classify(runtime, pixels), 100 / 256, atol=1 / 512)
