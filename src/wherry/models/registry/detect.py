"""Finds out what model a folder holds, and writes the manifest that its owner did not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from wherry.errors import CodeNotAllowed, FormatNotAllowed, InvalidInput
from wherry.models.bundle import CODE_RUNTIMES, MANIFEST, Manifest, decode_manifest
from wherry.models.registry import (
    class_names,
    diffusion_folder,
    exported_pictures,
    huggingface,
    onnx_pairs,
    python_code,
    skops_schema,
    tflite_metadata,
    torch_folder,
    translators,
    whisper,
)
from wherry.models.registry.manifest import check_manifest, stored_paths
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.trust import spacy_folder
from wherry.models.trust.boosters import is_booster, read_booster
from wherry.models.trust.files import MAX_FILES, list_paths, open_regular
from wherry.models.trust.formats import PICKLE_SUFFIXES, TOKENIZER_NAMES, check_bundle
from wherry.models.trust.gguf import check_gguf
from wherry.models.trust.onnx import OnnxModel, check_onnx
from wherry.models.trust.saved_model import FILE_NAME as SAVED_MODEL
from wherry.models.trust.saved_model import VARIABLES

MAX_MANIFEST_BYTES = 4 << 20
ANY_TENSOR = Signature((TensorSpec("X", "", ()),), (TensorSpec("X", "", ()),))
"""Of a Python class that says nothing else: one tensor `X` in and out, of any datatype and shape."""
IGNORED_NAMES = frozenset({"__pycache__", "__MACOSX"})
ONNX_VARIANTS = ("", "_quantized", "_int8", "_uint8", "_fp16", "_q4", "_q4f16", "_bnb4")
PREFERRED_ONNX = tuple(f"{at}model{each}.onnx" for each in ONNX_VARIANTS for at in ("", "onnx/"))
"""Where Hugging Face's exporters and transformers.js put a graph; full precision before less."""
CLASSIFIER_OUTPUTS = (
    {"label", "probabilities"},
    {"output_label", "output_probability"},
)
SPLIT_GGUF = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
POOLING_TYPES = (1, 2, 3)
"""`pooling_type` of GGUF models that make vectors: mean, first, last token."""
RUNTIME_FORMATS = {
    "onnx": {"onnx"},
    "faster_whisper": {"ctranslate2"},
    "hibari": {"onnx"},
    "llama_cpp": {"gguf"},
    "llama_embeddings": {"gguf"},
    "tflite": {"tflite"},
    "sklearn": {"skops", "pickle"},
    "spacy": {"spacy"},
    "static_embeddings": {"safetensors"},
    "torch": {"torchscript", "torch-export"},
    "keras": {"keras", "hdf5"},
    "tensorflow": {"saved-model"},
    "ctranslate2": {"ctranslate2"},
    "diffusers": {"json"},
    "transformers": {"safetensors"},
    "xgboost": {"xgboost"},
    "lightgbm": {"lightgbm"},
}
"""Runtime → formats that its main file may have; other runtimes open what they like."""

GRAPH_SUFFIXES = {"torch": (".pt2", ".pt"), "keras": (".keras", ".h5", ".hdf5")}
"""Runtimes whose file says all that is needed, and how their files are called."""

BOOSTER_SUFFIXES = (".json", ".ubj", ".txt", ".model", ".lgb")
"""How XGBoost's and LightGBM's files are mostly called; their content decides."""

SUPPORTED = (
    "supported: one .onnx, .tflite, .pt, .pt2, .keras, .h5, .gguf or .skops file; trees of XGBoost "
    "(.json, .ubj) or LightGBM (.txt); a SavedModel; a Hugging Face folder with tokenizer.json and "
    "model.onnx, or config.json and model.safetensors; encoder_model.onnx with its decoder; a spaCy "
    "pipeline; a folder of diffusers; a translator or a Whisper folder with "
    "model.bin (CTranslate2) and tokenizer.json; model.py with a class Model; or a folder with "
    "wherry.toml"
)


class Wishes(msgspec.Struct, frozen=True):
    """What the importer said; it wins over what is found."""

    task: str | None = None
    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = {}
    description: str = ""
    licence: str = ""
    source: str = ""


