"""Reading: PaddleOCR's models of a package, on pages that are written here."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import cjk_font, fetch_member, page_png

from wherry.errors import FormatNotAllowed
from wherry.models.bundle import Bundle, Manifest
from wherry.models.tasks.catalog import find_task

pytest.importorskip("cv2", reason="pip install 'wherry[ocr]'")
pytest.importorskip("onnxruntime", reason="pip install 'wherry[ocr]'")
Image = pytest.importorskip("PIL.Image")

from PIL import ImageDraw, ImageFont  # noqa: E402 - after importorskip

from wherry.worker.runtimes.onnx import OnnxRuntime  # noqa: E402

FILES = {
    "ch_PP-OCRv4_det_infer.onnx": "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    "ch_PP-OCRv4_rec_infer.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": (
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"
    ),
}
INVOICE = ["Invoice No. 2024-1187", "Total due: $1,249.50", "Thank you for your order"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ocr")
    for name, digest in FILES.items():
        path = f"rapidocr_onnxruntime/models/{name}"
        shutil.copyfile(fetch_member("rapidocr-onnxruntime==1.4.4", path, digest), folder / name)
    return folder


class Reader:
    def __init__(self, folder: Path, files: tuple[str, ...] = tuple(FILES), **options: Any) -> None:
        self.manifest = Manifest(task="image-to-text", runtime="onnx", files=files, options=options)
        self.runtime = OnnxRuntime()
        self.runtime.load(Bundle(folder, self.manifest), "cpu")

    def read(self, picture: Any) -> Any:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        task = find_task("image-to-text")
        item = task.from_plain({"image": buffer.getvalue()}, self.manifest.task_config())
        (output,) = self.runtime.run([self.runtime.prepare(item)])
        return output


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return Reader(folder)


def page(lines: list[str], size: tuple[int, int] = (640, 220), font: Any = None) -> Any:
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        draw.text((30, 20 + 60 * row), line, "black", font or ImageFont.load_default(size=30))
    return picture


def letters(text: str) -> str:
    """Without spaces, about which the model is careless."""
    return "".join(text.split())


def test_an_english_page_is_read_line_by_line(reader: Reader):
    output = reader.read(page(INVOICE))
    assert [letters(line.text) for line in output.lines] == [letters(line) for line in INVOICE]
    assert output.text == "\n".join(line.text for line in output.lines)
    assert all(line.score > 0.8 for line in output.lines)
    assert output.usage.rows == 1


def test_corners_are_where_the_line_is(reader: Reader):
    for row, line in enumerate(reader.read(page(INVOICE)).lines):
        left, top = line.corners[0]
        assert left == pytest.approx(30, abs=8)
        assert top == pytest.approx(24 + 60 * row, abs=10)
        assert line.corners[2][1] - top == pytest.approx(30, abs=12)


@pytest.mark.slow
def test_a_chinese_page_is_read(reader: Reader):
    lines = ["今天天气很好，我们去公园散步", "发票号码：20241187", "合计人民币一千二百元整"]
    font = ImageFont.truetype(str(cjk_font()), 32)
    found = reader.read(page(lines, font=font)).lines
    assert [letters(line.text).replace(",", "，").replace(":", "：") for line in found] == lines


def test_a_scanned_page_is_read_as_the_library_reads_it(reader: Reader):
    """Parity with rapidocr-onnxruntime 1.4.4, which read these lines of this picture; it rounds the
    corners of a line to whole pixels, so a space may differ."""
    lines = [letters(line.text) for line in reader.read(Image.open(page_png())).lines]
    assert lines == [
        "Region-basedsegmentation",
        "Letusfirstdeterminemarkersofthecoinsandthe",
        "background.Thesemarkersarepixelsthatwecanlabel",
        "unambiguouslyaseitherobjectorbackground.Here,",
        "histogramofgreyvalues:",
    ]


@pytest.mark.slow
def test_a_line_that_is_upside_down_is_read(reader: Reader):
    found = reader.read(page(INVOICE).rotate(180)).lines
    assert sorted(letters(line.text) for line in found) == sorted(map(letters, INVOICE))


@pytest.mark.slow
def test_a_slanted_page_is_read(reader: Reader):
    found = reader.read(page(INVOICE).rotate(6, expand=True, fillcolor="white")).lines
    # an upright stroke may be I or l
    read = [letters(line.text).replace("l", "I") for line in found]
    assert read == [letters(line).replace("l", "I") for line in INVOICE]


@pytest.mark.slow
def test_several_columns_are_read_from_left_to_right(reader: Reader):
    picture = page(["Name", "Amount"], (700, 160))
    picture.paste(page(["Paul", "1200"], (300, 160)), (400, 0))
    found = [letters(line.text) for line in reader.read(picture).lines]
    assert found == ["Name", "Paul", "Amount", "1200"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (3000, 4), (4, 3000), (31, 33), (5000, 700)])
def test_any_size_is_answered(reader: Reader, size: tuple[int, int]):
    assert reader.read(Image.new("RGB", size, "white")).lines == []


@pytest.mark.slow
def test_a_large_picture_is_told_in_its_own_pixels(reader: Reader):
    large = page(INVOICE).resize((3840, 1320))
    first = reader.read(large).lines[0]
    assert letters(first.text) == letters(INVOICE[0])
    assert first.corners[0][0] == pytest.approx(180, abs=40)


@pytest.mark.slow
def test_two_files_are_enough(folder: Path):
    reader = Reader(folder, tuple(FILES)[:2])
    assert letters(reader.read(page(INVOICE)).lines[0].text) == letters(INVOICE[0])


@pytest.mark.slow
def test_lines_that_the_model_is_unsure_of_are_not_told(folder: Path):
    strict = Reader(folder, threshold=0.999999)
    assert strict.read(page(INVOICE)).lines == []


def test_files_in_another_order_are_refused(folder: Path):
    with pytest.raises(FormatNotAllowed):
        Reader(folder, tuple(FILES)[:1])
    with pytest.raises(FormatNotAllowed, match="map of where text is"):
        Reader(folder, tuple(FILES)[1::-1])


@pytest.mark.slow
def test_a_picture_is_answered_alike_beside_others(reader: Reader):
    pictures = [page(INVOICE), page(["Something else"]), page(INVOICE)]
    alone = [reader.read(each).text for each in pictures]
    task, config = find_task("image-to-text"), reader.manifest.task_config()
    items = [task.from_plain({"image": np.asarray(each).tolist()}, config) for each in pictures]
    together = reader.runtime.run([reader.runtime.prepare(item) for item in items])
    assert [output.text for output in together] == alone
