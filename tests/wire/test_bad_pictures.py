"""Picture files that no good client sends, by every door that takes pictures, and many at once.

The oracle: a 4xx in the protocol's own shape or the right answer; the same workers afterwards, in
the same memory; and whoever asks beside a bad file is answered right.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from tests import bad_pictures as bad
from tests.conftest import LiveServer, run_server
from tests.pictures import corners, file_of, open_photo, overlap
from tests.real_models import photo, run_recipe
from tests.wire.probe import check_refusal, gateway_pid, resident_mib, worker_of
from tests.wire.senders import (
    PICTURE_SENDERS,
    chat_senders,
    post_file,
    post_json,
    post_tensors,
    text_of,
)
from tests.wire.test_generation import EYES

from wherry import Client

RECIPES = {"classes": "efficientnet-lite0", "things": "nanodet", "people": "selfie"}
CATALOGUE = {"faces": ("faces", "cv2", "opencv"), "reader": ("ocr", "cv2", "ocr")}
"""Deployment → name in the catalogue, the module that it needs, and the extra that brings it."""
NAMES = (*RECIPES, *CATALOGUE)
MEMORY_SLACK_MIB = 500
"""What a worker may keep above what it had: 256 MiB of pictures that wait, and its allocator's."""


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a model for each way in which pictures are looked at."""
    for package in ("onnx", "onnxruntime", "cv2"):
        pytest.importorskip(package, reason="pip install 'wherry[onnx,convert,opencv,ocr]'")
    folder = tmp_path_factory.mktemp("seeing")
    with run_server(folder, "--allow-code", "--grpc-port", "0") as server:
        with Client(server.url, server.key) as client:
            for name, recipe in RECIPES.items():
                client.models.import_model(run_recipe(recipe, folder / name).folder, name=name)
                client.deployments.deploy(name, wait=False)
            for name, (entry, _, _) in CATALOGUE.items():
                client.models.pull(entry, name=name)
                client.deployments.deploy(name, wait=False)
            client.models.import_model(write_eyes(folder / "eyes"), name="eyes")
            client.deployments.deploy("eyes", wait=False)
            for name in (*NAMES, "eyes"):
                client.deployments.wait(name, timeout=120)
        yield server


def write_eyes(folder: Path) -> Path:
    """A bundle of a class that tells the colours of pictures in a conversation."""
    folder.mkdir()
    (folder / "model.py").write_text(EYES)
    manifest = 'task = "image-text-to-text"\nruntime = "python_stream"\nfiles = ["model.py"]\n'
    (folder / "wherry.toml").write_text(manifest)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_harmed(seeing: LiveServer) -> Iterator[None]:
    """After everything: the same workers, in bounded memory, with the same answers."""
    answers = {name: answer_of(seeing, name) for name in NAMES}
    before = {name: worker_of(seeing, name).pid for name in (*NAMES, "eyes")}
    memory = {name: resident_mib(pid) for name, pid in before.items()}
    gateway = resident_mib(gateway_pid(seeing))
    yield
    assert {name: worker_of(seeing, name).pid for name in before} == before
    for name, pid in before.items():
        assert resident_mib(pid) - memory[name] < MEMORY_SLACK_MIB, name
    assert resident_mib(gateway_pid(seeing)) - gateway < MEMORY_SLACK_MIB
    assert {name: answer_of(seeing, name) for name in NAMES} == answers
    assert "Traceback" not in seeing.log()


def answer_of(live: LiveServer, name: str) -> Any:
    """What a model says of a good photo, without the time that it took."""
    _, answer = post_file(live, f"/predict/{name}", COFFEE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def small(form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    return file_of(Image.new("RGB", (64, 48), "red").convert(mode), form, **options)


def photo_file(form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    return file_of(open_photo(photo("coffee")).convert(mode), form, **options)


COFFEE = photo_file("JPEG", quality=95)
HEADS: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x89",
    "noise": bytes(range(256)) * 40,
    "a page called PNG": b"<!DOCTYPE html><html><img src=x onerror=alert(1)></html>",
    "a vector": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "an archive": b"PK\3\4" + bytes(5000),
    "a sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(100),
    "an unknown RIFF": b"RIFF\x24\0\0\0WEBPVP8?" + bytes(100),
    "a TIFF that is its own next": bad.tiff_of_itself(),
    "a PNG of 50 000 x 50 000": bad.png_file(50_000, 50_000, bad.packed_zeros(300)),
    "a PNG without pixels": bad.png_file(0, 5, b""),
    "a PNG of 2^31 - 1 pixels a row": bad.png_file(2**31 - 1, 1, b""),
    "a PNG of a million chunks": bad.with_chunks(small(), bad.png_chunk(b"teSt") * 1_000_000),
    "a PNG with a million chunks behind": bad.with_chunks(
        small(), bad.png_chunk(b"teSt") * 1_000_000, at_end=True
    ),
    "a PNG with 500 MiB of colour profile": bad.with_chunks(
        small(), bad.png_chunk(b"iCCP", b"a\0\0" + bad.packed_zeros(500))
    ),
    "a GIF of 65 535 x 65 535": small("GIF")[:6] + b"\xff" * 4 + small("GIF")[10:],
    "a GIF of a million comments": bad.gif_of_comments(small("GIF"), 1_000_000),
    "a GIF with 10 MB of comment": bad.gif_of_comments(small("GIF"), 1, 40_000),
    "a JPEG of 65 500 x 65 500": bad.grey_jpeg(65_500, 65_500, progressive=False),
    "a progressive JPEG of 16 000 x 16 000": bad.grey_jpeg(16_000, 16_000, progressive=True),
    "a JPEG of a million comments": bad.jpeg_of_comments(small("JPEG"), 1_000_000),
    "a JPEG of 10 000 scans": bad.grey_jpeg(4096, 4096, progressive=True, scans=10_000),
    "a WebP of 16 383 x 16 383": bad.webp_claiming(16_383, 16_383),
    "a WebP of 2^24 x 2^24": bad.webp_claiming(1 << 24, 1 << 24),
    "a BMP of 2^31 - 1 pixels a row": bad.bmp_claiming(2**31 - 1, 2),
    "a BMP of 2^31 - 1 colours": bad.bmp_claiming(50, 50, colours=2**31 - 1),
    **bad.written_as(Image.new("RGB", (40, 30)), ("TIFF", "ICO", "PPM", "TGA", "PCX")),
}
"""Refused before a pixel is decoded."""
BODIES: dict[str, bytes] = {
    "half a PNG": photo_file("PNG")[:40_000],
    "a PNG without its head": photo_file("PNG")[33:],
    "a PNG whose chunk claims 4 GB": bad.PNG_START + b"\xff\xff\xff\xffIDAT" + bytes(100),
    "a PNG with a wrong checksum": small()[:29] + b"xxxx" + small()[33:],
    "a third of a JPEG": COFFEE[: len(COFFEE) // 3],
    "a JPEG of pixels alone": COFFEE[3000:],
    "half a GIF": photo_file("GIF", "P")[:20_000],
    "half a WebP": photo_file("WEBP")[:5000],
    "half a BMP": small("BMP")[:1000],
    "a BMP of nothing but runs": bad.bmp_claiming(4000, 4000, compression=1),
}
"""Refused when they are decoded."""
BAD = HEADS | BODIES


@pytest.mark.parametrize("door", PICTURE_SENDERS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_every_door(seeing: LiveServer, door: str, name: str) -> None:
    check_refusal(*PICTURE_SENDERS[door](seeing, "things", BAD[name]))


@pytest.mark.parametrize("deployment", [*NAMES])
def test_a_bad_file_is_refused_by_every_model(seeing: LiveServer, deployment: str) -> None:
    for file in BAD.values():
        check_refusal(*post_file(seeing, f"/predict/{deployment}", file))


@pytest.mark.parametrize("door", chat_senders())
def test_a_bad_file_is_refused_inside_a_conversation(seeing: LiveServer, door: str) -> None:
    for file in HEADS.values():
        check_refusal(*chat_senders()[door](seeing, "eyes", file))
    _, answer = chat_senders()[door](seeing, "eyes", small())
    assert "1 pictures: #ff0000" in answer.text


# ------------------------------------------------------------------------------ odd but good


def sixteen_bits() -> bytes:
    grey = np.asarray(open_photo(photo("coffee")).convert("L")).astype(np.uint16) * 257
    return file_of(Image.fromarray(grey), "PNG")


def with_strange_exif(value: Any) -> bytes:
    exif = Image.Exif()
    exif[bad.EXIF_ORIENTATION] = value
    return photo_file("JPEG", quality=95, exif=exif)


ODD: dict[str, bytes] = {
    "CMYK": photo_file("JPEG", "CMYK", quality=95),
    "grey": photo_file("PNG", "L"),
    "grey and alpha": photo_file("PNG", "LA"),
    "colour and alpha": photo_file("PNG", "RGBA"),
    "palette": photo_file("PNG", "P"),
    "palette with transparency": photo_file("PNG", "P", transparency=0),
    "16 bits": sixteen_bits(),
    "progressive": photo_file("JPEG", quality=95, progressive=True),
    "WebP without loss": photo_file("WEBP", lossless=True),
    "BMP": photo_file("BMP"),
    "GIF": photo_file("GIF", "P"),
    "an orientation that is none": with_strange_exif(77),
    "a page behind a PNG": photo_file() + b"<html><script>alert(1)</script></html>",
    "an archive behind a JPEG": COFFEE + b"PK\3\4" + bytes(5000),
    "a PDF inside a JPEG": bad.pdf_in_a_jpeg(COFFEE),
    "a PNG of 10 000 frames": bad.animated_png(photo_file(), 10_000),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_answered_right(seeing: LiveServer, name: str) -> None:
    _, answer = post_file(seeing, "/predict/classes", ODD[name])
    assert answer.status_code == 200, answer.text
    assert "espresso" in list(answer.json()["scores"])[:3]


@pytest.mark.parametrize("door", PICTURE_SENDERS)
def test_every_door_answers_a_photo_right(seeing: LiveServer, door: str) -> None:
    path, answer = PICTURE_SENDERS[door](seeing, "classes", COFFEE)
    assert answer.status_code == 200, (path, answer.text)
    assert "espresso" in answer.text


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", bad.STORED_AS)
def test_boxes_are_those_of_the_upright_photo(
    seeing: LiveServer, orientation: int, form: str
) -> None:
    upright = open_photo(photo("motorcycle_left"))
    found = best_box(seeing, bad.lying_file(upright, orientation, form))
    assert overlap(found, best_box(seeing, file_of(upright))) > 0.9


def best_box(live: LiveServer, file: bytes) -> list[float]:
    """Where the motorcycle is."""
    _, answer = post_file(live, "/predict/things", file)
    objects = answer.json()["objects"]
    return next(corners(each["box"]) for each in objects if each["label"] == "motorcycle")


@pytest.mark.parametrize("make", [bad.gif_of_frames, bad.webp_of_frames])
def test_of_very_many_frames_the_first_is_looked_at(seeing: LiveServer, make: Any) -> None:
    _, answer = post_file(seeing, "/predict/things", make(300_000))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["width"], answer.json()["height"]) == (8, 8)


# ------------------------------------------------------------------------------ many at once

LARGE = bad.png_file(256, 65_536, bad.packed_zeros(49), bits=8, colour=2)
"""51 KB, and 48 MiB of pixels that no model's size makes fewer: good, if it comes alone."""
DEEP = bad.png_file(4096, 4096, bad.packed_zeros(129), bits=16, colour=6)
"""134 KB, and 128 MiB while it is decoded."""


