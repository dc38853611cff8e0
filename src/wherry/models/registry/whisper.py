"""Recognises folders of Whisper models in CTranslate2's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.trust.ctranslate2 import check_ctranslate2, is_ctranslate2
from wherry.models.trust.files import open_regular

NAME = "model.bin"
COMPANIONS = (
    "config.json",
    "tokenizer.json",
    "vocabulary.txt",
    "vocabulary.json",
    "preprocessor_config.json",
)
HEAD_BYTES = 64


def find_model(folder: Path, paths: Sequence[str]) -> str | None:
    """The path of a CTranslate2 model, if there is one in the folder."""
    for path in paths:
        if PurePosixPath(path).name == NAME:
            with open_regular(folder / path) as file:
                if is_ctranslate2(file.read(HEAD_BYTES)):
                    return path
    return None


def list_files(folder: Path, paths: Sequence[str], main: str) -> tuple[str, ...]:
    """The model's files, the main one first.

    Raises:
        FormatNotAllowed: it is another model than Whisper.
        InvalidInput: its tokenizer is missing.
    """
    model = check_ctranslate2(folder / main)
    if model.spec != "WhisperSpec":
        raise FormatNotAllowed(
            f"{main!r} is a CTranslate2 model of the kind {model.spec!r}",
            hint="of these, Whisper models are found without a wherry.toml",
        )
    parent = PurePosixPath(main).parent
    found = [str(parent / name) for name in COMPANIONS if str(parent / name) in paths]
    if str(parent / "tokenizer.json") not in found:
        raise InvalidInput(
            f"a Whisper model needs 'tokenizer.json' beside {main!r}",
            hint="it is part of the original model's folder",
        )
    return (main, *found)