def detect(
    folder: Path,
    *,
    task: str | None = None,
    labels: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    description: str = "",
    licence: str = "",
    source: str = "",
    allow_code: bool = False,
    allow_pickle: bool = False,
) -> Manifest:
    """The manifest of the model in a folder; every file it needs has been checked.

    Raises:
        InvalidInput: there is no model, or there are several; the message lists what was found.
        FormatNotAllowed: a file is of a format that is not served, or is damaged.
        CodeNotAllowed: the model is or brings code, which the operator has not allowed.
    """
    wishes = Wishes(task, tuple(labels), options or {}, description, licence, source)
    paths = list_model_paths(folder)
    if MANIFEST in paths:
        manifest = read_manifest(folder / MANIFEST)
    else:
        manifest = _detect_kind(folder, paths, wishes, allow_code=allow_code)
        manifest = _name_classes(folder, paths, manifest)
    manifest = _apply_wishes(manifest, wishes)
    check_manifest(manifest, paths)
    _check_content(folder, manifest, paths, allow_code=allow_code, allow_pickle=allow_pickle)
    return manifest


def list_model_paths(folder: Path) -> list[str]:
    """Files that may belong to a model: all but hidden ones and caches."""
    found: list[str] = []
    for path in list_paths(folder):
        parts = PurePosixPath(path).parts
        if any(part.startswith(".") or part in IGNORED_NAMES for part in parts):
            continue
        found.append(path)
        if len(found) > MAX_FILES:
            raise InvalidInput(f"the folder has over {MAX_FILES} files")
    return found


def read_manifest(path: Path) -> Manifest:
    """The manifest that the model's owner wrote."""
    with open_regular(path) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidInput(f"{MANIFEST} is over {MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        return decode_manifest(data.decode())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{MANIFEST} is not text in UTF-8") from error


def _detect_kind(
    folder: Path, paths: Sequence[str], wishes: Wishes, *, allow_code: bool
) -> Manifest:
    by_suffix: dict[str, list[str]] = {}
    for path in paths:
        by_suffix.setdefault(PurePosixPath(path).suffix.lower(), []).append(path)
    pickles = [path for suffix in sorted(PICKLE_SUFFIXES) for path in by_suffix.get(suffix, [])]
    entry = python_code.find_entry(folder, by_suffix.get(".py", []), wishes.options)
    if entry is not None:
        return _detect_python(folder, paths, entry, wishes, allow_code=allow_code)
    if parts := diffusion_folder.find_files(folder, paths):
        return _detect_diffusion(parts, wishes)
    if pair := onnx_pairs.find_onnx_pair(folder, by_suffix.get(".onnx", [])):
        return _detect_pair(folder, paths, pair, wishes)
    if translator := translators.find_ctranslate2(folder, by_suffix.get(".bin", [])):
        return _detect_translator(folder, paths, "ctranslate2", (translator,), wishes)
    if spacy_folder.CONFIG in paths and (parts := spacy_folder.pipeline_files(paths)):
        files = (spacy_folder.CONFIG, *(path for path in parts if path != spacy_folder.CONFIG))
        return Manifest(wishes.task or "token-classification", "spacy", files=files)
    if speech := whisper.find_model(folder, by_suffix.get(".bin", [])):
        return Manifest(
            wishes.task or "automatic-speech-recognition",
            "faster_whisper",
            files=whisper.list_files(folder, paths, speech),
        )
    # before graphs: those beside a table take texts in a form of their own
    if table := huggingface.find_static_table(folder, by_suffix.get(".safetensors", [])):
        return Manifest(
            wishes.task or "feature-extraction",
            "static_embeddings",
            files=(table, str(PurePosixPath(table).with_name(huggingface.TOKENIZER))),
            options=huggingface.static_options(folder, table),
        )
    if onnx := by_suffix.get(".onnx"):
        return _detect_onnx(folder, paths, onnx, wishes)
    if tflite := by_suffix.get(".tflite"):
        return _detect_tflite(folder, _choose_only(tflite), wishes)
    if SAVED_MODEL in paths:
        return _detect_saved_model(paths, wishes)
    for runtime, suffixes in GRAPH_SUFFIXES.items():
        if graphs := [path for suffix in suffixes for path in by_suffix.get(suffix, [])]:
            return Manifest(wishes.task or "tensor", runtime, files=(_choose_only(graphs),))
    if gguf := by_suffix.get(".gguf"):
        return _detect_gguf(folder, gguf, wishes)
    if models := by_suffix.get(".skops", []) + pickles:
        return _detect_sklearn(folder, _choose_only(models), wishes)
    if weights := torch_folder.find_weights(folder, paths):
        found_task, details = torch_folder.describe_folder(folder, paths, wishes.task)
        return Manifest(
            task=found_task,
            runtime="transformers",
            labels=details.labels,
            files=(*weights, *details.files),
            options=details.options,
        )
    claimed = [path for suffix in BOOSTER_SUFFIXES for path in by_suffix.get(suffix, [])]
    if boosters := [path for path in claimed if _is_booster(folder / path)]:
        return _detect_booster(folder, _choose_only(boosters), wishes)
    _refuse_stray_code(by_suffix.get(".py", []))
    raise InvalidInput(
        f"no model was found; the folder holds {_list_some(paths)}",
        hint=_explain_missing(by_suffix),
    )


