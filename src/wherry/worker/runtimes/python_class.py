"""Models that are a small Python class in the bundle (the operator must allow code).

```python
class Model:
    def load(self, folder: Path) -> None: ...        # optional; the bundle's folder
    def predict(self, batch: list) -> list: ...      # one result an item, in order
    def close(self) -> None: ...                     # optional
```

Option `entry` names the class: `model.py:Model` (the default). What an item and a result are
depends on the task:

| task | item | result |
| --- | --- | --- |
| tensor | dict: name → array | the same |
| tabular-classification | dict: name → array | classes (rows,) or probabilities (rows, labels) |
| tabular-regression | dict: name → array | values (rows,) or (rows, targets) |
| text-classification | str | dict: label → score |
| feature-extraction | str | vector |
| image-classification | uint8 array [height, width, channels] | dict: label → score |

Those of other tasks: `python_answers.py`, and docs/custom-models.md.

For `text-generation` the runtime is `python_stream` and the class has, instead of `predict`,
`stream(self, request: dict)`: an iterator of pieces of text (`str`). A piece counts as one output
token; a dict piece says its own `text`, `input_tokens`, `output_tokens` and `finish_reason`. Option
`max_concurrency` (default 1) is the number of streams at once, each in a thread.

`wherry.errors.InvalidInput` tells the caller what is wrong with the input; of any other exception
the caller learns nothing: its traceback is in `wherry logs`, as is all that the class prints.
A batch that raises is run again one by one, but only if the bundle says `idempotent = true`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput, MissingExtra, ModelFailed, WherryError
from wherry.models.bundle import Bundle
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.chat_pictures import check_pictures, expect_text_only, pictures_of
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    ChatInput,
    FinishReason,
    TextDelta,
    expect_whole_answer,
)
from wherry.models.tasks.image_text_to_text import IMAGE_TEXT_TO_TEXT
from wherry.models.tasks.task import TaskInput, TaskOutput, Usage
from wherry.models.tasks.tensor import count_rows, rows_usage
from wherry.worker.runtimes.chat_prompt import forced_tools
from wherry.worker.runtimes.json_conformance import conforms
from wherry.worker.runtimes.json_schema_guard import guard_schema
from wherry.worker.runtimes.python_items import TASKS_OF_SEVERAL, find_adapter
from wherry.worker.runtimes.runtime import ItemError, Prepared
from wherry.worker.runtimes.stop_texts import StopFinder

DEFAULT_ENTRY = "model.py:Model"
DEFAULT_BATCH_ROWS = 32
MAX_CONCURRENCY = 64


class PythonClassRuntime:
    """A class with `predict`."""

    max_batch_rows = DEFAULT_BATCH_ROWS
    max_batch_cost = 0

    def load(self, bundle: Bundle, device: str) -> None:
        """Import the file, make the object, let it load itself."""
        self.manifest = bundle.manifest
        self.pack, self.unpack = find_adapter(self.manifest.task)
        self.holds_several = self.manifest.task in TASKS_OF_SEVERAL
        task = find_task(self.manifest.task)
        self.inputs = (
            self.manifest.signature.inputs or task.signature(self.manifest.task_config()).inputs
        )
        self.model = create_model(bundle, "predict")
        # what may not be run twice is not run with others: a fault could not be told apart
        self.max_batch_rows = DEFAULT_BATCH_ROWS if self.manifest.idempotent else 1

    def prepare(self, item: TaskInput) -> Prepared:
        """The item as the class sees it."""
        payload = self.pack(item)
        if isinstance(payload, dict):
            rows = count_rows(payload, self.inputs)
        else:
            rows = len(payload) if self.holds_several else 1
        # a request without rows takes its turn like any other
        return Prepared((payload, item, rows), rows=max(rows, 1))

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """One call for the whole batch."""
        try:
            results = self.predict([prepared.payload[0] for prepared in batch])
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            if len(batch) == 1:
                return [item_error(error)]
            if not self.manifest.idempotent:  # whose fault it was is nobody else's business
                traceback.print_exception(error, file=sys.stderr)
                failed = "the model failed on a batch that held this input"
                return [ItemError(ModelFailed.code, failed)] * len(batch)
            return [self.run([prepared])[0] for prepared in batch]
        return [self.unpack_one(*each) for each in zip(batch, results, strict=True)]

    def close(self) -> None:
        """Let the model close itself."""
        close_model(self.model)

    def predict(self, items: list[Any]) -> list[Any]:
        """The class's own results: one an item, or a list for an item that holds several."""
        if not self.holds_several:
            return self.ask(items)
        results = iter(self.ask([each for item in items for each in item]))
        return [list(islice(results, len(item))) for item in items]

    def ask(self, inputs: list[Any]) -> list[Any]:
        """One result an input."""
        results: list[Any] = list(self.model.predict(inputs)) if inputs else []
        if len(results) != len(inputs):
            raise ValueError(f"predict gave {len(results)} results for {len(inputs)} inputs")
        return results

    def unpack_one(self, prepared: Prepared, result: Any) -> TaskOutput | ItemError:
        """A result as the task's output; a result of the wrong form fails alone."""
        _, item, rows = prepared.payload
        try:
            output = self.unpack(result, item, rows, self.manifest)
        except Exception as error:  # noqa: BLE001 - the result may be anything
            return item_error(error)
        if output.usage == Usage():
            output.usage = rows_usage(rows)
        return output


