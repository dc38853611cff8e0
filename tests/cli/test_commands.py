"""What the commands do and print."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.client.twin import KEY, Twin

from wherry import errors
from wherry.cli import serve, talk
from wherry.cli.models import resolve_version
from wherry.cli.output import format_bytes, parse_duration, width_of
from wherry.client.local import LocalServer, write_server
from wherry.settings import Settings

# ------------------------------------------------------------------------------ models


def test_a_model_goes_from_the_catalogue_to_an_answer(run: Run, twin: Twin):
    assert "smollm2" in run("catalog").out
    pulled = run("pull", "smollm2")
    assert pulled.out == "smollm2@1\n"
    assert "pull smollm2: download" in pulled.err
    assert run("deploy", "smollm2", "--idle", "15m").out == "smollm2 is ready\n"
    spec = twin.deployments["smollm2"].spec
    assert (spec.idle_seconds, spec.replicas.min, spec.replicas.max) == (900, 0, 1)
    assert run("chat", "smollm2", "hello").out == "olleh\n"


def test_a_catalogue_says_why_a_model_does_not_fit(run: Run, twin: Twin):
    assert "no: needs 1048576 MiB, 4000 MiB are free" in run("catalog").out


def test_a_table_is_plain_and_aligned_when_no_terminal_reads_it(run: Run, served: Twin):
    lines = run("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "smollm2", "sentiment"]
    assert (
        len({line.index(word) for line, word in zip(lines, ["TASK", "text", "text"], strict=True)})
        == 1
    )


def test_a_folder_is_imported(run: Run, twin: Twin, tmp_path: Path):
    (tmp_path / "wherry.toml").write_text('task = "tensor"\nruntime = "onnx"\n')
    (tmp_path / "notes.txt").write_text("x" * 5000)
    dry = run("import", str(tmp_path), "--name", "mood", "--dry-run")
    assert "notes.txt     5.0 kB" in dry.out
    assert twin.requests == []
    arguments = ["--labels", "bad, good", "--alias", "champion"]
    assert run("import", str(tmp_path), "--name", "mood", *arguments).out == "mood@1\n"
    assert twin.versions["mood"][0].card.labels == ["bad", "good"]
    assert run("show", "mood@champion", "-o", "json").json["number"] == 1


def test_an_import_says_what_was_found_and_what_was_assumed(run: Run, twin: Twin, tmp_path: Path):
    (tmp_path / "wherry.toml").write_text('task = "tensor"\nruntime = "onnx"\n')
    twin.assumed = ["pixels are RGB", "pictures are stretched"]
    told = run("import", str(tmp_path), "--name", "mood")
    assert told.out == "mood@1\n"
    assert "by the runtime" in told.err
    assert "assumed: pixels are RGB\nassumed: pictures are stretched\n" in told.err
    found = run("import", str(tmp_path), "--name", "mood", "-o", "json").json
    assert found["assumed"] == twin.assumed


def test_options_and_labels_are_told_at_import_and_at_pull(run: Run, twin: Twin, tmp_path: Path):
    (tmp_path / "wherry.toml").write_text('task = "tensor"\nruntime = "onnx"\n')
    options = ["-p", "channel_order=BGR", "-p", "mean=[104,117,123]", "-p", "std=2"]
    expected = {"channel_order": "BGR", "mean": [104, 117, 123], "std": 2}
    run("import", str(tmp_path), "--name", "mood", *options)
    run("pull", "smollm2", "--labels", "bad, good", *options)
    assert [wish.options for wish in twin.wishes] == [expected, expected]
    assert twin.wishes[1].labels == ["bad", "good"]
    assert run("pull", "smollm2", "-p", "mean").code != 0


def test_a_base_model_goes_on_with_the_text(run: Run, served: Twin, tmp_path: Path):
    refusal = errors.InvalidInput("this model has no chat template: it continues texts")
    served.refused_chats = [refusal, refusal, refusal]
    (tmp_path / "tale.txt").write_text("Long ago")
    assert run("run", "smollm2", str(tmp_path / "tale.txt")).out == "Long ago and so on\n"
    assert run("run", "smollm2", "Once upon").out == "Once upon and so on\n"
    outcome = run("run", "smollm2", "Once upon", "--system", "Be kind.")
    assert outcome.code != 0
    assert "no chat template" in outcome.err


def test_training_takes_parameters_of_any_type(run: Run, twin: Twin):
    outcome = run(
        "train", "tabular", "--name", "churn", "-p", "depth=3", "-p", "data=a=b.csv", "-o", "json"
    )
    assert outcome.json["result"]["depth"] == 3
    assert outcome.json["result"]["data"] == "a=b.csv"


def test_dry_runs_change_nothing(run: Run, served: Twin):
    before = [list(served.models), list(served.deployments), list(served.keys)]
    for line in (
        "pull smollm2 --dry-run",
        "rm smollm2@1 --dry-run",
        "alias sentiment champion --dry-run",
        "deploy sentiment --name two --dry-run",
        "undeploy sentiment --dry-run",
        "scale sentiment 4 --dry-run",
        "stop sentiment --dry-run",
        "start sentiment --dry-run",
        "keys create ci --dry-run",
        "train tabular --name x --dry-run",
        "run smollm2 hi --dry-run",
    ):
        outcome = run(*line.split())
        assert outcome.code == 0, outcome.err
    assert before == [list(served.models), list(served.deployments), list(served.keys)]
    assert served.models["sentiment"].aliases == {}
    assert served.deployments["sentiment"].state == "ready"
    assert served.jobs == {}


def test_jobs_are_listed_shown_waited_for_and_cancelled(run: Run, twin: Twin):
    run("pull", "sentiment")
    (job,) = twin.jobs
    assert "sentiment@1" in run("jobs").out
    assert "state:  succeeded" in run("jobs", job, "--wait").out
    assert run("jobs", "--cancel").code == 2
    run("jobs", job, "--cancel", "--dry-run")
    assert twin.jobs[job].state == "succeeded"
    run("jobs", job, "--cancel")
    assert twin.jobs[job].state == "cancelled"
    assert run("jobs", job, "--wait").code == 1


def test_a_failed_pull_is_told_with_its_cause(run: Run, twin: Twin):
    twin.fail_jobs = "the index does not answer"
    outcome = run("pull", "sentiment")
    assert outcome.code == 1
    assert "failed: the index does not answer\nhint: check the network" in outcome.err
    assert "the index does not answer" in run("jobs").out


def test_aliases_are_set_resolved_and_removed(run: Run, twin: Twin):
    twin.add_version("mood", "text-classification")
    twin.add_version("mood", "text-classification")
    assert run("alias", "mood", "champion").out == "set mood@champion = 2\n"
    assert run("alias", "mood@1", "old").out == "set mood@old = 1\n"
    assert resolve_version(twin.models["mood"], "champion") == 2
    assert run("alias", "mood", "old", "--remove").out == "removed mood@old = 1\n"
    assert twin.models["mood"].aliases == {"champion": 2}
    assert run("alias", "mood", "other", "--remove").code == 1
    assert run("rm", "mood@1").out == "removed mood@1\n"


def test_a_deployed_model_is_not_removed(run: Run, served: Twin):
    outcome = run("rm", "sentiment")
    assert outcome.code == 1
    assert "hint: wherry undeploy sentiment" in outcome.err


# ------------------------------------------------------------------------------ deployments


def test_ps_tells_cause_and_remedy(run: Run, served: Twin):
    run("stop", "sentiment")
    out = run("ps").out
    assert "sentiment" in out
    assert "you stopped it: wherry start sentiment" in out
    assert "1000" in run("ps", "--workers").out


def test_logs_are_printed_and_followed(run: Run, served: Twin):
    assert run("logs", "sentiment", "-n", "1").out.endswith("w1 line 2\n")
    lines = run("logs", "sentiment", "-f", "-o", "json").out.splitlines()
    assert len(lines) == 3


SPECS = """
[[deployments]]
name = "mood"
model = "sentiment"
replicas = { min = 2, max = 2 }

