"""Wherry: a model from data to a governed API.

`from wherry import Client` talks to a server; nothing of the server is imported by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherry.client import AsyncClient, Client, import_model

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "import_model"]


def __getattr__(name: str) -> Any:
    """Load the SDK on first use, so that `import wherry` stays instant in every process."""
    if name in ("Client", "AsyncClient", "import_model"):
        from wherry import client

        return getattr(client, name)
    raise AttributeError(f"module 'wherry' has no attribute {name!r}")
