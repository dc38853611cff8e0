"""Runtime `hibari`: small English voices (ONNX), through the package hibari-tts.

The bundle holds the voices, an ONNX file each; what turns letters into sounds (lexicons, a tagger,
a net for unknown words) is the package's own. A text is spoken sentence by sentence. One computing
thread: several texts take turns, a sentence each.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.models.tasks.speech_synthesis import Speech, SpeechInput, speech_options
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.threads import iterate_in

# without types, and not in every developer's environment
_hibari: Any = import_module("hibari")
_voices: Any = import_module("hibari.voices")
RATE: int = _hibari.SAMPLE_RATE


MAX_WORD_CHARACTERS = 100


class HibariOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `SpeechOptions`."""

    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    max_concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """Texts that take turns."""


class HibariRuntime:
    """The voices of one bundle."""

    max_concurrency = HibariOptions().max_concurrency

    def __init__(self) -> None:
        self._voices: dict[str, Any] = {}
        self._computing = threading.Lock()
        self._threads = ThreadPoolExecutor(1)

    def load(self, bundle: Bundle, device: str) -> None:
        """Open every voice, and let each say a word."""
        options = read_options(bundle.manifest.options, HibariOptions)
        files = speech_options(bundle.manifest.options).voices
        readers: dict[bool, Any] = {}
        for name, file in (files or {_voices.DEFAULT: bundle.manifest.files[0]}).items():
            accent = name if name in _voices.VOICES else _voices.DEFAULT
            is_british = bool(_voices.VOICES[accent]["british"])
            voice = _hibari.Hibari(
                voice=accent,
                model=str(bundle.path(file)),
                threads=options.threads,
                g2p=readers.get(is_british),
            )
            readers[is_british] = voice.g2p
            voice("Ready.", seed=0)
            self._voices[name] = voice
        self.max_concurrency = options.max_concurrency
        self._threads = ThreadPoolExecutor(self.max_concurrency, "speak")

    def stream(
        self, item: SpeechInput, cancelled: threading.Event, tenant: str
    ) -> AsyncIterator[Speech]:
        """A speech a sentence; the last has no samples, but the usage."""
        if not self._voices:
            raise ModelFailed("the model is not loaded")
        voice = self._voices.get(item.voice or next(iter(self._voices)))
        if voice is None:
            raise InvalidInput(f"the model has no voice {item.voice!r}", param="voice")
        return iterate_in(self._threads, lambda: self._speak(voice, item, cancelled))

    def close(self) -> None:
        """Free the voices."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._voices = {}

    def _speak(
        self, voice: Any, item: SpeechInput, cancelled: threading.Event
    ) -> Generator[Speech, None, None]:
        noise = np.random.default_rng(item.seed)
        characters, has_spoken = 0, False
        for sentence in voice.split_sentences(item.text):
            if cancelled.is_set():
                break
            for phonemes in _phonemes_of(voice, sentence):
                with self._computing:
                    samples = voice.from_ids(voice.ids(phonemes), item.speed, noise)
                if len(samples):
                    has_spoken = True
                    yield Speech(samples=samples, rate=RATE)
            characters += len(sentence)
        else:
            if not has_spoken:
                raise InvalidInput("the text has nothing that this voice can say", param="text")
            characters = len(item.text)
        nothing = np.zeros(0, np.float32)
        yield Speech(samples=nothing, rate=RATE, usage=Usage(rows=1, characters=characters))


def _phonemes_of(voice: Any, sentence: str) -> list[str]:
    """How a sentence sounds, in parts that the model says at once."""
    longest = max(map(len, sentence.split()), default=0)
    if longest > MAX_WORD_CHARACTERS:  # the rules look at every part of a word, again and again
        raise InvalidInput(
            f"a word has {longest} characters, the limit is {MAX_WORD_CHARACTERS}",
            hint="put spaces between words",
            param="text",
        )
    try:
        return voice.phonemize(sentence)
    except Exception as error:  # the rules of the package stumble over odd texts in many ways
        raise InvalidInput(
            f"the text cannot be read aloud: {sentence[:40]!r}", param="text"
        ) from error
