# pyright: standard
"""Pairs of graphs that make a text of a text: an encoder that reads it, a decoder that writes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from wherry.models.bundle import Bundle
from wherry.models.tasks.languages import LanguagePair
from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.graphs.beams import Found, GenerationConfig
from wherry.worker.runtimes.graphs.graph import OpenGraph, trial
from wherry.worker.runtimes.graphs.pair import Pair, read_generation_config
from wherry.worker.runtimes.graphs.text_encoder import pad_ids
from wherry.worker.runtimes.sequence_text import open_sequence_text
from wherry.worker.runtimes.text_to_text import Generated, TextToTextModel, Tokens


class PairModel(TextToTextModel):
    """The tasks `translation` and `summarization`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._pair = Pair(open_graph, bundle)
        self.graph = self._pair.encoder
        self._config = read_generation_config(bundle.folder)
        codes = list(self.languages.language_codes.values())
        self._words = open_sequence_text(
            bundle.folder,
            adds_end=True,
            language_codes=codes if self.options.language_tokens else (),
        )
        with trial(self.graph):
            self.try_out()

    def encode(self, text: str, pair: LanguagePair) -> Tokens:
        """See `TextToTextModel.encode`."""
        return [self._words.id_of(token) for token in self._words.encode(text, pair)]

    def decode(self, tokens: Tokens, pair: LanguagePair) -> str:
        """See `TextToTextModel.decode`."""
        return self._words.decode([self._words.token_of(each) for each in tokens])

    def generate(
        self, sources: Sequence[Tokens], pair: LanguagePair, decoding: Decoding
    ) -> list[Generated]:
        """See `TextToTextModel.generate`."""
        config, forced = self._config, 0
        if self.options.language_tokens and pair.target_code:
            number, forced = self._words.id_of(pair.target_code), 1
            config = _with_first(config, number)
        rows = [np.array(source, dtype=np.int64) for source in sources]
        ids, mask = pad_ids(rows, config.pad_token_id)
        states = self._pair.read({"input_ids": ids, "attention_mask": mask})
        most = (decoding.max_tokens or self.options.max_tokens) + forced
        found = self._pair.search(states, mask, decoding, config, most)
        return [_answer_of(each, forced) for each in found]


def _with_first(config: GenerationConfig, token: int) -> GenerationConfig:
    return msgspec.structs.replace(config, forced_bos_token_id=token)


def _answer_of(found: Found, forced: int) -> Generated:
    ids = found.ids[forced:]
    return Generated(list(ids), is_cut=not found.has_ended)
