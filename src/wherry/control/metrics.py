"""What gateways count, summed: the text for Prometheus and a bounded hour of history."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import msgspec

from wherry.client.schema import Point
from wherry.telemetry import Snapshot, estimate_quantile, merge

INTERVAL_SECONDS = 5.0
KEPT_POINTS = 720
MAX_POINTS = 1000

decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


class _Totals(msgspec.Struct):
    """Counts of one deployment since its gateways began."""

    requests: float = 0
    errors: float = 0
    input_tokens: float = 0
    output_tokens: float = 0
    buckets: list[float] = []
    bounds: tuple[float, ...] = ()


class MetricsHistory:
    """Points of every deployment; gateways that restart begin again at zero, which is noticed."""

    def __init__(self) -> None:
        self._latest: dict[str, bytes] = {}
        self._gone = Snapshot()
        self._last: dict[str, _Totals] = {}
        self._points: dict[str, deque[tuple[Point, list[float], tuple[float, ...]]]] = {}
        self._next_at = time.monotonic() + INTERVAL_SECONDS

    def take(self, gateway: str, metrics: bytes) -> None:
        """The newest counts of one gateway process."""
        self._latest[gateway] = metrics  # decoded when somebody asks: few of them are looked at

    def forget(self, gateway: str) -> None:
        """A gateway process ended: its counts stay in the sums."""
        latest = self._latest.pop(gateway, None)
        if latest is not None:
            self._gone = merge([self._gone, decode_snapshot(latest)])

    def total(self) -> Snapshot:
        """Counts of all gateways."""
        return merge([self._gone, *map(decode_snapshot, self._latest.values())])

    def tick(self) -> None:
        """Make the next points, if it is time."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + INTERVAL_SECONDS
        found = _by_deployment(self.total())
        for deleted in self._last.keys() - found.keys():
            del self._last[deleted], self._points[deleted]
        for name, totals in found.items():
            before = self._last.get(name, _Totals())
            self._last[name] = totals
            self._add_point(name, before, totals)

    def _add_point(self, name: str, before: _Totals, after: _Totals) -> None:
        earlier = before.buckets or [0.0] * len(after.buckets)
        buckets = [max(0.0, b - a) for a, b in zip(earlier, after.buckets, strict=False)]
        point = Point(
            at=time.time(),
            # a deployment made again under its old name counts from nothing
            requests=max(0, int(after.requests - before.requests)),
            errors=max(0, int(after.errors - before.errors)),
            input_tokens=max(0, int(after.input_tokens - before.input_tokens)),
            output_tokens=max(0, int(after.output_tokens - before.output_tokens)),
        )
        points = self._points.setdefault(name, deque(maxlen=KEPT_POINTS))
        points.append((point, buckets, after.bounds))

    def points(self, deployment: str, window_seconds: float, count: int) -> list[Point]:
        """At most `count` points of a deployment (`team/name`), oldest first."""
        since = time.time() - window_seconds
        chosen = [each for each in self._points.get(deployment, ()) if each[0].at >= since]
        count = max(1, min(count, MAX_POINTS))
        step = -(-len(chosen) // count) or 1
        return [_merge_points(chosen[at : at + step]) for at in range(0, len(chosen), step)]

    def last_hour(self, deployments: Iterable[str]) -> tuple[int, int]:
        """Requests and errors of some deployments within the history."""
        points = [each[0] for name in deployments for each in self._points.get(name, ())]
        return sum(each.requests for each in points), sum(each.errors for each in points)


def _by_deployment(snapshot: Snapshot) -> dict[str, _Totals]:
    totals: dict[str, _Totals] = {}
    for family in snapshot.families:
        for series in family.series:
            if not series.labels:
                continue
            found = totals.setdefault(series.labels[0], _Totals())
            if family.name == "wherry_requests_total":
                found.requests += series.values[0]
                # a client that leaves is no error of the deployment
                if series.labels[2] not in ("ok", "cancelled"):
                    found.errors += series.values[0]
            elif family.name == "wherry_tokens_total":
                if series.labels[1] == "in":
                    found.input_tokens += series.values[0]
                else:
                    found.output_tokens += series.values[0]
            elif family.name == "wherry_request_seconds":
                found.buckets, found.bounds = series.values[1:], family.bounds
    return totals


def _merge_points(parts: list[tuple[Point, list[float], tuple[float, ...]]]) -> Point:
    last, _, bounds = parts[-1]
    buckets = [sum(column) for column in zip(*(part[1] for part in parts), strict=False)]
    return Point(
        at=last.at,
        requests=sum(part[0].requests for part in parts),
        errors=sum(part[0].errors for part in parts),
        input_tokens=sum(part[0].input_tokens for part in parts),
        output_tokens=sum(part[0].output_tokens for part in parts),
        latency_ms_p50=round(estimate_quantile(bounds, buckets, 0.5) * 1000, 3) if bounds else 0.0,
        latency_ms_p95=round(estimate_quantile(bounds, buckets, 0.95) * 1000, 3) if bounds else 0.0,
    )
