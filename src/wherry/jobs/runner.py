"""The process of one job: `python -m wherry.jobs.runner`, started by the queue and nobody else.

It makes a version or says why not. Whatever kills it costs this attempt only: files are in the
job's own folder until the registry takes them in one step.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from setproctitle import setproctitle

from wherry import errors
from wherry.client.schema import Progress
from wherry.jobs.jobs import Jobs
from wherry.jobs.kinds import Workshop, run_work
from wherry.jobs.work import (
    Failed,
    Progressed,
    RunnerOrder,
    RunnerReport,
    Succeeded,
    encode_report,
)
from wherry.models.registry.registry import Registry
from wherry.storage.blobs import LocalBlobs
from wherry.storage.database import Database
from wherry.telemetry import configure_logging, get_logger
from wherry.worker.launcher import die_with_parent

REPORT_SECONDS = 0.1
MAX_STAGE_CHARACTERS = 200

log = get_logger("jobs.runner")


class Reporter:
    """The line to the queue."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._stage = ""
        self._next_at = 0.0

    def send(self, report: RunnerReport) -> None:
        """One line; if the queue is gone, so are we in a moment."""
        self._line.sendall(encode_report(report) + b"\n")

    def tell(self, stage: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """How far it is; a new stage and its end always, others ten times a second."""
        now = time.monotonic()
        if stage == self._stage and now < self._next_at and not 0 < total <= done:
            return
        self._stage, self._next_at = stage, now + REPORT_SECONDS
        shown = " ".join(stage.split())[:MAX_STAGE_CHARACTERS]
        progress = Progress(stage=shown, done=int(done), total=int(total), unit=unit)
        self.send(Progressed(progress))


def main() -> None:
    """Do what the order says, tell how it went."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--order-fd", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    arguments = parser.parse_args()
    with os.fdopen(arguments.order_fd, "rb") as source:
        order = msgspec.msgpack.decode(source.read(), type=RunnerOrder)
    die_with_parent(order.parent)
    os.umask(0o077)
    settings = order.settings
    configure_logging(settings.log_level, settings.log_format, f"job {order.job_id}")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every single request
    kind = order.work.__struct_config__.tag
    setproctitle(f"wherry: job {kind} {order.job_id[-6:]}")
    # what recipes print belongs to the log
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    reporter = Reporter(socket.socket(fileno=arguments.report_fd))
    reporter.send(run_order(order, reporter))
    sys.stderr.flush()
    os._exit(0)  # frameworks may keep threads; nothing is left to do


def run_order(order: RunnerOrder, reporter: Reporter) -> RunnerReport:
    """Do the work; whatever happens becomes a report."""
    try:
        return Succeeded(do_order(order, reporter))
    except errors.WherryError as error:
        return Failed(error.code, error.message, error.hint)
    except MemoryError:
        return Failed("does_not_fit", "the job ran out of memory", "stop a deployment, try again")
    except Exception:
        log.exception("unexpected error in a job", job=order.job_id)
        hint = f"look for {order.job_id} in the server's log"
        return Failed("internal", "an unexpected error", hint)


def do_order(order: RunnerOrder, reporter: Reporter) -> dict[str, Any]:
    """Open what the job needs, do it, leave nothing behind."""
    settings, folder = order.settings, order.settings.folder
    database = Database.for_folder(folder, settings.database_url)
    jobs = Jobs(database)
    own = job_folder(folder, order.job_id)
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    run_folder = Path(tempfile.mkdtemp(prefix="j", dir=order.run_folder))

    def check_current() -> None:
        if not jobs.is_current(order.job_id, order.attempt):
            raise errors.Cancelled("the job was cancelled, or runs elsewhere by now")

    workshop = Workshop(
        order=order,
        database=database,
        registry=Registry(database, LocalBlobs(folder / "blobs"), folder),
        folder=own,
        run_folder=run_folder,
        tell=reporter.tell,
        check_current=check_current,
    )
    try:
        check_current()
        return run_work(workshop)
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)
        database.close()


def job_folder(data: Path, job_id: str) -> Path:
    """Where a job keeps what it works on."""
    return data / "jobs" / job_id


if __name__ == "__main__":
    main()
