"""Pictures over the wire: real models behind every door that takes or gives them, and bad files."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from tests.bad_pictures import gif_of_frames
from tests.conftest import LiveServer, run_server
from tests.pictures import corners, file_of, open_photo, overlap
from tests.real_models import photo, run_recipe
from tests.wire.probe import check_refusal, resident_mib, worker_of

from wherry import Client

MODELS = {
    "classes": "efficientnet-lite0",
    "things": "nanodet",
    "people": "selfie",
    "drawer": "digit-pictures",
}
"""Deployment → recipe."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a model for each kind of answer."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="pip install 'wherry[onnx,convert]'")
    folder = tmp_path_factory.mktemp("pictures")
    with run_server(folder) as server:
        with Client(server.url, server.key) as client:
            for name, recipe in MODELS.items():
                client.models.import_model(run_recipe(recipe, folder / name).folder, name=name)
                client.deployments.deploy(name)
        yield server


def post_file(live: LiveServer, deployment: str, data: bytes, kind: str = "image/png") -> Any:
    return live.http.post(
        f"/predict/{deployment}", content=data, headers={"content-type": kind}, timeout=60
    )


# ------------------------------------------------------------------------------ good ones


def test_a_file_as_the_body_is_classified(pictures: LiveServer) -> None:
    answer = post_file(pictures, "classes", photo("coffee").read_bytes())
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "espresso"
    assert answer.headers["x-wherry-units"].endswith("rows=1")


def test_boxes_are_told_in_json_and_as_tensors(pictures: LiveServer) -> None:
    data = photo("motorcycle_left").read_bytes()
    body = {"image": base64.b64encode(data).decode(), "threshold": 0.5}
    plain = pictures.http.post("/predict/things", json=body).json()
    assert [each["label"] for each in plain["objects"]] == ["motorcycle"]
    raw = struct.pack("<I", len(data)) + data
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    infer = pictures.http.post(
        "/v2/models/things/infer",
        content=head + raw,
        headers={"inference-header-content-length": str(len(head))},
    )
    assert infer.status_code == 200, infer.text
    outputs = {each["name"]: each for each in infer.json()["outputs"]}
    assert outputs["labels"]["data"][0] == "motorcycle"
    box = outputs["boxes"]["data"][:4]
    assert overlap(box, corners(plain["objects"][0]["box"])) > 0.99


def test_a_mask_is_a_png_of_the_pictures_size(pictures: LiveServer) -> None:
    scene = open_photo(photo("astronaut")).crop((0, 0, 400, 512))
    answer = post_file(pictures, "people", file_of(scene, "JPEG"), "image/jpeg").json()
    masks = {each["label"]: each["mask"] for each in answer["segments"]}
    with Image.open(io.BytesIO(base64.b64decode(masks["person"]))) as mask:
        assert mask.size == (400, 512)
        assert 0.4 < (np.asarray(mask) > 127).mean() < 0.8


def test_the_openai_sdk_draws_pictures(pictures: LiveServer) -> None:
    with openai.OpenAI(
        base_url=f"{pictures.url}/v1",
        api_key=pictures.key,
        max_retries=0,
        _strict_response_validation=True,
    ) as sdk:
        made = sdk.images.generate(
            model="drawer",
            prompt="a handwritten seven",
            n=2,
            size="256x256",
            response_format="b64_json",
            extra_body={"seed": 3},
        )
        assert made.created > 1_600_000_000
        assert made.data is not None
        assert [each.revised_prompt for each in made.data] == ["7", "7"]
        files = [base64.b64decode(each.b64_json or "") for each in made.data]
        assert files[0] != files[1]
        for data in files:
            with Image.open(io.BytesIO(data)) as picture:
                assert (picture.format, picture.size) == ("PNG", (256, 256))
        again = sdk.images.generate(
            model="drawer", prompt="7", size="256x256", extra_body={"seed": 4}
        )
        assert again.data is not None
        assert base64.b64decode(again.data[0].b64_json or "") == files[1]
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.images.generate(model="drawer", prompt="7", size="7x70000")  # type: ignore[call-overload]
        assert refused.value.param == "size"
        with pytest.raises(openai.NotFoundError):
            sdk.images.generate(model="nobody", prompt="7")
        with pytest.raises(openai.BadRequestError) as other:
            sdk.images.generate(model="classes", prompt="7")
        assert other.value.param == "model"


# ------------------------------------------------------------------------------ bad ones


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose head says any size; its pixels are missing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk


def photo_bytes(form: str, mode: str = "RGB", **options: Any) -> bytes:
    return file_of(open_photo(photo("coffee")).convert(mode), form, **options)


BAD: dict[str, bytes] = {
    "nothing": b"",
    "a text": b"not a picture at all",
    "a page": b"<html><img src=x></html>",
    "a PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a TIFF": file_of(Image.new("RGB", (40, 40)), "TIFF"),
    "a head alone": png_claiming(40, 40),
    "50 000 x 50 000 pixels": png_claiming(50_000, 50_000),
    "one very long row": png_claiming(2**31 - 1, 1),
    "no width": png_claiming(0, 5),
    "half a PNG": photo_bytes("PNG")[:20_000],
    "a third of a JPEG": photo_bytes("JPEG")[:5000],
    "a tail of a JPEG": photo_bytes("JPEG")[3000:],
}


