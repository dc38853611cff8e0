"""Sounds, and runtimes that listen to them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np

from wherry.models.bundle import encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.audio import AudioInput
from wherry.models.tasks.speech_recognition import (
    SPEECH_RECOGNITION,
    RecognitionInput,
    RecognitionOptions,
    Transcription,
)
from wherry.worker.runtimes.catalog import create_runtime

RATE = 16_000


def tones(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that come and go."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * pitch * time) for pitch in random.integers(100, 4000, 5)]
    wave = sum(tones) * (np.sin(time * 7) > 0) / 6 + random.normal(0, 0.01, len(time))
    return wave.astype(np.float32)


def import_folder(folder: Path, **wishes: Any) -> Any:
    """The runtime of what is found in a folder."""
    manifest = detect(folder, **wishes)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    runtime = create_runtime(manifest.runtime, manifest.task)
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def listen(
    runtime: Any, samples: np.ndarray, cancelled: threading.Event | None = None, **options: Any
) -> Transcription:
    """All that is heard, put together."""
    item = RecognitionInput(AudioInput(samples=samples, rate=RATE), RecognitionOptions(**options))

    async def gather() -> list[Transcription]:
        return [each async for each in runtime.stream(item, cancelled or threading.Event(), "")]

    return SPEECH_RECOGNITION.join(asyncio.run(gather()))
