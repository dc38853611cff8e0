"""Names of runtimes → where they are; listing them loads none."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from wherry.errors import InvalidInput, MissingExtra
from wherry.worker.runtimes.runtime import Runtime

BUILT_IN: dict[str, tuple[str, str]] = {
    "apertium": ("wherry.worker.runtimes.apertium:ApertiumRuntime", ""),
    "ctranslate2": ("wherry.worker.runtimes.ctranslate2:Ctranslate2Runtime", "ctranslate2"),
    "diffusers": ("wherry.worker.runtimes.diffusers:DiffusersRuntime", "diffusers"),
    "forecaster": ("wherry.worker.runtimes.forecaster:ForecasterRuntime", ""),
    "onnx": ("wherry.worker.runtimes.onnx:OnnxRuntime", "onnx"),
    "opencv": ("wherry.worker.runtimes.opencv:OpencvRuntime", "opencv"),
    "recommender": ("wherry.worker.runtimes.recommender:RecommenderRuntime", ""),
    "tflite": ("wherry.worker.runtimes.tflite:TfliteRuntime", "tflite"),
    "keras": ("wherry.worker.runtimes.keras:KerasRuntime", "keras"),
    "tensorflow": ("wherry.worker.runtimes.tensorflow:TensorflowRuntime", "tensorflow"),
    "torch": ("wherry.worker.runtimes.torch:TorchRuntime", "torch"),
    "sklearn": ("wherry.worker.runtimes.sklearn:SklearnRuntime", "sklearn"),
    "faster_whisper": ("wherry.worker.runtimes.faster_whisper:FasterWhisperRuntime", "whisper"),
    "hibari": ("wherry.worker.runtimes.hibari:HibariRuntime", "tts"),
    "llama_cpp": ("wherry.worker.runtimes.llama_cpp:LlamaCppRuntime", "llama-cpp"),
    "spacy": ("wherry.worker.runtimes.spacy:SpacyRuntime", "spacy"),
    "static_embeddings": (
        "wherry.worker.runtimes.static_embeddings:StaticEmbeddingsRuntime",
        "onnx",
    ),
    "llama_embeddings": (
        "wherry.worker.runtimes.llama_embeddings:LlamaEmbeddingsRuntime",
        "llama-cpp",
    ),
    "lightgbm": ("wherry.worker.runtimes.lightgbm:LightgbmRuntime", "lightgbm"),
    "xgboost": ("wherry.worker.runtimes.xgboost:XgboostRuntime", "xgboost"),
    "python_class": ("wherry.worker.runtimes.python_class:PythonClassRuntime", ""),
    "python_stream": ("wherry.worker.runtimes.python_class:PythonStreamRuntime", ""),
    "transformers": ("wherry.worker.runtimes.transformers:TransformersRuntime", "transformers"),
    "vllm": ("wherry.worker.runtimes.vllm:VllmRuntime", "vllm"),
    "upstream": ("wherry.worker.runtimes.upstream:UpstreamRuntime", ""),
}
"""Name → (import string, the extra of `pip install 'wherry[extra]'` it needs)."""

FOR_TASK: dict[tuple[str, str], str] = {
    ("onnx", "automatic-speech-recognition"): (
        "wherry.worker.runtimes.onnx_speech:OnnxSpeechRuntime"
    ),
    ("transformers", "text-generation"): (
        "wherry.worker.runtimes.transformers_generation:TransformersGenerationRuntime"
    ),
}
"""Runtimes that do a task by another class: answers that stream are not batched."""


def create_runtime(name: str, task: str = "") -> Runtime:
    """A new runtime, not loaded; `MissingExtra` says both ways to install it."""
    if name in BUILT_IN:
        path, extra = BUILT_IN[name]
        path = FOR_TASK.get((name, task), path)
        module, attribute = path.split(":")
        try:
            return getattr(import_module(module), attribute)()
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"runtime {name!r} needs the package {error.name!r}",
                hint=f"pip install 'wherry[{extra}]', or into an environment of its own: "
                f"wherry runtime install {name}",
            ) from error
    for point in entry_points(group="wherry.runtimes", name=name):
        return point.load()()
    raise InvalidInput(f"unknown runtime {name!r}", hint="known: " + ", ".join(sorted(BUILT_IN)))
