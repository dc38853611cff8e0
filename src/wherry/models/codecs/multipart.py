"""`multipart/form-data` (RFC 7578), read strictly, in one pass, within bounds, without I/O.

Codecs call `read_form` on a body that is in memory; what it gives are views into the body. A door
whose files go to the disk feeds a `MultipartReader` piece by piece (`wherry.doors.multipart`).

Strict: no preamble, no epilogue but a line's end, no nested multipart, no transfer encodings. What
the two ends could read differently is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from wherry.errors import InvalidInput, TooLarge

MAX_PARTS = 64
MAX_HEAD_BYTES = 4 << 10
"""Header lines of one part."""
MAX_FIELD_BYTES = 1 << 20
"""Of a text field: prompts and JSON schemas fit."""
MAX_NAME_CHARACTERS = 255

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(r';[ \t]*([A-Za-z0-9_*.-]+)=(?:"((?:[^"\\]|\\.)*)"|([^";\s]*))[ \t]*')
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


class Head(msgspec.Struct, frozen=True):
    """The head of a part."""

    name: str
    filename: str | None = None
    """None for a text field. It is the client's own word: for showing, never for a path."""
    content_type: str = ""


class Data(msgspec.Struct, frozen=True):
    """More of the part that has begun; a part may have none, or many."""

    piece: bytes


class End(msgspec.Struct, frozen=True):
    """The part that has begun is whole."""


Event = Head | Data | End


class MultipartReader:
    """Takes a body in any pieces; tells heads, data and ends of its parts in order.

    Args:
        content_type: of the request, with its boundary.

    Raises:
        InvalidInput: it is not `multipart/form-data`, or its boundary cannot be one.
    """

    def __init__(self, content_type: str) -> None:
        self._delimiter = b"\r\n--" + find_boundary(content_type)
        self._buffer = b"\r\n"  # so that the first boundary looks like the others
        self._read = self._read_preamble
        self._parts = 0
        self.is_complete = False
        """Whether the closing boundary has come."""

    def feed(self, piece: bytes) -> Iterator[Event]:
        """What a piece of the body brings.

        Raises:
            InvalidInput: the body is malformed.
            TooLarge: it has too many parts, or a part's head is too long.
        """
        self._buffer += piece
        while True:
            before = self._read
            yield from self._read()
            if self._read == before:
                return

    def end(self) -> None:
        """The body has ended: `InvalidInput` if it should not have."""
        if not self.is_complete:
            raise InvalidInput("the form breaks off: its closing boundary is missing")

    # each reads as far as it can; when it is through, the next one is in `_read`

    def _read_preamble(self) -> Iterator[Event]:
        yield from ()
        expected = self._delimiter
        if not self._buffer.startswith(expected[: len(self._buffer)]):
            raise InvalidInput("the form does not begin with its boundary")
        if len(self._buffer) >= len(expected):
            self._buffer = self._buffer[len(expected) :]
            self._read = self._read_after_boundary

    def _read_after_boundary(self) -> Iterator[Event]:
        yield from ()
        if len(self._buffer) < 2:
            return
        mark, self._buffer = self._buffer[:2], self._buffer[2:]
        if mark == b"--":
            self.is_complete = True
            self._read = self._read_epilogue
        elif mark == b"\r\n":
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise TooLarge(f"the form has more than {MAX_PARTS} parts")
            self._read = self._read_head
        else:
            raise InvalidInput("a boundary of the form is not followed by a line's end")

    def _read_head(self) -> Iterator[Event]:
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise TooLarge(f"the head of a form's part is larger than {MAX_HEAD_BYTES} bytes")
        if blank:
            self._buffer = rest
            self._read = self._read_data
            yield read_head(head)

    def _read_data(self) -> Iterator[Event]:
        data, found, rest = self._buffer.partition(self._delimiter)
        if found:
            self._buffer = rest
            self._read = self._read_after_boundary
            if data:
                yield Data(data)
            yield End()
            return
        # what may be the beginning of a boundary waits for more
        keep = len(self._delimiter) - 1
        cut = self._buffer.find(b"\r", max(0, len(self._buffer) - keep))
        if cut < 0:
            cut = len(self._buffer)
        data, self._buffer = self._buffer[:cut], self._buffer[cut:]
        if data:
            yield Data(data)

    def _read_epilogue(self) -> Iterator[Event]:
        yield from ()
        if self._buffer not in (b"", b"\r", b"\r\n"):
            raise InvalidInput("something follows the form's closing boundary")


# ------------------------------------------------------------------------------ heads


