# pyright: standard
"""Graphs that tell the future of a series: a window in, a block out.

The first input is [series, context] or [series, context, features]: the target, and then the bundle's
`covariates`. A second one of the name `future` or `future_covariates`, [series, block, covariates], takes
what is known of the future; one named `mask` or `attention_mask` takes ones. The first output is [series,
steps] or, with the option `levels`, [series, steps, levels]. Options: see `forecasts.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.forecasting import Forecast, ForecastInput
from wherry.worker.runtimes.forecasts.blocks import BlockForecaster, read_block_options
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph, trial
from wherry.worker.runtimes.runtime import Prepared

FUTURE = frozenset({"future", "future_covariates"})
MASKS = frozenset({"mask", "attention_mask"})


class ForecastModel:
    """The task `time-series-forecasting`."""

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.graph = open_graph(bundle.main_file)
        options = read_block_options(bundle.manifest.options)
        self.window, *others = self.graph.inputs
        if len(self.window.shape) not in (2, 3) or self.window.dtype.kind != "f":
            raise FormatNotAllowed(
                f"{self.window.name!r} of {self.graph.file_name!r} is no window of numbers",
                hint="[series, context] or [series, context, features]",
            )
        if unknown := {each.name for each in others} - FUTURE - MASKS:
            raise FormatNotAllowed(f"the graph takes {min(unknown)!r}, which no series has")
        self.others = others
        fixed = self.window.shape[1]
        context = options.context or (fixed if isinstance(fixed, int) else 0)
        if not context or (isinstance(fixed, int) and fixed != context):
            raise InvalidInput(
                f"the graph's window is {fixed}, the bundle's context {options.context}",
                hint="say how many values the model sees with the option 'context'",
            )
        if len(self.window.shape) == 2 and options.covariates:
            raise InvalidInput("the graph's window has no place for covariates")
        self.max_batch_rows = 64 if self.window.has_free_rows else 1
        options = msgspec.structs.replace(options, context=context)
        self.forecaster = BlockForecaster(options, self._step)
        with trial(self.graph):
            found = self.forecaster.try_out()
        self.forecaster.take_form(found)

    def _step(self, windows: Array, future: Array | None) -> Array:
        if not self.window.has_free_rows and len(windows) > 1:
            parts = [
                self._step(
                    windows[row : row + 1], None if future is None else future[row : row + 1]
                )
                for row in range(len(windows))
            ]
            return np.concatenate(parts)
        values = windows if len(self.window.shape) == 3 else windows[:, :, 0]
        feeds = {self.window.name: values.astype(self.window.dtype)}
        for each in self.others:
            if each.name in MASKS:
                feeds[each.name] = np.ones(windows.shape[:2], dtype=each.dtype)
            else:
                feeds[each.name] = self._future(each.shape, windows, future).astype(each.dtype)
        found = self.graph.run(feeds, [self.graph.outputs[0].name])[0]
        return found[:, :, 0] if found.ndim == 3 and found.shape[2] == 1 else found

    def _future(self, shape: Sequence[object], windows: Array, future: Array | None) -> Array:
        if future is not None:
            return future
        steps = shape[1] if len(shape) == 3 and isinstance(shape[1], int) else 1
        return np.zeros((len(windows), steps, windows.shape[2] - 1))  # before the block is known

    def prepare(self, item: ForecastInput) -> Prepared:
        """Refuse what the graph cannot use; safe in many threads."""
        self.forecaster.check(item)
        return Prepared(item, rows=max(1, len(item.series)))

    def answer(self, batch: Sequence[Prepared]) -> list[Forecast]:
        """All series of all requests, block by block."""
        return self.forecaster.answer([prepared.payload for prepared in batch])