def _detect_python(
    folder: Path, paths: Sequence[str], entry: str, wishes: Wishes, *, allow_code: bool
) -> Manifest:
    if not allow_code:
        raise CodeNotAllowed(
            f"the model is Python code ({entry!r}), which this server does not run",
            hint="the operator may set WHERRY_ALLOW_CODE=1; the code then runs with the rights of "
            "the server's user",
        )
    main = entry.partition(":")[0]
    task = wishes.task or python_code.read_task(folder / main) or "tensor"
    return Manifest(
        task=task,
        runtime="python_stream" if task == "text-generation" else "python_class",
        # what somebody's code does besides answering is not known: it is never run twice
        idempotent=False,
        files=(main, *(path for path in paths if path != main)),
        options={"entry": entry},
        signature=ANY_TENSOR if task == "tensor" else Signature(),
        requirements=python_code.read_requirements(folder),
    )


def _detect_onnx(
    folder: Path, paths: Sequence[str], found: Sequence[str], wishes: Wishes
) -> Manifest:
    main = next((path for path in PREFERRED_ONNX if path in found), None) or _choose_only(found)
    model = check_onnx(folder / main)
    parent = PurePosixPath(main).parent
    files = (main, *(str(parent / each) for each in model.external_files))
    if huggingface.is_text_model(paths, model):
        found_task, details = huggingface.describe_text_model(
            folder,
            paths,
            {tensor.name: len(tensor.shape) for tensor in model.signature.outputs},
            wishes.task,
        )
    elif huggingface.is_image_model(folder, paths):
        found_task, details = huggingface.describe_image_model(folder)
    else:
        exported = exported_pictures.read_exporter(model, wishes.task)
        found_task = wishes.task or exported.task or guess_table_task(model)
        details = huggingface.Details(options=exported.options)
    return Manifest(
        task=wishes.task or found_task,
        runtime="onnx",
        labels=details.labels or _classes_for(wishes.task or found_task, model),
        signature=_signature_for(wishes.task or found_task, model),
        files=(*files, *details.files),
        options=details.options,
    )


def _detect_diffusion(files: Sequence[str], wishes: Wishes) -> Manifest:
    variant = diffusion_folder.find_variant(files)
    options = {"variant": variant} if variant else {}
    return Manifest(
        wishes.task or "text-to-image", "diffusers", files=tuple(files), options=options
    )


def _detect_pair(
    folder: Path, paths: Sequence[str], files: Sequence[str], wishes: Wishes
) -> Manifest:
    """A pair of graphs: one that reads, hears or sees, and one that writes."""
    task = onnx_pairs.find_task(folder, files[0])
    if task == "translation":
        return _detect_translator(folder, paths, "onnx", files, wishes)
    hears = task == "automatic-speech-recognition"
    describe = onnx_pairs.describe_listener if hears else onnx_pairs.describe_seer
    details = describe(folder, paths)
    return Manifest(
        wishes.task or task, "onnx", files=(*files, *details.files), options=details.options
    )


