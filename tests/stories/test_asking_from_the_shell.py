"""`wherry run` on real models: files in; tables, drawn pictures and sound out."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import LiveServer, run_server
from tests.real_models import penguins_csv, photo, run_recipe

from wherry import Client
from wherry.cli.main import main

Image = pytest.importorskip("PIL.Image", reason="pip install 'wherry[image]'")
pytest.importorskip("onnxruntime", reason="pip install 'wherry[onnx]'")
pytest.importorskip("onnx", reason="pip install 'wherry[convert]'")

RECIPES = {
    "things": "nanodet",
    "people": "selfie",
    "drawer": "digit-pictures",
    "birds": "penguins",
    "series": "forecaster",
}
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("shell")
    with run_server(folder) as server:
        with Client(server.url, server.key) as client:
            for name, recipe in RECIPES.items():
                client.models.import_model(run_recipe(recipe, folder / name).folder, name=name)
                client.deployments.deploy(name)
        yield server


@pytest.fixture
def ask(
    house: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ask:
    """What `wherry run …` prints, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERRY_URL", house.url)
    monkeypatch.setenv("WHERRY_API_KEY", house.key)

    def ask(*words: str) -> str:
        assert main(["run", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return ask


def test_things_are_listed_and_framed_on_the_picture(ask: Ask, tmp_path: Path):
    told = ask("things", str(photo("motorcycle_left")))
    (row,) = [line for line in told.splitlines() if line.startswith("motorcycle")]
    left, top = (int(each) for each in row.split("  ")[-1].split(", ")[:2])
    with (
        Image.open(photo("motorcycle_left")) as sent,
        Image.open(tmp_path / "things-1.png") as drawn,
    ):
        assert drawn.size == sent.size
        middle = (left, top + 50)
        assert drawn.getpixel(middle) != sent.convert("RGB").getpixel(middle)


def test_masks_are_seen_and_not_read(ask: Ask, tmp_path: Path):
    told = ask("people", str(photo("astronaut")))
    assert "person" in told
    assert "mask" not in told.lower()
    assert (tmp_path / "people-1.png").is_file()


def test_a_picture_is_made_of_words(ask: Ask, tmp_path: Path):
    assert "drawer-1.png" in ask("drawer", "a", "handwritten", "seven")
    with Image.open(tmp_path / "drawer-1.png") as made:
        assert made.size == (28, 28)


def test_a_table_in_a_file_is_answered_row_by_row(ask: Ask, tmp_path: Path):
    head, *rows = penguins_csv().read_text().splitlines()
    wanted = ("island", "bill_length_mm", "bill_depth_mm", "flipper_length_mm", "sex")
    places = [head.replace('"', "").split(",").index(name) for name in wanted]
    table = [[row.replace('"', "").split(",")[at] for at in places] for row in rows[:3]]
    lines = [",".join(row) for row in ([*wanted], *table)]
    (tmp_path / "birds.csv").write_text("\n".join(lines))
    told = ask("birds", "birds.csv").splitlines()
    assert told[0].split()[:2] == ["LABEL", "CONFIDENCE"]
    assert [line.split()[0] for line in told[1:]] == ["Adelie"] * 3


def test_a_series_in_a_file_goes_on(ask: Ask, tmp_path: Path):
    rises = "\n".join(f"{year},{10 * year}" for year in range(1, 25))
    (tmp_path / "sales.csv").write_text(f"year,sales\n{rises}\n")
    told = ask("series", "sales.csv").splitlines()
    first = next(line for line in told if line.startswith("1 "))
    assert 245 <= float(first.split()[1]) <= 255


def test_what_is_said_is_heard(ask: Ask, house: LiveServer, tmp_path: Path):
    pytest.importorskip("hibari", reason="pip install 'wherry[tts]'")
    pytest.importorskip("faster_whisper", reason="pip install 'wherry[whisper]'")
    with Client(house.url, house.key) as client:
        for name, model in (("voice", "hibari"), ("transcripts", "whisper-tiny-en")):
            client.models.pull(model, name=name)
            client.deployments.deploy(name)
    assert "voice-1.wav" in ask("voice", "The old boat crossed the river before sunrise.")
    with wave.open(str(tmp_path / "voice-1.wav")) as sound:
        assert sound.getnframes() / sound.getframerate() > 1
    told = ask("transcripts", "voice-1.wav")
    assert "boat crossed the river" in told
    assert "START" in told
