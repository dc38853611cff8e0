"""Commands that call models: run chat predict embed."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from wherry import errors
from wherry.cli.answers import name_documents, print_answer
from wherry.cli.command import DEFAULT, TALK, Common, DryRun, command
from wherry.cli.deployments import find_deployment
from wherry.cli.inputs import TEXT_SUFFIXES, find_file, read_input, read_inputs, read_text_file
from wherry.cli.output import (
    note,
    print_error,
    print_json,
    progress,
    show,
    visible,
)
from wherry.cli.pictures import save_picture
from wherry.cli.sound import save_sound
from wherry.client.schema import Deployment

if TYPE_CHECKING:
    from wherry.client import Client

SEEING_TASK = "image-text-to-text"
CHAT_TASKS = ("text-generation", SEEING_TASK)
Question = str | list[dict[str, Any]]
"""Words, or words and pictures as OpenAI's API has them."""
NO_TEMPLATE = "has no chat template"
"""What base models say to a conversation: they go on with a text."""
FAREWELLS = ("/bye", "/exit", "/quit")


@command(
    "run",
    group=TALK,
    examples=['wherry run smollm2 "why is the sky blue?"', "wherry run mobilenet photo.jpg"],
)
def run(
    model: str,
    /,
    *prompt: str,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Ask a model: starts a server if none runs, pulls and deploys the model, and answers.

    Without a prompt a text generation model chats until /bye.

    Args:
        model: A deployment, a model or a name of the catalogue.
        prompt: The question, with files of pictures for models that see; for other models a text, a
            JSON object or a file.
        system: What the model is told before the conversation.
        max_tokens: Longest answer.
        temperature: 0 = always the likeliest word.
    """
    common = _with_server(common, dry_run=dry_run)
    with common.connect() as client:
        if dry_run:
            steps = _plan(client, model)
            show(common, {"model": model, "steps": steps}, lambda: print("\n".join(steps)))
            return
        deployment = _make_ready(client, model)
        params = {"max_tokens": max_tokens, "temperature": temperature}
        chosen = {name: value for name, value in params.items() if value is not None}
        _converse(client, common, deployment, prompt, system, chosen)


def _with_server(common: Common, *, dry_run: bool) -> Common:
    """The options, naming a server that runs: one is started unless one was named."""
    import dataclasses

    from wherry.cli.background import find_or_start_server, log_file
    from wherry.settings import client_environment

    if common.url or client_environment().get("WHERRY_URL") or dry_run:
        return common
    server, is_new = find_or_start_server()
    if is_new:
        note(f"started a server at {server.url}: log {log_file()}, stop it with kill {server.pid}")
    return dataclasses.replace(common, url=server.url)


def _plan(client: Client, model: str) -> list[str]:
    """What `run` would do, in order."""
    if not client.is_ready():
        return ["start a server", f"pull {model}", f"deploy {model}", f"ask {model}"]
    if find_deployment(client, model) is not None:
        return [f"ask {model}"]
    pulls = [] if _has_model(client, model) else [f"pull {model}"]
    return [*pulls, f"deploy {model}", f"ask {model}"]


def _has_model(client: Client, name: str) -> bool:
    try:
        client.models.get(name.partition("@")[0])
    except errors.NotFound:
        return False
    return True


def _make_ready(client: Client, model: str) -> Deployment:
    """The deployment that answers for a name: as it is, else of a model, else of a pulled one."""
    with progress(model) as report:
        deployment = find_deployment(client, model)
        if deployment is None:
            if not _has_model(client, model):
                client.models.pull(model, on_progress=report)
            return client.deployments.deploy(model, on_progress=report)
        if deployment.state == "stopped":
            client.deployments.start(deployment.name)
            return client.deployments.wait(deployment.name, on_progress=report, just_changed=True)
        return client.deployments.wait(deployment.name, on_progress=report)


# ------------------------------------------------------------------------------ answers


def _converse(
    client: Client,
    common: Common,
    deployment: Deployment,
    words: Sequence[str],
    system: str | None,
    params: dict[str, Any],
) -> None:
    """One answer to a prompt, or a chat."""
    is_chat = deployment.task in CHAT_TASKS
    prompt = " ".join(words)
    if not prompt and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if not prompt and not is_chat:
        raise errors.InvalidInput(
            f"{deployment.name!r} needs an input", hint=f'wherry run {deployment.name} "…"'
        )
    if not is_chat:
        inputs = read_inputs(words or [prompt], _sample(client, deployment), deployment.task)
        answer = _predict(client, deployment.name, inputs)
        show(common, answer, lambda: _tell(answer, inputs, deployment.name))
        return
    chat = Chat(client, deployment.name, system, params)
    if not prompt:
        chat.loop()
        return
    question = (
        _with_pictures(words) if deployment.task == SEEING_TASK else _spell_out(words, prompt)
    )
    try:
        if common.output == "json":
            print_json(chat.ask(question))
        else:
            chat.tell(question)
    except errors.InvalidInput as error:
        if NO_TEMPLATE not in error.message or system or not isinstance(question, str):
            raise
        answer = _predict(client, deployment.name, {"prompt": question, **params})
        show(common, answer, lambda: print(visible(question + str(answer["text"]))))


def _with_pictures(words: Sequence[str]) -> Question:
    """Words of a command line as a question; those that name a picture's file become pictures."""
    from mimetypes import guess_type

    from wherry.models.tasks.chat_pictures import picture_url
    from wherry.models.tasks.image_text_to_text import QUESTION

    parts: list[dict[str, Any]] = []
    said: list[str] = []
    for word in words:
        kind = guess_type(word)[0] or ""
        if kind.startswith("image/") and (path := find_file(word)) is not None:
            url = picture_url(path.read_bytes(), kind)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            said.append(word)
    text = " ".join(said)
    return [*parts, {"type": "text", "text": text or QUESTION}] if parts else text


def _spell_out(words: Sequence[str], prompt: str) -> str:
    """The prompt with what is in the files of text that it names."""
    files = [find_file(word) if Path(word).suffix in TEXT_SUFFIXES else None for word in words]
    if not any(files):
        return prompt
    said = zip(words, files, strict=True)
    return "\n\n".join(word if file is None else read_text_file(file) for word, file in said)


def _tell(answer: dict[str, Any], inputs: dict[str, Any], name: str) -> None:
    """Print an answer, its sound or picture kept in a file."""
    kept = save_picture(save_sound(answer, name), inputs, name)
    print_answer(name_documents(kept, inputs))


def _predict(client: Client, deployment: str, inputs: dict[str, Any]) -> dict[str, Any]:
    try:
        return client.predict(deployment, inputs)
    except errors.ModelFailed as error:
        raise errors.ModelFailed(
            error.message, hint=f"the cause: wherry logs {deployment}"
        ) from error


def _sample(client: Client, deployment: Deployment) -> dict[str, Any]:
    """One input as the deployment's model takes it; empty if none is known."""
    reference = next(iter(deployment.versions), "")
    name, _, number = reference.partition("@")
    try:
        return client.models.version(name, int(number)).card.sample
    except (errors.NotFound, errors.NotPermitted, errors.InvalidInput, ValueError):
        return {}


class Chat:
    """A conversation: every answer knows what was said before."""

    def __init__(
        self, client: Client, deployment: str, system: str | None, params: dict[str, Any]
    ) -> None:
        self._client = client
        self._deployment = deployment
        self._params = params
        self._messages: list[dict[str, Any]] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    def ask(self, question: Question) -> Any:
        """A whole answer."""
        self._messages.append({"role": "user", "content": question})
        answer = self._client.chat(self._deployment, self._messages, **self._params)
        self._messages.append({"role": "assistant", "content": answer.text})
        return answer

    def tell(self, question: Question) -> None:
        """Print an answer as it comes; what failed is forgotten, what was stopped is not."""
        self._messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            for piece in self._client.chat(
                self._deployment, self._messages, stream=True, **self._params
            ):
                pieces.append(piece)
                print(visible(piece), end="", flush=True)
        except errors.WherryError:
            self._messages.pop()
            raise
        except KeyboardInterrupt:
            self._remember(pieces)
            raise
        finally:
            if pieces:
                print(flush=True)
        self._remember(pieces)

    def _remember(self, pieces: list[str]) -> None:
        self._messages.append({"role": "assistant", "content": "".join(pieces)})

    def loop(self, read: Callable[[str], str] = input) -> None:
        """Ask for questions until /bye or the end of the input; Ctrl-C stops an answer."""
        try:
            import readline as _  # noqa: F401  # gives `input` its history and keys
        except ImportError:
            pass
        note(f"chat with {self._deployment}: Ctrl-C stops an answer, /bye ends the chat")
        while True:
            try:
                question = read(">>> ").strip()
            except EOFError:
                note("")
                return
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                # a person often means the answer that has just ended
                note("\n(/bye or Ctrl-D ends the chat)")
                continue
            if question in FAREWELLS:
                return
            if not question:
                continue
            try:
                self.tell(question)
            except KeyboardInterrupt:
                note("(stopped)")
            except errors.WherryError as error:
                print_error(error)


@command(
    "chat",
    group=TALK,
    examples=["wherry chat smollm2", 'wherry chat smollm2 "hi" -o json'],
)
def chat(
    deployment: str,
    /,
    *prompt: str,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    common: Common = DEFAULT,
) -> None:
    """Chat with a deployment until /bye, or ask it one question.

    Args:
        deployment: The deployment.
        prompt: The one question.
        system: What the model is told before the conversation.
        max_tokens: Longest answer.
        temperature: 0 = always the likeliest word.
    """
    params = {"max_tokens": max_tokens, "temperature": temperature}
    chosen = {name: value for name, value in params.items() if value is not None}
    question = " ".join(prompt)
    if not question and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    with common.connect() as client:
        conversation = Chat(client, deployment, system, chosen)
        if not question:
            conversation.loop()
        elif common.output == "json":
            print_json(conversation.ask(question))
        else:
            conversation.tell(question)


@command(
    "predict",
    group=TALK,
    examples=[
        'wherry predict mood "what a lovely day"',
        "wherry predict iris '{\"row\": [5.1, 3.5, 1.4, 0.2]}'",
        "wherry predict mobilenet photo.jpg",
        "wherry predict whisper-tiny-en talk.mp3",
    ],
)
def predict(deployment: str, prompt: str, /, *, common: Common = DEFAULT) -> None:
    """Ask any deployment in its simplest form.

    Args:
        deployment: The deployment.
        prompt: A text, a JSON object or a file.
    """
    with common.connect() as client:
        sample: dict[str, Any] = {}
        found = find_deployment(client, deployment)
        if found is not None:
            sample = _sample(client, found)
        inputs = read_input(prompt, sample)
        answer = _predict(client, deployment, inputs)
    show(common, answer, lambda: _tell(answer, inputs, deployment))


@command(
    "embed",
    group=TALK,
    examples=['wherry embed minilm "a text" "another"', "wherry embed minilm - < lines.txt"],
)
def embed(
    deployment: str,
    /,
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    common: Common = DEFAULT,
) -> None:
    """Turn texts into vectors; a line of JSON each.

    Args:
        deployment: The deployment.
        texts: The texts; `-` reads them from standard input, a line each.
    """
    listed = list(texts)
    if listed == ["-"] or not listed:
        listed = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    with common.connect() as client:
        vectors = client.embed(deployment, listed)
    show(common, vectors, lambda: _print_vectors(vectors))


def _print_vectors(vectors: list[list[float]]) -> None:
    for vector in vectors:
        print(msgspec.json.encode(vector).decode())