[[deployments]]
name = "sentiment"
model = "sentiment"
"""


def test_apply_shows_the_difference_first(run: Run, served: Twin, tmp_path: Path, monkeypatch):
    (tmp_path / "specs.toml").write_text(SPECS)
    dry = run("apply", "-f", str(tmp_path / "specs.toml"), "--dry-run")
    assert "+ mood: would create" in dry.out
    assert "= sentiment: no change" in dry.out
    asked = run("apply", "-f", str(tmp_path / "specs.toml"))
    assert asked.code == 1
    assert "hint: give --yes" in asked.err
    assert "mood" not in served.deployments
    done = run("apply", "-f", str(tmp_path / "specs.toml"), "--yes")
    assert "+ mood: created" in done.out
    assert served.deployments["mood"].spec.replicas.min == 2


def test_apply_reads_json_and_standard_input(run: Run, served: Twin, monkeypatch):
    text = '{"name": "sentiment", "model": "sentiment", "idle_seconds": 5}'
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    outcome = run("apply", "-f", "-", "-y", "-o", "json")
    assert outcome.json["changes"][0]["fields"] == {"idle_seconds": [0.0, 5.0]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "neither TOML nor JSON"),
        ('name = "UPPER"', "not valid"),
        ('name = "x"\ncolour = 1', "colour"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(run: Run, twin: Twin, tmp_path, text: str, part: str):
    (tmp_path / "specs").write_text(text)
    outcome = run("apply", "-f", str(tmp_path / "specs"))
    assert outcome.code == 1
    assert part in outcome.err
    assert twin.requests == []


# ------------------------------------------------------------------------------ talk


def test_run_pulls_deploys_and_answers(run: Run, twin: Twin):
    outcome = run("run", "smollm2", "what", "now?")
    assert outcome.out == "?won tahw\n"
    assert "smollm2" in twin.deployments
    assert run("run", "smollm2", "abc", "-o", "json").json["text"] == "cba"


def test_run_answers_with_other_tasks_too(run: Run, twin: Twin):
    assert "positive" in run("run", "sentiment", "lovely").out
    twin.deployments["sentiment"].state = "stopped"
    assert "negative" in run("run", "sentiment", "rain").out


def test_run_says_the_plan_when_dry(run: Run, twin: Twin):
    plan = run("run", "smollm2", "hi", "--dry-run").out.splitlines()
    assert plan == ["pull smollm2", "deploy smollm2", "ask smollm2"]


def test_a_chat_remembers_and_survives_an_error(twin: Twin, served: Twin, capsys):
    from wherry import Client

    questions = iter(["ab", "crash", "", "cd", "/bye"])
    with Client() as client:
        chat = talk.Chat(client, "smollm2", "be brief", {})
        chat.loop(read=lambda _: next(questions))
        assert [message["role"] for message in chat._messages] == [
            "system",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
    out, err = capsys.readouterr()
    assert out.split() == ["ba", "hsarc", "dc"]
    assert "error: the worker died" in err


def test_embeddings_are_a_line_each(run: Run, served: Twin, monkeypatch):
    assert run("embed", "sentiment", "a", "--", "-bb").out == "[1.0,0.5]\n[3.0,0.5]\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\nthree\n"))
    assert run("embed", "sentiment", "-").out == "[3.0,0.5]\n[5.0,0.5]\n"


# ------------------------------------------------------------------------------ access


def test_a_secret_stands_alone_on_standard_output(run: Run, twin: Twin):
    outcome = run("keys", "create", "ci", "--scope", "invoke", "--expires", "30d")
    assert outcome.out == "wk-abc-secret\n"
    (key,) = twin.keys.values()
    assert key.expires_at
    assert "active, 30 d left" in run("keys", "list").out
    assert run("keys", "revoke", "ci").code == 0
    assert "revoked" in run("keys", "list").out
    assert run("keys", "revoke", "other").code == 1


def test_usage_has_the_columns_that_were_asked_for(run: Run, twin: Twin):
    head = run("usage", "--by", "day,key").out.splitlines()[0].split("  ")[:2]
    assert head == ["KEY", "DAY"]


# ------------------------------------------------------------------------------ system


def test_env_can_be_evaluated_by_a_shell(run: Run, twin: Twin, monkeypatch):
    monkeypatch.delenv("WHERRY_URL")
    monkeypatch.delenv("WHERRY_API_KEY")
    key = "wk-'$(echo)`\"x"
    write_server(LocalServer(twin.url, key, "/data", os.getpid(), "1"))
    script = f'eval "$({sys.executable} -m wherry env)"; echo "$OPENAI_BASE_URL $OPENAI_API_KEY"'
    outcome = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert outcome.stdout == f"{twin.url}/v1 {key}\n"
    assert f"export WHERRY_API_KEY={shlex.quote(key)}" in run("env").out


def test_env_without_a_server_sets_nothing(run: Run):
    outcome = run("env")
    assert (outcome.code, outcome.out) == (1, "")
    assert "hint: wherry serve" in outcome.err


def test_a_local_server_is_found_with_its_key(run: Run, twin: Twin, monkeypatch):
    monkeypatch.delenv("WHERRY_URL")
    monkeypatch.delenv("WHERRY_API_KEY")
    write_server(LocalServer(twin.url, KEY, "/srv/data", os.getpid(), "1"))
    out = run("status").out
    assert twin.url in out
    assert "/srv/data" in out


def test_doctor_ends_with_1_if_something_is_wrong(run: Run, served: Twin):
    assert run("doctor").code == 0
    deployment = served.deployments["sentiment"]
    deployment.state, deployment.cause, deployment.remedy = "failing", "no memory", "free some"
    outcome = run("doctor")
    assert outcome.code == 1
    assert "error: sentiment: it is failing: no memory\n  hint: free some" in outcome.out


def test_doctor_finds_a_key_that_others_may_read(run: Run, twin: Twin):
    path = write_server(LocalServer("http://127.0.0.1:1", "k", "", os.getpid(), "1"))
    path.chmod(0o644)
    assert f"hint: chmod 600 {path}" in run("doctor").out


def test_completion_is_installed(run: Run, tmp_path: Path):
    path = Path(run("completion", "install", "--shell", "bash", "-o", "json").json["path"])
    assert path.is_relative_to(tmp_path)
    assert "undeploy" in path.read_text()


# ------------------------------------------------------------------------------ serve


def test_every_setting_has_a_flag_with_its_words():
    flags = set(serve.Flags.__dataclass_fields__)
    settings = set(Settings.__struct_fields__)
    assert settings - flags == {"admin_key"}, "a secret is no flag, all else is"
    assert set(serve.read_setting_docs()) == settings


def test_a_wrong_setting_is_told_before_anything_starts(run: Run, tmp_path: Path):
    assert "WHERRY_PORT" in run("serve", "--port", "70000").err
    assert "no configuration file" in run("serve", "--config", str(tmp_path / "none")).err
    (tmp_path / "wherry.toml").write_text("colour = 1")
    assert "colour" in run("serve", "--config", str(tmp_path / "wherry.toml")).err


# ------------------------------------------------------------------------------ small parts


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (10**13, "10.0 TB")]
)
def test_sizes_are_told_shortly(size: int, text: str):
    assert format_bytes(size) == text


def test_durations():
    assert [parse_duration(text) for text in ("90", "90s", "15m", "2h", "1d")] == [
        90,
        90,
        900,
        7200,
        86_400,
    ]


def test_chinese_takes_two_columns():
    assert width_of("模型 ab") == 7
