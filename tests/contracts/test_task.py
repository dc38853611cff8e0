"""What every task must do: what it declares, takes and gives must agree, in all its forms."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from wherry.errors import InvalidInput
from wherry.frames import Usage
from wherry.gateway.steps import fill
from wherry.models.codecs.plain_json import encode_plain
from wherry.models.tasks.catalog import BUILT_IN, find_task
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.face import Face
from wherry.models.tasks.face_detection import FaceDetection
from wherry.models.tasks.face_recognition import Comparison, FaceRecognition, KnownFace
from wherry.models.tasks.forecasting import Forecast, ForecastInput, Series, SeriesForecast
from wherry.models.tasks.generation import Generation
from wherry.models.tasks.image_fit import Frame
from wherry.models.tasks.image_segmentation import Segmentation
from wherry.models.tasks.image_to_text import ImageText, TextLine
from wherry.models.tasks.keypoint_detection import KeypointDetection, Pose
from wherry.models.tasks.object_detection import Detection
from wherry.models.tasks.recommendation import Recommendation, Recommended
from wherry.models.tasks.speech_recognition import Segment, Transcription
from wherry.models.tasks.speech_synthesis import Speech
from wherry.models.tasks.tabular import RegressionOutput, TableOutput
from wherry.models.tasks.task import Signature, TaskConfig, TensorSpec, type_by_datatype
from wherry.models.tasks.tensor import TensorOutput
from wherry.models.tasks.text import Embedding
from wherry.models.tasks.text_pair import PairScore
from wherry.models.tasks.text_to_image import Picture
from wherry.models.tasks.text_to_text import TextToTextOutput
from wherry.models.tasks.token_classification import Entities, Entity
from wherry.models.tasks.zero_shot_classification import Entailment

LABELS = ("calm", "rough")


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


class Case:
    def __init__(self, config: TaskConfig, plain: Any, tensors: Any, outputs: list[Any]) -> None:
        self.config = config
        self.plain = plain
        self.tensors = tensors
        self.outputs = outputs


def texts(*items: str) -> dict[str, np.ndarray]:
    return {"text": np.array([item.encode() for item in items], dtype=object)}


def pairs(*keys: str) -> dict[str, np.ndarray]:
    return {key: np.array([b"a boat", b"a ship"], dtype=object) for key in keys}


PLANES = np.stack([np.eye(2, dtype=np.float32), 1 - np.eye(2, dtype=np.float32)])
SCORES = [np.array([0.2, 0.8], np.float32), np.array([0.7, 0.3], np.float32)]
TABLE = Signature(
    (spec("input", "FP32", -1, 2),),
    (spec("label", "BYTES", -1), spec("class", "INT64", -1), spec("probabilities", "FP32", -1, 2)),
)
SQUARE = {"image_size": [2, 2], "image_mode": "L"}
BOX, LANDMARKS = np.arange(4, dtype=np.float32), np.ones((5, 2), np.float32)
CASES: dict[str, Case] = {
    "tensor": Case(
        TaskConfig(signature=Signature((spec("X", "FP32", -1, 2),), (spec("Y", "FP32", -1, 2),))),
        {"X": [[1.0, 2.0]]},
        {"X": np.ones((2, 2), np.float32)},
        [TensorOutput(tensors={"Y": np.ones((2, 2), np.float32)})],
    ),
    "tabular-classification": Case(
        TaskConfig(labels=LABELS, signature=TABLE),
        {"row": [1.0, 2.0]},
        {"input": np.ones((2, 2), np.float32)},
        [TableOutput(classes=np.array([1, 0]), probabilities=np.array(SCORES), labels=LABELS)],
    ),
    "tabular-regression": Case(
        TaskConfig(
            signature=Signature((spec("input", "FP32", -1, 2),), (spec("value", "FP32", -1),))
        ),
        {"row": [1.0, 2.0]},
        {"input": np.ones((2, 2), np.float32)},
        [RegressionOutput(values=np.array([1.5, 2.5], np.float32))],
    ),
    "time-series-forecasting": Case(
        TaskConfig(options={"horizon": 2, "quantiles": [0.1, 0.9]}),
        {"target": [1.0, None, 3.0]},
        {"target": np.ones((2, 3))},
        [
            Forecast(
                asked=ForecastInput([Series(np.ones(3))] * 2, 2, (0.1, 0.9)),
                forecasts=[SeriesForecast(np.ones(2), np.ones((2, 2)))] * 2,
            )
        ],
    ),
    "text-classification": Case(
        TaskConfig(labels=LABELS),
        {"text": "a calm day"},
        texts("a calm day", "a storm"),
        [Classification(labels=LABELS, scores=each) for each in SCORES],
    ),
    "feature-extraction": Case(
        TaskConfig(options={"dimensions": 2}),
        {"text": "a boat"},
        texts("a boat", "a ship"),
        [Embedding(vector=each) for each in SCORES],
    ),
    "text-ranking": Case(
        TaskConfig(),
        {"query": "boats", "text": "a ship"},
        pairs("query", "text"),
        [PairScore(score=0.9, raw=2.2), PairScore(score=0.1, raw=-2.2)],
    ),
    "sentence-similarity": Case(
        TaskConfig(),
        {"source_sentence": "a boat", "sentence": "a ship"},
        pairs("source_sentence", "sentence"),
        [PairScore(score=0.9, raw=2.2), PairScore(score=0.1, raw=-2.2)],
    ),
    "zero-shot-classification": Case(
        TaskConfig(),
        {"text": "a boat", "hypothesis": "This is about water."},
        pairs("text", "hypothesis"),
        [Entailment(entailment=3.0, contradiction=-1.0)] * 2,
    ),
    "token-classification": Case(
        TaskConfig(),
        {"text": "Ada sailed."},
        texts("Ada sailed.", "To Rome."),
        [
            Entities(entities=[Entity("PER", 0.9, 0, 3, "Ada")]),
            Entities(entities=[Entity("LOC", 0.8, 3, 7, "Rome")]),
        ],
    ),
    "text-generation": Case(
        TaskConfig(),
        {"text": "hello"},
        texts("hello", "you"),
        [Generation(text="a"), Generation(text="b")],
    ),
    "image-text-to-text": Case(
        TaskConfig(),
        {"text": "which?", "image": "iVBORw=="},
        {**texts("which?", "and this?"), "image": np.array([b"a", b"b"], dtype=object)},
        [Generation(text="a"), Generation(text="b")],
    ),
    "face-detection": Case(
        TaskConfig(options=SQUARE),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [FaceDetection(faces=[Face(0.9, BOX, LANDMARKS)]), FaceDetection(faces=[])],
    ),
    "face-recognition": Case(
        TaskConfig(options={**SQUARE, "dimensions": 2}),
        {"image": [[0.0, 1.0], [1.0, 0.0]], "other": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [
            FaceRecognition(
                faces=[KnownFace(0.9, BOX, LANDMARKS, SCORES[0])], comparison=Comparison(0.4, 0.3)
            ),
            FaceRecognition(faces=[]),
        ],
    ),
    "image-to-text": Case(
        TaskConfig(options=SQUARE),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [
            ImageText(text="a", lines=[TextLine("a", 0.9, np.ones((4, 2), np.float32))]),
            ImageText(text=""),
        ],
    ),
    "keypoint-detection": Case(
        TaskConfig(labels=("nose", "tail"), options=SQUARE),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [
            KeypointDetection(
                joints=("nose", "tail"), poses=[Pose(0.9, np.eye(2, dtype=np.float32), SCORES[0])]
            ),
            KeypointDetection(joints=("nose", "tail"), poses=[]),
        ],
    ),
    "recommendation": Case(
        TaskConfig(options={"top_k": 2}),
        {"user": "7"},
        {"user": np.array([b"7", b"8"], dtype=object)},
        [
            Recommendation(items=[Recommended("a", 2.0), Recommended("b", 1.0)], basis="user"),
            Recommendation(items=[], basis="popularity"),
        ],
    ),
    "summarization": Case(
        TaskConfig(),
        {"text": "a long day", "max_tokens": 3},
        texts("a long day", "a storm"),
        [TextToTextOutput(text="a day"), TextToTextOutput(text="rain")],
    ),
    "translation": Case(
        TaskConfig(),
        {"text": "a calm day", "target_language": "fr"},
        texts("a calm day", "a storm"),
        [TextToTextOutput(text="jour calme"), TextToTextOutput(text="orage")],
    ),
    "automatic-speech-recognition": Case(
        TaskConfig(),
        {"audio": [0.0, 0.5], "sample_rate": 8000},
        {"audio": np.zeros((2, 160), np.float32)},
        [Transcription(segments=[Segment(0, 0.0, 1.0, " a")], language="en", duration=1.0)] * 2,
    ),
    "text-to-speech": Case(
        TaskConfig(),
        {"text": "hello"},
        texts("hello", "you"),
        [Speech(samples=np.zeros(size, np.float32), rate=24_000) for size in (2, 3)],
    ),
    "image-classification": Case(
        TaskConfig(labels=LABELS, options={"image_size": [2, 2], "image_mode": "L"}),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [Classification(labels=LABELS, scores=each) for each in SCORES],
    ),
    "image-feature-extraction": Case(
        TaskConfig(options={"image_size": [2, 2], "image_mode": "L", "dimensions": 2}),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [Embedding(vector=each) for each in SCORES],
    ),
    "image-segmentation": Case(
        TaskConfig(labels=LABELS, options={"image_size": [2, 2], "image_mode": "L"}),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [
            Segmentation(labels=LABELS, probabilities=PLANES, frame=Frame(2.0, 2.0), size=(4, 4)),
        ]
        * 2,
    ),
    "object-detection": Case(
        TaskConfig(labels=LABELS, options={"image_size": [2, 2], "image_mode": "L"}),
        {"image": [[0.0, 1.0], [1.0, 0.0]]},
        {"image": np.zeros((2, 2, 2), np.float32)},
        [
            Detection(
                labels=LABELS, scores=SCORES[1], boxes=np.ones((2, 4), np.float32), size=(2, 2)
            ),
            Detection(
                labels=(), scores=SCORES[1][:0], boxes=np.ones((0, 4), np.float32), size=(2, 2)
            ),
        ],
    ),
    "text-to-image": Case(
        TaskConfig(labels=LABELS),
        {"prompt": "a calm sea"},
        texts("a calm sea", "a storm"),
        [Picture(pixels=np.zeros((2, 3, 1), np.uint8), seed=1, prompt="calm")] * 2,
    ),
    "zero-shot-image-classification": Case(
        TaskConfig(options={"image_size": [2, 2], "image_mode": "L"}),
        {"image": [[0.0, 1.0], [1.0, 0.0]], "candidate_labels": list(LABELS)},
        {
            "image": np.zeros((2, 2, 2), np.float32),
            "candidate_labels": np.array([b"calm", b"rough"], dtype=object),
        },
        [Classification(labels=LABELS, scores=each) for each in SCORES],
    ),
}


@pytest.fixture(params=sorted(BUILT_IN))
def case(request: pytest.FixtureRequest) -> tuple[Any, Case]:
    return find_task(request.param), CASES[request.param]


def test_outputs_as_tensors_are_what_the_signature_declares(case):
    task, given = case
    declared = task.signature(given.config)
    tensors = task.to_tensors(given.outputs, given.config)
    assert list(tensors) == [each.name for each in declared.outputs]
    for each in declared.outputs:
        array = tensors[each.name]
        kind = "O" if each.datatype == "BYTES" else np.dtype(type_by_datatype[each.datatype])
        assert array.dtype == kind, each
        assert len(array.shape) == len(each.shape)
        for size, wanted in zip(array.shape, each.shape, strict=True):
            assert wanted in (-1, size)
        assert array.shape[0] == 2, "a row for every row"


def test_tensors_of_the_declared_form_are_accepted(case):
    task, given = case
    items = task.from_tensors(given.tensors, given.config)
    assert len(items) in (1, 2)


def test_missing_unknown_and_empty_tensors_are_refused(case):
    task, given = case
    some = next(iter(given.tensors.values()))
    for wrong in ({}, {"nonsense": some}, {**given.tensors, "nonsense": some}):
        with pytest.raises(InvalidInput):
            task.from_tensors(wrong, given.config)


def test_the_plain_form_is_one_json_object_in_and_one_out(case):
    task, given = case
    assert task.from_plain(given.plain, given.config) is not None
    answer = task.to_plain(given.outputs[0], given.config)
    assert json.loads(json.dumps(answer)) == answer


def test_a_step_of_a_pipeline_can_be_given_every_field_of_an_answer(case):
    task, given = case
    answer = msgspec.Raw(encode_plain(task.to_plain(given.outputs[0], given.config)))
    for name, value in json.loads(bytes(answer)).items():
        assert json.loads(bytes(fill({"x": f"$step.{name}"}, {"step": answer}))) == {"x": value}


@pytest.mark.parametrize(
    "wrong",
    [{}, {"nonsense": 1}, {"text": 5}, {"text": None}, {"image": "!"}, {"row": "x"}, {"X": {}}],
    ids=str,
)
def test_a_wrong_plain_object_is_refused_in_words(case, wrong):
    task, given = case
    with pytest.raises(InvalidInput) as refused:
        task.from_plain(wrong, given.config)
    assert refused.value.message


def test_classes_carry_their_label_and_confidence():
    for name in ("text-classification", "image-classification"):
        answer = find_task(name).to_plain(CASES[name].outputs[0], CASES[name].config)
        assert (answer["label"], answer["prediction"]) == ("rough", "rough")
        assert answer["confidence"] == pytest.approx(0.8)


def test_a_task_says_the_types_of_what_it_takes_and_gives(case):
    task, given = case
    for item in (
        *task.from_tensors(given.tensors, given.config),
        task.from_plain(given.plain, given.config),
    ):
        assert isinstance(item, task.input_type)
    assert all(isinstance(output, task.output_type) for output in given.outputs)
    assert hasattr(task, "join") == hasattr(task, "delta_type")


def test_every_output_starts_with_no_cost():
    for given in CASES.values():
        assert all(output.usage == Usage() for output in given.outputs)
