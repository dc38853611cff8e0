"""The task `recommendation`: what a user may like next, or what is like an item.

Who asks is said by exactly one of: a `user` that the model knows, the `history` of one that it does
not, an `item` to find others like it. An empty history asks for what is popular.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from wherry.errors import InvalidInput
from wherry.models.tasks.task import Signature, TaskConfig, TaskOutput, Tensors, TensorSpec

DEFAULT_TOP_K = 10
MAX_TOP_K = 1000
MAX_HISTORY = 10_000
MAX_USERS = 1 << 16
"""Most users in one tensor."""

Id = Annotated[str, Meta(min_length=1, max_length=256)]
"""Of a user or an item, as the data that the model learnt from has it."""


class RecommendationInput(msgspec.Struct, forbid_unknown_fields=True):
    """One question."""

    user: Id | None = None
    history: Annotated[list[Id], Meta(max_length=MAX_HISTORY)] | None = None
    """Items that a user without a name liked."""
    item: Id | None = None
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] = DEFAULT_TOP_K
    """Most items to tell."""
    exclude_seen: bool = True
    """Leave out what the user, or the history, has already."""
    exclude: Annotated[list[Id], Meta(max_length=MAX_HISTORY)] = []
    """Items that are not to be told, for whatever reason."""


class Recommended(msgspec.Struct):
    """One item."""

    id: str
    score: float
    """Higher is better; comparable within one answer only."""
    title: str = ""


class Recommendation(TaskOutput, kw_only=True):
    """An answer."""

    items: list[Recommended]
    """The best first."""
    basis: Literal["user", "history", "item", "popularity"]
    """What the answer rests on. A user that the model does not know gets what is popular."""


class RecommendationTask:
    """Questions in, items out."""

    name = "recommendation"
    input_type = RecommendationInput
    output_type = Recommendation

    def signature(self, config: TaskConfig) -> Signature:
        """Users in; items and scores out, as many as the bundle's option `top_k` says."""
        top_k = _top_k(config)
        return Signature(
            (TensorSpec("user", "BYTES", (-1,)),),
            (TensorSpec("items", "BYTES", (-1, top_k)), TensorSpec("scores", "FP32", (-1, top_k))),
        )

    def from_tensors(self, tensors: Tensors, config: TaskConfig) -> list[RecommendationInput]:
        """One question for each element of the tensor `user`."""
        users = tensors.get("user")
        if users is None or len(tensors) != 1:
            raise InvalidInput(
                f"the model takes one input tensor 'user', not {sorted(tensors)!r}", param="user"
            )
        if users.dtype != object or users.size > MAX_USERS:
            raise InvalidInput(f"'user' must be BYTES, at most {MAX_USERS}", param="user")
        return [_ask({"user": _text_of(each)}, config) for each in users.reshape(-1)]

    def to_tensors(
        self, outputs: Sequence[Recommendation], config: TaskConfig
    ) -> dict[str, np.ndarray]:
        """A row a question, filled up with items without a name."""
        top_k = _top_k(config)
        items = np.full((len(outputs), top_k), b"", dtype=object)
        scores = np.zeros((len(outputs), top_k), dtype=np.float32)
        for row, output in enumerate(outputs):
            for column, item in enumerate(output.items[:top_k]):
                items[row, column], scores[row, column] = item.id.encode(), item.score
        return {"items": items, "scores": scores}

    def from_plain(self, body: Mapping[str, Any], config: TaskConfig) -> RecommendationInput:
        """`{"user": "42"}`, `{"history": ["1", "7"]}` or `{"item": "1"}`, and how many."""
        return _ask(body, config)

    def to_plain(self, output: Recommendation, config: TaskConfig) -> dict[str, Any]:
        """`{"items": [{"id", "title", "score"}], "basis"}`."""
        items = [{"id": each.id, "title": each.title, "score": each.score} for each in output.items]
        return {
            "prediction": [each.id for each in output.items],
            "items": items,
            "basis": output.basis,
        }


RECOMMENDATION = RecommendationTask()


def _ask(body: Mapping[str, Any], config: TaskConfig) -> RecommendationInput:
    try:
        asked = msgspec.convert({"top_k": _top_k(config), **body}, RecommendationInput)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"not a question of a recommender: {error}",
            hint='for example {"user": "42", "top_k": 5}',
        ) from error
    given = [name for name in ("user", "history", "item") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise InvalidInput(
            f"exactly one of 'user', 'history' and 'item' is needed, not {given!r}",
            hint='for example {"user": "42", "top_k": 5}',
            param=given[1] if given else "user",
        )
    return asked


def _top_k(config: TaskConfig) -> int:
    stated = config.options.get("top_k", DEFAULT_TOP_K)
    return stated if isinstance(stated, int) and 0 < stated <= MAX_TOP_K else DEFAULT_TOP_K


def _text_of(value: object) -> str:
    try:
        return bytes(value).decode() if isinstance(value, bytes | bytearray) else str(value)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"a user is not valid UTF-8: {error}", param="user") from error
