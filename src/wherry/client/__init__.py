"""The Python SDK: `Client`, `AsyncClient`, `import_model`.

The server imports `wherry.client.schema`, so the rest loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.client.answers import ChatAnswer, ChatUsage
    from wherry.client.async_client import AsyncClient
    from wherry.client.client import Client, import_model

__all__ = ["AsyncClient", "ChatAnswer", "ChatUsage", "Client", "import_model"]

_module_by_name = {
    "AsyncClient": "wherry.client.async_client",
    "ChatAnswer": "wherry.client.answers",
    "ChatUsage": "wherry.client.answers",
    "Client": "wherry.client.client",
    "import_model": "wherry.client.client",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for."""
    if name in _module_by_name:
        return getattr(import_module(_module_by_name[name]), name)
    raise AttributeError(f"module 'wherry.client' has no attribute {name!r}")