def ask_all(live: LiveServer, name: str, files: list[bytes]) -> list[httpx.Response]:
    """All at the same time, each over its own connection."""

    async def ask() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {live.key}", "content-type": "image/png"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=live.url, headers=headers, timeout=300, limits=limits
        ) as client:
            calls = (client.post(f"/predict/{name}", content=file) for file in files)
            return await asyncio.gather(*calls)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param("things", LARGE, id="of a model's size"),
        pytest.param("things", DEEP, id="made smaller", marks=pytest.mark.slow),
        pytest.param("faces", LARGE, id="kept", marks=pytest.mark.slow),
        pytest.param("faces", DEEP, id="kept, of 16 bits", marks=pytest.mark.slow),
    ],
)
def test_sixty_four_large_pictures_are_answered_in_bounded_memory(
    seeing: LiveServer, name: str, file: bytes
) -> None:
    pid = worker_of(seeing, name).pid
    answers = ask_all(seeing, name, [file] * 64)
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert worker_of(seeing, name).pid == pid


def test_bad_files_among_good_ones_harm_only_themselves(seeing: LiveServer) -> None:
    right = answer_of(seeing, "classes")
    few = [BAD[name] for name in ("nothing", "half a PNG", "a JPEG of 10 000 scans")]
    files = [few[n % 3] if n % 4 == 0 else COFFEE for n in range(32)]
    for n, answer in enumerate(ask_all(seeing, "classes", files)):
        if n % 4 == 0:
            check_refusal("/predict", answer)
            continue
        assert answer.status_code == 200, answer.text
        assert answer.json()["label"] == right["label"]
        assert answer.json()["confidence"] == pytest.approx(right["confidence"], abs=1e-4)


