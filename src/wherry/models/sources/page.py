"""Pages of package indexes: read whole, but bounded, and with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from wherry.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import httpx

MAX_PAGE_BYTES = 64 << 20
ABSENT = (401, 403, 404, 410)
"""Statuses by which an index says that it does not have, or not give, a package."""


class Page(NamedTuple):
    """An answer of an index."""

    url: str
    """After redirects."""
    kind: str
    """Content type."""
    data: bytes


def read_page(
    client: httpx.Client, url: str, *, package: str, headers: Mapping[str, str], how_to_check: str
) -> Page | None:
    """The page of a package; None if the index does not know it.

    `how_to_check` is the command that shows which index is used, for the error's hint.

    Raises:
        InvalidInput: the page is too large.
        Unavailable: the index did not answer, or with an error.
    """
    import httpx

    try:
        with client.stream("GET", url, headers=dict(headers)) as response:
            if response.status_code in ABSENT:
                return None
            if response.status_code != 200:
                raise Unavailable(
                    f"the package index answered for {package!r} with status {response.status_code}"
                )
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_PAGE_BYTES:
                    raise InvalidInput(f"the index page of {package!r} is too large")
            kind = response.headers.get("content-type", "text/html")
            return Page(str(response.url), kind, bytes(data))
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unavailable(
            f"the package index cannot be reached: {error or type(error).__name__}",
            hint=f"check the network, and `{how_to_check}`",
        ) from error