@pytest.mark.parametrize("deployment", ["classes", "things", "people"])
@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_picture_is_refused(
    pictures: LiveServer, deployment: str, name: str
) -> None:
    check_refusal("/predict", post_file(pictures, deployment, BAD[name]))


def transparent_palette() -> bytes:
    picture = open_photo(photo("coffee")).convert("P")
    return file_of(picture, "PNG", transparency=0)


def sixteen_bits() -> bytes:
    grey = np.asarray(open_photo(photo("coffee")).convert("L")).astype(np.uint16) * 257
    return file_of(Image.fromarray(grey), "PNG")


ODD: dict[str, bytes] = {
    "CMYK": photo_bytes("JPEG", "CMYK"),
    "YCbCr": photo_bytes("JPEG", "YCbCr"),
    "palette": photo_bytes("PNG", "P"),
    "palette with transparency": transparent_palette(),
    "grey": photo_bytes("PNG", "L"),
    "grey and alpha": photo_bytes("PNG", "LA"),
    "colour and alpha": photo_bytes("PNG", "RGBA"),
    "16 bits": sixteen_bits(),
    "black and white": photo_bytes("PNG", "1"),
    "WebP": photo_bytes("WEBP"),
    "a page behind a picture": photo_bytes("PNG") + b"<html><script>alert(1)</script></html>",
    "an archive behind a picture": photo_bytes("JPEG") + b"PK\x03\x04" + bytes(5000),
}


@pytest.mark.parametrize("name", ODD)
def test_pictures_of_every_mode_are_answered_right(pictures: LiveServer, name: str) -> None:
    answer = post_file(pictures, "classes", ODD[name], "application/octet-stream")
    assert answer.status_code == 200, answer.text
    likely = list(answer.json()["scores"])
    if name != "black and white":  # little of the coffee is left
        assert "espresso" in likely[:3]


def test_a_wrong_content_type_is_no_matter(pictures: LiveServer) -> None:
    for kind in ("image/jpeg", "image/x-icon", "application/octet-stream"):
        assert (
            post_file(pictures, "classes", photo_bytes("PNG"), kind).json()["label"] == "espresso"
        )
    refused = post_file(pictures, "classes", photo_bytes("PNG"), "audio/wav")
    assert refused.status_code == 400
    assert "takes no sound" in refused.text


def test_of_a_million_frames_the_first_is_looked_at(pictures: LiveServer) -> None:
    answer = post_file(pictures, "things", gif_of_frames(1_000_000), "image/gif")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["width"], answer.json()["height"]) == (8, 8)


@pytest.mark.parametrize("deployment", ["classes", "things", "people"])
def test_bad_pictures_leave_the_worker_and_its_memory_as_they_were(
    pictures: LiveServer, deployment: str
) -> None:
    worker = worker_of(pictures, deployment)
    large = file_of(Image.new("RGB", (4000, 4000), "grey"), "PNG")

    def round_of_all() -> None:
        for data in (*BAD.values(), *ODD.values(), large):
            post_file(pictures, deployment, data)

    for _ in range(3):  # what is kept of the first pictures, code and buffers, is no leak
        round_of_all()
    before = resident_mib(worker.pid)
    for _ in range(5):
        round_of_all()
    # of a large one, the pixels alone have 46 MiB: five that were kept would show
    assert resident_mib(worker.pid) - before < 100
    assert worker_of(pictures, deployment).pid == worker.pid


def test_pictures_sent_together_are_answered_each_for_itself(pictures: LiveServer) -> None:
    """Many at once form batches: every answer belongs to its question."""
    import asyncio

    kinds = {"coffee": "espresso", "chelsea": "tiger cat"}
    alone = {
        name: post_file(pictures, "classes", photo(name).read_bytes()).json() for name in kinds
    }

    async def ask_all() -> list[tuple[str, dict[str, Any]]]:
        headers = {"authorization": f"Bearer {pictures.key}", "content-type": "image/png"}
        async with httpx.AsyncClient(base_url=pictures.url, headers=headers, timeout=60) as client:

            async def ask(name: str) -> tuple[str, dict[str, Any]]:
                answer = await client.post("/predict/classes", content=photo(name).read_bytes())
                return name, answer.json()

            return await asyncio.gather(*(ask(name) for name in [*kinds] * 12))

    for name, answer in asyncio.run(ask_all()):
        assert answer["label"] == kinds[name]
        for label, score in alone[name]["scores"].items():
            assert answer["scores"][label] == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
def test_the_catalogue_brings_the_models_by_itself(pictures: LiveServer) -> None:
    with Client(pictures.url, pictures.key) as client:
        client.models.pull("nanodet", name="pulled")
        client.deployments.deploy("pulled")
    found = post_file(pictures, "pulled", photo("astronaut").read_bytes()).json()
    assert found["objects"][0]["label"] == "person"
