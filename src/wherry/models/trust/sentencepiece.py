"""Checks that a file is a model of sentencepiece: a protobuf message of words with their scores.

Field numbers are those of `sentencepiece_model.proto`.
"""

from __future__ import annotations

from pathlib import Path

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.trust.files import open_regular
from wherry.protobuf import BYTES, Budget, Message

MAX_BYTES = 64 << 20
MAX_PIECES = 2_000_000
PIECE, TRAINER = 1, 2
KNOWN_FIELDS = frozenset(range(1, 6))
"""Pieces, how it was trained, how texts are normalised and back, texts that it was tried with."""
PIECE_TEXT = 1
MAX_PIECE_BYTES = 1024


def check_sentencepiece(path: Path) -> int:
    """How many words the model has.

    Raises:
        FormatNotAllowed: it is no such model, or not whole.
    """
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatNotAllowed(f"{path.name!r} is over {MAX_BYTES >> 20} MiB")
    try:
        return _count_pieces(memoryview(data))
    except InvalidInput as error:
        raise FormatNotAllowed(
            f"{path.name!r} is not a model of sentencepiece that may be served: {error.message}",
            hint="it is part of the original model's folder",
        ) from error


def _count_pieces(data: memoryview) -> int:
    message = Message(data, 0, len(data), Budget(8 * MAX_PIECES))
    pieces, has_trainer = 0, False
    for field in message.fields():
        if field.number not in KNOWN_FIELDS or field.kind != BYTES:
            raise FormatNotAllowed(
                f"it has the field {field.number}, which such models do not have"
            )
        has_trainer = has_trainer or field.number == TRAINER
        if field.number == PIECE:
            pieces += 1
            piece = message.inner(field)
            for part in piece.fields():
                if part.number == PIECE_TEXT:
                    piece.text(part, MAX_PIECE_BYTES)
    if not (pieces and has_trainer):
        raise FormatNotAllowed("it holds no words")
    return pieces
