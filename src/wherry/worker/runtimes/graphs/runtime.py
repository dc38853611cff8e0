# pyright: standard
"""A runtime whose framework runs graphs of tensors: all but the opening of files.

Options are documented where they are read: `TextModel` (`max_tokens`, `truncate`, `pooling`,
`normalise`), `ScoreHead` (`function`), `Pixels` (`pixel_scale`, `mean`, `std`, `layout`) and the
tasks of pictures (`image_size`, `image_mode`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.task import Signature, TaskInput, TaskOutput
from wherry.worker.runtimes.graphs.calibration import Calibration, to_report
from wherry.worker.runtimes.graphs.graph import Graph, OpenGraph
from wherry.worker.runtimes.runtime import ItemError, Prepared

MODEL_BY_TASK: dict[str, str] = {
    "tensor": "tensors:TensorModel",
    "tabular-classification": "tables:GraphClassifier",
    "tabular-regression": "tables:GraphRegressor",
    "feature-extraction": "texts:EmbeddingModel",
    "time-series-forecasting": "forecast:ForecastModel",
    "text-classification": "texts:TextClassifier",
    "text-ranking": "pairs:PairScorer",
    "sentence-similarity": "pairs:PairScorer",
    "zero-shot-classification": "pairs:EntailmentModel",
    "token-classification": "tags:TokenTagger",
    "image-classification": "pictures:PictureClassifier",
    "image-feature-extraction": "dual_encoder:PictureEmbedder",
    "image-segmentation": "segmentation:SegmentationModel",
    "object-detection": "detection:DetectionModel",
    "face-detection": "faces:FaceModel",
    "text-to-image": "generator:PictureGenerator",
    "zero-shot-image-classification": "dual_encoder:PictureChooser",
    "image-to-text": "readers:open_reader",
    "keypoint-detection": "keypoints:KeypointModel",
    "summarization": "seq2seq:PairModel",
    "translation": "seq2seq:PairModel",
}
"""Task → where in this folder graphs do it."""


class GraphModel(Protocol):
    """Graphs that do a task; opened, and tried out, when it is made.

    Made with the function that opens a file of the bundle, and the bundle.
    """

    graph: Graph
    """The bundle's main one."""
    max_batch_rows: int
    max_batch_cost: int

    def prepare(self, item: Any) -> Prepared:
        """See `BatchRuntime.prepare`."""
        ...

    def answer(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """One answer an item, in order; never more than `max_batch_rows` unless joining is safe."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A model whose batches are chosen by measuring."""

    spare_padding: float

    def calibrate(self, known: object, device: str) -> Calibration | None:
        """Take what is known, or measure; None if nothing is to be chosen."""
        ...


class GraphRuntime(ABC):
    """What the runtimes of graphs have in common."""

    max_batch_rows = 64
    max_batch_cost = 0
    spare_padding = -1.0
    joins_rows = False
    signature = Signature()
    """The main graph's own tensors, once it is loaded."""

    def __init__(self) -> None:
        self.calibration: dict[str, Any] = {}
        """What was measured at load, for `wherry show` and the next load."""
        self._known: object = None

    @abstractmethod
    def open_graph(self, path: Path, device: str) -> Graph:
        """Open a file of the bundle.

        Raises:
            FormatNotAllowed: the framework cannot read or run it.
            InvalidInput: the framework has no such device here.
        """

    def configure(self, *, secrets: dict[str, str], options: dict[str, Any]) -> None:
        """Take the calibration of an earlier load, if there is one."""
        self._known = options.get("calibration")

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the graphs and answer a trial input: a file that opens may still not run."""
        build = self.find_model(bundle.manifest.task)
        self.model: GraphModel | None = build(partial(self._open_on, device), bundle)
        self.signature = self.model.graph.signature
        self.max_batch_rows = self.model.max_batch_rows
        self.joins_rows = getattr(self.model, "joins_rows", False)
        if bundle.manifest.max_batch_rows:
            self.max_batch_rows = min(self.max_batch_rows, bundle.manifest.max_batch_rows)
        if isinstance(self.model, Calibrated):
            found = self.model.calibrate(self._known, device)
            self.calibration = to_report(found, self.max_batch_rows, device)
            self.spare_padding = self.model.spare_padding
        self.max_batch_cost = self.model.max_batch_cost

    def _open_on(self, device: str, path: Path) -> Graph:
        graph = self.open_graph(path, device)
        graph.device = device
        return graph

    def find_model(self, task: str) -> MakeModel:
        """How a task is done: a runtime may do some in its own way."""
        return find_model(task)

    def prepare(self, item: TaskInput) -> Prepared:
        """Tokens or pixels of one input."""
        assert self.model is not None
        return self.model.prepare(item)

    def run(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput | ItemError]:
        """Answer a batch; a model whose rows touch each other answers them one by one."""
        assert self.model is not None
        if self.model.max_batch_rows > 1:
            return self.model.answer(batch)
        return [output for prepared in batch for output in self.model.answer([prepared])]

    def close(self) -> None:
        """Free the graphs."""
        self.model = None


class MakeModel(Protocol):
    """A class of `MODEL_BY_TASK`."""

    def __call__(self, open_graph: OpenGraph, bundle: Bundle) -> GraphModel:
        """Open the bundle's graphs and try them out."""
        ...


def find_model(task: str) -> MakeModel:
    """How graphs do a task; only the modules of that task are imported."""
    if task not in MODEL_BY_TASK:
        raise InvalidInput(
            f"this runtime does not do the task {task!r}",
            hint="it does " + ", ".join(MODEL_BY_TASK),
        )
    module, name = MODEL_BY_TASK[task].split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)