def test_one_bad_file_of_a_tensor_is_refused_with_all_of_it(seeing: LiveServer) -> None:
    path, answer = post_tensors(seeing, "classes", "image", [COFFEE] * 31 + [b"x"])
    check_refusal(path, answer)
    _, good = post_tensors(seeing, "classes", "image", [COFFEE] * 4)
    (labels,) = [each for each in good.json()["outputs"] if each["name"] == "label"]
    assert labels["data"] == ["espresso"] * 4


def test_small_files_of_large_pictures_in_one_request_are_refused(seeing: LiveServer) -> None:
    for name in ("Open Inference", "KServe v1", "MLflow"):
        path, answer = send_many(seeing, name, [LARGE] * 30)
        check_refusal(path, answer)
        assert "together" in answer.text


def send_many(live: LiveServer, door: str, files: list[bytes]) -> tuple[str, httpx.Response]:
    """Several files in one request."""
    if door == "Open Inference":
        return post_tensors(live, "things", "image", files)
    texts = [text_of(file) for file in files]
    if door == "KServe v1":
        return post_json(live, "/v1/models/things:predict", {"instances": texts})
    return post_json(live, "/mlflow/things/invocations", {"inputs": texts})


def test_slow_senders_of_files_keep_nobody_waiting(seeing: LiveServer) -> None:
    """Thirty-two clients have sent half of a photo when others ask."""
    address = httpx.URL(seeing.url)
    head = (
        f"POST /predict/classes HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        f"Authorization: Bearer {seeing.key}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(COFFEE)}\r\nConnection: close\r\n\r\n"
    ).encode()
    half = len(COFFEE) // 2
    slow = [socket.create_connection((address.host, address.port), 60) for _ in range(32)]
    try:
        for each in slow:
            each.sendall(head + COFFEE[:half])
        assert {each.status_code for each in ask_all(seeing, "classes", [COFFEE] * 8)} == {200}
        for each in slow:
            each.sendall(COFFEE[half:])
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda each: each.makefile("rb").read(), slow))
    finally:
        for each in slow:
            each.close()
    assert all(b"espresso" in answer for answer in answers)


