"""What optimum exports of Whisper and TrOCR says what transformers says of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_exports
from tests.listening import import_folder, tones
from tokenizers import Tokenizer

from wherry.models.bundle import open_bundle
from wherry.models.tasks.image import ImageInput
from wherry.worker.runtimes.graphs.pair import read_configs
from wherry.worker.runtimes.graphs.spectrum import RATE, log_mel_spectrum
from wherry.worker.runtimes.graphs.speech_tokens import SpeechTokens
from wherry.worker.runtimes.graphs.speech_window import Window

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
processors = pytest.importorskip("transformers.generation.logits_process")
torch, transformers = tiny_exports.torch, tiny_exports.transformers
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future


@pytest.mark.parametrize("bins", [80, 128])
def test_a_spectrum_is_that_of_transformers(bins: int):
    heard = tones(7.3)
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
    runtime = import_folder(tmp_path)
    tokens = SpeechTokens(tmp_path, read_configs(tmp_path))
    lengths: set[int] = set()
    for number, seconds in enumerate((2.0, 11.5, 29.0)):
        heard = tones(seconds, number)
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


@pytest.mark.parametrize("beams", [1, 3])
def test_a_reader_of_lines_writes_what_transformers_writes(tmp_path: Path, beams: int):
    model = tiny_exports.write_trocr(tmp_path)
    tiny_exports.export(model, tmp_path, "pixel_values", torch.zeros(1, 3, 24, 24))
    runtime = import_folder(tmp_path, options={"num_beams": beams, "max_tokens": 11})
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
