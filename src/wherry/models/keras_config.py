"""Whether a Keras model is made of Keras's own layers only, by its configuration.

Keras builds a model from JSON that names Python classes. Some of them run code that the file brings
(`Lambda`), read other files or unpickle. Checked at import where the file is a ZIP, and again in the
worker before Keras loads anything: there alone is a reader of HDF5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wherry.errors import FormatNotAllowed

MODULES = frozenset(
    {"builtins", "keras", "keras.activations", "keras.constraints", "keras.dtype_policies"}
    | {"keras.initializers", "keras.layers", "keras.models", "keras.random", "keras.regularizers"}
)
MODULE_PREFIXES = ("keras.src.layers.", "keras.src.models.", "keras.src.ops.", "keras.src.random.")
"""Modules of classes that only compute; functions such as `keras.utils.get_file` are in others."""
REFUSED_CLASSES = frozenset(
    {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"}
    | {"__typespec__", "MapWithPythonFunction"}
)
"""They run or unpickle what the file brings."""
NOT_LOADED = frozenset({"compile_config", "training_config"})
"""Of training; models are loaded without."""
MAX_DEPTH = 200
MAX_OBJECTS = 200_000


def check_keras_config(file_name: str, config: Any) -> None:
    """Raises `FormatNotAllowed`: it names a class or module that is not one of Keras's own."""
    if not isinstance(config, Mapping) or "class_name" not in config:
        raise FormatNotAllowed(
            f"{file_name!r} holds weights but no model",
            hint="save the whole model: model.save('model.keras')",
        )
    for found in _objects(file_name, config):
        name = found["class_name"]
        if not isinstance(name, str) or name in REFUSED_CLASSES:
            raise _refuse(file_name, f"a layer {str(name)[:100]!r}, which brings code")
        module = found.get("module")
        if module is not None and not _is_known(module):
            raise _refuse(file_name, f"{name[:100]!r} of the module {str(module)[:100]!r}")
        registered = found.get("registered_name")
        if registered not in (None, name) and not _names_function(found, registered):
            raise _refuse(file_name, f"the custom object {str(registered)[:100]!r}")
        if isinstance(found.get("config"), Mapping):
            vocabulary = found["config"].get("vocabulary")
            if isinstance(vocabulary, str):
                raise _refuse(file_name, "a vocabulary in another file")


def _objects(file_name: str, config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object that Keras would make."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    for _ in range(MAX_OBJECTS):
        if not waiting:
            return
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            break
        if isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif isinstance(value, Mapping):
            if "class_name" in value:
                yield value
            waiting += [(each, depth + 1) for key, each in value.items() if key not in NOT_LOADED]
    raise FormatNotAllowed(f"{file_name!r} has a configuration that is too large or too deep")


def _is_known(module: Any) -> bool:
    return isinstance(module, str) and (module in MODULES or module.startswith(MODULE_PREFIXES))


def _names_function(found: Mapping[str, Any], registered: Any) -> bool:
    """Functions such as `relu` are named twice; a built-in class may be registered by its name."""
    return found["class_name"] == "function" and registered in ("function", found.get("config"))


def _refuse(file_name: str, what: str) -> FormatNotAllowed:
    return FormatNotAllowed(
        f"{file_name!r} holds {what}: only Keras's own layers are served",
        hint="replace it with layers of Keras, or export the model to ONNX",
    )
