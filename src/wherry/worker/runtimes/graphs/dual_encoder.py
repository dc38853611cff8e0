# pyright: standard
"""Two graphs that put pictures and texts into one space (CLIP and its kin), or one for pictures.

The bundle's first file takes pictures. One that takes texts (option `text_graph`) lies beside it,
with its `tokenizer.json`: vectors of both kinds can then be compared by their angle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle
from wherry.models.tasks.classification import Classification
from wherry.models.tasks.image import ImageInput
from wherry.models.tasks.options import read_options
from wherry.models.tasks.task import TaskOutput, Usage
from wherry.models.tasks.text import Embedding, TextInput, embedding_dimensions
from wherry.models.tasks.zero_shot_image_classification import LabelledPicture
from wherry.worker.runtimes.graphs.graph import Array, OpenGraph
from wherry.worker.runtimes.graphs.pictures import ONE_PICTURE, PictureModel
from wherry.worker.runtimes.graphs.texts import EmbeddingModel
from wherry.worker.runtimes.runtime import Prepared

MAX_KEPT_CAPTIONS = 4096
"""Most vectors of captions that are kept: labels come again with every picture."""


class SpaceOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that is read here."""

    text_graph: str = "text_model.onnx"
    """The file that takes texts, if the bundle has it."""
    text_output: str = ""
    """Name of its output; by default `text_embeds`, else as an embedder of texts has it."""
    picture_pooling: Literal["cls", "mean"] = "cls"
    """How vectors of patches become one of the picture, where the graph does not pool."""
    normalise: bool = True
    """Scale each vector to length 1."""
    function: Literal["softmax", "sigmoid"] = "softmax"
    """What makes scores: `softmax` over the labels (CLIP), `sigmoid` of each by itself (SigLIP)."""
    logit_scale: float = 100.0
    """What the cosine is multiplied with before that."""
    logit_bias: float = 0.0
    """What is added then."""


class CaptionEncoder(EmbeddingModel):
    """The graph that takes texts."""

    outputs = ("text_embeds", *EmbeddingModel.outputs)


class Caption(msgspec.Struct):
    """A text in a batch."""

    ids: Array


def open_captions(open_graph: OpenGraph, bundle: Bundle) -> CaptionEncoder | None:
    """The bundle's graph for texts, as a bundle of its own; None if there is none."""
    options = read_options(bundle.manifest.options, SpaceOptions)
    if options.text_graph not in bundle.manifest.files:
        return None
    own = {**bundle.manifest.options, "output": options.text_output}
    manifest = msgspec.structs.replace(bundle.manifest, files=(options.text_graph,), options=own)
    return CaptionEncoder(open_graph, msgspec.structs.replace(bundle, manifest=manifest))


class SpaceModel(PictureModel):
    """What both tasks share: vectors of pictures."""

    usual_outputs = ("image_embeds", "pooler_output", "last_hidden_state")

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        self.space = read_options(bundle.manifest.options, SpaceOptions)
        super().__init__(open_graph, bundle)
        self.captions = open_captions(open_graph, bundle)
        self._check_dimensions(bundle)
        if self.captions is not None:
            self.max_batch_cost = self.captions.max_batch_cost

    def _check_dimensions(self, bundle: Bundle) -> None:
        own = self.pool(self.trial[0][0]).shape[1]
        stated = embedding_dimensions(bundle.manifest.task_config())
        other = len(self.captions.trial_row) if self.captions is not None else own
        if own != other or stated not in (0, own):
            raise InvalidInput(
                f"vectors of pictures have {own} dimensions, those of texts {other}, and the "
                f"bundle says {stated or 'nothing'}"
            )

    def pool(self, found: Array) -> Array:
        """The graph's output as one vector a picture, [pictures, dimensions]."""
        if found.ndim == 2:
            return found
        if found.ndim == 4:  # a map of features, [pictures, channels, height, width]
            return found.mean(axis=(2, 3))
        if found.ndim != 3:
            raise FormatNotAllowed(
                f"output {self.outputs[0]!r} has {found.ndim} dimensions, not 2 to 4",
                hint="name another with the option 'output'",
            )
        return found[:, 0] if self.space.picture_pooling == "cls" else found.mean(axis=1)

    def embed_pictures(self, pictures: Sequence[Array]) -> Array:
        """Vectors of pictures, float32 [pictures, dimensions]."""
        found = self.pool(self.forward_finite(pictures))
        return unit(found) if self.space.normalise else found


