import dataclasses
import time

import msgspec
import pytest

from wherry.worker.runtimes.graphs import calibration
from wherry.worker.runtimes.graphs.calibration import Calibration, calibrate, recall, to_report


@dataclasses.dataclass
class Model:
    """Takes processor time as a model would: so much a run, so much a token."""

    run_ms: float
    token_ms: float
    crowded_tokens: int = 1 << 30
    """From here on every token costs twice as much."""
    runs: int = 0

    def __call__(self, rows: int, tokens: int) -> None:
        self.runs += 1
        padded = rows * tokens
        factor = 2 if padded >= self.crowded_tokens else 1
        end = time.thread_time() + (self.run_ms + factor * self.token_ms * padded) / 1000
        while time.thread_time() < end:
            pass


def test_a_text_may_be_padded_as_long_as_that_costs_less_than_a_run_of_its_own():
    found = calibrate(Model(2.0, 0.05), "cpu", most_tokens=256, most_budget=512)
    assert found.run_ms == pytest.approx(2.0, rel=0.3)
    assert found.token_ms == pytest.approx(0.05, rel=0.3)
    assert found.spare_padding == pytest.approx(0.75 * 2.0 / 0.05, rel=0.5)


def test_a_model_whose_runs_cost_nothing_is_not_padded():
    found = calibrate(Model(0.0, 0.05), "cpu", most_tokens=256, most_budget=512)
    assert found.spare_padding < 4
    assert found.batch_tokens == 128, "larger batches would only let others wait"


def test_a_batch_that_overruns_the_caches_is_not_chosen():
    model = Model(4.0, 0.02, crowded_tokens=500)
    found = calibrate(model, "cpu", most_tokens=256, most_budget=512)
    assert found.batch_tokens == 256


def test_a_slow_model_is_tried_no_more_than_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    model = Model(5.0, 0.1)
    found = calibrate(model, "cpu", most_tokens=256, most_budget=512)
    assert model.runs == 2
    assert found.batch_tokens == 512, "nothing better was found out"


def test_a_model_of_short_texts_is_tried_with_short_texts():
    seen: list[tuple[int, int]] = []
    calibrate(
        lambda rows, tokens: seen.append((rows, tokens)), "cpu", most_tokens=16, most_budget=512
    )
    assert max(tokens for _, tokens in seen) == 16
    assert max(rows * tokens for rows, tokens in seen) == 512


def test_a_calibration_is_remembered_on_the_same_machine_only():
    found = calibrate(Model(0.5, 0.01), "cpu", most_tokens=64, most_budget=512)
    told = to_report(found, 64, "cpu")
    assert recall(msgspec.json.decode(msgspec.json.encode(told)), "cpu") == found
    assert recall(told | {"machine": "another"}, "cpu") is None
    assert recall(told, "cuda:0") is None
    assert recall(told | {"format": 2}, "cpu") is None
    assert recall({"batch_rows": 1, "threads": 1, "workers": 2}, "cpu") is None
    assert recall("hostile", "cpu") is None
    assert recall(None, "cpu") is None


def test_what_is_told_has_the_numbers_an_operator_needs():
    told = to_report(Calibration(1.0, 0.1, 256, 7.5, 1, 2, "m"), 64, "cpu")
    assert (told["batch_tokens"], told["threads"], told["workers"]) == (256, 1, 2)
    assert to_report(None, 1, "cuda:0") == {"batch_rows": 1, "threads": 1, "workers": 1}
