"""Decides by a file's content whether it may be served; its name only says what it claims to be.

Served are formats that hold numbers and texts. Formats that run code when they are loaded
(pickles, Python) need the operator's setting, however their files are called.
"""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import CodeNotAllowed, FormatNotAllowed
from wherry.models.bundle import MANIFEST, safe_relative_path
from wherry.models.trust import archives
from wherry.models.trust.boosters import is_booster, read_booster
from wherry.models.trust.ctranslate2 import check_ctranslate2, is_ctranslate2
from wherry.models.trust.files import open_regular
from wherry.models.trust.gguf import MAGIC as GGUF_MAGIC
from wherry.models.trust.gguf import check_gguf
from wherry.models.trust.keras import HDF5_MAGIC, check_hdf5, check_keras
from wherry.models.trust.onnx import check_onnx
from wherry.models.trust.safetensors import check_safetensors
from wherry.models.trust.saved_model import FILE_NAME as SAVED_MODEL
from wherry.models.trust.saved_model import VARIABLES, check_saved_model
from wherry.models.trust.sentencepiece import check_sentencepiece
from wherry.models.trust.spacy_folder import check_spacy_file, pipeline_files
from wherry.models.trust.tflite import MAGIC as TFLITE_MAGIC
from wherry.models.trust.tflite import check_tflite
from wherry.models.trust.torch_export import check_torch_export, is_torch_export
from wherry.models.trust.torch_script import check_torch_script, is_torch_script

MAX_TEXT_BYTES = 256 << 20
MAX_CONFIG_BYTES = 4 << 20
"""Of JSON files but tokenizers, whose keys are looked at one by one."""
HEAD_BYTES = 512
CHUNK_BYTES = 1 << 20

TEXT_NAMES = frozenset({"license", "licence", "notice", "readme", "copying", "authors"})
TEXT_SUFFIXES = frozenset({".txt", ".md", ".csv", ".tsv", ".toml", ".jinja", ".vocab", ".merges"})
PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib"})
SENTENCEPIECE_SUFFIXES = frozenset({".spm", ".model"})
TOKENIZER_NAMES = frozenset(
    {
        "tokenizer.json",
        "vocab.json",
        "added_tokens.json",
        "shared_vocabulary.json",
        "source_vocabulary.json",
        "target_vocabulary.json",
        "vocabulary.json",
    }
)
"""JSON whose keys are words of a language, so that any may occur."""
CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines"})
"""Keys by which Hugging Face libraries load Python code."""

CLAIMS = {
    ".pt": "TorchScript",
    ".pt2": "an exported program of PyTorch",
    ".keras": "a Keras model",
    ".h5": "a Keras model in HDF5",
    ".hdf5": "a Keras model in HDF5",
}
"""Suffix → what a file of this name has to be."""
CONVERT = "convert it to onnx, safetensors, gguf or skops, or save plain JSON or text"
KNOWN_MAGICS = {
    b"!<arch>": ("a native library", CONVERT),
    b"\x7fELF": ("a program or a native library", CONVERT),
    b"MZ": ("a program or a native library", CONVERT),
    b"\xcf\xfa\xed\xfe": ("a program or a native library", CONVERT),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first"),
    b"BZh": ("compressed with bzip2", "unpack it first"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstandard", "unpack it first"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it first"),
}
"""First bytes of formats that are never served → what it is, what to do."""


def check_format(path: Path, *, allow_pickle: bool = False, allow_code: bool = False) -> str:
    """Name of the file's format: `onnx`, `gguf`, `json` …; reads as much as it must.

    Raises:
        FormatNotAllowed: the content is of a format that is not served, or is not what the
            file's name says.
        CodeNotAllowed: it is Python code or a pickle, which the operator has not allowed.
    """
    with open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    if _is_variables(path):
        return "tensorflow-variables"  # numbers without a head: they may look like anything
    if is_pickle(head) or path.suffix.lower() in PICKLE_SUFFIXES:
        return _check_pickle(path, allow_pickle)
    if path.suffix.lower() in (".py", ".pyi"):
        return _check_code(path, allow_code)
    if head.startswith(b"PK"):
        return _check_zip(path)
    if head.startswith(HDF5_MAGIC):
        return _check_hdf5(path)
    for magic, (what, hint) in KNOWN_MAGICS.items():
        if head.startswith(magic):
            raise FormatNotAllowed(f"{path.name!r} is {what}", hint=hint)
    if head.startswith(archives.NPY_MAGIC):
        archives.check_npy(path)
        return "npy"
    return _check_by_name(path, head)


