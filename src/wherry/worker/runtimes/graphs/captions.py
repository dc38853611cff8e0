# pyright: standard
"""Pairs of graphs that write of a picture: an encoder that sees it, a decoder that tells.

TrOCR reads a line of text, others say what is to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wherry.models.bundle import Bundle
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.image_to_text import ImageText
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput
from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph, trial
from wherry.worker.runtimes.graphs.pair import Pair, read_generation_config
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE
from wherry.worker.runtimes.graphs.pixels import Pixels
from wherry.worker.runtimes.runtime import Prepared
from wherry.worker.runtimes.sequence_text import open_sequence_text

MAX_BATCH_PICTURES = 8
"""Beyond, the encoder gains nothing and the decoder waits for the longest answer."""
MAX_TOKENS = 64
TRIAL = Decoding(max_tokens=2, num_beams=1)


class CaptionModel:
    """The task `image-to-text`, for pictures that are read as a whole.

    The settings of `Decoding` may stand in the bundle's `[options]`.
    """

    max_batch_cost = 0

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self._pair = Pair(open_graph, bundle)
        self.graph = self._pair.encoder
        self._pixels = Pixels(self.graph.inputs[0], bundle)
        self._config = read_generation_config(bundle.folder)
        self._decoding = read_options(bundle.manifest.options, Decoding)
        self._words = open_sequence_text(bundle.folder, adds_end=True, language_codes=())
        self.max_batch_rows = MAX_BATCH_PICTURES
        with trial(self.graph):
            self._tell(self._pixels.trial_pictures()[:1], TRIAL)

    def prepare(self, item: ImageInput) -> Prepared:
        """The picture's numbers; only those of one shape share a batch."""
        numbers = self._pixels.to_numbers(item)
        return Prepared(numbers, group=numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """A text a picture."""
        texts = self._tell([prepared.payload for prepared in batch], self._decoding)
        return [ImageText(text=text, usage=ONE_PICTURE) for text in texts]

    def _tell(self, pictures: Sequence[Array], decoding: Decoding) -> list[str]:
        states = self._pair.read({self.graph.inputs[0].name: np.stack(pictures)})
        mask = np.ones(states.shape[:2], np.int64)
        most = decoding.max_tokens or MAX_TOKENS
        found = self._pair.search(states, mask, decoding, self._config, most)
        return [self._text_of(each.ids) for each in found]

    def _text_of(self, ids: Sequence[int]) -> str:
        tokens = [self._words.token_of(each) for each in ids]
        return self._words.decode(tokens).strip()
