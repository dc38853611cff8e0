"""A file in a JSON body: base64, or a `data:` URL of it."""

from __future__ import annotations

import base64
import binascii

from wherry.errors import InvalidInput


def decode_file(text: str, param: str, what: str) -> bytes:
    """The file's bytes; `param` is the field that holds it, `what` is what people call it."""
    if text[:8].lower().startswith(("http://", "https://")):
        raise InvalidInput(
            f"{param!r} is a link, and the server fetches none",
            hint=f"download the {what} and send its bytes as base64",
            param=param,
        )
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.lower().endswith(";base64"):
            raise InvalidInput("a data: URL must be base64", param=param)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{param!r} is not valid base64: {error}", param=param) from error