def check_bundle(
    folder: Path,
    paths: Iterable[str],
    *,
    allow_pickle: bool = False,
    allow_code: bool = False,
    is_code_bundle: bool = False,
) -> dict[str, str]:
    """Format of each file of a bundle; raises as `check_format` does.

    `is_code_bundle` says that the bundle's runtime runs Python code of its own. Such code may
    bring files of any format, so with `allow_code` they are not looked into.
    """
    listed = list(paths)
    formats: dict[str, str] = {}
    external: set[str] = set()
    for name in listed:
        if name.endswith(".onnx"):
            parent = safe_relative_path(name).parent
            external |= {str(parent / each) for each in check_onnx(folder / name).external_files}
    for missing in external.difference(listed):
        raise FormatNotAllowed(f"the model needs the file {missing!r}, which is not in the bundle")
    spacy = pipeline_files(listed)
    for name in listed:
        safe_relative_path(name)
        if is_code_bundle and allow_code:
            open_regular(folder / name).close()
            formats[name] = "file"
        elif name in external:
            formats[name] = "onnx-data"
        elif name in spacy:
            formats[name] = check_spacy_file(folder / name, spacy[name])
        else:
            formats[name] = check_format(
                folder / name, allow_pickle=allow_pickle, allow_code=allow_code
            )
    return formats


