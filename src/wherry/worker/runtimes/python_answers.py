"""Items and results of a Python class for tasks whose answer is more than a row of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from wherry.errors import InvalidInput
from wherry.models.bundle import Manifest
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.tensor import Array


class PastSeries(NamedTuple):
    """What a class that forecasts gets, for each series."""

    target: Array
    """float64 [length], the newest last; NaN where one is missing."""
    horizon: int
    quantiles: tuple[float, ...]
    """Levels, rising."""
    covariates: Mapping[str, Array]
    """float64 [length + horizon] each."""
    season: int | None
    """None = not said."""


def pack_series(item: Any) -> list[PastSeries]:
    """One for each series of the request."""
    return [
        PastSeries(each.values, item.horizon, item.quantiles, each.covariates, item.season)
        for each in item.series
    ]


def pack_pair(item: Any) -> tuple[str, str]:
    """Two texts."""
    return item.first, item.second


def pack_words(item: Any) -> str:
    """The text."""
    return item.text


def pack_picture(item: Any) -> Array:
    """Pixels of the picture: uint8 [height, width, channels]."""
    if not hasattr(item, "pixels") and not hasattr(item, "picture"):
        raise InvalidInput("the model takes pictures only", param="text")
    return getattr(item, "picture", item).pixels


def unpack_forecasts(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """For each series its means [horizon], or `{"mean": …, "quantiles": {level: [horizon]}}`."""
    from wherry.models.tasks.forecasting import Forecast

    levels = item.quantiles if all(isinstance(each, Mapping) for each in result) else ()
    asked = msgspec.structs.replace(item, quantiles=levels)
    return Forecast(asked=asked, forecasts=[_read_forecast(each, asked) for each in result])


def _read_forecast(result: Any, asked: Any) -> Any:
    from wherry.models.tasks.forecasting import SeriesForecast

    given = result if isinstance(result, Mapping) else {"mean": result}
    mean = _numbers(given["mean"], (asked.horizon,))
    columns = {float(level): column for level, column in given.get("quantiles", {}).items()}
    known = sorted(columns)
    if asked.quantiles and not known:
        raise ValueError("the result has no quantiles; a class without them gives the means alone")
    if asked.quantiles and not known[0] <= asked.quantiles[0] <= asked.quantiles[-1] <= known[-1]:
        raise InvalidInput(
            f"the model tells quantiles from {known[0]:g} to {known[-1]:g}", param="quantiles"
        )
    table = np.array([_numbers(columns[level], (asked.horizon,)) for level in known])
    quantiles = [[np.interp(level, known, row) for level in asked.quantiles] for row in table.T]
    shape = (asked.horizon, len(asked.quantiles))
    return SeriesForecast(mean=mean, quantiles=np.reshape(quantiles, shape))


def unpack_pair(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """A number: how well two texts go together."""
    from wherry.models.tasks.text_pair import PairScore

    score = float(_numbers(result, ()))
    return PairScore(score=score, raw=score)


def unpack_entailment(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """The probability that the second text follows from the first."""
    from wherry.models.tasks.zero_shot_classification import Entailment

    probability = float(np.clip(_numbers(result, ()), 1e-7, 1 - 1e-7))
    logit = float(np.log(probability / (1 - probability)))
    return Entailment(entailment=logit, contradiction=0.0)


def unpack_entities(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """A list of `{"label": "PER", "start": 0, "end": 5, "score": 0.9}`."""
    from wherry.models.tasks.token_classification import Entities, Entity

    found = [
        Entity(
            label=str(each["label"]),
            score=float(each.get("score", 1.0)),
            start=int(each["start"]),
            end=int(each["end"]),
            text=item.text[int(each["start"]) : int(each["end"])],
        )
        for each in result
    ]
    if any(not 0 <= each.start < each.end <= len(item.text) for each in found):
        raise ValueError("an entity lies outside of the text")
    kept = [each for each in found if each.label not in item.ignored]
    return Entities(entities=sorted(kept, key=lambda each: each.start))


def unpack_boxes(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """A list of `{"label": "cat", "score": 0.9, "box": [xmin, ymin, xmax, ymax]}`, in pixels."""
    from wherry.models.tasks.object_detection import MAX_BOXES, Detection

    scale = np.array(item.picture.size, dtype=np.float32) / item.picture.pixels.shape[:2]
    least, most = item.threshold or 0.0, item.max_boxes or MAX_BOXES
    sure = [each for each in result if float(each["score"]) >= least]
    best = sorted(sure, key=lambda each: -float(each["score"]))[:most]
    boxes = _numbers([each["box"] for each in best], (len(best), 4)) if best else np.zeros((0, 4))
    return Detection(
        labels=tuple(str(each["label"]) for each in best),
        scores=np.array([each["score"] for each in best], dtype=np.float32),
        boxes=(boxes * np.tile(scale[::-1], 2)).astype(np.float32),
        size=item.picture.size,
    )


def unpack_text_of_picture(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """The text."""
    from wherry.models.tasks.image_to_text import ImageText

    if not isinstance(result, str):
        raise TypeError(f"a result must be a text, not {type(result).__name__}")
    return ImageText(text=result)


def unpack_text(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """The new text."""
    from wherry.models.tasks.text_to_text import TextToTextOutput

    if not isinstance(result, str):
        raise TypeError(f"a result must be a text, not {type(result).__name__}")
    return TextToTextOutput(
        text=result,
        source_language=item.source_language,
        target_language=item.target_language,
        usage=Usage(characters=len(item.text), rows=1),
    )


def unpack_speech(result: Any, item: Any, rows: int, manifest: Manifest) -> TaskOutput:
    """Samples from -1 to 1, and how many there are a second."""
    from wherry.models.tasks.speech_synthesis import Speech

    samples, rate = result
    numbers = np.asarray(samples, dtype=np.float32)
    return Speech(
        samples=_numbers(numbers, (numbers.size,)).astype(np.float32),
        rate=int(rate),
        usage=Usage(characters=len(item.text), rows=1),
    )


def _numbers(value: Any, shape: Sequence[int]) -> Array:
    """Finite numbers of this shape."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape != tuple(shape):
        raise ValueError(f"a result has shape {list(array.shape)}, expected is {list(shape)}")
    if not np.isfinite(array).all():
        raise ValueError("a number of the result is not finite")
    return array
