"""Compares what clients saw with the journal and with the ledger, and looks for what was left."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from sqlalchemy import select
from tests.conftest import LiveServer
from tests.faults.load import Entry
from tests.faults.oracle import expected_answer

from wherry.storage.database import Database
from wherry.storage.journal import OutcomeRecord, read_segment
from wherry.storage.tables import ledger, ledger_tracks


def read_journal(data: Path) -> list[OutcomeRecord]:
    """All records of all gateways."""
    return [
        record
        for path in sorted((data / "journal").glob("*/*.journal"))
        for record, _ in read_segment(path, 0)
    ]


def read_ledger(data: Path) -> dict[str, tuple[int, int]]:
    """Status and version by request id."""
    database = Database.for_folder(data)
    with contextlib.closing(database), database.read() as connection:
        rows = connection.execute(
            select(ledger.c.request_id, ledger.c.status, ledger_tracks.c.version).join(
                ledger_tracks, ledger_tracks.c.id == ledger.c.track_id
            )
        )
        return {row.request_id: (row.status, row.version) for row in rows}


def check_answers(log: Iterable[Entry]) -> None:
    """No answer is wrong, doubled, or of another version than its header says."""
    for entry in log:
        if entry.status != 200:
            continue
        number = int(entry.version.rpartition("@")[2])
        expected = [expected_answer(entry.nonce, number), number]
        assert entry.answer == expected, f"wrong answer: {entry}"


def check_books(log: Iterable[Entry], data: Path) -> None:
    """Every final answer has exactly one record and one row, and both say the same.

    Args:
        log: of all clients.
        data: of a server that has stopped, so that all of its journal is in the ledger.
    """
    records = Counter(record.request_id for record in read_journal(data))
    doubled = [number for number, count in records.items() if count > 1]
    assert not doubled, f"recorded twice: {doubled[:5]}"
    by_id = {record.request_id: record for record in read_journal(data)}
    rows = read_ledger(data)
    assert rows.keys() == by_id.keys(), (
        f"{len(by_id.keys() - rows.keys())} records are not in the ledger, "
        f"{len(rows.keys() - by_id.keys())} rows have no record"
    )
    ids = [entry.request_id for entry in log if entry.status == 200]
    assert len(ids) == len(set(ids)), "two answers have one request id"
    for entry in log:
        if entry.status != 200:
            continue
        record = by_id.get(entry.request_id)
        assert record is not None, f"answered but not recorded: {entry}"
        assert record.status == 200, (entry, record)
        version = int(entry.version.rpartition("@")[2])
        assert (record.version, rows[entry.request_id]) == (version, (200, version)), (
            entry,
            record,
        )
    answered = set(ids)
    for entry in log:
        # an error that the server told is never charged as an answer
        if entry.status >= 400 and entry.request_id in by_id:
            assert entry.request_id not in answered
            assert by_id[entry.request_id].status != 200, entry


def failed(log: Iterable[Entry], since: float = 0.0) -> list[Entry]:
    """Requests without a success."""
    return [entry for entry in log if entry.status != 200 and entry.sent_at >= since]


# ------------------------------------------------------------------------------ leaks


def _belongs(process: psutil.Process, marks: list[str]) -> bool:
    try:
        text = " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
    except psutil.Error:
        return False
    return any(mark in text for mark in marks)


class Traces:
    """What servers have of the machine's common places while they run."""

    def __init__(self) -> None:
        self.run_folders: set[str] = set()
        self.shared_memory: set[str] = set()

    def note(self, server: LiveServer) -> None:
        """Look at a running server; again and again does no harm."""
        self.run_folders.add((server.data / "serve.lock").read_text().strip())
        main = psutil.Process(server.process.pid)
        for process in [main, *main.children(recursive=True)]:
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self.shared_memory |= set(re.findall(r"(/dev/shm/\S+)$", maps, re.MULTILINE))


def count_descriptors() -> int:
    """Open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def nothing_left_behind(folder: Path) -> Iterator[Traces]:
    """No process, file, socket or shared memory of a server under `folder` outlives the block."""
    descriptors = count_descriptors()
    traces = Traces()
    yield traces
    marks = [str(folder), *traces.run_folders]
    deadline = time.monotonic() + 5.0
    while True:
        left = [each for each in psutil.process_iter() if _belongs(each, marks)]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not left, f"processes are left: {left}"
    assert traces.run_folders, "no server was looked at"
    for path in traces.run_folders | traces.shared_memory:
        assert not Path(path).exists(), f"{path} is left"
    grown = count_descriptors() - descriptors
    assert grown <= 2, f"{grown} descriptors are left in the test's own process"


class Footprint:
    """What a running server holds: descriptors of its lasting processes."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self.descriptors = self._count()

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self._server.process.pid)
        return [main, *main.children()]

    def _count(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline()).strip()
                if "worker" in title:
                    continue  # those come and go
                counts[title] = counts.get(title, 0) + process.num_fds()
        return counts

    def check(self, slack: int = 8, seconds: float = 15.0) -> None:
        """After some seconds of rest, nothing holds more than before."""
        deadline = time.monotonic() + seconds
        while True:
            now = self._count()
            grown = {
                title: (self.descriptors[title], count)
                for title, count in now.items()
                if title in self.descriptors and count > self.descriptors[title] + slack
            }
            if not grown or time.monotonic() > deadline:
                break
            time.sleep(0.25)
        assert not grown, f"descriptors leak (before, now): {grown}"
