"""Pipelines of real models: what is said, read and seen goes from one to the next."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests import real_models
from tests.conftest import run_server
from tests.pipelines import ask, step
from tests.real_models import catalog_folder, photo, run_recipe

from wherry import Client
from wherry.client.schema import DeploymentSpec
from wherry.models.bundle import Bundle


def test_speech_is_made_heard_and_sorted(tmp_path: Path):
    pytest.importorskip("faster_whisper", reason="pip install 'wherry[whisper]'")
    pytest.importorskip("hibari", reason="pip install 'wherry[tts]'")
    real_models.beckett_sound()  # skips where there is no registry
    with run_server(tmp_path) as server, Client(server.url, server.key) as client:
        for name in ("whisper-tiny-en", "hibari"):
            client.models.pull(name)
            client.deployments.deploy(name)
        (tmp_path / "voice.toml").write_text(
            '[[deployments]]\nname = "echo-voice"\n'
            'answer = { text = "$hear.text", audio = "$again.audio" }\n'
            "[[deployments.steps]]\n"
            'name = "speak"\ndeployment = "hibari"\ninput = { text = "$request.text" }\n'
            "[[deployments.steps]]\n"
            'name = "hear"\ndeployment = "whisper-tiny-en"\ninput = { audio = "$speak.audio" }\n'
            "[[deployments.steps]]\n"
            'name = "again"\ndeployment = "hibari"\ninput = { text = "$hear.text" }\n'
        )
        server.run_cli("apply", "-f", str(tmp_path / "voice.toml"), "--yes")
        sentence = "The old boat crossed the river before sunrise."
        answer = server.http.post("/predict/echo-voice", json={"text": sentence}, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == sentence
        assert base64.b64decode(answer.json()["audio"])[:4] == b"RIFF"
        units = answer.headers["x-wherry-units"]
        assert f"characters={2 * len(sentence)}" in units
        assert "audio_ms=0" not in units
        heard = DeploymentSpec(
            name="listen", steps=[step("hear", "whisper-tiny-en", {"audio": "$request.audio"})]
        )
        client.deployments.apply(heard)
        file = base64.b64decode(answer.json()["audio"])
        told = server.http.post(
            "/predict/listen", content=file, headers={"content-type": "audio/wav"}, timeout=120
        )
        assert told.json()["text"] == sentence


def test_what_is_found_in_a_picture_is_looked_at_more_closely(tmp_path: Path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'wherry[onnx,convert]'")
    with run_server(tmp_path) as server, Client(server.url, server.key) as client:
        import_all(
            client,
            tmp_path,
            things=partial(run_recipe, "nanodet"),
            classes=partial(run_recipe, "efficientnet-lite0"),
        )
        spec = DeploymentSpec(
            name="closer",
            steps=[
                step("find", "things", {"image": "$request.image", "threshold": 0.5}),
                step(
                    "name",
                    "classes",
                    {"image": "$request.image", "crop": "$each.box"},
                    "$find.objects",
                ),
            ],
            answer={"found": "$find.objects.*.label", "named": "$name.*.label"},
        )
        client.deployments.apply(spec)
        data = photo("motorcycle_left").read_bytes()
        answer = server.http.post(
            "/predict/closer", content=data, headers={"content-type": "image/png"}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["found"] == ["motorcycle"]
        assert len(answer.json()["named"]) == 1
        worker = [each for each in client.workers() if each.deployment == "classes"]
        os.kill(worker[0].pid, signal.SIGKILL)
        again = server.http.post(
            "/predict/closer", content=data, headers={"content-type": "image/png"}, timeout=60
        )
        assert again.json() == answer.json()
        assert psutil.pid_exists(server.process.pid)


def import_all(client: Client, folder: Path, **bundles: Callable[[Path], Bundle]) -> None:
    """Deploy what makes a bundle in a folder, by its name."""
    for name, make in bundles.items():
        client.models.import_model(make(folder / name).folder, name=name)
        client.deployments.deploy(name)


def write_page(lines: Sequence[str]) -> bytes:
    """A picture with lines of text, as PNG."""
    drawing = pytest.importorskip("PIL.ImageDraw", reason="pip install 'wherry[image]'")
    from PIL import Image, ImageFont

    page = Image.new("RGB", (700, 100 * len(lines)), "white")
    font = ImageFont.load_default(size=32)
    for row, line in enumerate(lines):
        drawing.Draw(page).text((30, 30 + 100 * row), line, "black", font)
    return as_png(page)


def as_png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_read_in_a_picture_is_sorted_line_by_line(tmp_path: Path):
    for package in ("cv2", "onnxruntime", "sklearn", "skops"):
        pytest.importorskip(package, reason="pip install 'wherry[ocr,sklearn]'")
    sentences = ["A moving film with great acting", "The battery of this camera lasts long"]
    spec = DeploymentSpec(
        name="sort-page",
        steps=[
            step("read", "ocr", {"image": "$request.image"}),
            step("sort", "topics", {"text": "$each.text"}, "$read.lines"),
        ],
        answer={"lines": "$read.lines.*.text", "labels": "$sort.*.label"},
    )
    with run_server(tmp_path) as server, Client(server.url, server.key) as client:
        import_all(
            client,
            tmp_path,
            ocr=partial(catalog_folder, "ocr"),
            topics=partial(run_recipe, "topics"),
        )
        client.deployments.apply(spec)
        page = {"image": base64.b64encode(write_page(sentences)).decode()}
        answer = ask(server, "sort-page", page)
        assert answer.status_code == 200, answer.text
        assert answer.json()["labels"] == ["movie-review", "product-review"]
        read = [each.replace(" ", "") for each in answer.json()["lines"]]
        assert read == [each.replace(" ", "") for each in sentences]
        assert "rows=3" in answer.headers["x-wherry-units"]
        by_hand = [
            ask(server, "topics", {"text": line["text"]}).json()["label"]
            for line in ask(server, "ocr", page).json()["lines"]
        ]
        assert by_hand == answer.json()["labels"]


def test_faces_that_are_found_are_each_compared_with_one_that_is_known(tmp_path: Path):
    pytest.importorskip("cv2", reason="pip install 'wherry[opencv,image]'")
    pytest.importorskip("PIL.Image", reason="pip install 'wherry[image]'")
    spec = DeploymentSpec(
        name="who",
        steps=[
            step("find", "faces", {"image": "$request.image"}),
            step(
                "compare",
                "face-id",
                {"image": "$request.image", "crop": "$each.box", "other": "$request.known"},
                "$find.faces",
            ),
        ],
        answer={"boxes": "$find.faces.*.box", "same": "$compare.*.same"},
    )
    group, known = group_and_known()
    with run_server(tmp_path) as server, Client(server.url, server.key) as client:
        import_all(
            client,
            tmp_path,
            **{name: partial(catalog_folder, name) for name in ("faces", "face-id")},
        )
        client.deployments.apply(spec)
        body = {
            name: base64.b64encode(as_png(picture)).decode()
            for name, picture in (("image", group), ("known", known))
        }
        answer = ask(server, "who", body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert len(found["boxes"]) == 2
        is_left = [box["xmax"] < group.width / 2 for box in found["boxes"]]
        assert found["same"] == is_left


def group_and_known() -> tuple[Any, Any]:
    """An astronaut on the left and somebody else on the right; and the astronaut's mirror image."""
    import numpy as np
    from PIL import Image, ImageOps

    portrait = Image.open(real_models.astronaut_png()).convert("RGB").crop((100, 0, 400, 300))
    grey = np.load(real_models.faces_npy())[0]
    other = Image.fromarray((grey * 255).astype(np.uint8)).resize((200, 200), 3).convert("RGB")
    group = Image.new("RGB", (700, 320))
    group.paste(portrait, (0, 0))
    group.paste(ImageOps.expand(other, 50), (350, 0))
    return group, ImageOps.mirror(portrait)
