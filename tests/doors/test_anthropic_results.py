"""The lines of a batch's files, as Anthropic's clients read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wherry.doors import anthropic_results
from wherry.doors.anthropic_results import read_results
from wherry.jobs.batches.outputs import (
    CANCELLED,
    EXPIRED,
    REVOKED,
    Entry,
    EntryError,
    EntryResponse,
    Rest,
    encode_entry,
)

MESSAGE = {"type": "message", "content": [{"type": "text", "text": "Ahoi \u2028 é"}]}
REFUSAL = {"type": "error", "error": {"type": "not_found_error", "message": "no model"}}


def write(path: Path, *entries: Entry) -> Path:
    path.write_bytes(b"".join(encode_entry(each) + b"\n" for each in entries))
    return path


def answered(name: str, status: int, body: Any) -> Entry:
    return Entry("batch_req_1", name, EntryResponse(status, "req-1", body), None)


def left(name: str, rest: Rest) -> Entry:
    return Entry("batch_req_1", name, None, EntryError(rest.code, rest.message))


def read(*paths: Path) -> dict[str, Any]:
    lines = b"".join(read_results(paths)).split(b"\n")[:-1]
    return {line["custom_id"]: line["result"] for line in map(json.loads, lines)}


def test_answers_and_refusals_are_passed_on_as_they_were(tmp_path: Path):
    output = write(tmp_path / "output", answered("good", 200, MESSAGE))
    refused = write(tmp_path / "errors", answered("bad", 404, REFUSAL))
    assert read(output, refused) == {
        "good": {"type": "succeeded", "message": MESSAGE},
        "bad": {"type": "errored", "error": REFUSAL},
    }


def test_what_was_not_answered_says_why(tmp_path: Path):
    stream = Rest("invalid_input", "a line cannot be answered by a stream")
    rests = {"late": EXPIRED, "stopped": CANCELLED, "revoked": REVOKED, "stream": stream}
    found = read(write(tmp_path / "errors", *(left(*each) for each in rests.items())))
    assert (found["late"], found["stopped"]) == ({"type": "expired"}, {"type": "canceled"})
    for name, kind in (("revoked", "api_error"), ("stream", "invalid_request_error")):
        error = found[name]["error"]["error"]
        assert (found[name]["type"], error["type"]) == ("errored", kind)
        assert error["message"].startswith(rests[name].message)


def test_a_large_file_comes_in_pieces_of_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(anthropic_results, "PIECE_BYTES", 1000)
    entries = [answered(str(number), 200, MESSAGE) for number in range(100)]
    pieces = list(read_results([write(tmp_path / "output", *entries)]))
    assert len(pieces) > 5
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert len(read(tmp_path / "output")) == 100


def test_a_batch_without_files_has_no_lines():
    assert list(read_results([])) == []
