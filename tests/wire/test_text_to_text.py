"""Translations and summaries over the wire: by rules, by graphs, and by a prompt to a chat model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import tiny_translators
from tests.conftest import LiveServer

from wherry import Client
from wherry.client.schema import DeploymentSpec
from wherry.models.bundle import Manifest, encode_manifest
from wherry.worker.runtimes.apertium import MODES

READY_SECONDS = 120.0


@pytest.fixture
def http(live: LiveServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {live.key}"}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client


def deploy(live: LiveServer, folder: Path, name: str, **secrets: str) -> str:
    with Client(live.url, live.key) as client:
        client.models.import_model(folder, name=name)
        client.deployments.apply([DeploymentSpec(name=name, model=name, secrets=secrets)])
        client.deployments.wait(name, timeout=READY_SECONDS)
    return name


@pytest.fixture(scope="module")
def rules(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    if not (MODES / "eng-spa.mode").is_file():
        pytest.skip("apt-get install apertium-eng-spa")
    folder = tmp_path_factory.mktemp("rules")
    options = {"pair": "eng-spa", "source_language": "en", "target_language": "es"}
    manifest = Manifest(task="translation", runtime="apertium", options=options)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return deploy(live, folder, "rules")


@pytest.fixture(scope="module")
def pair(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("pair")
    tiny_translators.write_onnx_pair(folder, "merged", seed=194)
    tiny_translators.write_tokenizer(folder, has_languages=True)
    tiny_translators.write_generation_config(folder, max_length=10)
    return deploy(live, folder, "pair")


def adapter(live: LiveServer, folder: Path, task: str) -> str:
    """A deployment whose prompt goes to the deployment `chat` of the same server, over HTTP."""
    options = {"base_url": f"{live.url}/v1", "model": "chat", "max_tokens": 24}
    manifest = Manifest(task=task, runtime="upstream", options=options)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    with Client(live.url, live.key) as client:
        key = client.keys.create(f"for {task}", deployments=["chat"])
    return deploy(live, folder, f"chat-{task}", api_key=key.secret)


def predict(http: httpx.Client, name: str, **body: Any) -> httpx.Response:
    return http.post(f"/predict/{name}", json=body)


def test_rules_translate_in_a_sandboxed_worker(http: httpx.Client, rules: str):
    found = predict(http, rules, text="The house is green.\n\nThe end.").raise_for_status().json()
    assert found["text"] == "La casa es verde.\n\nEl fin."
    assert found["target_language"] == "es"
    assert found["usage"] == {"characters": 29}
    many = [predict(http, rules, text=f"The house number {n}.").json()["text"] for n in range(20)]
    assert many == [f"El número de casa {n}." for n in range(20)]


def test_the_programs_of_a_sandboxed_worker_can_start_no_others(live: LiveServer, rules: str):
    """A filter of system calls stands around the worker and each program that it started."""
    worker = next(
        entry
        for entry in Path("/proc").glob("[0-9]*")
        if _command_of(entry).startswith(f"wherry: worker {rules}@")
        and _ancestor(entry, live.process.pid)
    )
    programs = [
        entry for entry in Path("/proc").glob("[0-9]*") if _parent_of(entry) == int(worker.name)
    ]
    assert len(programs) > 5
    for entry in (worker, *programs):
        assert "Seccomp:\t2" in (entry / "status").read_text()
        assert "NoNewPrivs:\t1" in (entry / "status").read_text()


def test_a_pair_of_graphs_translates_over_two_protocols(http: httpx.Client, pair: str):
    languages = {"source_language": "en", "target_language": "fr"}
    text = "the old cat"
    plain = predict(http, pair, text=text, **languages).raise_for_status().json()
    body = {
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [2], "data": [text, "dog"]},
            *(
                {"name": name, "datatype": "BYTES", "shape": [1], "data": [tag]}
                for name, tag in languages.items()
            ),
        ]
    }
    found = http.post(f"/v2/models/{pair}/infer", json=body).raise_for_status().json()
    assert found["outputs"][0]["data"][0] == plain["text"]
    assert len(found["outputs"][0]["data"]) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": 5}, "must be a string"),
        ({"text": ""}, "empty"),
        ({"text": "\n\n"}, "blanks"),
        ({"text": "x" * (1 << 21)}, "the limit is"),
        ({"text": "\ud800"}, "Unicode"),
        ({"text": "a\n" * 5000}, "lines"),
        ({"text": "cat " * 3000}, "reads 512 tokens"),
        ({"text": "a", "target_language": "xx"}, "does not know the language"),
        ({"text": "a", "target_language": ["fr"]}, "no tag"),
        ({"text": "a", "max_tokens": 0}, "max_tokens"),
        ({"text": "a", "max_tokens": 1 << 40}, "max_tokens"),
        ({"text": "a", "num_beams": 1000}, "num_beams"),
        ({"text": "a", "num_beams": 1.5}, "num_beams"),
        ({"text": "a", "length_penalty": "long"}, "length_penalty"),
        ({"text": "a", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ],
    ids=lambda each: str(each)[:40] if isinstance(each, str) else "",
)
def test_bad_input_is_refused_in_words_and_the_worker_lives(
    http: httpx.Client, pair: str, body: dict[str, Any], words: str
):
    languages = {"source_language": "en", "target_language": "fr"}
    import json

    refused = http.post(
        f"/predict/{pair}",
        content=json.dumps(languages | body),
        headers={"content-type": "application/json"},
    )
    assert refused.status_code in (400, 413, 422), refused.text
    assert words in refused.text or refused.status_code == 400
    assert predict(http, pair, text="dog", **languages).status_code == 200


def test_a_chat_model_translates_by_a_prompt(live: LiveServer, http: httpx.Client, tmp_path: Path):
    name = adapter(live, tmp_path, "translation")
    text = "The house is green."
    found = predict(http, name, text=text, target_language="fr")
    answer = found.raise_for_status().json()
    assert answer["text"]
    assert answer["target_language"] == "fr"
    assert answer["usage"] == {"characters": len(text)}
    units = found.headers["x-wherry-units"]
    told = dict(each.strip().split("=") for each in units.split(","))
    assert int(told["input_tokens"]) > 30, "the prompt is more than the text"
    again = predict(http, name, text=text, target_language="fr").json()
    assert again["text"] == answer["text"], "the temperature is 0"
    assert predict(http, name, text=text).status_code == 400
    assert predict(http, name, text=text, target_language="fr", num_beams=2).status_code == 400


def test_a_chat_model_summarizes_by_a_prompt(live: LiveServer, http: httpx.Client, tmp_path: Path):
    name = adapter(live, tmp_path, "summarization")
    text = "The old river flows past the town. " * 10
    found = predict(http, name, text=text, max_tokens=5).raise_for_status().json()
    assert found["is_cut"] is True
    assert found["usage"] == {"characters": len(text)}


def _command_of(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _ancestor(entry: Path, wanted: int) -> bool:
    process = int(entry.name)
    while process > 1:
        if process == wanted:
            return True
        process = _parent_of(Path("/proc") / str(process))
    return os.getpid() == wanted
