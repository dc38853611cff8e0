"""Names of models and aliases, and references such as `model@3`."""

from __future__ import annotations

import re

from wherry.client import schema
from wherry.errors import InvalidInput

NAME = re.compile(schema.NAME)


def check_name(name: str, what: str) -> None:
    """`InvalidInput` unless it may name a model or an alias."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} cannot name a {what}",
            hint="up to 63 small letters, digits, '.', '_' and '-', the first a letter or digit",
        )


def check_alias(alias: str) -> None:
    """`InvalidInput` unless it may name an alias; digits alone would look like a version."""
    check_name(alias, "alias")
    if alias.isdecimal():
        raise InvalidInput(f"the alias {alias!r} would look like a version's number")


def parse_ref(ref: str) -> tuple[str, str]:
    """`model@selector` in two parts; the selector is empty for the newest version."""
    name, at, selector = ref.partition("@")
    if not NAME.fullmatch(name) or (at and not NAME.fullmatch(selector)):
        raise InvalidInput(
            f"{ref[:160]!r} is not a model's name", hint="use model, model@3 or model@alias"
        )
    return name, selector