class PictureEmbedder(SpaceModel):
    """The task `image-feature-extraction`; of texts, too, where the bundle has a graph for them."""

    def prepare(self, item: ImageInput | TextInput) -> Prepared:
        """Pixels or tokens; they never share a batch."""
        if isinstance(item, ImageInput):
            numbers = self.pixels.to_numbers(item)
            return Prepared(numbers, group=("picture", numbers.shape))
        if self.captions is None:
            raise InvalidInput("the model takes pictures only", hint='send {"image": …}')
        text = self.captions.prepare(item)
        return Prepared(Caption(text.payload), length=text.length, group=("text", text.group))

    def answer(self, batch: Sequence[Prepared]) -> Sequence[TaskOutput]:
        """One run for all; of texts as many as may share one."""
        payloads = [prepared.payload for prepared in batch]
        if self.captions is None or not isinstance(payloads[0], Caption):
            vectors = self.embed_pictures(payloads)
            return [Embedding(vector=vector, usage=ONE_PICTURE) for vector in vectors]
        texts = [Prepared(payload.ids) for payload in payloads]
        if self.captions.max_batch_rows == 1:
            return [output for text in texts for output in self.captions.answer([text])]
        return self.captions.answer(texts)


class Choice(msgspec.Struct):
    """A picture and the captions to choose from."""

    numbers: Array
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    ids: tuple[Array, ...]
    """Tokens of each caption."""


class PictureChooser(SpaceModel):
    """The task `zero-shot-image-classification`."""

    def __init__(self, open_graph: OpenGraph, bundle: Bundle) -> None:
        super().__init__(open_graph, bundle)
        if self.captions is None:
            raise InvalidInput(
                "the bundle has no graph for texts",
                hint=f"add {self.space.text_graph!r} to files, or name it with 'text_graph'",
            )
        self._texts: CaptionEncoder = self.captions
        self._kept: OrderedDict[str, Array] = OrderedDict()
        self.max_batch_cost = 0

    def prepare(self, item: LabelledPicture) -> Prepared:
        """Pixels, and tokens of each caption."""
        numbers = self.pixels.to_numbers(item.picture)
        captions = item.captions
        ids = tuple(self._texts.prepare(TextInput(each)).payload for each in captions)
        return Prepared(Choice(numbers, item.labels, captions, ids), group=numbers.shape)

    def answer(self, batch: Sequence[Prepared]) -> list[TaskOutput]:
        """One run for all pictures; one more for each new caption."""
        choices: list[Choice] = [prepared.payload for prepared in batch]
        pictures = unit(self.embed_pictures([choice.numbers for choice in choices]))
        return [
            self._choose(picture, choice) for picture, choice in zip(pictures, choices, strict=True)
        ]

    def _choose(self, picture: Array, choice: Choice) -> Classification:
        captions = zip(choice.captions, choice.ids, strict=True)
        texts = np.stack([self._embed_caption(caption, ids) for caption, ids in captions])
        logits = texts @ picture * self.space.logit_scale + self.space.logit_bias
        tokens = sum(map(len, choice.ids))
        return Classification(
            labels=choice.labels,
            scores=self._score(logits).astype(np.float32),
            usage=Usage(input_tokens=tokens, rows=1),
        )

    def _score(self, logits: Array) -> Array:
        if self.space.function == "sigmoid":
            return 0.5 * (1.0 + np.tanh(0.5 * logits))  # never overflows
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    def _embed_caption(self, caption: str, ids: Array) -> Array:
        """The caption's vector of length 1, kept for the next pictures."""
        vector = self._kept.pop(caption, None)
        if vector is None:
            (output,) = self._texts.answer([Prepared(ids)])
            assert isinstance(output, Embedding)
            vector = unit(output.vector)
        self._kept[caption] = vector
        if len(self._kept) > MAX_KEPT_CAPTIONS:
            self._kept.popitem(last=False)
        return vector


def unit(vectors: Array) -> Array:
    """Vectors scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
