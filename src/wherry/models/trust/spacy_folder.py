"""spaCy pipelines: folders of numbers and texts, whose configuration names functions by their name.

A folder brings no code. But its `config.cfg` says which registered functions build the pipeline, and
some of those do more than that: they load other models, or PyTorch's pickles. So only spaCy's own are
let through, by their names, wherever in the file they stand: sections may be inserted into others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from wherry.errors import FormatNotAllowed
from wherry.models.trust import archives
from wherry.models.trust.files import open_regular

CONFIG = "config.cfg"
META = "meta.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_PART_BYTES = 4 << 30

PACKED = frozenset({"model", "moves", "patterns", "tokenizer", "key2row", "lookups.bin", "labels"})
"""Files in msgpack."""
PLAIN = frozenset({"cfg", "vectors.cfg", "strings.json", META})
"""Files in JSON."""
VECTORS = "vectors"

FACTORIES = frozenset(
    {
        "attribute_ruler",
        "beam_ner",
        "beam_parser",
        "doc_cleaner",
        "entity_ruler",
        "future_entity_ruler",
        "lemmatizer",
        "merge_entities",
        "merge_noun_chunks",
        "merge_subtokens",
        "morphologizer",
        "ner",
        "parser",
        "sentencizer",
        "senter",
        "span_finder",
        "span_ruler",
        "spancat",
        "spancat_singlelabel",
        "tagger",
        "textcat",
        "textcat_multilabel",
        "tok2vec",
        "token_splitter",
        "trainable_lemmatizer",
    }
)
"""Components of spaCy's own that need nothing but numbers."""
PREFIXES = ("spacy.", "spacy-legacy.")
FUNCTIONS = frozenset(
    {
        "Adam.v1",
        "RAdam.v1",
        "SGD.v1",
        "compounding.v1",
        "constant.v1",
        "constant_then.v1",
        "cyclic_triangular.v1",
        "decaying.v1",
        "slanted_triangular.v1",
        "warmup_linear.v1",
    }
)
"""Of thinc, by which pipelines are trained; they do nothing to the one that is served."""
FOREIGN = ("torch", "mxnet", "tensorflow")
"""In names of functions whose weights are not only numbers."""


def pipeline_files(paths: Sequence[str]) -> dict[str, str]:
    """Files of spaCy pipelines by their role: `config`, `msgpack`, `json`, `vectors`."""
    listed = set(paths)
    roots = [
        PurePosixPath(path).parent
        for path in paths
        if PurePosixPath(path).name == CONFIG and str(PurePosixPath(path).with_name(META)) in listed
    ]
    found: dict[str, str] = {}
    for path in paths:
        if any(PurePosixPath(path).is_relative_to(root) for root in roots):
            role = _role_of(PurePosixPath(path).name)
            if role:
                found[path] = role
    return found


def _role_of(name: str) -> str:
    if name == CONFIG:
        return "config"
    if name in PACKED:
        return "msgpack"
    if name in PLAIN:
        return "json"
    return "vectors" if name == VECTORS else ""


def check_spacy_file(path: Path, role: str) -> str:
    """Format of a pipeline's file: `spacy` for its configuration, else what it is made of.

    Raises:
        FormatNotAllowed: it is not what its name says, or names functions that are not spaCy's own.
    """
    if role == "config":
        _check_config(path)
        return "spacy"
    if role == "vectors":
        archives.check_npy(path)
        return "npy"
    with open_regular(path) as file:
        data = file.read(MAX_PART_BYTES)
    decode = msgspec.msgpack.decode if role == "msgpack" else msgspec.json.decode
    try:
        decode(data, type=msgspec.Raw)  # walks through it without making objects of it
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatNotAllowed(f"{path.name!r} is not valid {role}: {error}") from error
    return role


def _check_config(path: Path) -> None:
    for section, key, value in _read_config(path):
        if section.startswith("components"):
            _check_component(section, key, value)
        for registry, name in _functions(key, value):
            _check_function(registry, name)


def _check_component(section: str, key: str, value: Any) -> None:
    if key == "source":
        raise FormatNotAllowed(
            f"[{section}] of {CONFIG} takes a component from another model",
            hint="save the pipeline whole, with nlp.to_disk",
        )
    if key == "factory" and value not in FACTORIES:
        raise FormatNotAllowed(
            f"[{section}] of {CONFIG} needs the component {value!r:.100}, which is not served",
            hint="served are those of spaCy itself that need no other framework",
        )


def _check_function(registry: str, name: Any) -> None:
    is_own = isinstance(name, str) and (name.startswith(PREFIXES) or name in FUNCTIONS)
    is_foreign = any(word in str(name).lower() for word in FOREIGN)
    if not is_own or is_foreign or registry == "callbacks":
        raise FormatNotAllowed(
            f"{CONFIG} calls the function {name!r:.100} of the registry {registry!r:.40}",
            hint="served are pipelines of spaCy's own functions, without callbacks and PyTorch",
        )


def _functions(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Registry and name of every registered function that a setting names."""
    waiting: list[tuple[str, Any]] = [(key, value)]
    while waiting:
        name, each = waiting.pop()
        if name.startswith("@"):
            yield name[1:], each
        if isinstance(each, dict):
            waiting.extend(each.items())
        elif isinstance(each, list):
            waiting.extend(("", inner) for inner in each)


def _read_config(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Section, key and value of every setting; values are JSON where they can be read as such."""
    with open_regular(path) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise FormatNotAllowed(f"{path.name!r} is over {MAX_CONFIG_BYTES >> 20} MiB")
    parser = ConfigParser(interpolation=None)  # all else as spaCy reads it
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(data.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise FormatNotAllowed(f"{path.name!r} is not a spaCy configuration: {error}") from error
    for section in parser.sections():
        for key, value in parser.items(section):
            try:
                yield section, key, json.loads(value)
            except (ValueError, RecursionError):
                yield section, key, value
