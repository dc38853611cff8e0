"""Runtime `apertium`: rule-based translation, by the programs of Debian's apertium packages.

The bundle is a `wherry.toml` only; words and rules are the system's. A mode of Apertium is a row of
programs, each reading what the one before it writes. They are started once, at load, and flush at
every zero byte: one row serves all requests. Apertium is GPL, so it stays in processes of its own.

The sandbox lets a worker of this runtime start those programs while it loads, and nothing later
(`PROGRAM_RUNTIMES`). A row that breaks can therefore not be mended: the worker ends, and another
takes its place.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from wherry.errors import InvalidInput, MissingExtra, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.languages import LanguageOptions, choose_languages
from wherry.models.tasks.options import read_options
from wherry.models.tasks.text_to_text import (
    TextToTextInput,
    TextToTextOutput,
    refuse_settings,
    text_usage,
)
from wherry.worker.runtimes.runtime import ItemError, Prepared
from wherry.worker.sandbox.sandbox import PROGRAM_RUNTIMES

MODES = Path("/usr/share/apertium/modes")
PROGRAMS = {Path(each).name: each for each in PROGRAM_RUNTIMES["apertium"]}
PAIR = re.compile(r"[A-Za-z]{2,3}(_[A-Za-z]+)?-[A-Za-z]{2,3}(_[A-Za-z]+)?")
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}

PARAGRAPHS = re.compile(r"((?<!\s)\s*\n\s*\n\s*|\A\s+|(?<!\s)\s+\Z)")
"""Blanks that end a sentence whatever stands before them; they are given back as they came. Looked
for only where blanks begin: within a million of them, it would be a million times."""
RESERVED = re.compile(r"[][{}^$/\\@<>]")
BLANKS = re.compile(r"[\s~]*[^\S ~][\s~]*|[\s~]{2,}|~")
"""Blanks that are not one space: kept in brackets."""
ESCAPED = re.compile(r"\\(.)|[\[\]]", re.DOTALL)
END = ".[]"
"""Ends a sentence that may lack its full stop, and is taken away again."""
PIECE_BYTES = 1 << 16
CLOSE_SECONDS = 5.0


class ApertiumOptions(msgspec.Struct, frozen=True):
    """Options of a bundle, beside those of `LanguageOptions`."""

    pair: str
    """Name of the mode: `eng-spa`."""
    package: str = ""
    """Debian's package that brings it; `apertium-` and the pair if it is not said."""
    mark_unknown: bool = False
    """Put a star before words that are not in the dictionaries."""


class ApertiumRuntime:
    """One mode, running."""

    max_batch_rows = 16
    max_batch_cost = 0

    def __init__(self) -> None:
        self._row: ProgramRow | None = None
        self._languages = LanguageOptions()

    def load(self, bundle: Bundle, device: str) -> None:
        """Start the mode's programs, and let them translate a word."""
        options = read_options(bundle.manifest.options, ApertiumOptions)
        self._languages = read_options(bundle.manifest.options, LanguageOptions)
        if bundle.manifest.task != "translation":
            raise InvalidInput("the runtime 'apertium' does the task 'translation' only")
        self._row = ProgramRow(read_mode(options))
        self._row.pass_through([to_stream("a")])

    def prepare(self, item: TextToTextInput) -> Prepared:
        """Check a text, and cut it into paragraphs."""
        refuse_settings(item.decoding)
        if "\0" in item.text:
            raise InvalidInput("'text' holds the character U+0000", param="text")
        pair = choose_languages(item.source_language, item.target_language, self._languages)
        return Prepared((item.text, PARAGRAPHS.split(item.text), pair))

    def run(self, batch: Sequence[Prepared]) -> Sequence[TextToTextOutput | ItemError]:
        """Translate all paragraphs of all texts, one after the other."""
        if self._row is None:
            raise ModelFailed("the model is not loaded")
        pieces = [piece for prepared in batch for piece in prepared.payload[1]]
        texts = [to_stream(piece) for piece in pieces if not _is_blank(piece)]
        found = iter(self._row.pass_through(texts))
        answers: list[TextToTextOutput | ItemError] = []
        for text, own, pair in (prepared.payload for prepared in batch):
            words = "".join(
                piece if _is_blank(piece) else from_stream(next(found)) for piece in own
            )
            usage = text_usage(text)
            answers.append(
                TextToTextOutput(
                    text=words,
                    source_language=pair.source,
                    target_language=pair.target,
                    usage=usage,
                )
            )
        return answers

    def close(self) -> None:
        """End the programs."""
        if self._row is not None:
            self._row.close()
        self._row = None