def find_boundary(content_type: str) -> bytes:
    """The boundary that a content type names; `InvalidInput` if it names none."""
    kind, parameters = _parse_value(content_type)
    if kind.lower() != "multipart/form-data":
        raise InvalidInput(
            f"content type {kind[:100]!r} is not understood here", hint="send multipart/form-data"
        )
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidInput("the content type names no boundary that could be one")
    return boundary.encode("ascii")


def read_head(head: bytes) -> Head:
    """Name, file name and type of a part, from its header lines."""
    lines: dict[str, str] = {}
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        try:
            key, text = name.decode("ascii").lower(), value.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InvalidInput("a header of a form's part is not UTF-8") from error
        if not colon or not _TOKEN.fullmatch(key) or key in lines or "\r" in text or "\n" in text:
            raise InvalidInput("a header of a form's part is malformed")
        lines[key] = text
    kind, parameters = _parse_value(lines.get("content-disposition", ""))
    if kind.lower() != "form-data" or "name" not in parameters:
        raise InvalidInput("a part of the form has no name")
    if lines.get("content-transfer-encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise InvalidInput("a part of the form is encoded", hint="send its bytes as they are")
    content_type = lines.get("content-type", "")
    if content_type.lower().startswith("multipart/"):
        raise InvalidInput("a part of the form is a form of its own")
    if "filename*" in parameters:
        raise InvalidInput("a form's file is named by filename*", hint="use filename (RFC 7578)")
    filename = parameters.get("filename")
    name = _checked(parameters["name"])
    return Head(name, None if filename is None else _checked(filename), content_type)


def _parse_value(text: str) -> tuple[str, dict[str, str]]:
    kind, _, _ = text.partition(";")
    parameters: dict[str, str] = {}
    position = len(kind)
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None or found[1].lower() in parameters:
            raise InvalidInput("the parameters of a form's header are malformed")
        quoted = re.sub(r'\\(["\\])', r"\1", found[2]) if found[2] is not None else found[3]
        parameters[found[1].lower()] = quoted
        position = found.end()
    return kind.strip(), parameters


def _checked(name: str) -> str:
    # browsers, and clients that follow them, write these three so (WHATWG HTML, multipart/form-data)
    name = name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidInput(
            f"a name in the form is longer than {MAX_NAME_CHARACTERS} characters, or not printable"
        )
    return name


# ------------------------------------------------------------------------------ whole forms


class File(msgspec.Struct):
    """A file of a form, in memory."""

    filename: str
    content_type: str
    content: bytes


class Form(msgspec.Struct):
    """The fields of a form by name, each as often as it came."""

    texts: dict[str, list[str]] = {}
    files: dict[str, list[File]] = {}

    def text(self, name: str, default: str | None = None) -> str:
        """A text field that may come once; `InvalidInput` if it is missing without a default."""
        found = self.texts.get(name, [])
        if len(found) > 1:
            raise InvalidInput(f"the field {name!r} came {len(found)} times", param=name)
        if not found and default is None:
            raise InvalidInput(f"the field {name!r} is missing", param=name)
        return found[0] if found else default or ""

    def file(self, name: str) -> File:
        """A file that must come, once."""
        found = self.files.get(name, [])
        if len(found) != 1:
            raise InvalidInput(f"{name!r} must be one file, not {len(found)}", param=name)
        return found[0]


def read_form(body: bytes, content_type: str) -> Form:
    """A whole form.

    Raises:
        InvalidInput: it is malformed.
        TooLarge: a bound of this module is passed.
    """
    form, collector = Form(), Collector()
    reader = MultipartReader(content_type)
    for event in reader.feed(body):
        if collector.take(event):
            collector.put_into(form)
    reader.end()
    return form


class Collector:
    """Gathers the events of one part after another."""

    def __init__(self) -> None:
        self._head = Head("")
        self._pieces: list[bytes] = []
        self._size = 0

    def take(self, event: Event) -> bool:
        """Whether a part is whole now."""
        if isinstance(event, Head):
            self._head, self._pieces, self._size = event, [], 0
        elif isinstance(event, Data):
            self._size += len(event.piece)
            if self._head.filename is None and self._size > MAX_FIELD_BYTES:
                name = self._head.name
                raise TooLarge(f"the field {name!r} is larger than {MAX_FIELD_BYTES} bytes")
            self._pieces.append(event.piece)
        return isinstance(event, End)

    def put_into(self, form: Form) -> None:
        """Add the whole part to a form."""
        head, content = self._head, b"".join(self._pieces)
        if head.filename is not None:
            file = File(head.filename, head.content_type, content)
            form.files.setdefault(head.name, []).append(file)
            return
        try:
            form.texts.setdefault(head.name, []).append(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInput(f"the field {head.name!r} is not UTF-8", param=head.name) from error