class Piece(msgspec.Struct):
    """What a class may yield instead of a string."""

    text: str = ""
    input_tokens: Annotated[int, Meta(ge=0)] = 0
    output_tokens: Annotated[int, Meta(ge=0)] = 1
    finish_reason: FinishReason | None = None


class PythonStreamRuntime:
    """A class with `stream`."""

    max_concurrency = 1

    def load(self, bundle: Bundle, device: str) -> None:
        """Import the file, make the object, let it load itself."""
        if bundle.manifest.task not in GENERATION_TASKS:
            raise InvalidInput("only text-generation streams", hint="runtime = 'python_class'")
        self.sees = bundle.manifest.task == IMAGE_TEXT_TO_TEXT.name
        wanted = bundle.manifest.options.get("max_concurrency", 1)
        if not isinstance(wanted, int) or not 1 <= wanted <= MAX_CONCURRENCY:
            raise InvalidInput(f"max_concurrency must be 1 to {MAX_CONCURRENCY}, not {wanted!r}")
        self.max_concurrency = wanted
        self.model = create_model(bundle, "stream")
        self.threads = ThreadPoolExecutor(self.max_concurrency, "stream")

    async def stream(
        self, item: TaskInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta]:
        """Pieces of one answer, then one with the finish reason and the usage."""
        await self.admit(item)
        promised = PromisedJson(item)
        loop = asyncio.get_running_loop()
        limit: int | None = item.sampling.max_tokens
        usage = Usage()
        reason: FinishReason = "stop"
        stops = StopFinder(item.sampling.stop)
        pieces = await loop.run_in_executor(self.threads, self.start, item)
        try:
            while piece := await loop.run_in_executor(self.threads, next_piece, pieces):
                prompt_tokens = piece.input_tokens if item.charge_prompt else 0
                usage += Usage(prompt_tokens, piece.output_tokens)
                reason = piece.finish_reason or reason
                promised.take(piece.text)
                if text := stops.feed(piece.text):
                    yield TextDelta(text=text)
                if stops.found:
                    reason = "stop"
                    break
                if cancelled.is_set():
                    reason = "cancelled"
                    break
                if limit is not None and usage.output_tokens >= limit:
                    reason = "length"
                    break
        finally:
            await loop.run_in_executor(self.threads, close_pieces, pieces)
        if reason == "stop" and not stops.found:
            promised.check()
        yield TextDelta(
            text=stops.finish(), finish_reason=reason, stop_text=stops.found, usage=usage
        )

    async def admit(self, item: TaskInput) -> None:
        """Refuse what a class that yields text cannot do, and would pass over in silence."""
        expect_whole_answer(item)
        if item.sampling.top_logprobs is not None:
            raise InvalidInput(
                "this model tells no log-probabilities", hint="leave them out", param="logprobs"
            )
        if isinstance(item, ChatInput) and forced_tools(item):
            raise InvalidInput(
                "this model calls no tools", hint="set tool_choice to 'auto'", param="tool_choice"
            )
        if not self.sees:
            expect_text_only(item)
        elif pictures_of(item):
            await asyncio.to_thread(check_pictures, item)

    def start(self, item: TaskInput) -> Iterator[Any]:
        """The class's own iterator."""
        with failing_as_model():
            return iter(self.model.stream(msgspec.to_builtins(item)))

    def close(self) -> None:
        """Let the model close itself."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        close_model(self.model)


class PromisedJson:
    """Sees to it that an answer that was to be JSON is, where only the class could hold to it.

    Raises `InvalidInput` for a schema that cannot be checked.
    """

    def __init__(self, item: TaskInput) -> None:
        wanted = getattr(item, "json_format", None)
        self._schema = guard_schema(wanted.schema, strict=wanted.strict) if wanted else None
        self._texts: list[str] = []

    def take(self, text: str) -> None:
        """Some more of the answer."""
        if self._schema is not None:
            self._texts.append(text)

    def check(self) -> None:
        """Raise `ModelFailed` if the whole answer does not fit."""
        if self._schema is None:
            return
        try:
            held = conforms(msgspec.json.decode("".join(self._texts)), self._schema)
        except (msgspec.DecodeError, RecursionError):
            held = False
        if not held:
            raise ModelFailed(
                "the model's answer does not fit the schema",
                hint="this model gets response_format and must hold to it by itself",
            )


def next_piece(pieces: Iterator[Any]) -> Piece | None:
    """The next piece, None at the end."""
    with failing_as_model():
        value = next(pieces, None)
        if value is None:
            return None
        return Piece(value) if isinstance(value, str) else msgspec.convert(value, Piece)


def close_pieces(pieces: Iterator[Any]) -> None:
    """End a generator that nobody reads any more."""
    close = getattr(pieces, "close", None)
    if close is not None:
        with failing_as_model():
            close()


def close_model(model: Any) -> None:
    """Let a model that can close itself do so."""
    if hasattr(model, "close"):
        model.close()


def item_error(error: Exception) -> ItemError:
    """What the caller may know of an exception; the rest goes to the log."""
    if isinstance(error, WherryError) and not isinstance(error, ModelFailed):
        return ItemError(error.code, error.text)
    traceback.print_exception(error, file=sys.stderr)
    return ItemError(ModelFailed.code, "the model failed on this input")


@contextlib.contextmanager
def failing_as_model() -> Generator[None]:
    """Turn what the model raises into `ModelFailed`, its traceback into the log."""
    try:
        yield
    except WherryError:
        raise
    except Exception as error:
        traceback.print_exception(error, file=sys.stderr)
        raise ModelFailed("the model failed on this input") from error


# ------------------------------------------------------------------------------ the class


def create_model(bundle: Bundle, method: str) -> Any:
    """The object that the bundle's class makes, loaded."""
    entry = str(bundle.manifest.options.get("entry", DEFAULT_ENTRY))
    file, _, name = entry.partition(":")
    name = name or "Model"
    with importing_from(bundle.folder):
        kind = getattr(import_file(bundle.path(file)), name, None)
        if not callable(kind):
            raise InvalidInput(f"{file!r} has no class {name!r}", hint=f"entry: {entry}")
        model: Any = kind()
        if not callable(getattr(model, method, None)):
            raise InvalidInput(f"the class {name!r} has no method {method!r}")
        if hasattr(model, "load"):
            model.load(bundle.folder)
    return model


def import_file(path: Path) -> Any:
    """Import a file of the bundle."""
    name = f"wherry_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path.name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def importing_from(folder: Path) -> Generator[None]:
    """Let the bundle's files import each other, and say which package is missing."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the model needs the module {error.name!r}",
            hint="name its package in the bundle's 'requirements'",
        ) from error
    finally:
        sys.path.remove(str(folder))
