"""A point found in a fitted picture is at its place in the original."""

import io
from typing import Any

import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_classification import IMAGE_CLASSIFICATION
from wherry.models.tasks.image_fit import ImageOptions, fit_image, frame_of, image_options
from wherry.models.tasks.task import TaskConfig

Image = pytest.importorskip("PIL.Image")

SIZES = [(60, 100), (100, 60), (64, 64), (37, 211), (900, 1400)]
WAYS: list[dict[str, Any]] = [
    {},
    {"image_fit": "pad"},
    {"image_fit": "pad", "pad_place": "end"},
    {"image_fit": "crop"},
    {"image_fit": "crop", "crop_scale": 0.875},
]


def dotted(height: int, width: int, row: int, column: int) -> np.ndarray:
    """Black, with a white square of a tenth of the shorter side around one point."""
    pixels = np.zeros((height, width, 1), dtype=np.uint8)
    reach = min(height, width) // 20
    pixels[row - reach : row + reach + 1, column - reach : column + reach + 1] = 255
    return pixels


def centre(grey: np.ndarray) -> np.ndarray:
    """x, y of the middle of what is light."""
    rows, columns = np.nonzero(grey > 127)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5], dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_dot_is_found_where_it_was(size: tuple[int, int], way: dict[str, Any]):
    height, width = size
    options = image_options({"image_size": [96, 128], "image_mode": "L", **way})
    row, column = int(height * 0.55), int(width * 0.45)
    fitted = fit_image(dotted(height, width, row, column), options)
    found = frame_of(size, options).to_original(centre(fitted))
    slack = 1.5 * max(height / 96, width / 128, 0.5)
    assert found == pytest.approx(np.array([column + 0.5, row + 0.5]), abs=slack)


def test_a_file_that_was_read_smaller_keeps_the_size_of_the_client():
    buffer = io.BytesIO()
    Image.fromarray(dotted(1200, 1600, 660, 720)[:, :, 0]).save(buffer, "JPEG")
    config = TaskConfig(options={"image_size": [96, 128], "image_mode": "L"})
    item = IMAGE_CLASSIFICATION.from_plain({"image": buffer.getvalue()}, config)
    assert item.size == (1200, 1600)
    assert item.pixels.shape[0] < 1200
    options = image_options(config.options)
    found = frame_of(item.size, options).to_original(centre(fit_image(item.pixels, options)))
    assert found == pytest.approx(np.array([720.5, 660.5]), abs=13)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_file_is_that_of_the_upright_picture(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    item = IMAGE_CLASSIFICATION.from_plain({"image": buffer.getvalue()}, TaskConfig())
    assert item.size == ((20, 40) if orientation < 5 else (40, 20)) == item.pixels.shape[:2]


def test_pixels_are_their_own_size():
    assert ImageInput(np.zeros((3, 5, 1), dtype=np.uint8)).size == (3, 5)


def test_a_border_has_the_grey_that_the_bundle_says():
    options = image_options(
        {"image_size": [4, 8], "image_fit": "pad", "pad_value": 114, "pad_place": "end"}
    )
    fitted = fit_image(np.full((4, 4, 3), 255, dtype=np.uint8), options)
    assert (fitted[:, :4] == 255).all()
    assert (fitted[:, 4:] == 114).all()


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": 0.0}, {"crop_scale": 1.5}, {"pad_value": 256}, {"resample": "best"}]
)
def test_options_that_mean_nothing_are_refused(wrong: dict[str, Any]):
    with pytest.raises(InvalidInput):
        image_options(wrong)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_large_picture_is_converted_as_its_parts_are(mode: Any, channels: int) -> None:
    pixels = np.random.default_rng(channels).integers(0, 256, (700, 900, channels), np.uint8)
    options = ImageOptions(image_mode=mode)
    whole = fit_image(pixels, options)
    rows = [fit_image(pixels[row : row + 1], options) for row in range(700)]
    assert np.array_equal(whole, np.concatenate(rows))
