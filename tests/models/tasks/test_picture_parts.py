"""What picture files may be made of, besides pixels."""

from __future__ import annotations

import pytest
from PIL import Image
from tests import bad_pictures as bad
from tests.pictures import file_of

from wherry.errors import InvalidInput
from wherry.models.tasks.image import image_from_file
from wherry.models.tasks.image_fit import ImageOptions
from wherry.models.tasks.picture_parts import check_parts

SMALL = Image.new("RGB", (64, 48), "red")
REFUSED = {
    "chunks": bad.with_chunks(file_of(SMALL), bad.png_chunk(b"teSt") * 20_000),
    "chunks behind": bad.with_chunks(file_of(SMALL), bad.png_chunk(b"teSt") * 20_000, at_end=True),
    "blocks": bad.gif_of_comments(file_of(SMALL, "GIF"), 20_000),
    "one long comment": bad.gif_of_comments(file_of(SMALL, "GIF"), 1, 5000),
    "segments": bad.jpeg_of_comments(file_of(SMALL, "JPEG"), 20_000),
    "thumbnails": file_of(SMALL, "JPEG")[:2]
    + bad.jpeg_segment(0xE1, bytes(65_000)) * 140
    + file_of(SMALL, "JPEG")[2:],
    "scans": bad.grey_jpeg(64, 48, progressive=True, scans=101),
    "progressive pixels": bad.grey_jpeg(12_000, 12_000, progressive=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_a_picture_needs_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="the picture's file") as refused:
        check_parts(REFUSED[name])
    assert refused.value.param == "image"


@pytest.mark.parametrize(
    "data",
    [
        file_of(SMALL, "JPEG", progressive=True, comment=b"x" * 60_000),
        file_of(SMALL, "JPEG", icc_profile=bytes(3 << 20)),
        bad.gif_of_comments(file_of(SMALL, "GIF"), 100),
        bad.grey_jpeg(9000, 9000, progressive=False),
        bad.grey_jpeg(6000, 6000, progressive=True, scans=10),
        file_of(Image.effect_noise((2000, 1500), 90), "PNG"),
    ],
    ids=["comment", "profile", "comments", "large", "large and progressive", "many chunks"],
)
def test_what_cameras_and_editors_write_is_read(data: bytes) -> None:
    check_parts(data)
    assert image_from_file(data, ImageOptions(image_size=(224, 224))).pixels.size


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "WEBP", "BMP"])
def test_wherever_a_file_is_cut_the_check_ends(form: str) -> None:
    whole = file_of(SMALL, form)
    for end in range(len(whole)):
        check_parts(whole[:end])


@pytest.mark.parametrize("sampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
def test_memory_is_reckoned_by_how_colours_are_stored(sampling: int) -> None:
    numbers = {0: 3, 1: 2, 2: 1.5}[sampling]
    side = int((150 * (1 << 20) / 2 / numbers) ** 0.5) // 16 * 16
    small = bytearray(file_of(SMALL, "JPEG", progressive=True, subsampling=sampling))
    place = small.index(b"\xff\xc2") + 5
    for size, is_refused in ((side, True), (side * 9 // 10, False)):
        small[place : place + 4] = size.to_bytes(2, "big") * 2
        if is_refused:
            with pytest.raises(InvalidInput, match="MiB to decode"):
                check_parts(bytes(small))
        else:
            check_parts(bytes(small))
