"""The Python SDK: `Client`, `AsyncClient`, `import_model`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wherry.client.answers import ChatAnswer, ChatUsage
from wherry.client.async_client import AsyncClient
from wherry.client.calls.jobs import OnProgress
from wherry.client.client import Client
from wherry.client.schema import Version

__all__ = ["AsyncClient", "ChatAnswer", "ChatUsage", "Client", "import_model"]


def import_model(
    model_or_path: object,
    *,
    name: str,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    sample: Any = None,
    alias: str | None = None,
    on_progress: OnProgress | None = None,
) -> Version:
    """Make a version of a fitted model, a file or a folder, on the server that `Client()` finds.

    Args:
        model_or_path: an object (e.g. a scikit-learn pipeline), or a path.
        name: name of the model.
        task: what it does, where the model does not say.
        labels: names of its classes, in the order of its outputs.
        sample: one input, or a few rows.
        alias: let this alias point to the new version.
        on_progress: called while it is uploaded and imported.
    """
    with Client() as client:
        return client.models.import_model(
            model_or_path,
            name=name,
            task=task,
            labels=labels,
            sample=sample,
            alias=alias,
            on_progress=on_progress,
        )
