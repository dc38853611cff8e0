"""Forms that come in over HTTP: files to where the door wants them, fields in memory.

A door whose worker reads the form itself hands the body on and looks at its small fields with
`wherry.models.codecs.multipart.read_form`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from wherry.doors.route import Inquiry
from wherry.errors import InvalidInput
from wherry.models.codecs.multipart import (
    Collector,
    Data,
    End,
    Form,
    Head,
    MultipartReader,
)

MULTIPART = ("multipart/form-data",)
"""`content_types` of a row that reads a form."""


class Sink(Protocol):
    """Where a file goes, and what bounds it; who opened it puts it away if the form is wrong."""

    async def feed(self, piece: bytes) -> None:
        """More of the file."""
        ...

    async def finish(self) -> None:
        """The file is whole."""
        ...


OpenSink = Callable[[Head, Form], Awaitable[Sink]]
"""Told the head of the file, and the fields that came before it."""


async def receive_form(inquiry: Inquiry, file: str, open_sink: OpenSink) -> Form:
    """The fields of a form with one file, whose bytes went to a sink as they came.

    Args:
        inquiry: the request.
        file: name of the file's field. No other may be a file, and it must come.
        open_sink: called when it begins.

    Raises:
        InvalidInput: the form is malformed, or has another file, or not this one.
        TooLarge: a bound is passed.
    """
    reader = MultipartReader(inquiry.headers.get("content-type", ""))
    form, collector = Form(), Collector()
    sink: Sink | None = None
    has_come = False
    async for piece in inquiry.stream():
        for event in reader.feed(piece):
            if isinstance(event, Head) and event.filename is not None:
                if event.name != file or has_come:
                    raise InvalidInput(
                        f"{event.name!r} is a file too many", hint=f"send {file!r}, once"
                    )
                sink, has_come = await open_sink(event, form), True
            elif sink is None:
                if collector.take(event):
                    collector.put_into(form)
            elif isinstance(event, Data):
                await sink.feed(event.piece)
            elif isinstance(event, End):
                await sink.finish()
                sink = None
    reader.end()
    if not has_come:
        raise InvalidInput(f"the form has no file {file!r}", param=file)
    return form
