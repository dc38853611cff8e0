"""What the steps of a pipeline are given: templates over the request and the answers of other steps.

A template is JSON in which a text that begins with `$` stands for a value: `$request.audio`,
`$hear.text`, `$find.faces.0.box`, `$tag.*.label` (of each element), `$each` (the element that a step
is called for). `$request.language?` leaves its field out if there is none; `$$` writes a dollar.

Values stay the JSON that they came as. Only what a reference names is looked into, and only its keys
are kept, so a body that is made to burst a parser is passed on to a sandboxed worker like any other.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from wherry import errors
from wherry.client.schema import Step

REQUEST, EACH = "request", "each"
MAX_LIST_BYTES = 1 << 20
"""Of a list that is looked into; longer ones can only be passed on."""
MAX_EACH = 64
"""Calls that one step makes."""
MAX_DEPTH = 12
"""Of a template."""
MAX_FILLED_BYTES = 256 << 20
"""Of the values in a filled template, which may name a large one many times."""

_encoder = msgspec.json.Encoder()
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_syntax = msgspec.json.Decoder(msgspec.Raw)


class Reference(msgspec.Struct, frozen=True):
    """A text of a template that stands for a value."""

    source: str
    """`request`, `each` or the name of a step."""
    path: tuple[str, ...]
    is_optional: bool = False

    def __str__(self) -> str:
        """As it was written, but for the question mark."""
        return "$" + ".".join((self.source, *self.path))


class Absent(Exception):  # noqa: N818 - nothing is wrong: the field is left out
    """An optional reference has no value."""


def parse_reference(text: str) -> Reference | None:
    """The reference that a text is; None for any other text."""
    if not text.startswith("$") or text.startswith("$$"):
        return None
    is_optional = text.endswith("?")
    source, *path = text[1:].removesuffix("?").split(".")
    if not source or not all(path):
        raise errors.InvalidInput(f"{text!r} is no reference", hint="e.g. $request.text")
    return Reference(source, tuple(path), is_optional)


def references_of(template: Any, depth: int = 0) -> Iterator[Reference]:
    """All references of a template."""
    if depth > MAX_DEPTH:
        raise errors.InvalidInput(f"a template is nested more than {MAX_DEPTH} levels deep")
    if isinstance(template, str):
        found = parse_reference(template)
        if found is not None:
            yield found
    elif isinstance(template, Mapping):
        for value in template.values():
            yield from references_of(value, depth + 1)
    elif isinstance(template, list | tuple):
        for value in template:
            yield from references_of(value, depth + 1)


def find_dependencies(steps: Sequence[Step], answer: Any = None) -> dict[str, frozenset[str]]:
    """Step → steps whose answers it needs, in an order in which they can run.

    Raises:
        InvalidInput: a name is given twice or to nobody, or steps wait for each other.
    """
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1 or name in (REQUEST, EACH):
            raise errors.InvalidInput(f"the step {name!r} needs a name of its own", param="steps")
    needs: dict[str, frozenset[str]] = {}
    for step in steps:
        found = [*references_of(step.input), *references_of(step.each)]
        if step.each and parse_reference(step.each) is None:
            raise errors.InvalidInput(
                f"'each' of the step {step.name!r} must be a reference to a list", param="steps"
            )
        _check_sources(f"the step {step.name!r}", found, names, has_each=bool(step.each))
        needs[step.name] = frozenset(each.source for each in found) & frozenset(names)
    _check_sources("the answer", list(references_of(answer)), names, has_each=False)
    return {name: needs[name] for name in _in_order(needs)}


def _check_sources(
    who: str, found: Sequence[Reference], names: Sequence[str], *, has_each: bool
) -> None:
    known = {REQUEST, *names, *([EACH] if has_each else [])}
    for reference in found:
        if reference.source not in known:
            raise errors.InvalidInput(
                f"{who} refers to {str(reference)!r}, which nothing gives",
                hint=f"known: {', '.join('$' + each for each in sorted(known))}",
                param="steps",
            )


def _in_order(needs: Mapping[str, frozenset[str]]) -> list[str]:
    done: list[str] = []
    while len(done) < len(needs):
        ready = [name for name in needs if name not in done and needs[name] <= {*done}]
        if not ready:
            waiting = sorted(name for name in needs if name not in done)
            raise errors.InvalidInput(
                f"the steps {', '.join(waiting)} wait for each other: a pipeline has no cycle",
                param="steps",
            )
        done += ready
    return done


# ------------------------------------------------------------------------------ values


def read_request(body: bytes, content_type: str, wanted: Sequence[Reference]) -> msgspec.Raw:
    """The request as JSON: itself, or a file's bytes under the key that the steps ask for.

    Raises:
        InvalidInput: it is neither.
    """
    kind = content_type.partition(";")[0].strip().lower()
    media = kind.partition("/")[0]
    if media in ("image", "audio", "video") or kind == "application/octet-stream":
        asked = {each.path[0] for each in wanted if each.source == REQUEST and each.path}
        key = {"image": "image", "audio": "audio", "video": "audio"}.get(media, "")
        key = key or next((each for each in ("image", "audio") if each in asked), "")
        if key not in asked:
            raise errors.InvalidInput(
                "no step of the pipeline takes such a file", hint="send a JSON object"
            )
        return to_raw({key: base64.b64encode(body).decode()})
    try:
        if not body.isascii():
            str(body, "utf-8")
        _syntax.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is not valid JSON: {error}") from error
    if not body.lstrip()[:1] == b"{":
        raise errors.InvalidInput("the body must be a JSON object")
    return msgspec.Raw(body)


def to_raw(value: Any) -> msgspec.Raw:
    """A value as the JSON that it is."""
    return msgspec.Raw(_encoder.encode(value))


def list_of(values: Sequence[msgspec.Raw]) -> msgspec.Raw:
    """A list of values."""
    return msgspec.Raw(b"[" + b",".join(bytes(each) for each in values) + b"]")


def fill(template: Any, values: Mapping[str, msgspec.Raw]) -> msgspec.Raw:
    """A template with its references replaced by what they stand for.

    Raises:
        InvalidInput: the request lacks something.
        ModelFailed: the answer of a step does.
        TooLarge: it would be; nothing was copied.
    """
    try:
        filled = _fill(template, values)
    except Absent as absent:
        raise errors.InvalidInput(f"there is no {absent}", hint="its '?' needs a field") from None
    if _size_of(filled) > MAX_FILLED_BYTES:
        raise errors.TooLarge(f"the filled template has more than {MAX_FILLED_BYTES} bytes")
    return to_raw(filled)


def _size_of(filled: Any) -> int:
    """Bytes of the values within."""
    if isinstance(filled, msgspec.Raw):
        return len(filled)
    if isinstance(filled, Mapping):
        return sum(map(_size_of, filled.values()))
    return sum(map(_size_of, filled)) if isinstance(filled, list) else 0


def _fill(template: Any, values: Mapping[str, msgspec.Raw]) -> Any:
    if isinstance(template, str):
        reference = parse_reference(template)
        if reference is None:
            return template[1:] if template.startswith("$$") else template
        return look_up(reference, values)
    if isinstance(template, Mapping):
        filled: dict[str, Any] = {}
        for key, value in template.items():
            try:
                filled[key] = _fill(value, values)
            except Absent:
                continue
        return filled
    if isinstance(template, list | tuple):
        return [_fill(value, values) for value in template]
    return template


def look_up(reference: Reference, values: Mapping[str, msgspec.Raw]) -> msgspec.Raw:
    """What a reference stands for."""
    value: msgspec.Raw | None = values[reference.source]
    for depth, name in enumerate(reference.path):
        assert value is not None
        if name == "*":
            rest = Reference(EACH, reference.path[depth + 1 :], reference.is_optional)
            elements = elements_of(value, reference)
            return list_of([look_up(rest, {EACH: each}) for each in elements])
        value = _step_into(value, name, reference)
        if value is None:
            raise _missing(reference)
    assert value is not None
    return value


def elements_of(value: msgspec.Raw, reference: Reference) -> list[msgspec.Raw]:
    """The elements of a list."""
    if len(value) > MAX_LIST_BYTES:
        raise errors.TooLarge(f"{reference} has more than {MAX_LIST_BYTES} bytes")
    try:
        return _list_decoder.decode(value)
    except msgspec.MsgspecError:
        raise _unfit(reference, "is no list") from None


def _step_into(value: msgspec.Raw, name: str, reference: Reference) -> msgspec.Raw | None:
    if name.isdecimal():
        elements = elements_of(value, reference)
        return elements[int(name)] if int(name) < len(elements) else None
    try:
        found = _picker_of(name).decode(value).found
    except (msgspec.MsgspecError, RecursionError):
        raise _unfit(reference, f"has no {name!r}: it is no object") from None
    return None if found is msgspec.UNSET else found


@lru_cache(maxsize=1024)
def _picker_of(name: str) -> msgspec.json.Decoder[Any]:
    """Reads one key of an object and keeps nothing of the others."""
    field = ("found", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
    return msgspec.json.Decoder(msgspec.defstruct("Picker", [field], rename={"found": name}))


def _missing(reference: Reference) -> Exception:
    return Absent(reference) if reference.is_optional else _unfit(reference, "is not there")


def _unfit(reference: Reference, why: str) -> errors.WherryError:
    if reference.source == REQUEST:
        return errors.InvalidInput(
            f"the pipeline needs {str(reference)[1:].replace('request.', '', 1)!r} of the request, "
            f"which {why}",
            param=".".join(reference.path) or None,
        )
    return errors.ModelFailed(f"{reference} {why}", hint="see the pipeline's steps: wherry show")
