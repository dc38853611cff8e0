import base64
import builtins
import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from tests.pictures import file_of

from wherry.errors import InvalidInput, MissingExtra
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.image import image_from_plain, pixels_from_array
from wherry.models.tasks.image_classification import IMAGE_CLASSIFICATION
from wherry.models.tasks.image_fit import ImageOptions, fit_image, image_options
from wherry.models.tasks.task import TaskConfig, TensorSpec

Image = pytest.importorskip("PIL.Image")

ANY = TaskConfig()
DIGITS = TaskConfig(
    labels=tuple("0123456789"),
    options={"image_size": [28, 28], "image_mode": "L", "pixel_scale": 0.004},
)


def read(value: Any, config: TaskConfig = ANY) -> np.ndarray:
    return IMAGE_CLASSIFICATION.from_plain({"image": value}, config).pixels


def encode(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(height: int = 6, width: int = 8) -> np.ndarray:
    """A picture none of whose rows and columns are alike; uint8 [height, width, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, (rows + columns) * 9]
    return np.stack(channels, axis=2).astype(np.uint8)


def test_the_catalogue_knows_the_task() -> None:
    assert find_task("image-classification") is IMAGE_CLASSIFICATION


# ---------------------------------------------------------------- numbers


def test_a_list_of_values_from_0_to_1_is_a_picture() -> None:
    array = np.linspace(0, 1, 28 * 28).reshape(28, 28)
    pixels = read(array.tolist())
    assert pixels.shape == (28, 28, 1)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[:, :, 0] / 255 - array).max() <= 0.5 / 255 + 1e-6


def test_a_list_of_values_from_0_to_255_is_a_picture() -> None:
    assert np.array_equal(read(gradient().tolist()), gradient())
    assert read([[0, 128], [255, 2]])[:, :, 0].tolist() == [[0, 128], [255, 2]]


def test_ones_and_zeros_are_white_and_black() -> None:
    assert read([[0, 1], [1, 0]])[:, :, 0].tolist() == [[0, 255], [255, 0]]


def test_float_noise_just_over_1_is_still_white() -> None:
    assert read([[-1e-7, 1.0000001]])[:, :, 0].tolist() == [[0, 255]]


def test_channels_first_are_turned_round() -> None:
    turned = gradient().transpose(2, 0, 1)
    assert np.array_equal(read(turned.tolist()), gradient())
    assert read(turned[:1].tolist()).shape == (6, 8, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "has no pixels|must have shape"),
        ([[]], "has no pixels"),
        (5, "not int"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
        ([1, 2, 3], r"must have shape .* not \[3\]"),
        ([[[[1]]]], "must have shape"),
        ([[[1, 2], [3, 4]]] * 5, r"not \[5, 2, 2\]"),
        ([[1, 2], [3]], "every row equally long"),
        ([[1, "a"]], "lists of numbers"),
        ([[1, {}]], "lists of numbers"),
        ([[1, None]], "must lie within|lists of numbers"),
        ([[0.5, float("nan")]], "must lie within"),
        ([[0.5, float("inf")]], "must lie within"),
        ([[0.5, 3.41e38]], "must lie within"),
        ([[-1.0, 1.0]], "these go from -1 to 1"),
        ([[0, 256]], "these go from 0 to 256"),
        ([[10**400]], "lists of numbers"),
        ([[0] * 70_000], "the limit is"),
    ],
)
def test_what_is_not_a_picture_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        read(value)
    assert caught.value.param == "image"


def test_a_body_without_an_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no 'image'"):
        IMAGE_CLASSIFICATION.from_plain({"picture": [[1]]}, ANY)


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"has 5000 x 5000 pixels"):
        pixels_from_array(np.zeros((5000, 5000), dtype=np.uint8))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_a_file_is_read_exactly(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(Image.fromarray(gradient()), form, **options)
    text = base64.b64encode(data).decode()
    assert np.array_equal(read(data), gradient())
    assert np.array_equal(read(text), gradient())
    assert np.array_equal(read(f"data:image/{form.lower()};base64,{text}"), gradient())
    assert np.array_equal(read("\n".join([text[:20], text[20:]])), gradient())


@pytest.mark.parametrize("form", ["JPEG", "GIF"])
def test_a_lossy_file_is_read_nearly(form: str) -> None:
    pixels = read(encode(Image.fromarray(gradient(32, 32)), form))
    assert np.abs(pixels.astype(int) - gradient(32, 32)).mean() < 12


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("LA", 4), ("RGBA", 4), ("I;16", 1)]
)
def test_every_mode_becomes_plain_channels(mode: str, channels: int) -> None:
    assert read(encode(Image.new(mode, (8, 6)))).shape == (6, 8, channels)


def test_sixteen_bits_keep_their_greys() -> None:
    deep = np.array([[0, 1 << 15, 65535]], dtype=np.uint16)
    assert read(encode(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 128, 255]


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    picture = Image.fromarray(gradient())
    turned = read(encode(picture, "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(gradient(), k=-1))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (10, 200, 90)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert fit_image(read(data), ImageOptions(image_mode="L")).max() == 10


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of 1 bit a pixel: tiny, whatever size it claims."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (1, 1 << 30), (6000, 6000)])
def test_a_picture_that_claims_too_many_pixels_is_refused_unread(width: int, height: int) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidInput, match="pixels"):
        read(png_header(width, height))
    assert time.perf_counter() - started < 1.0


def test_a_large_photo_is_read_small() -> None:
    photo = encode(Image.new("RGB", (6000, 5000), (200, 10, 10)), "JPEG")
    pixels = read(photo, DIGITS)
    assert 56 <= pixels.shape[0] < 200  # at least twice what the model needs
    with pytest.raises(InvalidInput, match="6000 x 5000"):
        read(photo, ANY)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused(form: str, kept: float) -> None:
    random = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(random), form)
    with pytest.raises(InvalidInput, match="cut off"):
        read(data[: int(len(data) * kept)])


def test_a_broken_file_never_raises_anything_else() -> None:
    random = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        data = np.frombuffer(encode(Image.fromarray(gradient(16, 16)), form), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
            try:
                assert read(broken.tobytes()).ndim == 3
            except InvalidInput as error:
                assert error.message  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "cannot|can be read"),
        ("not base64!", "not valid base64"),
        ("日本", "not valid base64"),
        ("aGVsbG8=", "not a picture"),
        ("data:image/png,%89PNG", "must be base64"),
        ("https://example.org/cat.png", "the server fetches none"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "not a picture"),
    ],
)
def test_a_text_that_is_no_picture_is_refused(value: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(value)


def test_formats_off_the_list_are_refused() -> None:
    tiff = encode(Image.fromarray(gradient()), "TIFF")
    with pytest.raises(InvalidInput, match="not a picture") as caught:
        read(tiff)
    assert "PNG" in caught.value.hint


def test_without_pillow_numbers_work_and_files_name_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("PIL"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    data = encode(Image.fromarray(gradient()))
    monkeypatch.setattr(builtins, "__import__", refuse)
    grey = fit_image(read(np.ones((28, 28)).tolist()), image_options(DIGITS.options))
    assert grey.min() == 255
    with pytest.raises(MissingExtra, match="pillow") as caught:
        read(data)
    assert caught.value.hint == "pip install 'wherry[image]'"


# ---------------------------------------------------------------- tensors


def test_rows_of_a_tensor_are_pictures() -> None:
    values = np.stack([np.zeros((4, 5)), np.ones((4, 5))]).astype(np.float32)
    black, white = IMAGE_CLASSIFICATION.from_tensors({"image": values}, ANY)
    assert (black.pixels.max(), white.pixels.min()) == (0, 255)
    colour = np.stack([gradient(), gradient()])
    items = IMAGE_CLASSIFICATION.from_tensors({"image": colour}, ANY)
    assert len(items) == 2
    assert np.array_equal(items[1].pixels, gradient())


def test_dark_pixels_of_uint8_stay_dark() -> None:
    values = np.ones((1, 4, 5), dtype=np.uint8)
    assert IMAGE_CLASSIFICATION.from_tensors({"image": values}, ANY)[0].pixels.max() == 1


def test_a_tensor_of_files_is_read() -> None:
    files = np.empty(2, dtype=object)
    files[:] = [encode(Image.fromarray(gradient()), form) for form in ("PNG", "BMP")]
    for item in IMAGE_CLASSIFICATION.from_tensors({"image": files}, ANY):
        assert np.array_equal(item.pixels, gradient())


def test_small_files_of_large_pictures_do_not_fill_the_memory() -> None:
    bomb = encode(Image.new("RGB", (4000, 4000)), compress_level=1)
    assert len(bomb) < 1_000_000
    files = np.full(100, bomb, dtype=object)
    with pytest.raises(InvalidInput, match="bytes of pixels together"):
        IMAGE_CLASSIFICATION.from_tensors({"image": files}, ANY)
    with pytest.raises(InvalidInput, match="has 1025 pictures"):
        IMAGE_CLASSIFICATION.from_tensors({"image": np.full(1025, bomb, dtype=object)}, ANY)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x": np.zeros((1, 2, 2))},
        {"image": np.zeros((2, 2))},
        {"image": np.zeros((1, 2, 2, 2))},
        {"image": np.zeros((1, 1, 2, 2, 2))},
        {"image": np.full((1, 2, 2), np.nan)},
        {"image": np.zeros((1, 0, 2))},
    ],
)
def test_tensors_that_hold_no_pictures_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(InvalidInput):
        IMAGE_CLASSIFICATION.from_tensors(tensors, ANY)


def test_signatures_show_the_size() -> None:
    def shape(**options: Any) -> tuple[int, ...]:
        return IMAGE_CLASSIFICATION.signature(TaskConfig(options=options)).inputs[0].shape

    assert shape(image_size=[28, 28], image_mode="L") == (-1, 28, 28)
    assert shape(image_size=[224, 192]) == (-1, 224, 192, 3)
    assert shape() == (-1, -1, -1, 3)
    outputs = IMAGE_CLASSIFICATION.signature(DIGITS).outputs
    assert outputs == (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, 10)))


def test_an_answer_reads_plainly() -> None:
    output = Classification(labels=("3", "8"), scores=np.array([0.7, 0.3], dtype=np.float32))
    plain = IMAGE_CLASSIFICATION.to_plain(output, DIGITS)
    assert (plain["label"], plain["confidence"]) == ("3", 0.7)


# ---------------------------------------------------------------- fitting


def fit(pixels: np.ndarray, **options: Any) -> np.ndarray:
    return fit_image(pixels, image_options(options))


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    assert np.array_equal(fit(gradient(), image_size=[6, 8]), gradient())
    grey = gradient()[:, :, :1]
    assert np.array_equal(fit(grey, image_mode="L"), grey[:, :, 0])
    assert np.array_equal(fit(grey), np.repeat(grey, 3, axis=2))


def test_colour_becomes_grey_as_the_eye_sees_it() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    assert fit(colours, image_mode="L").tolist() == [[76, 150, 29, 255]]


def test_what_is_transparent_lies_on_white() -> None:
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    assert fit(clear, image_mode="L").tolist() == [[255, 255], [255, 255]]
    half = np.full((1, 1, 4), [0, 0, 0, 128], dtype=np.uint8)
    assert fit(half).tolist() == [[[127, 127, 127]]]


def test_a_smaller_picture_is_averaged_not_sampled() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, np.newaxis]
    small = fit(board, image_size=[8, 8], image_mode="L")
    assert np.abs(small.astype(int) - 127).max() <= 4


def test_another_shape_is_stretched_cut_or_padded() -> None:
    wide = np.full((10, 20, 1), 200, dtype=np.uint8)
    wide[:, :5] = 100
    sized: dict[str, Any] = {"image_size": [10, 10], "image_mode": "L"}
    stretched = fit(wide, **sized)
    assert (stretched[0, 0], stretched[0, 9]) == (100, 200)
    assert fit(wide, **sized, image_fit="crop").min() == 200
    padded = fit(wide, **sized, image_fit="pad")
    assert (padded[0].max(), padded[5].max()) == (0, 200)


@pytest.mark.parametrize("size", [(256, 256), (224, 224), (300, 500)])
def test_the_middle_is_cut_as_who_resizes_first_and_crops_then(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    smooth = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8)).resize(size[::-1])
    whole = smooth.resize((256, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(whole, dtype=float)[16:240, 16:240]
    cut = fit(np.asarray(smooth), image_size=[224, 224], image_fit="stretch", crop_scale=0.875)
    assert np.abs(cut - expected).mean() < 1


def test_ink_on_paper_becomes_light_on_dark_only_when_asked() -> None:
    paper = np.full((28, 28, 1), 250, dtype=np.uint8)
    paper[10:18, 12:15] = 10
    assert fit(paper, image_mode="L")[0, 0] == 250
    negative = fit(paper, image_mode="L", invert="auto")
    assert (negative[0, 0], negative[12, 13]) == (5, 245)
    assert np.array_equal(fit(255 - paper, image_mode="L", invert="auto"), negative)
    assert np.array_equal(fit(paper, image_mode="L", invert="always"), negative)
    assert fit(paper[:, :14], image_mode="L", image_size=[8, 8], image_fit="pad", invert="auto")[
        0, 0
    ] in (0, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": [28]},
        {"image_size": [0, 28]},
        {"image_size": [28, 1 << 20]},
        {"image_size": "28x28"},
        {"image_mode": "CMYK"},
        {"image_fit": "squash"},
        {"invert": True},
    ],
)
def test_a_wrong_option_of_the_bundle_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        image_options(options)


# ------------------------------------------------------------------------------ a part of it


def scene() -> np.ndarray:
    """A picture of 40 x 60 whose pixels say where they are."""
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"image_size": [8, 8]}])
def test_a_crop_is_what_the_box_touches(options: dict[str, Any]):
    config = TaskConfig(options=options)
    box = {"xmin": 10.2, "ymin": 5.9, "xmax": 19.1, "ymax": 8}
    for picture in (scene().tolist(), file_of(Image.fromarray(scene()))):
        item = image_from_plain({"image": picture, "crop": box}, config)
        assert item.size == (3, 10)
        assert np.array_equal(item.pixels, scene()[5:8, 10:20])


def test_a_crop_is_in_pixels_of_the_upright_picture():
    lying = Image.fromarray(scene()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    box = {"xmin": 0, "ymin": 0, "xmax": 20, "ymax": 10}
    item = image_from_plain({"image": file_of(lying, exif=exif), "crop": box}, TaskConfig())
    assert np.array_equal(item.pixels, scene()[:10, :20])


@pytest.mark.parametrize(
    "box",
    [
        {"xmin": 100, "ymin": 0, "xmax": 200, "ymax": 10},
        {"xmin": 5, "ymin": 5, "xmax": 5, "ymax": 9},
        {"xmin": 9, "ymin": 5, "xmax": 5, "ymax": 9},
        {"xmin": 1, "ymin": 2},
        [1, 2, 3, 4],
        "all",
        {"xmin": "a", "ymin": 5, "xmax": 5, "ymax": 9},
    ],
)
def test_a_crop_of_nothing_is_refused(box: Any):
    with pytest.raises(InvalidInput, match="crop"):
        image_from_plain({"image": scene().tolist(), "crop": box}, TaskConfig())
