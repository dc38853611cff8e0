"""Names of tasks → where they are; listing them loads none."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from wherry.errors import InvalidInput
from wherry.models.tasks.task import Task

BUILT_IN: dict[str, str] = {
    "tensor": "wherry.models.tasks.tensor:TENSOR",
    "tabular-classification": "wherry.models.tasks.tabular:TABULAR_CLASSIFICATION",
    "tabular-regression": "wherry.models.tasks.tabular:TABULAR_REGRESSION",
    "time-series-forecasting": "wherry.models.tasks.forecasting:TIME_SERIES_FORECASTING",
    "text-classification": "wherry.models.tasks.text:TEXT_CLASSIFICATION",
    "feature-extraction": "wherry.models.tasks.text:FEATURE_EXTRACTION",
    "sentence-similarity": "wherry.models.tasks.sentence_similarity:SENTENCE_SIMILARITY",
    "text-ranking": "wherry.models.tasks.text_ranking:TEXT_RANKING",
    "zero-shot-classification": "wherry.models.tasks.zero_shot_classification:"
    "ZERO_SHOT_CLASSIFICATION",
    "token-classification": "wherry.models.tasks.token_classification:TOKEN_CLASSIFICATION",
    "text-generation": "wherry.models.tasks.generation:TEXT_GENERATION",
    "face-detection": "wherry.models.tasks.face_detection:FACE_DETECTION",
    "face-recognition": "wherry.models.tasks.face_recognition:FACE_RECOGNITION",
    "image-text-to-text": "wherry.models.tasks.image_text_to_text:IMAGE_TEXT_TO_TEXT",
    "image-to-text": "wherry.models.tasks.image_to_text:IMAGE_TO_TEXT",
    "keypoint-detection": "wherry.models.tasks.keypoint_detection:KEYPOINT_DETECTION",
    "recommendation": "wherry.models.tasks.recommendation:RECOMMENDATION",
    "summarization": "wherry.models.tasks.text_to_text:SUMMARIZATION",
    "translation": "wherry.models.tasks.text_to_text:TRANSLATION",
    "automatic-speech-recognition": "wherry.models.tasks.speech_recognition:SPEECH_RECOGNITION",
    "text-to-speech": "wherry.models.tasks.speech_synthesis:SPEECH_SYNTHESIS",
    "image-classification": "wherry.models.tasks.image_classification:IMAGE_CLASSIFICATION",
    "image-feature-extraction": "wherry.models.tasks.image_feature_extraction:IMAGE_FEATURE_EXTRACTION",
    "image-segmentation": "wherry.models.tasks.image_segmentation:IMAGE_SEGMENTATION",
    "object-detection": "wherry.models.tasks.object_detection:OBJECT_DETECTION",
    "text-to-image": "wherry.models.tasks.text_to_image:TEXT_TO_IMAGE",
    "zero-shot-image-classification": (
        "wherry.models.tasks.zero_shot_image_classification:ZERO_SHOT_IMAGE_CLASSIFICATION"
    ),
}


def task_names() -> list[str]:
    """Every known task, built in or from a plugin (entry point group `wherry.tasks`)."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group="wherry.tasks"))})


def find_task(name: str) -> Task:
    """The task by its name; `InvalidInput` lists the known ones."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group="wherry.tasks", name=name):
        return point.load()
    raise InvalidInput(f"unknown task {name!r}", hint="known: " + ", ".join(task_names()))
