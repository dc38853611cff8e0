# pyright: standard
"""Faces with OpenCV: YuNet finds them, SFace tells whose they are.

The bundle's first file is YuNet's; `face-recognition` has SFace's as the second. These files need
OpenCV's own engine: in 8 bits, YuNet does not run in onnxruntime. OpenCV 5 cannot run SFace's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.face import Face
from wherry.models.tasks.face_detection import FaceDetection
from wherry.models.tasks.face_recognition import (
    Comparison,
    FaceInput,
    FaceRecognition,
    KnownFace,
)
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_fit import ImageOptions, fit_image
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import Usage
from wherry.worker.runtimes.runtime import ItemError, Prepared

Array = np.ndarray[Any, np.dtype[Any]]

TASKS = ("face-detection", "face-recognition")
COLOUR = ImageOptions(image_mode="RGB")
TRIAL_SIDE = 64
LEAST_SIDE = 64
"""With a side of 32 or less, OpenCV reads memory that nobody wrote and finds faces in it."""


class FaceOptions(msgspec.Struct, frozen=True):
    """A bundle's `[options]`."""

    threshold: float = 0.8
    """A face with a lower score is not told."""
    overlap: float = 0.3
    """Of two faces that share more of their area than this, the surer one is told."""
    max_faces: int = 500
    max_side: int = 1024
    """Larger pictures are looked at in this size, in pixels: faces of 10 pixels there are found."""
    same_threshold: float = 0.363
    """Cosine from which on two faces are one person's; SFace's authors' choice, measured on LFW."""


class OpencvRuntime:
    """One picture at a time, one thread; more workers serve more."""

    max_batch_rows = 1
    max_batch_cost = 0

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the files and answer a picture of noise."""
        manifest = bundle.manifest
        if manifest.task not in TASKS:
            raise InvalidInput(
                f"the opencv runtime does not do the task {manifest.task!r}",
                hint="it does " + ", ".join(TASKS),
            )
        if device != "cpu":
            raise InvalidInput(f"the opencv runtime has no device {device!r}", hint="use 'cpu'")
        cv2.setNumThreads(1)
        self.options = read_options(manifest.options, FaceOptions)
        files = [str(bundle.path(name)) for name in manifest.files]
        try:
            self.detector: Any = cv2.FaceDetectorYN.create(
                files[0],
                "",
                (TRIAL_SIDE, TRIAL_SIDE),
                self.options.threshold,
                self.options.overlap,
                self.options.max_faces,
            )
            self.recogniser: Any = None
            if manifest.task == "face-recognition":
                self.recogniser = cv2.FaceRecognizerSF.create(files[1], "")
            self._try_out()
        except (cv2.error, IndexError) as error:
            raise FormatNotAllowed(
                "the bundle's files are not YuNet and SFace, as OpenCV reads them",
                hint="name YuNet's file first, and SFace's second, in files of wherry.toml",
            ) from error

    def _try_out(self) -> None:
        """A file that opens may still not run: find in noise, tell apart what is no face."""
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (TRIAL_SIDE, TRIAL_SIDE, 3), np.uint8)
        self._detect(noise)
        if self.recogniser is not None:
            side = TRIAL_SIDE / 2
            somewhere = np.array([8, 8, side, side, *range(12, 32, 2), 1.0], np.float32)
            self._embed(noise, somewhere)

    def prepare(self, item: ImageInput | FaceInput) -> Prepared:
        """Pictures as OpenCV has them: BGR."""
        if isinstance(item, FaceInput):
            return Prepared([_to_bgr(each) for each in (item.image, item.other) if each])
        return Prepared([_to_bgr(item)])

    def run(
        self, batch: Sequence[Prepared]
    ) -> Sequence[FaceDetection | FaceRecognition | ItemError]:
        """Answer one picture, or two, after another."""
        return [self._answer(prepared.payload) for prepared in batch]

    def close(self) -> None:
        """Free the models."""
        self.detector = self.recogniser = None

    def _answer(self, pictures: list[Array]) -> FaceDetection | FaceRecognition | ItemError:
        try:
            rows = [self._detect(picture) for picture in pictures]
            usage = Usage(rows=len(pictures))
            if self.recogniser is None:
                faces = [_face_of(row, pictures[0]) for row in rows[0]]
                return FaceDetection(faces=faces, usage=usage)
            if len(pictures) == 2:
                for name, found in zip(("image", "other"), rows, strict=True):
                    if not len(found):
                        return ItemError("invalid_input", f"no face was found in {name!r}")
            known = [self._know(row, pictures[0]) for row in rows[0]]
            comparison = self._compare(known, pictures[1], rows[1]) if len(pictures) == 2 else None
            return FaceRecognition(faces=known, comparison=comparison, usage=usage)
        except cv2.error as error:
            raise ModelFailed("the model failed on this picture") from error

    def _detect(self, picture: Array) -> Array:
        """float32 [faces, 15]: left, top, width, height, x and y of landmarks, score."""
        height, width = picture.shape[:2]
        scale = max(1.0, max(height, width) / self.options.max_side)
        size = (max(1, round(width / scale)), max(1, round(height / scale)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale > 1 else picture
        small = _with_least_size(small)
        self.detector.setInputSize(small.shape[1::-1])
        found = self.detector.detect(small)[1]
        if found is None:
            return np.empty((0, 15), np.float32)
        if not np.isfinite(found).all():
            raise ModelFailed("the model answered with numbers that are not finite")
        factors = np.tile(np.array([width / size[0], height / size[1]], np.float32), 7)
        found[:, :14] *= factors
        return found[np.argsort(-found[:, 14], kind="stable")]

    def _embed(self, picture: Array, row: Array) -> Array:
        upright = self.recogniser.alignCrop(picture, row)
        vector = self.recogniser.feature(upright)[0].astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _know(self, row: Array, picture: Array) -> KnownFace:
        face = _face_of(row, picture)
        return KnownFace(face.score, face.box, face.landmarks, self._embed(picture, row))

    def _compare(self, known: Sequence[KnownFace], other: Array, rows: Array) -> Comparison:
        mine = max(known, key=lambda face: _area(face.box)).embedding
        theirs = self._embed(other, max(rows, key=lambda row: row[2] * row[3]))
        return Comparison(float(mine @ theirs), self.options.same_threshold)


def _to_bgr(item: ImageInput) -> Array:
    return np.ascontiguousarray(fit_image(item.pixels, COLOUR)[:, :, ::-1])


def _with_least_size(picture: Array) -> Array:
    """With a border at the right and the bottom, where it is too small for YuNet."""
    height, width = picture.shape[:2]
    down, across = max(0, LEAST_SIDE - height), max(0, LEAST_SIDE - width)
    if not down and not across:
        return picture
    return cv2.copyMakeBorder(picture, 0, down, 0, across, cv2.BORDER_CONSTANT)


def _face_of(row: Array, picture: Array) -> Face:
    height, width = picture.shape[:2]
    left, top, across, down = row[:4]
    box = np.array([left, top, left + across, top + down], np.float32)
    box = np.clip(box, 0, np.array([width, height, width, height]))
    return Face(min(float(row[14]), 1.0), box, row[4:14].reshape(5, 2).copy())


def _area(box: Array) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
