"""The page of the benchmarks: what it says of figures, at the end of a run of half an hour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench.load import Visit
from bench.report import write_report
from bench.rounds import Result

MACHINE = {
    "cpu": "some", "cores": 2, "memory_gib": 8.0, "system": "Linux", "kernel": "6", "python": "3",
    "wrk": "wrk 4", "versions": {"wherry": "0"}, "commit": "abc", "load_before": 0.1,
}  # fmt: skip


def result(name: str, failure: str = "", **rates: float) -> dict[str, Any]:
    """A contestant with requests a second by connections (`c1=…`)."""
    visits = {
        int(count.removeprefix("c")): [
            Visit(int(count[1:]), rate, 1000 / rate, 9.0, 1e6 / rate, 0, {})
        ]
        for count, rate in rates.items()
    }
    memory = {"rss": 2.0, "pss": 1.0, "processes": 2}
    return Result(name, name, "", visits, 1.0, memory, 0.01, failure).to_plain()


@pytest.fixture
def results() -> dict[str, Any]:
    others = ("relay", "mlserver-lean", "pytriton")
    return {
        "machine": MACHINE,
        "rounds": 5,
        "seconds": 2.0,
        "small-json": {
            "results": [
                result("wherry", c1=3000, c8=9000, c64=14000),
                result("fastapi-lean", c1=1000, c8=1500, c64=2000),
                result("mosec-batch", c1=80, c8=600, c64=12000),
                result("bentoml", failure="start: it ended\nTraceback"),
            ],
            "skipped": {"pytriton": "no Python 3.11"},
        },
        "embeddings": {
            "skipped": {},
            **{
                precision: {
                    "limit": 100.0,
                    "results": [
                        result("wherry", c1=50, c8=75, c64=79),
                        result("wherry-single", c1=50, c8=70, c64=70),
                        result("mosec", c64=60),
                    ],
                }
                for precision in ("fp32", "int8")
            },
        },
        "chat": {
            "rounds": 10,
            "pairs": 100,
            "found": {"cpu": {"1": {"ratio": 1.06}}, "added_first_ms": {"median": 2.0}},
        },
        "tensors": {
            "skipped": {},
            "sizes": {
                "4 MB": [result("wherry", c1=10, c8=90), *(result(n, c8=100) for n in others)]
            },
        },
        "modalities": {
            "modalities": {
                "image-classification": {
                    "model": "some-net",
                    "connections": [1, 8],
                    "bare": 100.0,
                    "bare_cpu_us": 10_000.0,
                    "results": [result("wherry", c1=79, c8=85)],
                }
            }
        },
        "growth": {
            "one_core": [
                result("deployments-1", c64=100), result("deployments-100", c64=90),
                result("keys-10", c64=100), result("keys-100000", c64=99),
            ],
            "all_cores": [result("gateways-1-replicas-1", c64=100)],
        },
    }  # fmt: skip


def write(folder: Path, results: dict[str, Any]) -> str:
    file, page = folder / "results.json", folder / "page.md"
    file.write_text(json.dumps(results))
    write_report(file, page, folder)
    return page.read_text()


def line_of(page: str, text: str) -> str:
    return next(line for line in page.splitlines() if text in line)


def test_every_threshold_says_whether_it_is_met(tmp_path: Path, results: dict[str, Any]):
    load = results["small-json"]["results"][0]["loads"]["64"]
    load["cpu_us_by_process"] = {"gateway": 20.0, "worker": 25.0, "supervisor": 50.0}
    page = write(tmp_path, results)
    assert line_of(page, "against the FastAPI app").endswith("| ≥ 6 × | 7.00 | met |")
    assert line_of(page, "mosec in batches of 32").endswith("| ≥ 1.2 × | 1.17 | **not met** |")
    assert line_of(page, "against PyTriton").endswith("| ≥ 5 × | not measured |  |")
    assert line_of(page, "gateway and worker, in µs").endswith("| ≤ 40 | 45.0 | **not met** |")
    assert line_of(page, "fp32, 8 connections, texts/s").endswith("| ≥ 0.72 × | 0.75 | met |")
    assert line_of(page, "1 streams").endswith("| ≤ 1.05 × | 1.06 | **not met** |")
    assert line_of(page, "first token, median").endswith("| ≤ 5 | 2.00 | met |")
    assert line_of(page, "against the bare relay").endswith("| ≥ 0.8 × | 0.90 | met |")
    assert line_of(page, "classification, 1 at once").endswith("| ≥ 0.8 × | 0.79 | **not met** |")
    assert line_of(page, "classification, 8 at once").endswith("| ≥ 0.8 × | 0.85 | met |")
    assert "| image-classification | some-net | 10.0 | 12.7 | 11.8 | 1.00 |" in page


def test_who_could_not_be_measured_is_named_with_the_reason(
    tmp_path: Path, results: dict[str, Any]
):
    page = write(tmp_path, results)
    assert "- bentoml is left out: start: it ended\n" in page
    assert "- pytriton is skipped: no Python 3.11\n" in page


def test_growth_is_told_in_a_sentence_and_a_picture(tmp_path: Path, results: dict[str, Any]):
    page = write(tmp_path, results)
    assert "from 1 to 100 of them a request costs" in page
    for picture in tmp_path.glob("*.svg"):
        tree = ElementTree.parse(picture).getroot()
        assert {"title", "desc"} <= {child.tag.rpartition("}")[2] for child in tree}
        assert f"(pictures/{picture.name})" in page
    assert len(list(tmp_path.glob("bench-growth-*.svg"))) == 5


def test_a_scenario_that_failed_is_said_so(tmp_path: Path, results: dict[str, Any]):
    page = write(tmp_path, results | {"chat": {"failure": "no model"}})
    assert "## Not measured: chat\n\nno model\n" in page


def test_errors_are_shown_and_ours_meet_no_threshold(tmp_path: Path, results: dict[str, Any]):
    results["small-json"]["results"][0]["loads"]["64"]["errors"] = 3
    page = write(tmp_path, results)
    assert "| 3 |" in line_of(page, "| wherry |")
    assert line_of(page, "against the FastAPI app (").endswith("| not measured |  |")
