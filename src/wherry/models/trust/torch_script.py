"""Checks TorchScript: a program for torch's own interpreter, and the numbers it works with.

`torch.jit.load` runs no Python. Torch compiles the sources under `code/` itself, and reads `data.pkl`
and `constants.pkl` with an unpickler of its own in C++, which makes tensors and objects of those
sources' classes and nothing else (docs/decisions/0031-runtime-environments.md). What such a
program can do beyond arithmetic is call an operator of torch that opens a file or a connection.
Operators are called by their names, so sources that hold such a name are refused here; the
sandbox holds the rest.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path, PurePosixPath

from wherry.errors import FormatNotAllowed
from wherry.models.trust.archives import checked_zip

MAX_SOURCE_BYTES = 64 << 20
EXPORT = "export it with torch.jit.script(model).save, with torch's own operators only"
REFUSED_NAMES = frozenset(
    {"from_file", "save", "load_tensor", "rpc_sync", "rpc_async", "rpc_remote", "profiler"}
)
"""Operators, however they are called, that touch files, other processes or the process itself."""
ALLOWED_SPACES = frozenset(
    {"aten", "prim", "prims", "quantized", "_quantized", "sparse", "mkldnn", "mkldnn_prepacked"}
)
"""Of `ops.NAMESPACE.operator`: those that only compute, and come with torch."""
ALLOWED_CLASSES = frozenset({"quantized", "sparse"})
"""Of `torch.classes.NAMESPACE`: packed weights."""

NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
SPACE = re.compile(rb"\b(ops|classes)\s*\.\s*([A-Za-z0-9_]+)")


def is_torch_script(names: set[str]) -> bool:
    """Whether the members of a ZIP file are those of TorchScript."""
    tops = {name.split("/")[1] for name in names if "/" in name}
    return {"code", "constants.pkl", "data.pkl"} <= tops


def check_torch_script(path: Path) -> None:
    """Raises `FormatNotAllowed`: no TorchScript, or its sources name what may not be called."""
    with checked_zip(path) as archive:
        if not is_torch_script(set(archive.namelist())):
            raise FormatNotAllowed(f"{path.name!r} is not TorchScript", hint=EXPORT)
        sources = [each for each in archive.infolist() if _is_source(each)]
        if sum(each.file_size for each in sources) > MAX_SOURCE_BYTES:
            raise FormatNotAllowed(
                f"{path.name!r} has over {MAX_SOURCE_BYTES >> 20} MiB of code", hint=EXPORT
            )
        for source in sources:
            _check_source(path.name, archive.read(source))


def _is_source(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename).parts
    return parts[1:2] == ("code",) and not member.filename.endswith(".debug_pkl")


def _check_source(file_name: str, source: bytes) -> None:
    words = {word.decode() for word in NAME.findall(source)}
    if refused := words & REFUSED_NAMES:
        raise FormatNotAllowed(
            f"{file_name!r} holds TorchScript that names {min(refused)!r}, which may open files",
            hint="a method or attribute of this name must be renamed before it is exported",
        )
    for kind, space in SPACE.findall(source):
        allowed = ALLOWED_SPACES if kind == b"ops" else ALLOWED_CLASSES
        if space.decode() not in allowed:
            raise FormatNotAllowed(
                f"{file_name!r} needs {kind.decode()}.{space.decode()}, which is not served",
                hint=EXPORT,
            )
