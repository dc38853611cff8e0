"""What optimum exports of Whisper and TrOCR says what transformers says of the same weights."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_exports
from tokenizers import Tokenizer

from wherry.errors import InvalidInput
from wherry.models.bundle import encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.audio import AudioInput
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.speech_recognition import (
    SPEECH_RECOGNITION,
    RecognitionInput,
    RecognitionOptions,
    Transcription,
)
from wherry.worker.runtimes.catalog import create_runtime
from wherry.worker.runtimes.graphs.pair import read_configs
from wherry.worker.runtimes.graphs.spectrum import RATE, log_mel_spectrum
from wherry.worker.runtimes.graphs.speech import Window
from wherry.worker.runtimes.graphs.speech_tokens import SpeechTokens

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
processors = pytest.importorskip("transformers.generation.logits_process")
torch, transformers = tiny_exports.torch, tiny_exports.transformers
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that come and go."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * pitch * time) for pitch in random.integers(100, 4000, 5)]
    wave = sum(tones) * (np.sin(time * 7) > 0) / 6 + random.normal(0, 0.01, len(time))
    return wave.astype(np.float32)


def load(folder: Path, **wishes: Any) -> Any:
    manifest = detect(folder, **wishes)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    runtime = create_runtime(manifest.runtime, manifest.task)
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def listen(runtime: Any, samples: np.ndarray, **options: Any) -> Transcription:
    item = RecognitionInput(AudioInput(samples=samples, rate=RATE), RecognitionOptions(**options))

    async def gather() -> list[Transcription]:
        return [each async for each in runtime.stream(item, threading.Event(), "")]

    return SPEECH_RECOGNITION.join(asyncio.run(gather()))


@pytest.mark.parametrize("bins", [80, 128])
def test_a_spectrum_is_that_of_transformers(bins: int):
    heard = sound(7.3)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    expected = extractor(heard, sampling_rate=RATE, return_tensors="np").input_features[0]
    found = log_mel_spectrum(heard, bins)
    assert found.shape == expected.shape
    # theirs is in single precision: a quiet frame's logarithm differs in the fifth digit
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("seed", [1, 2])
def test_a_whisper_says_token_for_token_what_transformers_says(tmp_path: Path, seed: int):
    model = tiny_exports.write_whisper(tmp_path, seed)
    tiny_exports.export(model, tmp_path / "onnx", "input_features", torch.zeros(1, 80, 3000))
    runtime = load(tmp_path)
    tokens = SpeechTokens(tmp_path, read_configs(tmp_path))
    lengths: set[int] = set()
    for number, seconds in enumerate((2.0, 11.5, 29.0)):
        heard = sound(seconds, number)
        window = Window(runtime._pair, tokens, heard)
        start = tokens.begin([], "fr", translate=bool(number % 2))
        found = window.listen(start, (0.0,))
        expected = generate(model, heard, start)
        assert found.ids == expected
        lengths.add(len(expected))
    assert len(lengths) > 1 or seed != 2, "some answers end by themselves"


def generate(model: Any, samples: np.ndarray, start: list[int]) -> list[int]:
    """What transformers' search says of one window, by transformers' rules of times."""
    features = torch.from_numpy(log_mel_spectrum(samples, 80)[np.newaxis])
    config = model.generation_config
    rules = [
        processors.SuppressTokensLogitsProcessor(config.suppress_tokens),
        processors.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, len(start)),
        processors.WhisperTimeStampLogitsProcessor(config, len(start)),
    ]
    with torch.no_grad():
        (ids,) = transformers.GenerationMixin.generate(
            model,
            features,
            decoder_input_ids=torch.tensor([start]),
            generation_config=transformers.GenerationConfig(
                max_length=len(start) + 24, eos_token_id=config.eos_token_id, pad_token_id=0
            ),
            logits_processor=rules,
        )
    said = ids.tolist()[len(start) :]
    return said[:-1] if said[-1] == config.eos_token_id else said


def write_whisper(folder: Path, seed: int = 2) -> Any:
    model = tiny_exports.write_whisper(folder, seed)
    tiny_exports.export(model, folder / "onnx", "input_features", torch.zeros(1, 80, 3000))
    return load(folder)


def test_a_long_sound_is_heard_to_its_end_window_by_window(tmp_path: Path):
    runtime = write_whisper(tmp_path)
    found = listen(runtime, sound(75.0), language="en", prompt="the old cat")
    assert found.duration == 75.0
    assert found.usage.audio_ms == 75_000
    assert found.text
    starts = [each.start for each in found.segments]
    assert starts == sorted(starts)
    assert found.segments[-1].start > 30.0
    assert [each.id for each in found.segments] == list(range(len(starts)))
    assert all(each.start <= each.end <= 105.0 for each in found.segments)
    again = listen(runtime, sound(75.0), language="en", prompt="the old cat")
    assert again.segments == found.segments, "chance has a seed"


def test_a_language_that_nobody_says_is_found_out(tmp_path: Path):
    runtime = write_whisper(tmp_path)
    assert listen(runtime, sound(3.0)).language in ("en", "fr")


@pytest.mark.parametrize(
    ("options", "param"),
    [({"language": "de"}, "language"), ({"word_timestamps": True}, "timestamps")],
)
def test_what_the_graphs_cannot_do_is_refused(tmp_path: Path, options: Any, param: str):
    runtime = write_whisper(tmp_path)
    with pytest.raises(InvalidInput) as refused:
        listen(runtime, sound(1.0), **options)
    assert refused.value.param == param


def test_a_listener_that_is_cancelled_says_how_far_it_came(tmp_path: Path):
    runtime = write_whisper(tmp_path)
    cancelled = threading.Event()
    cancelled.set()
    item = RecognitionInput(AudioInput(samples=sound(40.0), rate=RATE))

    async def gather() -> list[Transcription]:
        return [each async for each in runtime.stream(item, cancelled, "")]

    (last,) = asyncio.run(gather())
    assert last.usage.audio_ms == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_a_reader_of_lines_writes_what_transformers_writes(tmp_path: Path, beams: int):
    model = tiny_exports.write_trocr(tmp_path)
    tiny_exports.export(model, tmp_path, "pixel_values", torch.zeros(1, 3, 24, 24))
    runtime = load(tmp_path, options={"num_beams": beams, "max_tokens": 11})
    manifest = open_bundle(tmp_path).manifest
    assert (manifest.task, manifest.runtime) == ("image-to-text", "onnx")
    random = np.random.default_rng(5)
    items = [ImageInput(random.integers(0, top, (24, 24, 3), np.uint8)) for top in (256, 90, 30)]
    prepared = [runtime.prepare(item) for item in items]
    together = [each.text for each in runtime.run(prepared)]
    assert together == [runtime.run([each])[0].text for each in prepared]
    assert together == [read(model, tmp_path, item, beams) for item in items]
    assert len(set(together)) > 1


def read(model: Any, folder: Path, item: ImageInput, beams: int) -> str:
    """What transformers writes of a picture."""
    pixels = torch.from_numpy(((item.pixels / 255 - 0.5) / 0.4).astype(np.float32))
    with torch.no_grad():
        (ids,) = model.generate(pixels.permute(2, 0, 1)[None], num_beams=beams, max_length=12)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return words.decode(ids.tolist()).strip()
