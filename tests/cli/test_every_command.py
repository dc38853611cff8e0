"""What holds for every command: examples in its help, valid JSON with `-o json`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.client.twin import Twin

from wherry.cli import main as _main  # registers the commands
from wherry.cli.command import app, examples_by_command

assert _main

JSON_CALLS = {
    "status": "status",
    "doctor": "doctor",
    "env": "env",
    "version": "version",
    "completion show": "completion show --shell bash",
    "completion install": "completion install --shell bash",
    "runtime list": "runtime list",
    "runtime install": "runtime install torch",
    "runtime remove": "runtime remove tflite --dry-run",
    "catalog": "catalog",
    "pull": "pull sentiment",
    "import": "import BUNDLE --name mood",
    "train": "train tabular --name churn -p depth=3",
    "list": "list",
    "jobs": "jobs",
    "show": "show sentiment",
    "rm": "rm sentiment@1 --dry-run",
    "alias": "alias sentiment@1 champion",
    "deploy": "deploy sentiment --name mood",
    "undeploy": "undeploy sentiment",
    "ps": "ps",
    "scale": "scale sentiment 2",
    "rollback": "rollback sentiment",
    "promote": "promote smollm2 --help",
    "top": "top",
    "start": "start sentiment",
    "stop": "stop sentiment",
    "logs": "logs sentiment",
    "apply": "apply -f SPECS --yes",
    "run": "run sentiment lovely",
    "chat": "chat smollm2 hi",
    "pipeline create": "pipeline create PIPELINE",
    "pipeline list": "pipeline list",
    "pipeline show": "pipeline show twice",
    "pipeline remove": "pipeline remove twice",
    "predict": "predict sentiment lovely",
    "embed": "embed sentiment one two",
    "batch create": "batch create LINES --dry-run",
    "batch list": "batch list --help",
    "batch show": "batch show BATCH_ID --help",
    "batch cancel": "batch cancel BATCH_ID --help",
    "keys create": "keys create ci",
    "keys list": "keys list",
    "keys revoke": "keys revoke nothing --help",
    "usage": "usage",
}
"""A call of every command but `serve`, which answers nothing; with `--help` where a real server is
asked elsewhere."""


def commands() -> list[str]:
    found: list[str] = []
    for name in app:
        if name.startswith("-"):
            continue
        below = [each for each in app[name] if not each.startswith("-")]
        found += [f"{name} {each}" for each in below] or [name]
    return sorted(found)


def test_the_list_of_commands_is_whole():
    assert commands() == sorted([*JSON_CALLS, "serve"])
    assert commands() == sorted(examples_by_command)


@pytest.mark.parametrize("name", commands())
def test_a_command_has_examples_in_its_help(run: Run, name: str):
    outcome = run(*name.split(), "--help")
    assert outcome.code == 0
    assert "Examples:" in outcome.out
    for example in examples_by_command[name]:
        assert f"$ {example}" in outcome.out, "an example is cut or missing"
        assert f"wherry {name}" in example


@pytest.mark.parametrize("name", commands())
def test_the_examples_can_be_parsed(name: str):
    for example in examples_by_command[name]:
        plain = example.removeprefix('eval "$(').removesuffix(')"').partition(" < ")[0]
        tokens = shlex.split(plain.partition(" > ")[0])
        assert tokens[0] == "wherry"
        app.parse_args(tokens[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", [name for name in JSON_CALLS if "--help" not in JSON_CALLS[name]])
def test_json_output_is_valid_json(run: Run, served: Twin, tmp_path: Path, name: str):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "wherry.toml").write_text('task = "tensor"\nruntime = "onnx"\n')
    (tmp_path / "specs.toml").write_text('[[deployments]]\nname = "x"\nmodel = "sentiment"\n')
    (tmp_path / "pipeline.toml").write_text(
        'name = "twice"\nsteps = [{ name = "a", deployment = "sentiment" }]\n'
    )
    if name.startswith("pipeline"):
        run("pipeline", "create", str(tmp_path / "pipeline.toml"))
    (tmp_path / "lines.jsonl").write_text('{"custom_id": "1", "url": "/predict/x", "body": {}}\n')
    files = {
        "BUNDLE": "bundle",
        "SPECS": "specs.toml",
        "PIPELINE": "pipeline.toml",
        "LINES": "lines.jsonl",
    }
    words = [
        str(tmp_path / files[word]) if word in files else word for word in JSON_CALLS[name].split()
    ]
    outcome = run(*words, "-o", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json is not None


def test_a_revoked_key_is_told_as_json(run: Run, twin: Twin):
    key = run("keys", "create", "ci", "-o", "json").json
    assert run("keys", "revoke", key["id"], "-o", "json").json["revoked_at"]


def test_a_promotion_is_told_as_json(run: Run, served: Twin):
    run("rollback", "sentiment")
    assert run("promote", "sentiment", "-o", "json").json["rollout"]["phase"] == "steady"
    assert run("promote", "sentiment").code == 1, "nothing is left to promote"


def test_help_is_quick_and_loads_nothing_heavy():
    script = (
        "import sys, time\n"
        "from wherry.__main__ import main\n"
        "sys.argv = ['wherry', '--help']; main()\n"
        "heavy = {'numpy', 'httpx', 'starlette', 'sqlalchemy', 'uvicorn'} & set(sys.modules)\n"
        "print(time.process_time(), *heavy, sep='\\n')"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    last_lines = [each.stdout.splitlines()[-1] for each in runs]
    assert min(map(float, last_lines)) < 0.5
