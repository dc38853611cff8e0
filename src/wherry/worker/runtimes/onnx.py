# pyright: standard
"""ONNX models with onnxruntime: arrays, encoders of texts, classifiers of pictures.

The bundle's first file is the graph. Options are documented where they are read: `OnnxTexts`
(`max_tokens`, `truncate`, `pooling`, `normalise`), `ScoreHead` (`function`), `OnnxImages`
(`pixel_scale`, `mean`, `std`, `layout`) and the image task (`image_size`, `image_mode`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.task import Signature, TaskInput, TaskOutput
from wherry.worker.runtimes.calibration import Calibration, to_report
from wherry.worker.runtimes.onnx_graph import Graph, open_graph
from wherry.worker.runtimes.runtime import ItemError, Prepared


class OnnxModel(Protocol):
    """A graph that does a task; built, and tried out, at load."""

    max_batch_rows: int
    max_batch_cost: int

    def prepare(self, item: Any) -> Prepared:
        """See `BatchRuntime.prepare`."""
        ...

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One answer an item, in order; never more than `max_batch_rows` unless joining is safe."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A model whose batches are chosen by measuring."""

    spare_padding: float

    def calibrate(self, known: object, device: str) -> Calibration | None:
        """Take what is known, or measure; None if nothing is to be chosen."""
        ...


class OnnxRuntime:
    """One graph. One thread computes; more workers serve more."""

    max_batch_rows = 64
    max_batch_cost = 0
    spare_padding = -1.0
    joins_rows = False
    signature = Signature()
    """The graph's own tensors, once it is loaded."""

    def __init__(self) -> None:
        self.calibration: dict[str, Any] = {}
        """What was measured at load, for `wherry show` and the next load."""
        self._known: object = None

    def configure(self, *, secrets: dict[str, str], options: dict[str, Any]) -> None:
        """Take the calibration of an earlier load, if there is one."""
        self._known = options.get("calibration")

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the graph and answer a trial input: a file that opens may still not run."""
        build = find_model(bundle.manifest.task)
        graph = open_graph(bundle.main_file, device)
        self.model: OnnxModel | None = build(graph, bundle)
        self.signature = graph.signature
        self.max_batch_rows = self.model.max_batch_rows
        self.joins_rows = bundle.manifest.task == "tensor" and self.max_batch_rows > 1
        if bundle.manifest.max_batch_rows:
            self.max_batch_rows = min(self.max_batch_rows, bundle.manifest.max_batch_rows)
        if isinstance(self.model, Calibrated):
            found = self.model.calibrate(self._known, device)
            self.calibration = to_report(found, self.max_batch_rows, device)
            self.spare_padding = self.model.spare_padding
        self.max_batch_cost = self.model.max_batch_cost

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
        """Free the graph."""
        self.model = None


def find_model(task: str) -> Callable[[Graph, Bundle], OnnxModel]:
    """How graphs do a task; only the modules of that task are imported."""
    if task == "tensor":
        from wherry.worker.runtimes.onnx_tensors import OnnxTensors

        return OnnxTensors
    if task == "feature-extraction":
        from wherry.worker.runtimes.onnx_texts import OnnxEmbeddings

        return OnnxEmbeddings
    if task == "text-classification":
        from wherry.worker.runtimes.onnx_texts import OnnxTextClassifier

        return OnnxTextClassifier
    if task == "image-classification":
        from wherry.worker.runtimes.onnx_images import OnnxImages

        return OnnxImages
    raise InvalidInput(
        f"the onnx runtime does not do the task {task!r}",
        hint="it does tensor, feature-extraction, text-classification, image-classification",
    )
