"""What goes wrong becomes a line, a hint and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.client.twin import KEY, Twin

from wherry import errors


def test_an_error_is_a_line_and_a_hint(run: Run, twin: Twin):
    outcome = run("show", "nothing")
    assert outcome == (
        1,
        "",
        "error: no model 'nothing'\nhint: see the list of every model\n",
    )


def test_no_server_is_told_with_the_command_that_starts_one(run: Run, monkeypatch):
    monkeypatch.setenv("WHERRY_URL", "http://127.0.0.1:9")
    outcome = run("list")
    assert outcome.code == 1
    assert "error: no server answers at 'http://127.0.0.1:9'" in outcome.err
    assert "hint: start one with `wherry serve`" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["show"],
        ["list", "--nonsense"],
        ["list", "-o", "yaml"],
        ["deploy", "mood", "--idle", "soon"],
        ["deploy", "mood", "--replicas", "1", "--min", "0"],
        ["train", "tabular", "--name", "x", "-p", "depth"],
        ["usage", "--by", "colour"],
        ["scale", "mood", "many"],
    ],
)
def test_wrong_use_is_exit_code_2_with_a_hint(run: Run, arguments: list[str]):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") <= 2


def test_debug_shows_the_traceback(run: Run, twin: Twin):
    with pytest.raises(errors.NotFound):
        run("show", "nothing", "--debug")


def test_a_text_from_outside_cannot_draw_on_the_terminal(run: Run, twin: Twin):
    twin.refusals = [errors.Conflict("one\x1b[2Jtwo\nthree")]
    assert run("list").err == "error: one [2Jtwo three\n"


def test_a_reader_that_leaves_is_no_error(twin: Twin):
    for number in range(50):
        twin.add_version(f"model{number}", "text-classification")
    process = subprocess.Popen(
        [sys.executable, "-m", "wherry", "list", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(10), error) == (141, b"")


def test_a_terminal_without_utf8_gets_an_answer(twin: Twin):
    twin.add_version("sentiment", "text-classification").card.description = "好"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    outcome = subprocess.run(
        [sys.executable, "-m", "wherry", "show", "sentiment"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert outcome.returncode == 0
    assert "description:  ?" in outcome.stdout


def test_control_c_is_exit_code_130(twin: Twin, tmp_path: Path):
    import signal

    script = "import sys\nfrom wherry.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", script, "chat", "smollm2", "--url", twin.url]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "WHERRY_API_KEY": KEY},
        # a shell in the background ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr
        import time

        time.sleep(1.0)  # it reads the question from its standard input by now
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert b"Traceback" not in process.stderr.read()
