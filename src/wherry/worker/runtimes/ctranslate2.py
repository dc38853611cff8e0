# pyright: standard
"""Runtime `ctranslate2`: translation and summarization by folders of CTranslate2.

The folder holds `model.bin`, its vocabularies, and what makes tokens of texts (`sequence_text`).
Options: `Ctranslate2Options`, `TextToTextOptions`, `LanguageOptions`. One computing thread; more
workers serve more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import msgspec

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.languages import LanguagePair
from wherry.models.tasks.options import read_options
from wherry.models.tasks.text_to_text import Decoding, TextToTextInput, TextToTextOutput
from wherry.worker.runtimes.runtime import Prepared
from wherry.worker.runtimes.sequence_text import open_sequence_text
from wherry.worker.runtimes.text_to_text import Generated, TextToTextModel, Tokens


class Ctranslate2Options(msgspec.Struct, frozen=True):
    """Options of a bundle that are this runtime's own."""

    compute_type: Literal["default", "auto", "int8", "int16", "float16", "bfloat16", "float32"] = (
        "default"
    )
    """How it computes; `default` as the file was converted."""
    source_end: bool | None = None
    """Texts end with `</s>`; by default unless the model's `config.json` says that it adds it."""


class Ctranslate2Runtime:
    """One model."""

    max_batch_rows = TextToTextModel.max_batch_rows
    max_batch_cost = TextToTextModel.max_batch_cost

    def __init__(self) -> None:
        self._model: TranslatorModel | None = None

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the folder and answer a trial line."""
        self._model = TranslatorModel(bundle, device)
        self._model.try_out()

    def prepare(self, item: TextToTextInput) -> Prepared:
        """Tokens of a text."""
        assert self._model is not None
        return self._model.prepare(item)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TextToTextOutput]:
        """Answer texts that are searched for alike."""
        if self._model is None:
            raise ModelFailed("the model is not loaded")
        return self._model.answer(batch)

    def close(self) -> None:
        """Free the model."""
        self._model = None


class TranslatorModel(TextToTextModel):
    """A `ctranslate2.Translator` and its words."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        super().__init__(bundle)
        options = read_options(bundle.manifest.options, Ctranslate2Options)
        folder = bundle.main_file.parent
        self._translator = _open_translator(folder, device, options.compute_type)
        adds_end = options.source_end
        if adds_end is None:
            adds_end = not _read_config(folder).get("add_source_eos", False)
        codes = list(self.languages.language_codes.values())
        self._words = open_sequence_text(
            folder,
            adds_end=adds_end,
            language_codes=codes if self.options.language_tokens else (),
        )

    def encode(self, text: str, pair: LanguagePair) -> Tokens:
        """See `TextToTextModel.encode`."""
        return list(self._words.encode(text, pair))

    def decode(self, tokens: Tokens, pair: LanguagePair) -> str:
        """See `TextToTextModel.decode`."""
        return self._words.decode(tokens)

    def generate(
        self, sources: Sequence[Tokens], pair: LanguagePair, decoding: Decoding
    ) -> list[Generated]:
        """See `TextToTextModel.generate`."""
        prefix = [pair.target_code] if self.options.language_tokens else []
        most = decoding.max_tokens or self.options.max_tokens
        settings: dict[str, Any] = {
            "beam_size": decoding.num_beams or 1,
            "max_decoding_length": most + len(prefix),
            "min_decoding_length": decoding.min_tokens or 1,
            "no_repeat_ngram_size": decoding.no_repeat_ngram_size or 0,
            "max_input_length": 0,  # longer ones were refused
        }
        if decoding.length_penalty is not None:
            settings["length_penalty"] = decoding.length_penalty
        try:
            found = self._translator.translate_batch(
                list(sources), [prefix] * len(sources) if prefix else None, **settings
            )
        except (RuntimeError, ValueError) as error:
            raise ModelFailed(f"ctranslate2 failed: {error!s:.300}") from error
        answers = [list(each.hypotheses[0])[len(prefix) :] for each in found]
        return [Generated(answer, is_cut=len(answer) >= most) for answer in answers]


def _open_translator(folder: Path, device: str, compute_type: str) -> ctranslate2.Translator:
    kind, _, number = device.partition(":")
    try:
        return ctranslate2.Translator(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=1,
        )
    except (RuntimeError, ValueError) as error:
        raise FormatNotAllowed(
            f"ctranslate2 cannot open the folder: {str(error).replace(str(folder), '')[:300]}",
            hint="it needs model.bin and its vocabularies, as ct2-transformers-converter writes them",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise InvalidInput("'config.json' is no object")
    return found
