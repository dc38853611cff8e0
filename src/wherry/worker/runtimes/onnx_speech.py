"""Runtime `onnx` for speech: its answers stream, so that they are not batched."""

from __future__ import annotations

from pathlib import Path

from wherry.worker.runtimes.graphs.graph import Graph
from wherry.worker.runtimes.graphs.speech import SpeechRuntime
from wherry.worker.runtimes.onnx_graph import open_graph


class OnnxSpeechRuntime(SpeechRuntime):
    """A pair of graphs that hears."""

    def open_graph(self, path: Path, device: str) -> Graph:
        """An ONNX file in a session of its own."""
        return open_graph(path, device)
