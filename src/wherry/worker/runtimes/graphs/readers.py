"""Two ways in which graphs read pictures: line by line, or as a whole."""

from __future__ import annotations

from wherry.models.bundle import Bundle
from wherry.worker.runtimes.graphs.graph import OpenGraph
from wherry.worker.runtimes.graphs.pair import is_pair
from wherry.worker.runtimes.graphs.runtime import GraphModel


def open_reader(open_graph: OpenGraph, bundle: Bundle) -> GraphModel:
    """The task `image-to-text`, as the bundle's files can do it."""
    # each way needs packages that the other does not
    if is_pair(bundle.manifest.files):
        from wherry.worker.runtimes.graphs.captions import CaptionModel

        return CaptionModel(open_graph, bundle)
    from wherry.worker.runtimes.graphs.ocr import OcrModel

    return OcrModel(open_graph, bundle)
