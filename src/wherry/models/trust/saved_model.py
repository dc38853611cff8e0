"""Reads a TensorFlow SavedModel's operators before TensorFlow does.

Refused are those that touch files, the network, other processes or Python. Field numbers are those of
https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/protobuf.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.trust.files import open_regular
from wherry.protobuf import Budget, Message

FILE_NAME = "saved_model.pb"
VARIABLES = re.compile(r"variables/variables\.(?:index|data-\d{5}-of-\d{5})")
MAX_FIELDS = 8_000_000
META_GRAPH, GRAPH, LIBRARY, NODE = 2, 2, 2, 1
FUNCTION, FUNCTION_NODE, OPERATOR = 1, 3, 2

REFUSED = re.compile(
    r"(?:Read|Write)File|MatchingFiles|.*PyFunc.*|.*Reader(?:V2)?|.*FileWriter.*|Write.*Summary"
    r"|.*Dataset(?:V\d)?|InitializeTableFromTextFile(?:V2)?|.*Rpc.*|RemoteCall|Debug.*|PrintV2"
    r"|Collective.*|.*BigQuery.*|.*Bigtable.*|GcsConfigure.*|Abort|.*Tpu.*|.*TPU.*|.*Server.*"
    r"|Save|SaveSlices|Restore|RestoreSlice|DecodeRaw.*Proto.*|.*ProtoV2"
)
"""Operators that do more than compute. `SaveV2` and `RestoreV2` are in every model: by them it reads
its own variables; the sandbox lets them read and write nothing else."""


def check_saved_model(path: Path) -> None:
    """Raises `FormatNotAllowed`: no SavedModel, or one that does more than compute."""
    with open_regular(path) as file:
        if not file.seek(0, 2):
            raise FormatNotAllowed(f"{path.name!r} is empty", hint="export it again")
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as buffer,
        ):
            try:
                operators = set(_operators(Message(buffer, 0, len(buffer), Budget(MAX_FIELDS))))
            except InvalidInput as error:
                raise FormatNotAllowed(
                    f"{path.name!r} is not a SavedModel: {error.message}", hint="export it again"
                ) from None
    if not operators:
        raise FormatNotAllowed(f"{path.name!r} is a SavedModel without a graph")
    if refused := sorted(filter(REFUSED.fullmatch, operators)):
        raise FormatNotAllowed(
            f"{path.name!r} has the operator {refused[0]!r}, which does more than compute",
            hint="export a function of tensors: what reads files belongs to the caller",
        )


def _operators(model: Message) -> Iterator[str]:
    """The operator of every node, of graphs and of functions."""
    for meta_graph in _inner(model, META_GRAPH):
        for graph in _inner(meta_graph, GRAPH):
            yield from _nodes(graph, NODE)
            for library in _inner(graph, LIBRARY):
                for function in _inner(library, FUNCTION):
                    yield from _nodes(function, FUNCTION_NODE)


def _nodes(message: Message, number: int) -> Iterator[str]:
    for node in _inner(message, number):
        for field in node.fields():
            if field.number == OPERATOR:
                yield node.text(field)


def _inner(message: Message, number: int) -> Iterator[Message]:
    for field in message.fields():
        if field.number == number:
            yield message.inner(field)
