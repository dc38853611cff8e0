"""A tiny Whisper of ONNX graphs: its words are nonsense, its times and refusals are not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.listening import import_folder, listen, tones
from tests.tiny_translators import HEARD, write_json, write_onnx_whisper

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import open_bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
KINDS = ("merged", "split", "plain")


def open_whisper(folder: Path, kind: str = "merged") -> Any:
    write_onnx_whisper(folder, kind)
    return import_folder(folder)


def test_however_a_decoder_remembers_it_says_the_same(tmp_path: Path):
    answers: list[Any] = []
    for kind in KINDS:
        runtime = open_whisper(tmp_path / kind, kind)
        answers.append(listen(runtime, tones(75.0), prompt="the old cat").segments)
    assert answers[0]
    assert [each.tokens for each in answers[0]] == [each.tokens for each in answers[1]]
    assert [each.tokens for each in answers[0]] == [each.tokens for each in answers[2]]


def test_a_long_sound_is_heard_to_its_end_window_by_window(tmp_path: Path):
    runtime = open_whisper(tmp_path)
    found = listen(runtime, tones(75.0), language="en", prompt="the old cat")
    assert found.duration == 75.0
    assert found.usage.audio_ms == 75_000
    assert found.text
    starts = [each.start for each in found.segments]
    assert starts == sorted(starts)
    assert found.segments[-1].start > 30.0
    assert [each.id for each in found.segments] == list(range(len(starts)))
    assert all(each.start <= each.end <= 105.0 for each in found.segments)
    again = listen(runtime, tones(75.0), language="en", prompt="the old cat")
    assert again.segments == found.segments, "chance has a seed"


def test_a_language_that_nobody_says_is_found_out(tmp_path: Path):
    runtime = open_whisper(tmp_path)
    assert listen(runtime, tones(3.0)).language in ("en", "fr")


@pytest.mark.parametrize(
    ("options", "param"),
    [({"language": "de"}, "language"), ({"word_timestamps": True}, "timestamps")],
)
def test_what_the_graphs_cannot_do_is_refused(tmp_path: Path, options: Any, param: str):
    runtime = open_whisper(tmp_path)
    with pytest.raises(InvalidInput) as refused:
        listen(runtime, tones(1.0), **options)
    assert refused.value.param == param


def test_a_listener_that_is_cancelled_says_how_far_it_came(tmp_path: Path):
    cancelled = threading.Event()
    cancelled.set()
    found = listen(open_whisper(tmp_path), tones(40.0), cancelled)
    assert found.usage.audio_ms == 0
    assert not found.segments


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    write_onnx_whisper(tmp_path, "plain")
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(tokenizer.replace("<|notimestamps|>", "<|times|>"))
    with pytest.raises(FormatNotAllowed, match="notimestamps"):
        import_folder(tmp_path)


def test_graphs_of_fewer_tokens_than_the_tokenizer_has_are_refused(tmp_path: Path):
    write_onnx_whisper(tmp_path, "plain", words=15)
    with pytest.raises(FormatNotAllowed, match="of two models"):
        import_folder(tmp_path)


def test_english_alone_takes_no_other_language(tmp_path: Path):
    write_onnx_whisper(tmp_path, "plain")
    config = {"model_type": "whisper", "vocab_size": len(HEARD), "max_target_positions": 40}
    write_json(tmp_path / "config.json", config)
    runtime = import_folder(tmp_path)
    assert listen(runtime, tones(1.0)).language == "en"
    with pytest.raises(InvalidInput, match="'fr'"):
        listen(runtime, tones(1.0), language="fr")
    with pytest.raises(InvalidInput, match="English alone"):
        listen(runtime, tones(1.0), translate=True)


def test_of_several_precisions_the_fullest_is_taken(tmp_path: Path):
    write_onnx_whisper(tmp_path, "split")
    for path in list((tmp_path / "onnx").iterdir()):
        path.with_stem(path.stem + "_quantized").write_bytes(path.read_bytes())
    import_folder(tmp_path)
    files = open_bundle(tmp_path).manifest.files
    assert files[:3] == (
        "onnx/encoder_model.onnx",
        "onnx/decoder_model.onnx",
        "onnx/decoder_with_past_model.onnx",
    )
    assert not any("quantized" in each for each in files)
