"""A bundle's `[options]` as structs, each read where it is used."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from wherry.errors import InvalidInput
from wherry.models.bundle import Bundle

Options = TypeVar("Options")


def read_options(bundle: Bundle, kind: type[Options]) -> Options:
    """The bundle's options as a struct; others than the struct's belong to someone else."""
    try:
        return msgspec.convert(bundle.manifest.options, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an option of the bundle is wrong: {error}") from error