def _detect_translator(
    folder: Path, paths: Sequence[str], runtime: str, files: Sequence[str], wishes: Wishes
) -> Manifest:
    home = folder / PurePosixPath(files[0]).parent if runtime == "ctranslate2" else folder
    found_task, details = translators.describe_translator(home, paths, wishes.task)
    beside = translators.find_companions(paths, str(PurePosixPath(files[0]).parent))
    return Manifest(
        task=found_task,
        runtime=runtime,
        files=(*files, *(beside if runtime == "ctranslate2" else details.files)),
        options=details.options,
    )


def _signature_for(task: str, model: OnnxModel) -> Signature:
    """The graph's own tensors where clients send those; texts and pictures have the task's."""
    if task.startswith("tabular"):
        return Signature(inputs=model.signature.inputs)
    return model.signature if task == "tensor" else Signature()


def _classes_for(task: str, model: OnnxModel) -> tuple[str, ...]:
    if task in class_names.NAMED_TASKS:
        return class_names.names_in_metadata(model.metadata)
    return model.classes if task == "tabular-classification" else ()


def guess_table_task(model: OnnxModel) -> str:
    """What a graph without other files does: a table's task by the names skl2onnx gives outputs."""
    outputs = {spec.name for spec in model.signature.outputs}
    if outputs in CLASSIFIER_OUTPUTS:
        return "tabular-classification"
    return "tabular-regression" if outputs == {"variable"} else "tensor"


def _detect_sklearn(folder: Path, main: str, wishes: Wishes) -> Manifest:
    guessed = skops_schema.guess_task(folder / main) if main.endswith(".skops") else None
    return Manifest(
        task=wishes.task or guessed or "tabular-classification", runtime="sklearn", files=(main,)
    )


def _detect_saved_model(paths: Sequence[str], wishes: Wishes) -> Manifest:
    """A folder of TensorFlow's: the graph, and the variables beside it."""
    variables = [path for path in paths if VARIABLES.fullmatch(path)]
    return Manifest(wishes.task or "tensor", "tensorflow", files=(SAVED_MODEL, *variables))


def _choose_only(found: Sequence[str]) -> str:
    if len(found) > 1:
        are_pair = any("decoder" in path for path in found)
        pair = "; a Python class can run several graphs (docs/custom-models.md)"
        raise InvalidInput(
            f"there are {len(found)} models: {_list_some(found)}",
            hint=f"keep one, or name it in {MANIFEST} as files = ['{found[0]}']" + pair * are_pair,
        )
    return found[0]


def _detect_gguf(folder: Path, found: Sequence[str], wishes: Wishes) -> Manifest:
    """A language model, which sees if there is a projector beside it, or one that makes vectors."""
    projectors = [path for path in found if "mmproj" in PurePosixPath(path).name.lower()]
    models = _choose_gguf([path for path in found if path not in projectors] or found)
    if len(found) == len(projectors):
        raise InvalidInput(
            f"{_list_some(found)} turns pictures into what a model reads, and there is no model",
            hint="put the model's own .gguf file beside it",
        )
    if wishes.task in (None, "feature-extraction") and _makes_vectors(folder / models[0]):
        return Manifest("feature-extraction", "llama_embeddings", files=models)
    task = wishes.task or ("image-text-to-text" if projectors else "text-generation")
    seeing = (_choose_projector(projectors),) if projectors and task != "text-generation" else ()
    return Manifest(task, "llama_cpp", files=(*models, *seeing))


def _makes_vectors(gguf: Path) -> bool:
    """Whether the file says how vectors of tokens become one of the text."""
    metadata = check_gguf(gguf)
    architecture = metadata.get("general.architecture", "")
    return metadata.get(f"{architecture}.pooling_type") in POOLING_TYPES


def _choose_projector(found: Sequence[str]) -> str:
    """The smallest loss first: publishers often give one in 16 bits and one in 8."""
    return min(found, key=lambda path: ("f16" not in path.lower(), path))


def _choose_gguf(found: Sequence[str]) -> tuple[str, ...]:
    """One file, or all parts of one split model in order."""
    parts = [SPLIT_GGUF.fullmatch(path) for path in sorted(found)]
    if not all(parts):
        return (_choose_only(found),)
    matches = [match for match in parts if match]
    expected = [
        f"{matches[0][1]}-{number:05}-of-{matches[0][3]}.gguf"
        for number in range(1, min(int(matches[0][3]), MAX_FILES) + 1)
    ]
    if [match[0] for match in matches] != expected:
        raise InvalidInput(
            f"a part of the split model is missing, or there are two: {_list_some(found)}",
            hint=f"its parts are {_list_some(expected)}",
        )
    return tuple(expected)


