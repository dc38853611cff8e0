"""Checks `.pt2` archives of `torch.export.save` before torch sees them.

Torch's loader trusts them: it evaluates sizes with `sympy.sympify` and guards with `exec`, looks
up operators by `getattr` from `torch`, and unpickles what calls itself a pickle. So nothing is let
through but what the exporter writes for a graph of tensors: operators that compute, sizes that are
arithmetic of symbols, pickles of plain tensors
(docs/decisions/0031-runtime-environments.md).
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from wherry.errors import FormatNotAllowed
from wherry.models.trust.archives import checked_zip, open_bounded_zip

MODEL = "models/model.json"
MAX_GRAPH_BYTES = 256 << 20
MAX_PICKLE_BYTES = 1 << 20
MAX_DEPTH = 200
MEMBERS = re.compile(
    r"models/model\.json|data/weights/(?:weight_\d+|model_weights_config\.json)"
    r"|data/constants/(?:tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|version|byteorder|\.data/[\w.]+|extra/[\w.-]+"
)
OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized|quantized_decomposed)\.(?P<name>\w+)\.\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop)"
    r"|torch\.sym_(?:int|float|max|min|not|sum|ite|sqrt)"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lt|le|gt|ge|eq|ne|and_|or_"
    r"|not_|getitem|lshift|rshift)"
    r"|math\.(?:ceil|floor|trunc|sqrt)"
)
REFUSED_OPERATORS = frozenset({"from_file", "save", "load", "load_tensor"})
GUARD_INPUT = re.compile(r"L\['\w{1,100}'\](?:\['\w{1,100}'\]|\[\d{1,6}\])*\.size\(\)\[\d{1,3}\]")
EXPRESSION = re.compile(r"(?:[\w\s()+\-*/%,<>=!&|~]|(?<=\d)\.)*")
EXPRESSION_NAME = re.compile(r"[A-Za-z_]\w*")
ALLOWED_NAMES = re.compile(
    r"[suzf]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Abs|Max|Min|Mod|PythonMod|FloorDiv"
    r"|CeilDiv|CeilToInt|FloorToInt|TruncToInt|RoundToInt|IntTrueDiv|FloatTrueDiv|ToFloat|Where"
    r"|CleanDiv|ModularIndexing|PowByNatural|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|and|or|not|True|False"
    r"|positive|integer|nonnegative|real|finite|evaluate|oo|int_oo|e\d+"
)
SYMBOL = re.compile(r"Symbol\('[suzf]\d+'")
TREES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
SAFE_GLOBALS = frozenset(
    {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
    | {"collections OrderedDict", "torch Size", "torch device"}
    | {
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte")
    }
    | {"torch BoolStorage"}
)
"""What a pickle of tensors imports, as the opcode GLOBAL names it."""
REFUSED_OPCODES = frozenset({"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"})
"""Other ways by which a pickle imports; `torch.save` writes none."""


def is_torch_export(names: set[str]) -> bool:
    """Whether the members of a ZIP file are those of an exported program."""
    return any(PurePosixPath(name).name == "archive_format" for name in names)


def check_torch_export(path: Path) -> None:
    """Raises `FormatNotAllowed`: no exported program, or one that could run more than its graph."""
    with checked_zip(path) as archive:
        members = _members(path.name, archive)
        graph = _read_json(path.name, archive, members, MODEL)
        for key, value in _walk(path.name, graph):
            _check_value(path.name, key, value)
        for name in members:
            if name.endswith("_config.json"):
                _check_payloads(path.name, _read_json(path.name, archive, members, name))
            elif name.endswith(".pt"):
                _check_pickle(path.name, archive.read(members[name]))


def _members(file_name: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by their name behind the archive's own folder; no others than those that are known."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        folder, _, name = member.filename.partition("/")
        folders.add(folder)
        if not MEMBERS.fullmatch(name):
            raise FormatNotAllowed(
                f"{file_name!r} holds {member.filename!r}, which an exported graph does not need",
                hint="save it with torch.export.save of a current torch, uncompiled",
            )
        found[name] = member
    if len(folders) != 1 or MODEL not in found:
        raise _refuse(file_name, "no exported program called 'model'")
    return found


def _read_json(
    file_name: str, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str
) -> Any:
    if members[name].file_size > MAX_GRAPH_BYTES:
        raise _refuse(file_name, f"a graph of over {MAX_GRAPH_BYTES >> 20} MiB")
    try:
        return json.loads(archive.read(members[name]))
    except (ValueError, RecursionError) as error:
        raise _refuse(file_name, "a graph that is not valid JSON") from error


def _walk(file_name: str, graph: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object, with its value; the trees within texts too."""
    waiting: list[tuple[Any, int]] = [(graph, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _refuse(file_name, f"a graph nested over {MAX_DEPTH} deep")
        if isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif isinstance(value, dict):
            for key, each in value.items():
                yield key, each
                waiting.append((each, depth + 1))


def _check_value(file_name: str, key: str, value: Any) -> None:
    """Refuse what torch would import, evaluate or execute."""
    if key == "target" and isinstance(value, str):
        found = OPERATOR.fullmatch(value)
        if not found or found["name"] in REFUSED_OPERATORS:
            raise _refuse(file_name, f"the operator {value[:200]!r}")
    elif key == "expr_str" and not _is_arithmetic(value):
        raise _refuse(file_name, f"the size {str(value)[:200]!r}")
    elif key == "guards_code":
        for guard in value or ():
            if not isinstance(guard, str) or not _is_arithmetic(GUARD_INPUT.sub("0", guard)):
                raise _refuse(file_name, f"the guard {str(guard)[:200]!r}")
    elif key in ("in_spec", "out_spec") and value:
        _check_tree(file_name, value)
    elif key in ("as_custom_obj", "as_operator") and value is not None:
        raise _refuse(file_name, f"{key} {str(value)[:200]!r}")


def _is_arithmetic(text: Any) -> bool:
    """Whether an expression is numbers, symbols and functions of theirs only."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    plain = SYMBOL.sub("Symbol(s0", text)
    return EXPRESSION.fullmatch(plain) is not None and all(
        ALLOWED_NAMES.fullmatch(name) for name in EXPRESSION_NAME.findall(plain)
    )


def _check_tree(file_name: str, text: str) -> None:
    """The structure of arguments: lists, tuples and dictionaries only, whose kinds are not imported."""
    try:
        tree = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise _refuse(file_name, "a structure of arguments that is not valid JSON") from error
    for key, value in _walk(file_name, tree):
        if key == "type" and value is not None and value not in TREES:
            raise _refuse(file_name, f"arguments of type {str(value)[:200]!r}")


def _check_payloads(file_name: str, config: Any) -> None:
    """Weights and constants must be plain numbers."""
    for key, value in _walk(file_name, config):
        if key == "use_pickle" and value:
            raise _refuse(file_name, "a tensor that is kept as a pickle")
        if key == "path_name" and not re.fullmatch(r"(?:weight|tensor)_\d+", str(value)):
            raise _refuse(file_name, f"the object {str(value)[:200]!r}")


def _check_pickle(file_name: str, data: bytes) -> None:
    """The example inputs: torch reads them at load, and may do so with Python's own unpickler."""
    if not data:
        return
    try:
        with open_bounded_zip(io.BytesIO(data)) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith("data.pkl")]
            if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
                raise _refuse(file_name, "a pickle that is too large")
            opcodes = list(pickletools.genops(archive.read(name)))
    except (ValueError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise _refuse(file_name, "example inputs that torch.save did not write") from error
    for opcode, argument, _ in opcodes:
        if opcode.name in REFUSED_OPCODES or (
            opcode.name == "GLOBAL" and argument not in SAFE_GLOBALS
        ):
            raise _refuse(file_name, f"a pickle that imports {argument or opcode.name!r}")


def _refuse(file_name: str, what: str) -> FormatNotAllowed:
    return FormatNotAllowed(
        f"{file_name!r} holds {what}, which is not served",
        hint="export the plain module with torch.export, for tensors only",
    )