class ProgramRow:
    """Programs that each read what the one before writes, until the first one's input ends."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self._programs: list[subprocess.Popen[bytes]] = []
        before: int | None = None
        for command in commands:
            program = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if before is None else before,
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            if before is not None:
                os.close(before)
            assert program.stdout is not None
            before = os.dup(program.stdout.fileno())
            program.stdout.close()
            self._programs.append(program)
        assert self._programs[0].stdin is not None
        assert before is not None
        self._input, self._output = self._programs[0].stdin.fileno(), before
        os.set_blocking(self._input, False)

    def pass_through(self, texts: Sequence[str]) -> list[str]:
        """What becomes of each text; written and read at once, because pipes hold little."""
        waiting = b"".join(text.encode() + b"\0" for text in texts)
        found: list[str] = []
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            if waiting:
                selector.register(self._input, selectors.EVENT_WRITE)
            while len(found) < len(texts):
                for key, _ in selector.select():
                    if key.fd == self._output:
                        *ended, rest = (rest + self._read()).split(b"\0")
                        found += [each.decode("utf-8", "replace") for each in ended]
                        continue
                    waiting = waiting[self._write(waiting) :]
                    if not waiting:
                        selector.unregister(self._input)
        return found

    def close(self) -> None:
        """Let the programs end, as they do when their input does."""
        first = self._programs[0].stdin
        assert first is not None
        first.close()
        os.close(self._output)
        for program in self._programs:
            program.wait(CLOSE_SECONDS)

    def _read(self) -> bytes:
        piece = os.read(self._output, PIECE_BYTES)
        if not piece:
            end_worker()
        return piece

    def _write(self, waiting: bytes) -> int:
        try:
            return os.write(self._input, waiting[:PIECE_BYTES])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            end_worker()


def end_worker() -> NoReturn:
    """A program of the row has died, and none can be started any more."""
    print("a program of apertium has ended", file=sys.stderr, flush=True)  # noqa: T201 - its log
    os._exit(70)


# ------------------------------------------------------------------------------ modes


def read_mode(options: ApertiumOptions) -> list[list[str]]:
    """The programs of a mode with their arguments.

    Raises:
        MissingExtra: it is not installed.
        InvalidInput: there can be no such mode, or it runs a program that is not allowed.
    """
    if not PAIR.fullmatch(options.pair):
        raise InvalidInput(f"{options.pair!r} is no pair of languages such as 'eng-spa'")
    path = MODES / f"{options.pair}.mode"
    if not path.is_file():
        raise MissingExtra(
            f"the pair {options.pair!r} of the runtime 'apertium' is not installed",
            hint=f"apt-get install {options.package or 'apertium-' + options.pair}",
        )
    line = path.read_text(encoding="utf-8").strip()
    unknown = "-g" if options.mark_unknown else "-n"
    return [_read_command(part, unknown) for part in line.split("|")]


def _read_command(part: str, unknown: str) -> list[str]:
    """A program with its arguments, told to flush at zero bytes."""
    name, *arguments = shlex.split(part)
    if name not in PROGRAMS or not Path(PROGRAMS[name]).is_file():
        raise InvalidInput(f"the mode runs {name!r}, which is not allowed or not installed")
    # the mode is a template of a shell script: $1 is how to write words, $2 an option for taggers
    arguments = [unknown if each == "$1" else each for each in arguments if each != "$2"]
    return [PROGRAMS[name], "-z", *arguments]


# ------------------------------------------------------------------------------ the stream format


def to_stream(text: str) -> str:
    """Plain text in Apertium's stream format, as its `apertium-destxt` writes it."""
    pieces: list[str] = []
    begin = 0
    for found in BLANKS.finditer(text):
        pieces += [RESERVED.sub(r"\\\g<0>", text[begin : found.start()]), f"[{found[0]}]"]
        begin = found.end()
    return "".join([*pieces, RESERVED.sub(r"\\\g<0>", text[begin:]), END])


def from_stream(text: str) -> str:
    """The plain text again."""
    return ESCAPED.sub(lambda found: found[1] or "", text.removesuffix(END))


def _is_blank(piece: str) -> bool:
    return not piece or piece.isspace()
