"""The page `docs/benchmarks.md` and its pictures, from a results file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.thresholds import (
    Line,
    Results,
    at_most,
    figure,
    judge_embeddings,
    judge_modalities,
    judge_small_json,
    judge_tensors,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "pictures"
OURS = ("wherry", "wherry-asgi", "wherry-single")
METHOD = Path(__file__).with_name("method.md")
TOP = """\
<!-- Made by `make bench` from bench/results/full.json and bench/method.md. Do not edit. -->

# Benchmarks

What Wherry does beside its peers, with everything on that it has in production. Ratios are the
point; absolute figures belong to the machine below.
"""
NOTHING_YET = "No whole run is stored yet.\n"


def write_report(results: Path, page: Path = PAGE, pictures: Path = PICTURES) -> None:
    """Rewrite the page and the pictures."""
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    parts = [TOP, machine(found) if found else NOTHING_YET]
    for name, section in SECTIONS.items():
        if name in found:
            parts.append(failed(name, found[name]) or section(found[name], pictures))
    parts.append(METHOD.read_text())
    page.write_text("\n".join(parts), encoding="utf-8")


def failed(name: str, found: Mapping[str, Any]) -> str:
    """What the page says of a scenario that did not run."""
    if "failure" not in found:
        return ""
    return f"## Not measured: {name}\n\n{found['failure'].splitlines()[0][:200]}\n"


def machine(found: Mapping[str, Any]) -> str:
    """Where and with what."""
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Machine: {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; "
        f"{about['system']}, Linux {about['kernel']}, Python {about['python']}; client "
        f"{about['wrk']}. {found['rounds']} rounds of {found['seconds']:g} s a visit; load average "
        f"before the run {about['load_before']}. Commit {about['commit']}; {versions}.\n"
    )


# ------------------------------------------------------------------------------ tables


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; columns after the first `left` are aligned to the right."""
    marks = ["---" if number < left else "---:" for number in range(len(heads))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, marks, *rows)) + "\n"