def _detect_tflite(folder: Path, main: str, wishes: Wishes) -> Manifest:
    """The graph's own tensors, or a task of pictures with what the file says of itself."""
    task = wishes.task or "tensor"
    if task not in class_names.NAMED_TASKS:
        return Manifest(task, "tflite", files=(main,))
    said = tflite_metadata.read_metadata(folder / main)
    return Manifest(task, "tflite", labels=said.labels, files=(main,), options=said.options)


def _is_booster(path: Path) -> bool:
    with open_regular(path) as file:
        return is_booster(file.read(32))


def _detect_booster(folder: Path, main: str, wishes: Wishes) -> Manifest:
    """Trees, with the columns that they were trained on: any value may be missing."""
    facts = read_booster(folder / main)
    task = wishes.task or facts.task
    names = facts.features if task.startswith("tabular") else ()
    columns = [{"name": name, "required": False} for name in names]
    options = {"columns": columns} if columns else {}
    return Manifest(task, facts.runtime, files=(main,), options=options)


def _name_classes(folder: Path, paths: Sequence[str], manifest: Manifest) -> Manifest:
    """With the names that a file beside the model has, where the model has none itself."""
    if manifest.labels or manifest.task not in class_names.NAMED_TASKS:
        return manifest
    labels = class_names.find_names_file(folder, paths, manifest.files[0])
    return msgspec.structs.replace(manifest, labels=labels)


def _refuse_stray_code(found: Sequence[str]) -> None:
    """Code beside a model, such as a package's own, is left out; alone it is not a model."""
    if found:
        raise FormatNotAllowed(
            f"the folder holds Python code ({_list_some(found)}) but no class Model, and no model "
            "that runs without code",
            hint="write model.py with a class Model that has a method predict, and name the package "
            "that the code is of in requirements.txt (docs/custom-models.md)",
        )


def _apply_wishes(manifest: Manifest, wishes: Wishes) -> Manifest:
    changes: dict[str, Any] = {
        name: value
        for name in ("task", "labels", "description", "licence", "source")
        if (value := getattr(wishes, name))
    }
    if wishes.options:
        changes["options"] = {**manifest.options, **wishes.options}
    return msgspec.structs.replace(manifest, **changes)


def _check_content(
    folder: Path,
    manifest: Manifest,
    paths: Sequence[str],
    *,
    allow_code: bool,
    allow_pickle: bool,
) -> None:
    is_code = manifest.runtime in CODE_RUNTIMES
    if is_code and not allow_code:
        raise CodeNotAllowed(
            "the model is Python code, which this server does not run",
            hint="the operator may set WHERRY_ALLOW_CODE=1; the code then runs with the rights of "
            "the server's user",
        )
    formats = check_bundle(
        folder,
        [path for path in stored_paths(manifest, paths) if path != MANIFEST],
        allow_pickle=allow_pickle,
        allow_code=allow_code,
        is_code_bundle=is_code,
    )
    wanted = RUNTIME_FORMATS.get(manifest.runtime)
    if wanted and formats.get(manifest.files[0]) not in wanted:
        raise FormatNotAllowed(
            f"the runtime {manifest.runtime!r} opens {' or '.join(sorted(wanted))}, but "
            f"{manifest.files[0]!r} is {formats.get(manifest.files[0])!r}",
            hint=f"put the model's file first in files of {MANIFEST}",
        )


def _explain_missing(by_suffix: Mapping[str, Sequence[str]]) -> str:
    if {".safetensors", ".bin", ".pth"} & by_suffix.keys():
        return (
            "PyTorch weights are served as safetensors with their config.json: save them so, or "
            "export the model to ONNX or TorchScript; or let a Python class open them with the "
            "library that they are of (docs/custom-models.md); "
        ) + SUPPORTED
    return SUPPORTED


def _list_some(paths: Sequence[str], most: int = 8) -> str:
    names = [repr(path) for path in paths if PurePosixPath(path).name not in TOKENIZER_NAMES]
    if not names:
        return "nothing" if not paths else ", ".join(map(repr, paths))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
