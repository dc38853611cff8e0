# pyright: standard, reportMissingImports=false
"""Runtime `transformers`: Hugging Face folders with weights as safetensors.

Encoders of texts do what they do as ONNX files, by the same code (`graphs`): only the numbers come
from PyTorch. Translation and summarization are searched for by transformers' own `generate`. Language
models: `transformers_generation`. Options: `TransformersOptions` and those of the task.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.languages import LanguagePair
from wherry.models.tasks.text_to_text import Decoding
from wherry.worker.runtimes.graphs.graph import Array, Graph, GraphTensor, OpenGraph
from wherry.worker.runtimes.graphs.runtime import GraphRuntime, MakeModel
from wherry.worker.runtimes.text_to_text import TASKS, Generated, TextToTextModel, Tokens
from wherry.worker.runtimes.transformers_folder import open_model, open_tokenizer

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "last_hidden_state")
SETTINGS = ("num_beams", "length_penalty", "no_repeat_ngram_size")


class TransformersRuntime(GraphRuntime):
    """One model. One thread computes; more workers serve more."""

    def __init__(self) -> None:
        super().__init__()
        self._bundle: Bundle | None = None

    def load(self, bundle: Bundle, device: str) -> None:
        """Open the folder and answer a trial input."""
        self._bundle = bundle
        super().load(bundle, device)

    def find_model(self, task: str) -> MakeModel:
        """As graphs do it, but for what needs a search."""
        return SearchingModel if task in TASKS else super().find_model(task)

    def open_graph(self, path: Path, device: str) -> Graph:
        """The whole model as one graph."""
        assert self._bundle is not None
        return TorchGraph(open_model(self._bundle, device), path.name)


class TorchGraph(Graph):
    """A model of PyTorch, seen as a graph of named tensors."""

    def __init__(self, model: Any, file_name: str) -> None:
        self.model = model
        self._computed = _encoder_of(model)
        names = [name for name in TEXT_INPUTS if name in _arguments_of(self._computed)]
        shape = ("texts", "tokens")
        super().__init__(
            file_name,
            [GraphTensor(name, "INT64", shape) for name in names],
            [GraphTensor(name, "FP32", ("texts", None, None)) for name in OUTPUTS],
        )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """See `Graph.run`; a model has one of the outputs, whatever it is called."""
        device = self.model.device
        try:
            with torch.inference_mode():
                given = {name: torch.from_numpy(each).to(device) for name, each in feeds.items()}
                found = self._computed(**given, return_dict=True)
        except IndexError as error:
            raise InvalidInput("the input has a token that the model does not know") from error
        except RuntimeError as error:
            raise ModelFailed("the model failed on this input") from error
        value = next(found[name] for name in OUTPUTS if name in found)
        return [value.float().cpu().numpy()]


class SearchingModel(TextToTextModel):
    """The tasks `translation` and `summarization`, by `generate`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(bundle)
        graph = open_graph(bundle.main_file)
        assert isinstance(graph, TorchGraph)
        self.graph: Graph = graph
        self._model = graph.model
        self._tokenizer = open_tokenizer(bundle.main_file.parent)
        self._tokenizing = threading.Lock()  # the tokenizer is told the language before each text
        self._check_languages()
        self.try_out()

    def encode(self, text: str, pair: LanguagePair) -> Tokens:
        """See `TextToTextModel.encode`."""
        with self._tokenizing:
            if self.options.language_tokens:
                self._tokenizer.src_lang = pair.source_code
            return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, tokens: Tokens, pair: LanguagePair) -> str:
        """See `TextToTextModel.decode`."""
        with self._tokenizing:
            return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def generate(
        self, sources: Sequence[Tokens], pair: LanguagePair, decoding: Decoding
    ) -> list[Generated]:
        """See `TextToTextModel.generate`."""
        settings: dict[str, Any] = {
            name: value for name in SETTINGS if (value := getattr(decoding, name)) is not None
        }
        forced = 0
        if self.options.language_tokens and pair.target_code:
            forced = 1
            number = self._tokenizer.convert_tokens_to_ids(pair.target_code)
            settings["forced_bos_token_id"] = number
        most = (decoding.max_tokens or self.options.max_tokens) + forced
        if decoding.min_tokens is not None:
            settings["min_new_tokens"] = decoding.min_tokens + forced
        ids, mask = self._pad(sources)
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, **settings
            )
        return [self._answer_of(row, forced, most) for row in found.tolist()]

    def _pad(self, sources: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, sources))
        pad = self._tokenizer.pad_token_id or 0
        device = self._model.device
        ids = torch.full((len(sources), longest), pad, device=device)
        mask = torch.zeros((len(sources), longest), dtype=torch.long, device=device)
        for row, source in enumerate(sources):
            ids[row, : len(source)] = torch.tensor(source, device=device)
            mask[row, : len(source)] = 1
        return ids, mask

    def _answer_of(self, row: list[int], forced: int, most: int) -> Generated:
        """Without the start, and without what fills rows that ended earlier than others."""
        ids, ends = row[1:], self._end_ids()
        length = next((at + 1 for at, each in enumerate(ids) if each in ends), None)
        return Generated(ids[forced : length or most], is_cut=length is None)

    def _end_ids(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    def _check_languages(self) -> None:
        codes = self.languages.language_codes.values() if self.options.language_tokens else ()
        unknown = self._tokenizer.unk_token_id
        for code in codes:
            if self._tokenizer.convert_tokens_to_ids(code) in (None, unknown):
                raise InvalidInput(f"the tokenizer has no language {code!r}")


def _encoder_of(model: Any) -> Any:
    """What encodes a text: of a model with a decoder but no head, its encoder."""
    if model.config.is_encoder_decoder and not hasattr(model, "lm_head"):
        return model.get_encoder() if "Model" in type(model).__name__[-5:] else model
    return model


def _arguments_of(model: Any) -> set[str]:
    found = set(inspect.signature(model.forward).parameters)
    if getattr(model.config, "type_vocab_size", 2) < 2:
        found.discard("token_type_ids")
    return found