def number(value: float | None) -> str:
    """Three figures, or more before the point."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def judged(lines: Sequence[Line]) -> str:
    """Thresholds: wanted, found, met or not."""
    rows = [
        [
            line.what,
            line.wanted,
            "not measured" if line.found is None else number(line.found),
            "met" if line.is_met else "**not met**" if line.found is not None else "",
        ]
        for line in lines
    ]
    return table(["wanted", "", "found", ""], rows)


def contestants(results: Results, counts: Sequence[int]) -> str:
    """Every contestant: rates, latencies, CPU, errors, memory, start."""
    heads = ["server", "setting"]
    for count in counts:
        heads += [f"c={count} req/s", "p50 ms", "p99 ms", "CPU µs/req"]
    heads += ["errors", "start s", "PSS MiB", "processes", "idle CPU %"]
    rows: list[list[str]] = []
    for each in sorted(results, key=lambda each: -_rate(each, counts[-1])):
        if each["failure"]:
            continue
        row = [each["label"], each["setting"]]
        for count in counts:
            load = each["loads"].get(str(count), {})
            names = ("requests_per_second", "p50_ms", "p99_ms", "cpu_us")
            row += [number(load.get(name)) for name in names]
        row.append(str(sum(load["errors"] for load in each["loads"].values())))
        share = each["idle_cpu_share"]
        row += [
            number(each["start_seconds"]),
            number(each["memory"].get("pss")),
            str(each["memory"].get("processes", "")),
            "" if share is None else f"{share * 100:.1f}",
        ]
        rows.append(row)
    return table(heads, rows, left=2) + left_out(results)


def left_out(results: Results, skipped: Mapping[str, str] | None = None) -> str:
    """Who could not be measured, and why."""
    lines = [
        f"- {each['name']} is left out: {each['failure'].splitlines()[0][:160]}"
        for each in results
        if each["failure"]
    ]
    lines += [f"- {name} is skipped: {why}" for name, why in (skipped or {}).items()]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _rate(result: Mapping[str, Any], count: int) -> float:
    return result["loads"].get(str(count), {}).get("requests_per_second", 0.0)


def _bars(results: Results, count: int) -> dict[str, float]:
    return {
        each["name"]: _rate(each, count)
        for each in results
        if not each["failure"] and _rate(each, count)
    }


# ------------------------------------------------------------------------------ sections


def small_json(found: Mapping[str, Any], pictures: Path) -> str:
    """A1."""
    results = found["results"]
    bars = _bars(results, 64)
    title = "Small JSON, 64 connections: requests a second on one core"
    plots.write_bars(pictures / "bench-small-json.svg", title, "more is better", bars, OURS)
    drawn = {
        each["name"]: {float(count): load["cpu_us"] for count, load in each["loads"].items()}
        for each in results
        if "8" in each["loads"]
    }
    if drawn:
        plots.write_lines(
            pictures / "bench-small-json-cpu.svg",
            "CPU of a request",
            "connections",
            "µs, whole process tree",
            drawn,
        )
    return "\n".join(
        [
            "## Small JSON\n",
            "One row for a scikit-learn logistic regression as an Open Inference body: what the server "
            "itself costs.\n",
            judged(judge_small_json(results)),
            "![Requests a second of each server](pictures/bench-small-json.svg)\n",
            "![CPU of a request against connections](pictures/bench-small-json-cpu.svg)\n"
            if drawn
            else "",
            contestants(results, (1, 64)),
            left_out([], found["skipped"]),
            by_process(results),
        ]
    )


def by_process(results: Results) -> str:
    """Which of our processes the time goes to."""
    ours = next((each for each in results if each["name"] == "wherry"), None)
    parts = ours["loads"].get("64", {}).get("cpu_us_by_process") if ours else None
    if not parts:
        return ""
    told = ", ".join(f"{kind} {number(cost)}" for kind, cost in parts.items())
    return f"Of Wherry's µs a request at 64 connections: {told}.\n"


def embeddings(found: Mapping[str, Any], pictures: Path) -> str:
    """A2."""
    results = found["fp32"]["results"]
    bars = _bars(results, 64) | {"bare onnxruntime loop": found["fp32"]["limit"]}
    title = "MiniLM fp32, 64 connections: texts a second on one core"
    plots.write_bars(pictures / "bench-embeddings.svg", title, "more is better", bars, OURS)
    parts = [
        "## Text embeddings\n",
        "all-MiniLM-L6-v2 as ONNX, texts of 5 to 200 tokens (log-uniform), one a request. The limit "
        "is a bare loop over the same texts, tokenised, sorted and batched beforehand, in the same "
        "rounds on the same core: "
        + ", ".join(
            f"{each} {number(found[each]['limit'])} texts/s"
            for each in ("fp32", "int8")
            if each in found
        )
        + ".\n",
        judged(judge_embeddings(found)),
        "![Texts a second of each server](pictures/bench-embeddings.svg)\n",
        contestants(results, (1, 8, 64)),
        left_out([], found["skipped"]),
    ]
    if "int8" in found:
        parts += ["int8:\n", contestants(found["int8"]["results"], (1, 8, 64))]
    return "\n".join(parts)


def chat(found: Mapping[str, Any], pictures: Path) -> str:
    """A3."""
    del pictures
    figures = found["found"]
    lines = [
        at_most(f"{count} streams: CPU a token against the bare library", 1.05, each["ratio"], 1.0)
        for count, each in figures["cpu"].items()
    ]
    lines = [line._replace(wanted="≤ 1.05 ×") for line in lines]
    added = figures.get("added_first_ms")
    if added:
        lines.append(at_most("added time to the first token, median, in ms", 5, added["median"]))
    return "\n".join(
        [
            "## Chat\n",
            f"SmolLM2 135M against the bare llama.cpp library in a process of its own, in "
            f"{found['rounds']} paired rounds, and {found['pairs']} pairs of short prompts for the "
            "first token, on all cores.\n",
            judged(lines),
        ]
    )


def tensors(found: Mapping[str, Any], pictures: Path) -> str:
    """A4."""
    del pictures
    parts = [
        "## Binary tensors\n",
        "A large FP32 tensor in the protocol's binary form, its mean comes back. The relay is the "
        "least that any server with a worker process does: HTTP on uvloop, the body over a Unix "
        "socket, the same line of numpy, no duties (`bench/relay.py`).\n",
        judged(judge_tensors(found["sizes"])),
    ]
    for size, results in found["sizes"].items():
        parts += [f"{size}:\n", contestants(results, (1, 8))]
    parts.append(left_out([], found["skipped"]))
    return "\n".join(parts)


def modalities(found: Mapping[str, Any], pictures: Path) -> str:
    """Pictures and sound."""
    each_one: Mapping[str, Any] = found["modalities"]
    bars = {
        name.replace("-", " "): rate / each["bare"]
        for name, each in each_one.items()
        if (
            rate := figure(
                each["results"], "wherry", each["connections"][-1], "requests_per_second"
            )
        )
    }
    title = "Pictures and sound: requests a second, the bare loop over the library is 1"
    plots.write_bars(pictures / "bench-modalities.svg", title, "more is better", bars, list(bars))
    rows = [
        [
            name,
            each["model"],
            number(each["bare_cpu_us"] / 1000),
            *(
                number((cpu := figure(each["results"], "wherry", count, "cpu_us")) and cpu / 1000)
                for count in each["connections"]
            ),
            number(each["results"][0]["memory"].get("pss")),
        ]
        for name, each in each_one.items()
    ]
    counts = next(iter(each_one.values()))["connections"] if each_one else ()
    heads = [
        "task",
        "model",
        "bare loop: CPU ms/req",
        *(f"c={count}" for count in counts),
        "PSS MiB",
    ]
    return "\n".join(
        [
            "## Pictures and sound\n",
            "A photo as JPEG, or a sound file, or a sentence, in one request. The bare loop "
            "(`bench/bare.py`) does the same with the library alone, on the same core and with one "
            "thread: decode the file, prepare, run, encode the answer; no network, no duties.\n",
            judged(judge_modalities(each_one)),
            "![Ours beside the bare loop, for each task](pictures/bench-modalities.svg)\n",
            table(heads, rows, left=2),
        ]
    )


def growth(found: Mapping[str, Any], pictures: Path) -> str:
    """A5."""
    one, every = found["one_core"], found["all_cores"]
    parts = ["## Growth\n", "Small JSON at 64 connections.\n"]
    for what, sentence in (
        ("deployments", "one that is called, the others idle (`replicas.min = 0`, unloaded)"),
        ("keys", "in the database, of several teams; one of them calls"),
    ):
        rate = _series(one, what, "requests_per_second")
        cpu, memory = _series(one, what, "cpu_us"), _memory(one, what)
        if len(cpu) < 2:
            continue
        parts += _pictures(pictures, what, cpu, memory)
        first, last = min(cpu), max(cpu)
        parts.append(
            f"**{what.capitalize()}** ({sentence}): from {first:,.0f} to {last:,.0f} of them a request "
            f"costs {number(cpu[first])} → {number(cpu[last])} µs of CPU, {number(rate[first])} → "
            f"{number(rate[last])} requests/s, PSS {number(memory[first])} → "
            f"{number(memory[last])} MiB.\n"
        )
    rows = [
        [
            each["name"].replace("-", " "),
            number(figure([each], each["name"], 64, "requests_per_second")),
            number(figure([each], each["name"], 64, "cpu_us")),
            number(each["memory"].get("pss")),
        ]
        for each in every
    ]
    bars = {each["name"]: _rate(each, 64) for each in every if _rate(each, 64)}
    if bars:
        title = "Gateways and replicas, all cores: requests a second"
        note = "server and client share the cores"
        plots.write_bars(pictures / "bench-growth-processes.svg", title, note, bars, [])
        parts.append(
            "![Requests a second by gateways and replicas](pictures/bench-growth-processes.svg)\n"
        )
    parts += [
        "**Gateways and replicas** on all cores, which the client shares: with two cores in all, "
        "more processes can only help where one alone does not fill a core.\n",
        table(["", "req/s", "CPU µs/req", "PSS MiB"], rows),
        left_out([*one, *every]),
    ]
    return "\n".join(parts)


def _series(results: Results, what: str, name: str) -> dict[float, float]:
    found: dict[float, float] = {}
    for each in results:
        kind, _, count = each["name"].partition("-")
        value = figure(results, each["name"], 64, name)
        if kind == what and value is not None:
            found[float(count)] = value
    return found


def _memory(results: Results, what: str) -> dict[float, float]:
    return {
        float(each["name"].partition("-")[2]): each["memory"]["pss"]
        for each in results
        if each["name"].startswith(f"{what}-") and each["memory"]
    }


def _pictures(
    pictures: Path, what: str, cpu: Mapping[float, float], memory: Mapping[float, float]
) -> list[str]:
    shown: list[str] = []
    for name, title, unit, points in (
        ("cpu", "CPU of a request", "µs, whole process tree", cpu),
        ("memory", "Memory", "PSS in MiB, whole process tree", memory),
    ):
        path = pictures / f"bench-growth-{what}-{name}.svg"
        plots.write_lines(path, f"{title} by {what}", what, unit, {"wherry": points})
        shown.append(f"![{title} against the number of {what}](pictures/{path.name})\n")
    return shown


SECTIONS = {
    "small-json": small_json,
    "embeddings": embeddings,
    "chat": chat,
    "tensors": tensors,
    "modalities": modalities,
    "growth": growth,
}
