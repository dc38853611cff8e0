"""`wherry`: runs a command and turns what goes wrong into a line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from wherry import errors
from wherry.cli import (
    batches,
    deployments,
    jobs,
    keys,
    models,
    pipelines,
    runtimes,
    serve,
    system,
    talk,
    top,
)
from wherry.cli.command import app
from wherry.cli.output import UsageError, note, one_line, print_error

FAILURE, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
"""Exit codes; the last two are 128 + the signal that a shell would show."""

GROUPS = (serve, system, runtimes, top, models, jobs, deployments, pipelines, talk, batches, keys)
"""The modules whose commands `app` has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 still gets an answer
    try:
        result = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        return _explain_usage(error)
    except BrokenPipeError:
        return _leave_broken_pipe()
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except UsageError as error:
        print_error(error)
        return USAGE
    except errors.WherryError as error:
        if "--debug" in tokens:
            raise
        print_error(error)
        return FAILURE
    except Exception as error:  # the edge: a person reads this, not a traceback
        if "--debug" in tokens:
            raise
        note(f"error: {type(error).__name__}: {one_line(str(error))}")
        note("hint: this is a bug of Wherry; `--debug` shows where")
        return FAILURE


def _explain_usage(error: CycloptsError) -> int:
    whole = " ".join(["wherry", *(error.command_chain or ())])
    note(f"error: {one_line(str(error))}")
    note(f"hint: {whole} --help")
    return USAGE


def _leave_broken_pipe() -> int:
    # Python flushes stdout at exit, which would complain about the reader that left.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return BROKEN_PIPE