def is_pickle(head: bytes) -> bool:
    """Whether a file begins as pickles of protocol 2 to 5 do, or joblib's compressed ones."""
    if head[4:9] == b"\x00\x00\x00\x00{":  # a safetensors header of, say, 0x0280 bytes
        return False
    head = head.lstrip(b"\x00")
    is_zlib = head[:1] == b"\x78" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda")
    return (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or (
        is_zlib and not head.isascii()
    )


def _is_variables(path: Path) -> bool:
    """Whether a file is one that a SavedModel beside it reads as its variables."""
    name = "/".join(path.parts[-2:])
    return bool(VARIABLES.fullmatch(name)) and (path.parents[1] / SAVED_MODEL).is_file()


def _check_pickle(path: Path, allow_pickle: bool) -> str:
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        raise FormatNotAllowed(f"{path.name!r} is a pickle under another name", hint=CONVERT)
    if not allow_pickle:
        raise CodeNotAllowed(
            f"{path.name!r} is a pickle, which can run any code when it is loaded",
            hint="save the model with skops.io.dump, or let the operator set WHERRY_ALLOW_PICKLE=1",
        )
    return "pickle"


def _check_code(path: Path, allow_code: bool) -> str:
    if not allow_code:
        raise CodeNotAllowed(
            f"{path.name!r} is Python code, which this server does not run",
            hint="export the model to ONNX, or let the operator set WHERRY_ALLOW_CODE=1",
        )
    _check_text(path)
    return "python"


def _check_zip(path: Path) -> str:
    names = archives.zip_names(path)
    if "schema.json" in names:
        archives.check_skops(path)
        return "skops"
    if is_torch_script(names):
        _check_suffix(path, ".pt")
        check_torch_script(path)
        return "torchscript"
    if is_torch_export(names):
        _check_suffix(path, ".pt2")
        check_torch_export(path)
        return "torch-export"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise FormatNotAllowed(
            f"{path.name!r} is a PyTorch checkpoint, which holds a pickle",
            hint="save torch.jit.script(model) or torch.export.export(model, …), or export to ONNX",
        )
    if "model.weights.h5" in names:
        _check_suffix(path, ".keras")
        check_keras(path)
        return "keras"
    if path.suffix == ".npz":
        archives.check_npz(path)
        return "npz"
    raise FormatNotAllowed(f"{path.name!r} is a ZIP archive", hint="unpack it first")


def _check_suffix(path: Path, *known: str) -> None:
    """Whoever lists a folder should see what is in it."""
    if path.suffix.lower() not in known:
        raise FormatNotAllowed(
            f"{path.name!r} is {CLAIMS[known[0]]} under another name", hint=f"call it {known[0]}"
        )


def _check_hdf5(path: Path) -> str:
    _check_suffix(path, ".h5", ".hdf5")
    check_hdf5(path)
    return "hdf5"


def _check_by_name(path: Path, head: bytes) -> str:
    suffix = path.suffix.lower()
    if head.startswith(GGUF_MAGIC) or suffix == ".gguf":
        check_gguf(path)
        return "gguf"
    if head[4:8] == TFLITE_MAGIC or suffix == ".tflite":
        check_tflite(path)
        return "tflite"
    if suffix == ".onnx":
        check_onnx(path)
        return "onnx"
    if suffix == ".bin" and is_ctranslate2(head):
        check_ctranslate2(path)
        return "ctranslate2"
    if path.name == SAVED_MODEL:
        check_saved_model(path)
        return "saved-model"
    if suffix == ".safetensors":
        check_safetensors(path)
        return "safetensors"
    if is_booster(head):
        return read_booster(path).runtime
    if suffix in SENTENCEPIECE_SUFFIXES:
        check_sentencepiece(path)
        return "sentencepiece"
    if suffix == ".skops":
        archives.check_skops(path)
    if suffix == ".json":
        _check_json(path)
        return "json"
    if suffix in TEXT_SUFFIXES or path.stem.lower() in TEXT_NAMES or path.name == MANIFEST:
        _check_text(path)
        return "text"
    what = f"not {CLAIMS[suffix]}" if suffix in CLAIMS else "of no format that is served"
    raise FormatNotAllowed(
        f"{path.name!r} is {what}",
        hint=f"{CONVERT}; served are .onnx .tflite .gguf .pt .pt2 .keras .h5 .skops .safetensors .npy .json .txt .csv",
    )


def _check_text(path: Path) -> None:
    """In pieces: as one text, a quarter of a gigabyte can take four times its bytes."""
    decoder = getincrementaldecoder("utf-8")()
    with open_regular(path) as file:
        if file.seek(0, 2) > MAX_TEXT_BYTES:
            raise FormatNotAllowed(f"{path.name!r} is over {MAX_TEXT_BYTES >> 20} MiB of text")
        file.seek(0)
        is_last = False
        while not is_last:
            data = file.read(CHUNK_BYTES)
            is_last = not data
            try:
                text = decoder.decode(data, is_last)
            except UnicodeDecodeError as error:
                raise FormatNotAllowed(f"{path.name!r} is not text in UTF-8") from error
            if "\x00" in text:
                raise FormatNotAllowed(f"{path.name!r} is not text: it holds zero bytes")


def _check_json(path: Path) -> None:
    _check_text(path)
    is_tokenizer = path.name in TOKENIZER_NAMES
    with open_regular(path) as file:
        if not is_tokenizer and file.seek(0, 2) > MAX_CONFIG_BYTES:
            raise FormatNotAllowed(f"{path.name!r} is over {MAX_CONFIG_BYTES >> 20} MiB of JSON")
        file.seek(0)
        data = file.read()
    try:
        # a tokenizer is only skimmed: as Python objects it could take a hundred times its bytes
        value = msgspec.json.decode(data, type=msgspec.Raw) if is_tokenizer else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatNotAllowed(f"{path.name!r} is not valid JSON") from error
    if not is_tokenizer:
        _refuse_code_keys(path.name, value)


def _refuse_code_keys(name: str, value: Any) -> None:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key in each:
                if key in CODE_KEYS or key.startswith("_attn_implementation"):
                    raise FormatNotAllowed(
                        f"{name!r} has the key {key!r}, by which libraries load code",
                        hint="remove the key, or use a model that needs no code of its own",
                    )
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
