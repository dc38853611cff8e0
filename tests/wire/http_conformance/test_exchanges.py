"""The table of exchanges, on both paths: each as it must be, and both the same to the letter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.conftest import LiveServer
from tests.wire.http_conformance.conftest import address_of
from tests.wire.http_conformance.exchange import Outcome, talk
from tests.wire.http_conformance.table import CASES, GROUPS, Case


def play(live: LiveServer, case: Case) -> Outcome:
    """What comes of a case on a server."""
    return talk(
        address_of(live),
        [case.pieces] if isinstance(case.pieces, bytes) else case.pieces,
        sum(status >= 200 for status in case.statuses),
        is_head=case.is_head,
        waits=case.end == "waits",
    )


@pytest.mark.parametrize("name", CASES)
def test_both_paths_answer_as_they_must_and_alike(both: dict[str, LiveServer], name: str):
    case = CASES[name]
    with ThreadPoolExecutor(len(both)) as pool:
        outcomes = list(pool.map(lambda live: play(live, case), both.values()))
    for path, outcome in zip(both, outcomes, strict=True):
        assert (outcome.statuses, outcome.end) == (case.statuses, case.end), path
        if case.answer:
            assert case.answer in outcome.replies[-1].body, path
        if outcome.end == "closed":
            assert outcome.replies[-1].fields["connection"] == "close", path
    lane, asgi = outcomes
    assert lane == asgi


def test_names_of_cases_are_unique():
    assert len(CASES) == sum(len(group) for group in GROUPS.values())
