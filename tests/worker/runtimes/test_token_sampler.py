"""Choosing tokens, finding stop texts and telling characters need no model to be tried."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.models.tasks.generation import Sampling
from wherry.worker.runtimes.stop_texts import StopFinder
from wherry.worker.runtimes.token_sampler import Sampler
from wherry.worker.runtimes.token_texts import TokenWriter, bytes_of_token

LIKELY = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draw(count: int = 4000, **settings: object) -> Counter[int]:
    sampler = Sampler(Sampling(seed=1, **settings), 1.0, 1.0, 0)  # type: ignore[arg-type]
    return Counter(sampler.choose(LIKELY.copy()).token for _ in range(count))


def test_tokens_come_as_often_as_they_are_likely():
    found = draw()
    for token, likelihood in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert found[token] / 4000 == pytest.approx(likelihood, abs=0.03)


def test_limits_leave_the_likeliest():
    assert set(draw(top_k=2)) == {0, 1}
    assert set(draw(top_p=0.6)) == {0, 1}
    assert set(draw(top_p=0.0)) == {0}
    assert set(draw(temperature=0.0)) == {0}
    hot = draw(temperature=2.0)
    assert hot[3] > draw()[3]


def test_penalties_and_bias_change_what_is_likely():
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=2.0), 1.0, 1.0, 0)
    assert [sampler.choose(LIKELY.copy()).token for _ in range(3)] == [0, 1, 2]
    sampler = Sampler(Sampling(temperature=0, logit_bias={3: 100.0}), 1.0, 1.0, 0)
    assert sampler.choose(LIKELY.copy()).token == 3


def test_likelihoods_are_those_before_the_temperature_and_finite():
    scores = LIKELY.copy()
    scores[3] = -np.inf
    sampler = Sampler(Sampling(temperature=0.1, seed=2, top_logprobs=4), 1.0, 1.0, 0)
    chosen = sampler.choose(scores)
    assert [token for token, _ in chosen.rivals] == [0, 1, 2, 3]
    assert chosen.rivals[0][1] == pytest.approx(np.log(0.5 / 0.95), abs=1e-4)
    assert chosen.rivals[3][1] == -9999.0


@given(st.text(alphabet="abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=5)))
def test_an_answer_ends_before_the_first_stop_text_however_it_comes(text: str, stops: list[str]):
    places = [text.find(stop) for stop in stops if stop in text]
    for size in (1, 3, 40):
        finder = StopFinder(stops)
        shown = "".join(finder.feed(text[at : at + size]) for at in range(0, len(text), size))
        assert bool(finder.found) == bool(places)
        if finder.found:
            assert text.startswith(shown + finder.found)
        else:
            assert shown + finder.finish() == text
        assert not any(stop in shown for stop in stops)


@given(st.text(max_size=60))
def test_characters_of_several_tokens_are_shown_when_they_are_whole(text: str):
    octets = text.encode()
    writer = TokenWriter(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    shown = "".join(writer.write(token) for token in octets) + writer.finish()
    assert shown == octets.decode()


def test_tokens_stand_for_bytes():
    assert bytes_of_token("Ġriver", " river", is_byte_level=True) == list(b" river")
    assert bytes_of_token("âĤ", "\ufffd", is_byte_level=True) == [0xE2, 0x82]
    assert bytes_of_token("<0xE4>", "\ufffd", is_byte_level=False) == [0xE4]
    assert bytes_of_token("\u2581river", "river", is_byte_level=False) == list(b" river")
