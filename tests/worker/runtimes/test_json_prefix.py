import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.worker.runtimes.json_prefix import JsonPrefix

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, st.integers(min_value=1, max_value=5), st.booleans(), st.integers(0, 1))
def test_every_beginning_of_json_passes(value: object, size: int, ascii: bool, gap: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=gap or None)
    prefix = JsonPrefix()
    assert all(prefix.take(text[at : at + size]) for at in range(0, len(text), size))


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "[[Paris",
        '{"a": 1} and',
        "[1,, 2",
        "[,",
        "{,",
        '{"a" 1',
        "{1",
        "[1}",
        '{"a": 1]',
        "]",
        "01",
        "1.5.2",
        "--1",
        "nul1",
        "trueish",
        '"a\nb',
        '"\\x',
        '{"a": 1, }',
        "1 2",
    ],
)
def test_what_cannot_become_json_is_noticed(text: str) -> None:
    assert not JsonPrefix().take(text)
