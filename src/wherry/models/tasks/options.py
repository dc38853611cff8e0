"""A bundle's `[options]` as structs, each read where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from wherry.errors import InvalidInput

Options = TypeVar("Options")


def read_options(options: Mapping[str, Any], kind: type[Options]) -> Options:
    """The options as a struct; others than the struct's belong to someone else.

    Raises:
        InvalidInput: names an option that is wrong.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an option of the bundle is wrong: {error}") from error
