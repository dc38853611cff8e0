"""Metrics: counters, gauges and histograms, their sum over processes, and Prometheus' text.

They are plain attributes without locks: counting costs the hot path tens of nanoseconds, and
belongs to one thread, the event loop's. Other threads may count what no loop counts.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

LATENCY_BUCKETS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERIES = 1_000
"""Series of one metric; labels beyond it are counted together as `other`."""
MAX_LABEL_CHARACTERS = 120

Kind = Literal["counter", "gauge", "histogram"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int = 1) -> None:
        """Count `amount` more; negative amounts are a bug of the caller."""
        self.value += amount

    def read(self) -> list[float]:
        """The value, as a series keeps it."""
        return [self.value]


class Gauge:
    """A number that goes up and down; over several processes gauges are summed."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """Replace the value."""
        self.value = value

    def add(self, amount: float) -> None:
        """Change the value by `amount`."""
        self.value += amount

    def read(self) -> list[float]:
        """The value, as a series keeps it."""
        return [self.value]


class Histogram:
    """How often a value fell into each bucket, and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BUCKETS_SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`; a value on a bound belongs to the bucket below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def read(self) -> list[float]:
        """Sum, then the count of each bucket (not cumulated; the last is above all bounds)."""
        return [self.sum, *self.counts]


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Series(msgspec.Struct, array_like=True, frozen=True):
    """The values of one combination of labels."""

    labels: tuple[str, ...]
    values: list[float]
    """One value; of a histogram its sum and the count of each bucket."""


class MetricFamily(msgspec.Struct, array_like=True, frozen=True):
    """One metric with all its series."""

    name: str
    kind: Kind
    help: str
    label_names: tuple[str, ...]
    bounds: tuple[float, ...]
    series: list[Series]


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """All metrics of one process, or of several merged, at one moment."""

    families: list[MetricFamily] = []


class Family(Generic[Metric]):
    """A metric's series by their labels. Bind one with `labels()` and keep it."""

    def __init__(
        self,
        name: str,
        help: str,
        kind: Kind,
        make: Callable[[], Metric],
        label_names: Sequence[str] = (),
    ) -> None:
        if not _NAME.fullmatch(name) or not all(map(_NAME.fullmatch, label_names)):
            raise ValueError(
                f"{name!r} {tuple(label_names)!r} are not names of a metric and labels"
            )
        self.name = name
        self.help = help
        self.kind: Kind = kind
        self.label_names = tuple(label_names)
        self.series: dict[tuple[str, ...], Metric] = {}
        self._make = make

    def labels(self, *values: str) -> Metric:
        """The series of these label values, made on first use."""
        found = self.series.get(values)
        return self._add_series(values) if found is None else found

    def remove(self, *values: str) -> None:
        """Forget a series whose subject is gone, such as a deleted deployment."""
        self.series.pop(_cap_labels(values), None)

    def snapshot(self) -> MetricFamily:
        """Name, labels and values as plain data."""
        series = [Series(labels, each.read()) for labels, each in list(self.series.items())]
        sample = self._make()
        bounds = sample.bounds if isinstance(sample, Histogram) else ()
        return MetricFamily(self.name, self.kind, self.help, self.label_names, bounds, series)

    def _add_series(self, values: tuple[str, ...]) -> Metric:
        if len(values) != len(self.label_names):
            raise ValueError(f"metric {self.name!r} has the labels {self.label_names!r}")
        values = _cap_labels(values)
        if values not in self.series and len(self.series) >= MAX_SERIES:
            values = ("other",) * len(values)
        return self.series.setdefault(values, self._make())


class Registry:
    """All metrics of one process."""

    def __init__(self) -> None:
        self._families: dict[str, Family[Any]] = {}

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """A family of counters; by Prometheus' custom its name ends in `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"the name of counter {name!r} does not end in '_total'")
        return self._add(Family(name, help, "counter", Counter, labels))

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        """A family of gauges."""
        return self._add(Family(name, help, "gauge", Gauge, labels))

    def histogram(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        bounds: Sequence[float] = LATENCY_BUCKETS_SECONDS,
    ) -> Family[Histogram]:
        """A family of histograms; `bounds` are the upper ends of the buckets, rising."""
        fixed = tuple(bounds)
        if not fixed or any(low >= high for low, high in itertools.pairwise(fixed)):
            raise ValueError(f"the bounds of {name!r} do not rise")
        return self._add(Family(name, help, "histogram", lambda: Histogram(fixed), labels))

    def snapshot(self) -> Snapshot:
        """Everything counted so far. Call it in the thread that counts."""
        return Snapshot([family.snapshot() for family in self._families.values()])

    def _add(self, family: Family[Metric]) -> Family[Metric]:
        if family.name in self._families:
            raise ValueError(f"metric {family.name!r} exists already")
        self._families[family.name] = family
        return family


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The sum of several processes' metrics, series by series.

    A family whose kind, labels or buckets differ from the first of its name is left out: it comes
    from another version of Wherry, and a sum with it would be wrong.
    """
    merged: dict[str, MetricFamily] = {}
    for family in itertools.chain.from_iterable(each.families for each in snapshots):
        known = merged.get(family.name)
        if known is None:
            merged[family.name] = family
        elif _shape(known) == _shape(family):
            merged[family.name] = msgspec.structs.replace(
                known, series=_sum_series(known.series + family.series)
            )
    return Snapshot(list(merged.values()))


def render_prometheus(snapshot: Snapshot) -> bytes:
    """The text format that Prometheus scrapes."""
    lines: list[str] = []
    for family in snapshot.families:
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {family.name} {text}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for series in family.series:
            lines += _render_series(family, series)
    return ("\n".join(lines) + "\n").encode() if lines else b""


def estimate_quantile(bounds: Sequence[float], counts: Sequence[float], quantile: float) -> float:
    """The value below which a share `quantile` of a histogram lies; 0 when it is empty.

    Inside a bucket values are taken as evenly spread; above the last bound, that bound is returned.
    """
    rank = quantile * sum(counts)
    below = 0.0
    for index, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= rank:
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(0.0, rank - below) / count
        below += count
    return bounds[-1] if sum(counts) else 0.0


def _cap_labels(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value[:MAX_LABEL_CHARACTERS] for value in values)


def _shape(family: MetricFamily) -> tuple[Any, ...]:
    return family.kind, family.label_names, family.bounds


def _sum_series(series: Iterable[Series]) -> list[Series]:
    sums: dict[tuple[str, ...], list[float]] = {}
    for each in series:
        known = sums.get(each.labels)
        sums[each.labels] = (
            each.values
            if known is None
            else [left + right for left, right in zip(known, each.values, strict=True)]
        )
    return [Series(labels, values) for labels, values in sums.items()]


def _render_series(family: MetricFamily, series: Series) -> list[str]:
    labels = [_label(*each) for each in zip(family.label_names, series.labels, strict=True)]
    if family.kind != "histogram":
        return [f"{family.name}{_braces(labels)} {_number(series.values[0])}"]
    total, *counts = series.values
    bounds = [*map(_number, family.bounds), "+Inf"]
    cumulated = list(itertools.accumulate(counts))
    return [
        *(
            f"{family.name}_bucket{_braces([*labels, _label('le', bound)])} {_number(count)}"
            for bound, count in zip(bounds, cumulated, strict=True)
        ),
        f"{family.name}_sum{_braces(labels)} {_number(total)}",
        f"{family.name}_count{_braces(labels)} {_number(cumulated[-1])}",
    ]


def _braces(labels: Sequence[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
