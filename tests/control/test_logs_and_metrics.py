"""What workers print is kept within bounds; what gateways count becomes points."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from wherry.control import logs as logs_module
from wherry.control import metrics as metrics_module
from wherry.control.logs import WorkerLogs, read_lines
from wherry.control.metrics import MetricsHistory
from wherry.telemetry import Registry
from wherry.worker.spec import WorkerSpec


def worker(**changes) -> WorkerSpec:
    fields = {"id": "w1", "deployment": "default/m", "model": "m", "version": 1}
    return WorkerSpec(**(fields | {"digest": "", "files": ()} | changes))


def test_lines_are_kept_whole_and_in_order_though_they_come_in_pieces(tmp_path: Path):
    logs = WorkerLogs(tmp_path)
    logs.write(worker(), b"first li")
    logs.write(worker(), b"ne\nsecond line\nthi")
    logs.write(worker(), b"rd line\n")
    lines = read_lines(logs.path("default/m"), 10)
    assert [line.text for line in lines] == ["first line", "second line", "third line"]
    assert {line.worker for line in lines} == {"m@1 #0"}


def test_control_characters_cannot_forge_a_line(tmp_path: Path):
    logs = WorkerLogs(tmp_path)
    logs.write(worker(), b'ok\x1b[31m {"at":0,"text":"forged"}\r\x00 \xff\n')
    (line,) = read_lines(logs.path("default/m"), 10)
    assert "\x1b" not in line.text
    assert "\r" not in line.text


def test_a_flood_is_cut_rather_than_the_disk_filled(tmp_path: Path):
    logs = WorkerLogs(tmp_path)
    for _ in range(200):
        logs.write(worker(), b"x" * 60_000 + b"\n")
    kept = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert kept <= 4 * logs_module.MAX_BYTES_PER_SECOND


def test_only_two_files_of_bounded_size_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs_module, "FILE_BYTES", 2000)
    logs = WorkerLogs(tmp_path)
    for number in range(200):
        logs.write(worker(), f"line {number}\n".encode())
    assert len(list(tmp_path.iterdir())) == 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6000
    assert read_lines(logs.path("default/m"), 3)[-1].text == "line 199"


def counts(requests: int, failed: int) -> bytes:
    registry = Registry()
    total = registry.counter("wherry_requests_total", "", ("deployment", "door", "code"))
    total.labels("default/m", "openai", "ok").add(requests)
    total.labels("default/m", "openai", "model_failed").add(failed)
    seconds = registry.histogram("wherry_request_seconds", "", ("deployment",))
    for _ in range(requests):
        seconds.labels("default/m").observe(0.02)
    return msgspec.msgpack.encode(registry.snapshot())


def test_points_are_differences_and_survive_a_gateway_that_restarts(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(metrics_module, "INTERVAL_SECONDS", 0.0)
    history = MetricsHistory()
    history.take("gateway 0 pid 1", counts(10, 1))
    history.tick()
    history.take("gateway 0 pid 1", counts(15, 2))
    history.tick()
    history.forget("gateway 0 pid 1")
    history.take("gateway 0 pid 2", counts(4, 0))
    history.tick()
    points = history.points("default/m", 3600, 100)
    assert [point.requests for point in points] == [11, 6, 4]
    assert [point.errors for point in points] == [1, 1, 0]
    assert 1 < points[0].latency_ms_p50 < 30
    assert history.last_hour(["default/m", "default/none"]) == (21, 2)


def test_never_more_points_than_asked_for_and_no_request_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics_module, "INTERVAL_SECONDS", 0.0)
    history = MetricsHistory()
    for number in range(1, 51):
        history.take("g", counts(number, 0))
        history.tick()
    points = history.points("default/m", 3600, 7)
    assert len(points) <= 7
    assert sum(point.requests for point in points) == 50


def test_a_flood_of_one_deployment_takes_no_lines_from_another(tmp_path: Path):
    logs = WorkerLogs(tmp_path)
    for _ in range(200):
        logs.write(worker(), b"x" * 60_000 + b"\n")
    logs.write(worker(deployment="default/quiet"), b"heard\n")
    assert [line.text for line in read_lines(logs.path("default/quiet"), 10)] == ["heard"]


def test_a_deleted_deployment_is_forgotten_and_made_again_counts_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(metrics_module, "INTERVAL_SECONDS", 0.0)
    history = MetricsHistory()
    history.take("gone", counts(3, 0))
    history.forget("gone")
    history.take("g", counts(10, 1))
    history.tick()
    history.take("g", msgspec.msgpack.encode(Registry().snapshot()))
    history.tick()
    history.take("g", counts(2, 0))
    history.tick()
    assert [point.requests for point in history.points("default/m", 3600, 10)] == [14, 0, 2]
