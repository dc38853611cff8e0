"""`wherry serve --demo`: pull, train and deploy small real models, then call each of them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from wherry.cli.gallery import Gallery
from wherry.cli.job_bars import follow_jobs
from wherry.cli.output import note, print_error, progress
from wherry.client import Client
from wherry.client.schema import Job
from wherry.errors import Internal, WherryError
from wherry.settings import Settings

READY_SECONDS = 300.0
QUESTION = "Write one sentence about a river."
REVIEWS = (
    "The plot was thin but the acting was superb.",
    "The battery lasts two days and the screen is bright.",
)


def quieted(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Fewer log lines between the demo's own, unless a level was asked for."""
    if "log_level" in given:
        return settings
    return msgspec.structs.replace(settings, log_level="warning")


class Plan(msgspec.Struct, frozen=True):
    """One deployment of the demo."""

    deployment: str
    source: str
    """Name in the catalogue; empty = the example class that comes with Wherry."""


PLANS = (
    Plan("iris", "iris"),
    Plan("echo", ""),
    Plan("digits", "digits"),
    Plan("topics", "topics"),
    Plan("embeddings", "minilm"),
    Plan("chat", "smollm2"),
)


class Demo:
    """Runs beside the server, in a thread, and speaks to it as anyone would.

    Args:
        once: end the server after the tour.
        folder: of the server's data.
        is_full: bring up a model for every task as well, and ask each.
    """

    def __init__(self, *, once: bool, folder: Path, is_full: bool = False) -> None:
        self.once = once
        self.status = 1
        """0 = every answer came."""
        self._folder = folder
        self._is_full = is_full

    def start(self, url: str, key: str) -> None:
        """The server is ready."""
        threading.Thread(target=self._run, args=(url, key), name="demo", daemon=True).start()

    def _run(self, url: str, key: str) -> None:
        is_up = False
        try:
            with Client(url, key) as client:
                begun = time.monotonic()
                fleet, tour = Fleet(client), Tour(client)
                note(f"bringing up {len(PLANS)} models at {url}: half a minute the first time\n")
                fleet.begin()
                tour.visit("iris")
                note(f"the first answer came after {time.monotonic() - begun:.0f} s\n")
                fleet.bring_up()
                note(f"all {len(PLANS)} models answer after {time.monotonic() - begun:.0f} s\n")
                tour.run()
                is_complete = not self._is_full or Gallery(client, self._folder).show()
            self._print_how_to(url)
            self.status = 0 if is_complete else 1
            is_up = True
        except WherryError as error:
            print_error(error)
        except Exception as error:  # noqa: BLE001 - the demo must end, and say why
            print_error(Internal(f"the demo failed: {type(error).__name__}: {error}"))
        if self.once or not is_up:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            note("the server stays up until Ctrl-C")

    def _print_how_to(self, url: str) -> None:
        note(f"docs        {url}/docs")
        if shutil.which("wherry") is None:  # `make demo` runs us without activating anything
            note(f"shell       source {os.path.relpath(sys.prefix)}/bin/activate")
        note('key         eval "$(wherry env)"      # sets WHERRY_API_KEY, OPENAI_API_KEY, …')
        note("curl        curl -s $OPENAI_BASE_URL/chat/completions \\")
        note('              -H "Authorization: Bearer $OPENAI_API_KEY" \\')
        note("              -H 'Content-Type: application/json' \\")
        note(
            '              -d \'{"model": "chat", "messages": '
            '[{"role": "user", "content": "Hello!"}]}\''
        )
        note("python      from openai import OpenAI; client = OpenAI()")
        note("            client.embeddings.create(model='embeddings', input='a boat')\n")