# ------------------------------------------------------------------------------ other doors


def test_grpc_refuses_bad_files_and_lying_lengths(seeing: LiveServer) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="pip install 'tritonclient[grpc]'")
    pb, stubs = triton.service_pb2, triton.service_pb2_grpc
    grpc = pytest.importorskip("grpc", reason="pip install 'wherry[grpc]'")
    key = (("authorization", f"Bearer {seeing.key}"),)
    few = [b"", BAD["noise"], BAD["half a PNG"], BAD["a PNG of 50 000 x 50 000"]]
    bodies = [struct.pack("<I", len(file)) + file for file in few]
    bodies += [b"\xff\xff\xff\xff", b"\0\0\0", struct.pack("<I", 9) + b"short"]
    with grpc.insecure_channel(seeing.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)

        def ask(raw: bytes) -> Any:
            request = pb.ModelInferRequest(model_name="classes", raw_input_contents=[raw])
            tensor = request.inputs.add(name="image", datatype="BYTES")
            tensor.shape.append(1)
            return stub.ModelInfer(request, metadata=key, timeout=60)

        for raw in bodies:
            with pytest.raises(grpc.RpcError) as refused:
                ask(raw)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert b"espresso" in b"".join(
            ask(struct.pack("<I", len(COFFEE)) + COFFEE).raw_output_contents
        )


def test_bad_lines_of_a_batch_are_errors_of_their_own(seeing: LiveServer) -> None:
    names = ["noise", "half a PNG", "a PNG of 50 000 x 50 000", "a GIF with 10 MB of comment"]
    files = {**{name: BAD[name] for name in names}, "good": COFFEE}
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/predict/classes",
            "body": {"image": text_of(file)},
        }
        for name, file in files.items()
    ]
    with openai.OpenAI(base_url=f"{seeing.url}/v1", api_key=seeing.key, max_retries=0) as sdk:
        content = "\n".join(map(json.dumps, lines)).encode()
        sent = sdk.files.create(file=("lines.jsonl", content), purpose="batch")
        endpoint: Any = "/predict/classes"
        batch = sdk.batches.create(
            input_file_id=sent.id, endpoint=endpoint, completion_window="24h"
        )
        deadline = time.monotonic() + 120
        while batch.status not in ("completed", "failed") and time.monotonic() < deadline:
            time.sleep(0.2)
            batch = sdk.batches.retrieve(batch.id)
        assert batch.status == "completed", batch.errors
        good = json.loads(sdk.files.content(batch.output_file_id or "").text)
        errors = sdk.files.content(batch.error_file_id or "").text.splitlines()
    assert good["response"]["body"]["label"] == "espresso"
    told = {each["custom_id"]: each["response"]["status_code"] for each in map(json.loads, errors)}
    assert told == dict.fromkeys(names, 400)
