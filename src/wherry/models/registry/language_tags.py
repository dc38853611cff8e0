"""What models call languages, as BCP-47 tags."""

from __future__ import annotations

import re
from collections.abc import Iterable

NLLB = re.compile(r"([a-z]{3})_([A-Z][a-z]{3})")
MBART = re.compile(r"([a-z]{2})_[A-Z]{2}")
MARIAN = re.compile(r">>([A-Za-z_]{2,12})<<")
LEAST_LANGUAGES = 2

TWO_LETTERS: dict[str, str] = {
    "afr": "af", "amh": "am", "ara": "ar", "arb": "ar", "asm": "as", "azj": "az", "bel": "be",
    "ben": "bn", "bos": "bs", "bul": "bg", "cat": "ca", "ces": "cs", "cym": "cy", "dan": "da",
    "deu": "de", "ell": "el", "eng": "en", "epo": "eo", "est": "et", "eus": "eu", "fao": "fo",
    "fas": "fa", "fin": "fi", "fra": "fr", "gle": "ga", "glg": "gl", "guj": "gu", "hat": "ht",
    "hau": "ha", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "ibo": "ig",
    "ind": "id", "isl": "is", "ita": "it", "jav": "jv", "jpn": "ja", "kan": "kn", "kat": "ka",
    "kaz": "kk", "khm": "km", "kir": "ky", "kor": "ko", "lao": "lo", "lat": "la", "lit": "lt",
    "ltz": "lb", "lvs": "lv", "mal": "ml", "mar": "mr", "mkd": "mk", "mlt": "mt", "mya": "my",
    "nld": "nl", "nno": "nn", "nob": "nb", "npi": "ne", "oci": "oc", "pan": "pa", "pbt": "ps",
    "pes": "fa", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "sin": "si", "slk": "sk",
    "slv": "sl", "som": "so", "spa": "es", "srp": "sr", "sun": "su", "swe": "sv", "swh": "sw",
    "tam": "ta", "tat": "tt", "tel": "te", "tgk": "tg", "tgl": "tl", "tha": "th", "tur": "tr",
    "uig": "ug", "ukr": "uk", "urd": "ur", "uzn": "uz", "vie": "vi", "xho": "xh", "yor": "yo",
    "zho": "zh", "zsm": "ms", "zul": "zu",
}  # fmt: skip
"""ISO 639-3, of the languages that models mostly know → ISO 639-1."""


def tag_of(code: str) -> str:
    """`eng` → `en`; what is not known stays."""
    return TWO_LETTERS.get(code, code)


def find_languages(tokens: Iterable[str]) -> dict[str, str]:
    """BCP-47 tag → token, of the tokens that stand for languages as NLLB and mBART write them."""
    codes: dict[str, str] = {}
    scripts: dict[str, list[str]] = {}
    for token in tokens:
        if found := NLLB.fullmatch(token):
            scripts.setdefault(tag_of(found[1]), []).append(token)
        elif found := MBART.fullmatch(token):
            codes.setdefault(found[1], token)
    for tag, written in scripts.items():
        if len(written) == 1:
            codes.setdefault(tag, written[0])
        else:  # a language with several scripts: `zh-Hans` and `zh-Hant`
            codes |= {f"{tag}-{token.partition('_')[2]}": token for token in written}
    return codes if len(codes) >= LEAST_LANGUAGES else {}


def find_marian_targets(tokens: Iterable[str]) -> dict[str, str]:
    """BCP-47 tag → code, of Marian's models of many targets, whose texts begin with `>>fr<<`."""
    found = [match[1] for token in tokens if (match := MARIAN.fullmatch(token))]
    return {tag_of(code).replace("_", "-"): code for code in sorted(found)}
