"""What was found on a picture is drawn on it, and kept in a file beside."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest

from wherry.cli.pictures import draw_marks, save_picture

Image = pytest.importorskip("PIL.Image")

BOX = {"xmin": 20, "ymin": 30, "xmax": 80, "ymax": 70}


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "photo.png"
    Image.new("RGB", (120, 100), "white").save(path)
    return path


def png(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def is_white(picture: Any, x: int, y: int) -> bool:
    return picture.getpixel((x, y)) == (255, 255, 255)


def test_boxes_are_framed_where_they_are(photo: Path):
    drawn = draw_marks(photo, {"objects": [{"label": "cup", "score": 0.9, "box": BOX}]})
    assert not is_white(drawn, 80, 50)
    assert not is_white(drawn, 50, 70)
    assert is_white(drawn, 50, 50), "what is inside stays to be seen"
    assert is_white(drawn, 110, 90)


def test_joints_and_faces_are_dotted(photo: Path):
    nose = {"x": 60, "y": 50, "score": 0.9}
    hidden = {"x": 10, "y": 90, "score": 0.1}
    drawn = draw_marks(photo, {"poses": [{"keypoints": {"nose": nose, "knee": hidden}}]})
    assert not is_white(drawn, 60, 50)
    assert is_white(drawn, 10, 90), "a joint that is not seen is not drawn"
    face = {"score": 0.9, "box": BOX, "landmarks": {"nose": {"x": 50, "y": 55}}}
    drawn = draw_marks(photo, {"faces": [face]})
    assert not is_white(drawn, 50, 55)
    assert not is_white(drawn, 80, 50)


def test_lines_of_text_are_framed_with_what_they_say(photo: Path):
    corners = [[10, 60], [100, 60], [100, 80], [10, 80]]
    drawn = draw_marks(photo, {"lines": [{"text": "船", "score": 1.0, "corners": corners}]})
    assert not is_white(drawn, 50, 80)


def test_a_mask_tints_what_it_covers(photo: Path):
    mask = Image.new("L", (120, 100))
    mask.paste(255, (0, 0, 60, 100))
    drawn = draw_marks(photo, {"segments": [{"label": "person", "score": 1.0, "mask": png(mask)}]})
    assert not is_white(drawn, 30, 50)
    assert is_white(drawn, 90, 50)


def test_the_picture_is_kept_in_a_new_file_and_masks_are_not_printed(photo: Path):
    mask = png(Image.new("L", (120, 100), 255))
    answer = {"segments": [{"label": "person", "score": 1.0, "mask": mask}]}
    shown = save_picture(answer, {"image": photo}, "team/people")
    assert shown == {"segments": [{"label": "person", "score": 1.0}]}
    save_picture(answer, {"image": photo}, "team/people")
    assert {each.name for each in photo.parent.glob("team-people-*.png")} == {
        "team-people-1.png",
        "team-people-2.png",
    }


def test_a_made_picture_is_kept(photo: Path):
    answer = {"image": png(Image.new("RGB", (3, 3))), "content_type": "image/png", "seed": 1}
    shown = save_picture(answer, {"prompt": "three"}, "digits")
    assert shown["image"] == "digits-1.png"
    with Image.open(photo.parent / "digits-1.png") as kept:
        assert kept.size == (3, 3)


def test_answers_without_places_and_inputs_without_files_are_left_alone(photo: Path):
    label = {"label": "cup", "scores": {"cup": 1.0}}
    assert save_picture(label, {"image": photo}, "x") is label
    boxes = {"objects": []}
    assert save_picture(boxes, {"image": "aGk="}, "x") is boxes
    assert [each.name for each in photo.parent.iterdir()] == ["photo.png"]
