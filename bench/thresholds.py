"""What we want to reach, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Results = Sequence[Mapping[str, Any]]


class Line(NamedTuple):
    """One threshold."""

    what: str
    wanted: str
    found: float | None
    """None: it could not be measured."""
    is_met: bool


def figure(results: Results, name: str, connections: int, what: str) -> Any:
    """A median of a contestant, if it was measured; of ours only if no request failed."""
    for each in results:
        load = each["loads"].get(str(connections))
        if each["name"] != name or not load or each["failure"]:
            continue
        if not (load["errors"] and name.startswith("wherry")):
            return load[what]
    return None


def best(results: Results, prefixes: Sequence[str], connections: int) -> tuple[str, float] | None:
    """The contestant with the most requests a second among those of some peers."""
    found = [
        (each["name"], value)
        for each in results
        if each["name"].startswith(tuple(prefixes))
        and (value := figure(results, each["name"], connections, "requests_per_second"))
    ]
    return max(found, key=lambda each: each[1], default=None)


def at_least(what: str, wanted: float, ours: float | None, theirs: float | None) -> Line:
    """`ours / theirs` must be at least `wanted`."""
    ratio = ours / theirs if ours and theirs else None
    return Line(what, f"≥ {wanted:g} ×", ratio, ratio is not None and ratio >= wanted)


def at_most(what: str, wanted: float, ours: float | None, theirs: float | None = 1.0) -> Line:
    """`ours / theirs` must be at most `wanted`."""
    ratio = ours / theirs if ours and theirs else None
    unit = " ×" if theirs != 1.0 else ""
    return Line(what, f"≤ {wanted:g}{unit}", ratio, ratio is not None and ratio <= wanted)


def judge_small_json(results: Results) -> list[Line]:
    """Small JSON."""
    ours = figure(results, "wherry", 64, "requests_per_second")
    lines: list[Line] = []
    for text, wanted, prefixes in (
        ("the FastAPI app (its better setting)", 6.0, ("fastapi",)),
        ("PyTriton", 5.0, ("pytriton",)),
        ("the best of LitServe, MLServer and BentoML", 6.0, ("litserve", "mlserver", "bentoml")),
        ("mosec in batches of 32", 1.2, ("mosec-batch",)),
    ):
        peer = best(results, prefixes, 64)
        name = f" ({peer[0]})" if peer and len(prefixes) > 1 else ""
        lines.append(
            at_least(
                f"64 connections, requests/s against {text}{name}",
                wanted,
                ours,
                peer[1] if peer else None,
            )
        )
    medians = [figure(results, name, 1, "p50_ms") for name in ("fastapi", "fastapi-lean")]
    lines.append(
        at_most(
            "1 connection, median latency against the FastAPI app's (its better setting)",
            0.8,
            figure(results, "wherry", 1, "p50_ms"),
            min((each for each in medians if each), default=None),
        )
    )
    shares = figure(results, "wherry", 64, "cpu_us_by_process") or {}
    cpu = shares.get("gateway", 0.0) + shares.get("worker", 0.0)
    text = "goal: CPU of a request at 64 connections, gateway and worker, in µs"
    lines.append(at_most(text, 40, cpu or None))
    return lines


NOISE = 0.97
"""What two servers that are the same may differ by."""
UNBATCHED = ("fastapi-lean", "mosec", "litserve-fast", "mlserver-lean")
BATCHED = ("mosec-batch", "litserve-batch", "mlserver-batch", "bentoml-batch", "pytriton",
           "ray-batch")  # fmt: skip


def judge_embeddings(found: Mapping[str, Any]) -> list[Line]:
    """Text embeddings."""
    lines: list[Line] = []
    for precision in ("fp32", "int8"):
        if precision not in found:
            continue
        results, limit = found[precision]["results"], found[precision]["limit"]
        for count, wanted in ((8, 0.72), (64, 0.80)):
            ours = figure(results, "wherry", count, "requests_per_second")
            text = f"{precision}, {count} connections, texts/s against the bare onnxruntime loop"
            lines.append(at_least(text, wanted, ours, limit))
            single = figure(results, "wherry-single", count, "requests_per_second")
            text = f"{precision}, {count} connections, against our own batches of one"
            if precision == "int8":
                text += " (it must run one by one anyway: twice the same, within noise)"
            lines.append(at_least(text, 1.0 if precision == "fp32" else NOISE, ours, single))
    results = found.get("fp32", {}).get("results", [])
    ours = figure(results, "wherry", 64, "requests_per_second")
    for names, wanted, text in (
        (UNBATCHED, 1.0, "the best peer without batches"),
        (BATCHED, 3.0, "the best peer in its documented batching mode"),
    ):
        rates = {name: figure(results, name, 64, "requests_per_second") for name in names}
        measured = {name: rate for name, rate in rates.items() if rate}
        name = max(measured, key=lambda each: measured[each], default="none measured")
        line = f"fp32, 64 connections, against {text} ({name})"
        lines.append(at_least(line, wanted, ours, measured.get(name)))
    lines.append(
        at_most(
            "fp32, 1 connection, median latency against our own batches of one (no added wait)",
            1.1,
            figure(results, "wherry", 1, "p50_ms"),
            figure(results, "wherry-single", 1, "p50_ms"),
        )
    )
    return lines


def judge_tensors(sizes: Mapping[str, Results]) -> list[Line]:
    """Binary tensors."""
    lines: list[Line] = []
    for size, results in sizes.items():
        ours = best(results, ("wherry",), 8)
        for name, wanted in (("relay", 0.8), ("mlserver-lean", 1.0), ("pytriton", 1.0)):
            label = "the bare relay" if name == "relay" else name
            theirs = figure(results, name, 8, "requests_per_second")
            text = f"{size}, 8 connections, requests/s against {label}"
            lines.append(at_least(text, wanted, ours[1] if ours else None, theirs))
    return lines


def judge_modalities(found: Mapping[str, Any]) -> list[Line]:
    """Pictures and sound."""
    lines: list[Line] = []
    for name, each in found.items():
        for count in each["connections"]:
            ours = figure(each["results"], "wherry", count, "requests_per_second")
            text = f"{name.replace('-', ' ')}, {count} at once, requests/s against the bare loop"
            lines.append(at_least(text, 0.8, ours, each["bare"]))
    return lines
