"""Reads an ONNX file's graph before any native code does: signature, and what it may not hold.

Field numbers are those of https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import safe_relative_path
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.trust.files import open_regular
from wherry.protobuf import BYTES, Budget, Field, Message

MAX_FIELDS = 8_000_000
MAX_NODES = 200_000
MAX_INITIALIZERS = 200_000
MAX_GRAPH_DEPTH = 16
MAX_DIMENSIONS = 64
MAX_CLASSES = 10_000
"""Most classes whose names are read."""
MAX_METADATA = 64
"""Entries that an exporter may have written of the model; more, and longer ones, are left out."""
MAX_METADATA_BYTES = 1 << 16
ALLOWED_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Operators that onnxruntime itself brings; all others would need a native library."""

DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""TensorProto.DataType → Open Inference datatype."""


class ExternalData(msgspec.Struct, frozen=True):
    """Where an initializer keeps its bytes outside of the file."""

    location: str
    offset: int = 0
    length: int = 0
    """0 = to the end."""


class OnnxModel(msgspec.Struct):
    """What the graph says of itself."""

    signature: Signature
    opsets: dict[str, int]
    external: list[ExternalData]
    classes: tuple[str, ...] = ()
    """Names of the classes of a classifier of tables, where a node of it holds them."""
    metadata: dict[str, str] = {}
    """What the exporter wrote of it, in its own words."""

    @property
    def external_files(self) -> list[str]:
        """Files that hold tensors' bytes, relative to the ONNX file's folder."""
        return sorted({each.location for each in self.external})


def read_onnx(path: Path) -> OnnxModel:
    """Walk the whole file; raises as `check_onnx` does, but does not look for external files.

    Raises:
        FormatNotAllowed: it is not ONNX, too deep, too large, or needs operators of others.
    """
    with open_regular(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise FormatNotAllowed(
                f"{path.name!r} is empty", hint="download or export it again"
            ) from error
        with mapped, memoryview(mapped) as buffer:
            try:
                return _Walk(Message(buffer, 0, len(buffer), Budget(MAX_FIELDS))).model()
            except InvalidInput as error:
                raise FormatNotAllowed(
                    f"{path.name!r} is not an ONNX model that may be served: {error.message}",
                    hint=error.hint or "export it again with a current exporter",
                ) from None


def check_onnx(path: Path) -> OnnxModel:
    """Read the model, and check that its external files are there, beside it, and long enough."""
    model = read_onnx(path)
    for each in model.external:
        with open_regular(path.parent / each.location) as file:
            size = file.seek(0, 2)
        if not 0 <= each.offset <= each.offset + each.length <= size:
            raise FormatNotAllowed(
                f"{path.name!r} wants bytes {each.offset} to {each.offset + each.length} of "
                f"{each.location!r}, which has {size}"
            )
    return model


class _Walk:
    """One walk over one file, counting what it sees."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._nodes = 0
        self._initializers = 0
        self._domains: set[str] = set()
        self._external: list[ExternalData] = []
        self._classes: tuple[str, ...] = ()

    def model(self) -> OnnxModel:
        graph: Message | None = None
        ir_version = 0
        opsets: dict[str, int] = {}
        own_domains: set[str] = set()
        metadata: dict[str, str] = {}
        for field in self._message.fields():
            match field.number:
                case 1:
                    ir_version = field.value
                case 7:
                    if graph is not None:
                        raise FormatNotAllowed("it has two graphs")
                    graph = self._message.inner(field)
                case 8:
                    domain, version = _read_opset(self._message.inner(field))
                    opsets[domain] = version
                case 14 if len(metadata) < MAX_METADATA:
                    metadata |= _read_metadata(self._message.inner(field))
                case 20:
                    raise FormatNotAllowed("it has training information", hint="export inference")
                case 25:
                    own_domains.add(self._walk_function(self._message.inner(field)))
                case _:
                    pass
        if graph is None or not opsets or not 1 <= ir_version <= 1000:
            raise FormatNotAllowed("it has no graph, or no operator set")
        signature = self._walk_top_graph(graph)
        self._refuse_domains(own_domains)
        return OnnxModel(signature, opsets, self._external, self._classes, metadata)

    def _refuse_domains(self, own_domains: set[str]) -> None:
        if foreign := self._domains - ALLOWED_DOMAINS - own_domains:
            raise FormatNotAllowed(
                f"it needs operators of {', '.join(map(repr, sorted(foreign)))}",
                hint="only standard ONNX and com.microsoft operators run; export without others",
            )

    def _walk_top_graph(self, graph: Message) -> Signature:
        inputs: list[TensorSpec | str] = []
        outputs: list[TensorSpec | str] = []
        constants: set[str] = set()
        for field in graph.fields():
            if field.number == 11:
                inputs.append(_read_value(graph.inner(field)))
            elif field.number == 12:
                outputs.append(_read_value(graph.inner(field)))
            elif field.number == 5:
                constants.add(_read_name(graph.inner(field), 8))
        self._walk_graph(graph, 1)
        return _make_signature(inputs, outputs, constants)

    def _walk_graph(self, graph: Message, depth: int) -> None:
        if depth > MAX_GRAPH_DEPTH:
            raise FormatNotAllowed(f"its graphs are nested over {MAX_GRAPH_DEPTH} deep")
        for field in graph.fields():
            match field.number:
                case 1:
                    self._walk_node(graph.inner(field), depth)
                case 5:
                    self._walk_tensor(graph.inner(field))
                case 15:
                    self._walk_sparse_tensor(graph.inner(field))
                case _:
                    pass

    def _walk_function(self, function: Message) -> str:
        domain = ""
        for field in function.fields():
            if field.number == 7:
                self._walk_node(function.inner(field), 1)
            elif field.number == 11:
                self._walk_attribute(function.inner(field), 1)
            elif field.number == 10:
                domain = function.text(field)
        return domain

    def _walk_node(self, node: Message, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise FormatNotAllowed(f"it has over {MAX_NODES} nodes")
        for field in node.fields():
            if field.number == 5:
                self._walk_attribute(node.inner(field), depth)
            elif field.number == 7:
                self._domains.add(node.text(field))

    def _walk_attribute(self, attribute: Message, depth: int) -> None:
        for field in attribute.fields():
            match field.number:
                case 6 | 11:
                    self._walk_graph(attribute.inner(field), depth + 1)
                case 5 | 10:
                    self._walk_tensor(attribute.inner(field))
                case 8 | 9 if not self._classes:
                    self._classes = _read_classes(attribute)
                case 22 | 23:
                    self._walk_sparse_tensor(attribute.inner(field))
                case _:
                    pass

    def _walk_sparse_tensor(self, tensor: Message) -> None:
        for field in tensor.fields():
            if field.number in (1, 2):
                self._walk_tensor(tensor.inner(field))

    def _walk_tensor(self, tensor: Message) -> None:
        self._initializers += 1
        if self._initializers > MAX_INITIALIZERS:
            raise FormatNotAllowed(f"it has over {MAX_INITIALIZERS} tensors")
        external: dict[str, str] = {}
        is_external = False
        dimensions: list[int] = []
        for field in tensor.fields():
            if field.number == 1:
                dimensions += _read_dimensions(tensor, field)
            elif field.number == 13:
                key, value = _read_entry(tensor.inner(field))
                if key in external:
                    raise FormatNotAllowed(f"a tensor names its {key!r} twice")
                external[key] = value
            elif field.number == 14:
                is_external = field.value == 1
        if len(dimensions) > MAX_DIMENSIONS or min(dimensions, default=0) < 0:
            raise FormatNotAllowed("a tensor has a shape that cannot be")
        if is_external or external:
            self._external.append(_read_external(external))


def _read_classes(attribute: Message) -> tuple[str, ...]:
    """Values of `classlabels_strings`, `classlabels_ints` or `classlabels_int64s`; else none."""
    found: list[str] = []
    for field in attribute.fields():
        if field.number == 1:
            if not bytes(attribute.data(field)).startswith(b"classlabels_"):
                break
        elif field.number == 8:
            found += map(str, islice(attribute.integers(field), MAX_CLASSES))
        elif field.number == 9:
            found.append(attribute.text(field))
        if len(found) > MAX_CLASSES:
            return ()
    return tuple(found)


def _make_signature(
    inputs: list[TensorSpec | str], outputs: list[TensorSpec | str], constants: set[str]
) -> Signature:
    wanted = [each for each in inputs if _name(each) not in constants]
    for each in wanted:
        if isinstance(each, str):
            raise FormatNotAllowed(f"its input {each!r} is not a tensor")
    tensors = tuple(each for each in outputs if isinstance(each, TensorSpec))
    if not tensors:
        raise FormatNotAllowed(
            "none of its outputs is a tensor", hint="with skl2onnx, export with zipmap=False"
        )
    names = [_name(each) for each in [*wanted, *tensors]]
    if "" in names or len(set(names)) != len(names):
        raise FormatNotAllowed("two of its inputs and outputs have the same name, or one has none")
    return Signature(tuple(each for each in wanted if isinstance(each, TensorSpec)), tensors)


def _name(value: TensorSpec | str) -> str:
    return value if isinstance(value, str) else value.name


def _read_value(value: Message) -> TensorSpec | str:
    """A graph's input or output; its name alone when it is no tensor."""
    name = ""
    tensor: Message | None = None
    for field in value.fields():
        if field.number == 1:
            name = value.text(field)
        elif field.number == 2:
            kind = value.inner(field)
            tensor = next((kind.inner(each) for each in kind.fields() if each.number == 1), None)
    if tensor is None:
        return name
    datatype, shape = 0, ()
    for field in tensor.fields():
        if field.number == 1:
            datatype = field.value
        elif field.number == 2:
            shape = tuple(_read_shape(tensor.inner(field)))
    if datatype not in DATATYPES:
        raise FormatNotAllowed(f"the tensor {name!r} has the unknown element type {datatype}")
    return TensorSpec(name, DATATYPES[datatype], shape)


def _read_shape(shape: Message) -> Iterator[int]:
    for field in shape.fields():
        if field.number == 1:
            dimension = shape.inner(field)
            fixed = [each.value for each in dimension.fields() if each.number == 1]
            # exporters write 0 or a negative number for "unknown" too
            yield fixed[0] if fixed and 0 < fixed[0] < 1 << 40 else -1


def _read_dimensions(tensor: Message, field: Field) -> list[int]:
    if field.kind == BYTES and field.end - field.value > MAX_DIMENSIONS * 10:
        raise FormatNotAllowed("a tensor has a shape that cannot be")
    return list(tensor.integers(field))


def _read_opset(opset: Message) -> tuple[str, int]:
    domain, version = "", 0
    for field in opset.fields():
        if field.number == 1:
            domain = opset.text(field)
        elif field.number == 2:
            version = field.value
    return domain, version


def _read_name(message: Message, number: int) -> str:
    return next((message.text(each) for each in message.fields() if each.number == number), "")


def _read_entry(entry: Message) -> tuple[str, str]:
    return _read_name(entry, 1), _read_name(entry, 2)


def _read_metadata(entry: Message) -> dict[str, str]:
    """What a publisher wrote, if it is short; nobody has to write it in UTF-8."""
    parts = {field.number: bytes(entry.data(field)) for field in entry.fields()}
    key, value = parts.get(1, b""), parts.get(2, b"")
    return {} if len(key) + len(value) > MAX_METADATA_BYTES else {_plain(key): _plain(value)}


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _read_external(entries: dict[str, str]) -> ExternalData:
    if unknown := entries.keys() - {"location", "offset", "length", "checksum"}:
        raise FormatNotAllowed(f"a tensor's external data has the unknown key {min(unknown)!r}")
    location = entries.get("location", "")
    try:
        is_plain = str(safe_relative_path(location)) == location
    except InvalidInput:
        is_plain = False
    if not is_plain:
        raise FormatNotAllowed(f"a tensor's bytes are in {location!r}, which is no plain file name")
    return ExternalData(
        location, _read_number(entries.get("offset")), _read_number(entries.get("length"))
    )


def _read_number(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise FormatNotAllowed(f"a tensor's external data has the offset or length {text[:40]!r}")
    return int(text)
