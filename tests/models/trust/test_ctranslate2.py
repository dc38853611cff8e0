"""A CTranslate2 model is checked to its last byte."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests import real_models

from wherry.errors import FormatNotAllowed
from wherry.models.registry.detect import detect
from wherry.models.trust.ctranslate2 import check_ctranslate2
from wherry.models.trust.formats import check_format


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def model_file(
    *,
    version: int = 6,
    spec: str = "WhisperSpec",
    claimed: int = 12,
    variables: int = 1,
    end: bytes = struct.pack("<I", 0),
) -> bytes:
    """One float tensor of three numbers, and no aliases."""
    head = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, variables)
    tensor = text("encoder/scale") + struct.pack("<BIBI", 1, 3, 0, claimed) + bytes(12)
    return head + tensor + end


def test_the_real_model_is_whole_and_found_without_a_manifest(tmp_path: Path):
    folder = real_models.whisper_folder(tmp_path / "whisper")
    (folder / "wherry.toml").unlink()
    found = check_ctranslate2(folder / "model.bin")
    assert found.spec == "WhisperSpec"
    assert found.variables == 148
    manifest = detect(folder)
    assert (manifest.task, manifest.runtime) == ("automatic-speech-recognition", "faster_whisper")
    assert set(manifest.files) == {
        "model.bin",
        "config.json",
        "tokenizer.json",
        "vocabulary.txt",
    }


def test_a_small_model_is_whole(tmp_path: Path):
    path = tmp_path / "model.bin"
    path.write_bytes(model_file())
    assert check_format(path) == "ctranslate2"


@pytest.mark.parametrize(
    "raw",
    [
        model_file()[:-1],
        model_file()[:30],
        model_file()[:60],
        model_file() + b"x",
        model_file(version=3),
        model_file(version=9),
        model_file(claimed=8),
        model_file(claimed=0xFFFFFFFF),
        model_file(variables=2),
        model_file(variables=1 << 30),
        model_file(end=struct.pack("<I", 1 << 30)),
        b"\x06\0\0\0\xff\xff" + b"a" * 100,
        b"",
    ],
    ids=range(13),
)
def test_what_is_cut_off_or_contradicts_itself_is_refused(tmp_path: Path, raw: bytes):
    path = tmp_path / "model.bin"
    path.write_bytes(raw)
    with pytest.raises(FormatNotAllowed):
        check_format(path)


def test_another_kind_of_model_is_named(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(model_file(spec="Wav2Vec2Spec"))
    with pytest.raises(FormatNotAllowed, match="Wav2Vec2Spec"):
        detect(tmp_path)
