"""Pictures and sound: each kind of model beside the bare loop over its library.

The loop (`bench.bare`) runs in the same rounds on the same core, while the server is idle, and does
what a request asks for: it decodes the file, prepares, runs, and encodes an answer.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.ours import Home
from bench.rounds import Plan, run_rounds
from bench.servers import Contestant, Request
from wherry import Client
from wherry.cli.exhibits import media
from wherry.models.bundle import open_bundle

NAME = "modalities"
QUICK = ()
CONNECTIONS = (1, 8, 32)


@dataclass(frozen=True)
class Modality:
    """A model of the catalogue, and what it is asked."""

    task: str
    model: str
    path: str
    make_body: Callable[[Path], bytes]
    says: bytes
    """Part of a right answer."""
    seconds_factor: float
    """Visits are so much longer than those of small models."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """Each modality by itself: ours at all numbers of connections, the loop once a round."""
    found: dict[str, Any] = {}
    for each in MODALITIES:
        if only and each.task not in only:
            continue
        print(f"  {each.task}", flush=True)
        found[each.task] = run_one(each, replace(plan, seconds=plan.seconds * each.seconds_factor))
    return {"modalities": found}


def run_one(modality: Modality, plan: Plan) -> dict[str, Any]:
    """Ours and the loop in turn."""
    home = Home(plan.folder / f"wherry-{modality.task}")

    def publish(client: Client) -> None:
        client.models.pull(modality.model, name="model")
        client.deployments.deploy("model")

    key = home.prepare(publish, set(plan.server_cores))
    file = plan.folder / f"{modality.task}.body"
    file.write_bytes(modality.make_body(plan.folder))
    headers = {**modality.headers, "Authorization": f"Bearer {key}"}
    request = Request(
        modality.path, file, lambda body: modality.says in body, headers, is_whole=True
    )
    ours = Contestant("wherry", "Wherry", "key, limits and journal on", home.launch, request)
    bundle = find_bundle(home.folder / "data" / "bundles", modality.task)
    bare: list[tuple[float, float]] = []
    results = run_rounds(
        [ours],
        CONNECTIONS,
        plan,
        between=lambda: bare.append(measure_bare(modality.task, bundle, file, plan)),
    )
    return {
        "model": modality.model,
        "connections": CONNECTIONS,
        "bare": statistics.median(rate for rate, _ in bare),
        "bare_cpu_us": statistics.median(cpu for _, cpu in bare),
        "bare_rounds": bare,
        "results": [each.to_plain() for each in results],
    }


def find_bundle(folder: Path, task: str) -> Path:
    """The version that the server has unpacked."""
    return next(
        each
        for each in folder.iterdir()
        if (each / "wherry.toml").is_file() and open_bundle(each).manifest.task == task
    )


def measure_bare(task: str, bundle: Path, file: Path, plan: Plan) -> tuple[float, float]:
    """Answers a second and CPU of one, of the loop on the server's core."""
    command = [sys.executable, "-m", "bench.bare", task, str(bundle), str(file), str(plan.seconds)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: os.sched_setaffinity(0, plan.server_cores),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rate, cpu = json.loads(done.stdout.splitlines()[-1])
    print(f"    bare loop {rate:.2f}/s {cpu:.0f} µs", flush=True)
    return rate, cpu


def show_nothing(*_: object) -> None:
    """Of the progress of a download."""


def photo(name: str) -> Callable[[Path], bytes]:
    """A photo of a package as a JPEG file, as cameras and browsers send it."""

    def make(cache: Path) -> bytes:
        from PIL import Image

        written = io.BytesIO()
        with Image.open(media()[name].fetch(cache, show_nothing)) as picture:
            picture.convert("RGB").save(written, "JPEG", quality=90)
        return written.getvalue()

    return make


def sound(name: str) -> Callable[[Path], bytes]:
    """A sound file of a package."""
    return lambda cache: media()[name].fetch(cache, show_nothing).read_bytes()


JPEG = {"Content-Type": "image/jpeg"}
MODALITIES = (
    Modality(
        "image-classification", "efficientnet-lite0", "/predict/model", photo("coffee.png"),
        b"espresso", 2.0, JPEG,
    ),
    Modality(
        "object-detection", "nanodet", "/predict/model", photo("motorcycle.png"), b"motorcycle",
        2.0, JPEG,
    ),
    Modality(
        "automatic-speech-recognition", "whisper-tiny-en", "/predict/model", sound("beckett.wav"),
        b"Fail", 10.0, {"Content-Type": "audio/wav"},
    ),
    Modality(
        "text-to-speech", "hibari", "/v1/audio/speech",
        lambda _: json.dumps(
            {
                "model": "model", "response_format": "wav", "voice": "alloy",
                "input": "The old boat crossed the river before sunrise.",
            }
        ).encode(),
        b"RIFF", 4.0,
    ),
)  # fmt: skip
