"""What a process tells about itself: its log, the ids of its requests, and metrics."""

from __future__ import annotations

from wherry.telemetry.log import Log, Secret, configure_logging, get_logger, redact, register_secret
from wherry.telemetry.metrics import (
    LATENCY_BUCKETS_SECONDS,
    PROMETHEUS_CONTENT_TYPE,
    Counter,
    Family,
    Gauge,
    Histogram,
    Registry,
    Snapshot,
    estimate_quantile,
    merge,
    render_prometheus,
)
from wherry.telemetry.request_ids import request_id

__all__ = [
    "LATENCY_BUCKETS_SECONDS",
    "PROMETHEUS_CONTENT_TYPE",
    "Counter",
    "Family",
    "Gauge",
    "Histogram",
    "Log",
    "Registry",
    "Secret",
    "Snapshot",
    "configure_logging",
    "estimate_quantile",
    "get_logger",
    "merge",
    "redact",
    "register_secret",
    "render_prometheus",
    "request_id",
]
