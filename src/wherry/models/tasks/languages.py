"""Languages of a translation: BCP-47 tags of clients ↔ what a model calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from wherry.errors import InvalidInput

TAG = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,7}")
"""BCP-47, with the underscore that models like."""
MOST_TOLD = 20


class LanguageOptions(msgspec.Struct, frozen=True):
    """The part of a bundle's `[options]` that says which languages a model knows."""

    source_language: str = ""
    """What texts are in when a request does not say; without `language_codes` the only one."""
    target_language: str = ""
    """What they become when a request does not say; without `language_codes` the only one."""
    language_codes: dict[str, str] = {}
    """BCP-47 tag → the model's own code, of a model that knows many: `{ fr = "fra_Latn" }`."""


class LanguagePair(msgspec.Struct, frozen=True):
    """The languages of one translation, "" where nobody said."""

    source: str = ""
    """BCP-47 tag."""
    target: str = ""
    source_code: str = ""
    """As the model writes it."""
    target_code: str = ""


def check_tag(value: object, param: str) -> str:
    """`value` if it looks like the tag of a language, or ""; `InvalidInput` otherwise."""
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not TAG.fullmatch(value):
        raise InvalidInput(
            f"{param!r} is no tag of a language",
            hint="BCP-47, for example en, pt-BR or zh-Hans",
            param=param,
        )
    return value


def choose_languages(
    source: str, target: str, options: LanguageOptions, *, takes_any: bool = False
) -> LanguagePair:
    """What a request wants, or else the bundle's.

    Args:
        source: A tag, or "".
        target: The same.
        options: The bundle's.
        takes_any: A model of which no languages are listed takes whatever is wanted.

    Raises:
        InvalidInput: the model does not know a language, or needs to be told one.
    """
    for wanted, usual, param in (
        (source, options.source_language, "source_language"),
        (target, options.target_language, "target_language"),
    ):
        if wanted and not (usual or options.language_codes or takes_any):
            raise InvalidInput(
                f"this model takes no {param!r}: its bundle does not say which languages it knows",
                hint="leave it out",
                param=param,
            )
    source_tag, source_code = _choose(
        source, options.source_language, options.language_codes, "source_language"
    )
    target_tag, target_code = _choose(
        target, options.target_language, options.language_codes, "target_language"
    )
    return LanguagePair(source_tag, target_tag, source_code, target_code)


def _choose(wanted: str, usual: str, codes: Mapping[str, str], param: str) -> tuple[str, str]:
    known = dict(codes)
    if usual and match_tag(usual, codes) is None:
        known[usual] = usual
    if not known or not (wanted or usual):
        return wanted, wanted  # nobody says, or whatever is wanted will do
    tag = match_tag(wanted or usual, known)
    if tag is None:
        raise InvalidInput(
            f"the model does not know the language {wanted!r} as {param}",
            hint=_list(known),
            param=param,
        )
    return tag, known[tag]


def require_language(code: str, param: str, options: LanguageOptions) -> None:
    """`InvalidInput` if neither the request nor the bundle names a language that is needed."""
    if not code:
        raise InvalidInput(f"{param!r} is needed", hint=_list(options.language_codes), param=param)


def match_tag(wanted: str, codes: Mapping[str, str]) -> str | None:
    """The known tag that is meant: the same, the model's code, or the same language at least."""
    plain = _plain(wanted)
    by_plain = {_plain(tag): tag for tag in codes}
    if plain in by_plain:
        return by_plain[plain]
    for tag, code in codes.items():
        if _plain(code) == plain:
            return tag
    # `en-GB` is served by `en`, and `zh` by the first of `zh-Hans` and `zh-Hant`
    main = plain.partition("-")[0]
    return next((tag for known, tag in by_plain.items() if known.partition("-")[0] == main), None)


def _plain(tag: str) -> str:
    return tag.lower().replace("_", "-")


def _list(codes: Mapping[str, str]) -> str:
    told = ", ".join(list(codes)[:MOST_TOLD])
    return f"it knows {told}" + (" …" if len(codes) > MOST_TOLD else "")
