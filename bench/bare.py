"""Bare loops over the libraries: what a model does when nobody serves it.

Each is what a user of the library would write: the file's bytes in, the answer's bytes out, one after
the other in one process with one thread. `python -m bench.bare MODALITY FOLDER FILE SECONDS` prints
answers a second and the CPU of one, in microseconds.
"""

from __future__ import annotations

import io
import json
import sys
import time
import wave
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from wherry.models.bundle import Bundle, open_bundle

Answer = Callable[[bytes], bytes]


def open_session(bundle: Bundle) -> Any:
    """The graph in onnxruntime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle.main_file), options)


def classify(bundle: Bundle) -> Answer:
    """EfficientNet-Lite0: decode, cut, scale, run, softmax, the five best names."""
    from PIL import Image

    session, options = open_session(bundle), bundle.manifest.options
    name = session.get_inputs()[0].name
    side, scale = options["image_size"][0], options.get("crop_scale", 1.0)
    mean, std = (np.array(options[key], np.float32) for key in ("mean", "std"))
    factor, labels = options.get("pixel_scale", 1.0), bundle.manifest.labels
    method = Image.Resampling[options.get("resample", "bilinear").upper()]

    def answer(body: bytes) -> bytes:
        with Image.open(io.BytesIO(body)) as file:
            picture = file.convert("RGB")
        edge = min(picture.size) * scale
        left, top = (picture.width - edge) / 2, (picture.height - edge) / 2
        cut = picture.resize((side, side), method, (left, top, left + edge, top + edge))
        numbers = (np.asarray(cut, np.float32) * np.float32(factor) - mean) / std
        logits = session.run(None, {name: numbers.transpose(2, 0, 1)[np.newaxis]})[0][0]
        powers = np.exp(logits - logits.max())
        chances = powers / powers.sum()
        best = np.argsort(-chances)[:5]
        scores = {labels[index]: float(chances[index]) for index in best}
        return json.dumps({"label": labels[best[0]], "scores": scores}).encode()

    return answer


def detect(bundle: Bundle) -> Answer:
    """NanoDet: decode, scale, run, distances of the surest places to boxes, OpenCV's suppression."""
    import cv2

    session, options = open_session(bundle), bundle.manifest.options
    name, side = session.get_inputs()[0].name, options["image_size"][0]
    mean, std = (np.array(options[key], np.float32) for key in ("mean", "std"))
    threshold, labels = options["threshold"], bundle.manifest.labels

    def answer(body: bytes) -> bytes:
        picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        height, width = picture.shape[:2]
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        numbers = (small.astype(np.float32) - mean) / std
        outputs = session.run(None, {name: numbers.transpose(2, 0, 1)[np.newaxis]})
        found = [each for pair in pair_maps(outputs) for each in boxes_of(*pair, side, threshold)]
        kept = cv2.dnn.NMSBoxes(
            [box for box, _, _ in found], [s for _, s, _ in found], threshold, 0.5
        )
        objects = [
            {
                "label": labels[found[index][2]],
                "score": found[index][1],
                "box": [found[index][0][0] * width / side, found[index][0][1] * height / side],
            }
            for index in np.array(kept).reshape(-1)
        ]
        return json.dumps({"objects": objects}).encode()

    return answer


def pair_maps(outputs: list[Any]) -> list[tuple[Any, Any]]:
    """Scores and distances of each resolution."""
    rows = [each.reshape(-1, each.shape[-1]) for each in outputs]
    scores = {len(each): each for each in rows if each.shape[1] == 80}
    return [(scores[len(each)], each) for each in rows if each.shape[1] != 80]


def boxes_of(scores: Any, distances: Any, side: int, threshold: float) -> list[Any]:
    """Left, top, width, height of the surest places."""
    columns = round(len(scores) ** 0.5)
    stride, bins = side / columns, distances.shape[1] // 4
    found: list[Any] = []
    for place, kind in zip(*np.nonzero(scores > threshold), strict=True):
        chances = np.exp(distances[place].reshape(4, bins))
        left, top, right, bottom = chances @ np.arange(bins) / chances.sum(axis=1) * stride
        row, column = divmod(int(place), columns)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        box = [float(x - left), float(y - top), float(left + right), float(top + bottom)]
        found.append((box, float(scores[place, kind]), int(kind)))
    return found


def listen(bundle: Bundle) -> Answer:
    """Whisper: the library's own call, with the bundle's beam."""
    from faster_whisper import WhisperModel

    options = bundle.manifest.options
    model = WhisperModel(
        str(bundle.main_file.parent),
        device="cpu",
        compute_type=options.get("compute_type", "default"),
        cpu_threads=1,
        local_files_only=True,
    )

    def answer(body: bytes) -> bytes:
        segments, about = model.transcribe(io.BytesIO(body), beam_size=options.get("beam_size", 5))
        parts = [(each.start, each.end, each.text) for each in segments]
        text = "".join(part[2] for part in parts).strip()
        return json.dumps({"text": text, "segments": parts, "language": about.language}).encode()

    return answer


def speak(bundle: Bundle) -> Answer:
    """Hibari: the library's own call, and a WAV file of its samples."""
    hibari: Any = import_module("hibari")
    voice = hibari.Hibari(model=str(bundle.main_file), threads=1)

    def answer(body: bytes) -> bytes:
        samples = np.asarray(voice(json.loads(body)["input"], seed=0), np.float32)
        written = io.BytesIO()
        with wave.open(written, "wb") as file:
            file.setparams((1, 2, hibari.SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        return written.getvalue()

    return answer


LOOPS: dict[str, Callable[[Bundle], Answer]] = {
    "image-classification": classify,
    "object-detection": detect,
    "automatic-speech-recognition": listen,
    "text-to-speech": speak,
}


def measure(answer: Answer, body: bytes, seconds: float) -> tuple[float, float]:
    """Answers a second, and the CPU of one in microseconds."""
    answer(body)
    begun, used, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < seconds:
        answer(body)
        count += 1
    passed = time.perf_counter() - begun
    return count / passed, (time.process_time() - used) / count * 1e6


if __name__ == "__main__":
    modality, folder, file, seconds = sys.argv[1:]
    loop = LOOPS[modality](open_bundle(Path(folder)))
    print(json.dumps(measure(loop, Path(file).read_bytes(), float(seconds))))
