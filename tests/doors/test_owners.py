"""Every path that is served has one owner, and it is the one that decision 0027 names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import LiveServer

DECISION = Path(__file__).parents[2] / "docs" / "decisions" / "0027-who-owns-which-path.md"
OWNER_OF_TAG = {
    "anthropic": "Anthropic",
    "hub": "the Hub's API over our registry",
    "huggingface": "Hugging Face tasks",
    "inference": "Open Inference Protocol",
    "kserve": "KServe v1",
    "mlflow": "MLflow's scoring",
    "ollama": "Ollama",
    "openai": "OpenAI",
    "rerank": "Jina and Cohere, TEI",
}
"""Tag of a door's rows → its name in the decision; all other tags are parts of Wherry's own API."""


def table() -> dict[str, str]:
    """Pattern of a path → its owner."""
    found: dict[str, str] = {}
    for line in DECISION.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `/") and len(cells) == 3:
            for pattern in re.findall(r"`([^`]+)`", cells[0]):
                assert pattern not in found, f"{pattern} stands twice"
                found[pattern] = cells[1]
    return found


def owner_of(path: str, patterns: dict[str, str]) -> str:
    """Who owns a path with its parameters filled in: the longest pattern that matches decides."""
    matching = [
        pattern
        for pattern in patterns
        if re.fullmatch(
            re.sub(r"\\\{\w+\\\}", "[^/:]+", re.escape(pattern)).replace("…", ".*"), path
        )
    ]
    assert matching, f"decision 0027 names no owner of {path}"
    return patterns[max(matching, key=len)]


@pytest.fixture(scope="module")
def served(server: LiveServer) -> dict[str, set[str]]:
    """Path → tags of the rows that serve it."""
    paths = server.http.get("/openapi.json").json()["paths"]
    return {
        path: {tag for operation in operations.values() for tag in operation["tags"]}
        for path, operations in paths.items()
    }


def test_every_path_is_served_by_its_owner_alone(served: dict[str, set[str]]):
    patterns = table()
    for path, tags in served.items():
        owners = {OWNER_OF_TAG.get(tag, "Wherry") for tag in tags}
        assert owners == {owner_of(re.sub(r"\{\w+\}", "x", path), patterns)}, path


def test_what_a_door_owns_it_serves(served: dict[str, set[str]]):
    """A line of a door that stands may not name a path that nobody answers."""
    standing = {OWNER_OF_TAG.get(tag, "Wherry") for tags in served.values() for tag in tags}
    filled = [re.sub(r"\{\w+\}", "x", path) for path in served]
    for pattern, owner in table().items():
        if owner not in standing or owner == "OpenAI" or pattern.endswith(":explain"):
            continue  # OpenAI's door is still growing, and it owns what is left of /v1
        expression = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(pattern)).replace("…", ".*")
        assert any(re.fullmatch(expression, path) for path in filled), pattern


def test_the_owners_are_told_apart_by_their_paths():
    patterns = table()
    for path, owner in {
        "/v1/models/a": "OpenAI",
        "/v1/models/a:predict": "KServe v1",
        "/v1/anything/else": "OpenAI",
        "/v2/rerank": "Jina and Cohere, TEI",
        "/api/tags": "Ollama",
        "/api/models/a/b/tree/main": "the Hub's API over our registry",
        "/a/b/resolve/main/c": "the Hub's API over our registry",
        "/": "Wherry",
    }.items():
        assert owner_of(path, patterns) == owner
