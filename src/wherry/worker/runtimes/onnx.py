"""Runtime `onnx`: what a graph does for a task is in `wherry.worker.runtimes.graphs`."""

from __future__ import annotations

from pathlib import Path

from wherry.worker.runtimes.graphs.graph import Graph
from wherry.worker.runtimes.graphs.runtime import GraphRuntime
from wherry.worker.runtimes.onnx_graph import open_graph


class OnnxRuntime(GraphRuntime):
    """One graph, or a few. One thread computes; more workers serve more."""

    def open_graph(self, path: Path, device: str) -> Graph:
        """An ONNX file in a session of its own."""
        return open_graph(path, device)
