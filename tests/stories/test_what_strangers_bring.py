"""Folders as people have them, imported without a word, against a real server."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.conftest import LiveServer
from tests.listening import tones
from tests.tiny_translators import write_onnx_whisper

from wherry import Client
from wherry.models.tasks.wav import write_wav

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
RED = (200, 40, 0)


@pytest.fixture
def client(server: LiveServer):
    with Client(server.url, server.key) as made:
        yield made


def test_a_whisper_of_the_hub_answers_openais_clients(
    client: Client, server: LiveServer, tmp_path: Path
):
    home = tmp_path / "somebody" / "whisper-tiny"
    home.mkdir(parents=True)
    write_onnx_whisper(home, "merged")
    (home / "tokenizer").mkdir()
    (home / "tokenizer.json").rename(home / "tokenizer" / "tokenizer.json")
    version = client.models.import_model(tmp_path, name="heard")
    assert (version.card.task, version.card.runtime) == ("automatic-speech-recognition", "onnx")
    assert version.assumed == []
    client.deployments.deploy("heard")
    response = httpx.post(
        f"{server.url}/v1/audio/transcriptions",
        data={"model": "heard", "response_format": "verbose_json", "language": "fr"},
        files={"file": ("talk.wav", write_wav(tones(40.0), 16_000))},
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=60,
    )
    found = response.raise_for_status().json()
    assert (found["language"], found["duration"]) == ("french", 40.0)
    assert found["text"] == "".join(each["text"].strip() for each in found["segments"])
    assert found["text"]
    refused = httpx.post(
        f"{server.url}/v1/audio/transcriptions",
        data={"model": "heard", "language": "de"},
        files={"file": ("talk.wav", write_wav(tones(1.0), 16_000))},
        headers={"Authorization": f"Bearer {server.key}"},
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "language"


def test_what_was_assumed_of_colours_is_told_and_can_be_said(client: Client, tmp_path: Path):
    write_mean_colour(tmp_path / "model.onnx")
    assumed = client.models.import_model(
        tmp_path, name="colours", task="image-classification", labels=["first", "second", "third"]
    )
    assert "RGB, from 0 to 1" in assumed.assumed[0]
    client.deployments.deploy("colours@1", name="assumed")
    assert client.predict("assumed", image=picture(RED))["prediction"] == "first"
    said = client.models.import_model(
        tmp_path,
        name="colours",
        task="image-classification",
        labels=["first", "second", "third"],
        options={"channel_order": "BGR", "image_fit": "crop"},
    )
    assert said.assumed == []
    client.deployments.deploy("colours@2", name="said")
    assert client.predict("said", image=picture(RED))["prediction"] == "third"


def write_mean_colour(path: Path) -> None:
    """A classifier as tf2onnx writes it, channels last: how bright each channel is."""
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Transpose", ["input_1"], ["t"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("GlobalAveragePool", ["t"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["predictions"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "tf2onnx",
        [value("input_1", onnx.TensorProto.FLOAT, ["unk__5", 32, 32, 3])],
        [value("predictions", onnx.TensorProto.FLOAT, ["unk__6", 3])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def picture(colour: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