class Fleet:
    """Brings the demo's deployments up, several at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jobs: dict[str, Job] = {}
        self._missing: list[Plan] = []

    def begin(self) -> None:
        """Serve the first model; meanwhile ask for the others that are missing."""
        present = {each.name for each in self._client.deployments.list()}
        self._missing = [plan for plan in PLANS if plan.deployment not in present]
        first = PLANS[0]
        with progress(first.deployment) as report:
            if first in self._missing:  # alone: an answer comes sooner so
                self._client.models.pull(first.source, name=first.deployment, on_progress=report)
                self._client.deployments.deploy(first.deployment, wait=False)
            for plan in self._missing:
                if plan is not first and plan.source:
                    self._jobs[plan.deployment] = self._client.models.pull(
                        plan.source, name=plan.deployment, wait=False
                    )
            self._client.deployments.wait(
                first.deployment, timeout=READY_SECONDS, on_progress=report
            )

    def bring_up(self) -> None:
        """Deploy each of the others as soon as its model is there, wait for all."""
        if any(not plan.source for plan in self._missing):
            example = Path(str(files("wherry.learning") / "examples" / "echo"))
            self._client.models.import_model(example, name="echo")
            self._client.deployments.deploy("echo", wait=False)
        for name, job in follow_jobs(self._client, self._jobs):
            if job.state != "succeeded":
                raise Internal(f"model {name!r}: {job.error or job.state}", hint=job.hint)
            self._client.deployments.deploy(name, wait=False)
        for plan in PLANS:
            self._client.deployments.wait(plan.deployment, timeout=READY_SECONDS)


class Tour:
    """A few real calls; each prints what it asks and what came back."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stops: dict[str, Callable[[], Iterator[str]]] = {
            "iris": self._iris,
            "digits": self._digits,
            "topics": self._topics,
            "embeddings": self._embeddings,
            "echo": self._echo,
            "chat": self._chat,
        }

    def run(self) -> None:
        """All stops but the first, which was seen already."""
        for name in list(self._stops)[1:]:
            self.visit(name)

    def visit(self, name: str) -> None:
        """One stop; an answer that is missing or empty ends the tour."""
        begun = time.monotonic()
        for line in self._stops[name]():
            if not line:
                raise Internal(f"deployment {name!r} gave no answer")
            note(line)
        note(f"            ({(time.monotonic() - begun) * 1000:.0f} ms)\n")

    def _iris(self) -> Iterator[str]:
        answer = self._client.predict("iris", row=[5.1, 3.5, 1.4, 0.2])
        yield "iris        sepal 5.1 × 3.5, petal 1.4 × 0.2"
        yield f"            → {answer['label']} ({answer['confidence']:.0%})"

    def _digits(self) -> Iterator[str]:
        picture = draw_seven()
        answer = self._client.predict("digits", image=picture)
        yield from draw(picture)
        yield f"digits      → {answer['label']} ({answer['confidence']:.0%})"

    def _topics(self) -> Iterator[str]:
        for text in REVIEWS:
            answer = self._client.predict("topics", text=text)
            yield f"topics      {text}"
            yield f"            → {answer['prediction']} ({answer['confidence']:.0%})"

    def _embeddings(self) -> Iterator[str]:
        texts = ["a boat on the river", "a ferry across the water", "the price of wheat"]
        boat, ferry, wheat = self._client.embed("embeddings", texts)
        yield f"embeddings  {texts[0]!r} is like {texts[1]!r}: {dot(boat, ferry):.2f}"
        yield f"            and like {texts[2]!r}: {dot(boat, wheat):.2f} ({len(boat)} numbers each)"

    def _echo(self) -> Iterator[str]:
        answer = self._client.predict("echo", X=[1.5, 2.5])
        yield f"echo        X = [1.5, 2.5] → {answer}"

    def _chat(self) -> Iterator[str]:
        yield f"chat        {QUESTION}"
        pieces = self._client.chat("chat", QUESTION, stream=True, max_tokens=60, temperature=0)
        text = "".join(pieces).strip().replace("\n", " ")
        yield f"            → {text}" if text else ""
        yield "            (of 135 million parameters: it writes well and knows little)"


def draw_seven(side: int = 28) -> list[list[float]]:
    """A seven as anyone would paint it: a nested list of grey values between 0 and 1."""
    picture = [[0.0] * side for _ in range(side)]
    for column in range(7, 21):
        picture[6][column] = picture[7][column] = 1.0
    for row in range(8, 24):
        column = 20 - (row - 7) * 9 // 16
        picture[row][column] = picture[row][column - 1] = 1.0
    return picture


def draw(image: list[list[float]]) -> Iterator[str]:
    """A grey picture in characters, every second row (characters are tall)."""
    top = max(max(row) for row in image) or 1
    for row in image[::2]:
        line = "".join(" .:*#"[min(4, int(value / top * 4.99))] for value in row)
        if line.strip():
            yield "            " + line.rstrip()


def dot(left: list[float], right: list[float]) -> float:
    """Likeness of two vectors of length one."""
    return sum(a * b for a, b in zip(left, right, strict=True))
