import json

import pytest

from wherry import errors
from wherry.doors.errors import (
    ANTHROPIC_HEADER,
    render_anthropic,
    render_huggingface,
    render_inference,
    render_openai,
    render_platform,
    renderer_of,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidInput("x"), 400, "invalid_request_error"),
        (errors.Quarantined("x"), 400, "invalid_request_error"),
        (errors.Conflict("x"), 400, "invalid_request_error"),
        (errors.NotAuthenticated("x"), 401, "authentication_error"),
        (errors.NotPermitted("x"), 403, "permission_error"),
        (errors.ModelNotFound("x"), 404, "not_found_error"),
        (errors.TooLarge("x"), 413, "request_too_large"),
        (errors.QuotaExceeded("x"), 429, "rate_limit_error"),
        (errors.Overloaded("x"), 529, "overloaded_error"),
        (errors.NotReady("x"), 503, "api_error"),
        (errors.TimedOut("x"), 504, "timeout_error"),
        (errors.WorkerLost("x"), 502, "api_error"),
    ],
)
def test_anthropics_clients_read_status_and_type(error: errors.WherryError, status: int, kind: str):
    found, body, headers = render_anthropic(error, "r1")
    assert found == status
    assert json.loads(body)["error"]["type"] == kind
    assert json.loads(body)["request_id"] == headers["request-id"] == "r1"


def test_an_overloaded_server_says_when_to_come_back():
    _, _, headers = render_anthropic(errors.Overloaded("x", retry_after_seconds=2.5), "r1")
    assert headers["retry-after"] == "3"


def test_anthropics_clients_are_told_the_field_and_what_to_do():
    error = errors.InvalidInput("it is wrong", hint="mend it", param="messages[0]")
    message = json.loads(render_anthropic(error, "r1")[1])["error"]["message"]
    assert message == "messages[0]: it is wrong (mend it)"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidInput("x"), 400, "validation"),
        (errors.ContextLengthExceeded("x"), 400, "validation"),
        (errors.Quarantined("x"), 400, "validation"),
        (errors.TooLarge("x"), 413, "validation"),
        (errors.NotAuthenticated("x"), 401, None),
        (errors.ModelNotFound("x"), 404, None),
        (errors.QuotaExceeded("x"), 429, "overloaded"),
        (errors.Overloaded("x"), 503, "overloaded"),
        (errors.ModelFailed("x"), 500, "generation"),
        (errors.WorkerLost("x"), 502, "generation"),
    ],
)
def test_hugging_faces_clients_read_status_type_and_headers(
    error: errors.WherryError, status: int, kind: str | None
):
    found, body, headers = render_huggingface(error, "r1")
    assert found == status
    assert json.loads(body).get("error_type") == kind
    assert (headers["x-error-code"], headers["x-error-message"]) == (error.code, error.text)


def test_hugging_faces_clients_are_told_the_field():
    error = errors.InvalidInput("it is wrong", param="inputs")
    assert json.loads(render_huggingface(error, "r1")[1])["error"] == "inputs: it is wrong"
    error = errors.InvalidInput("'inputs' is wrong", param="inputs")
    assert json.loads(render_huggingface(error, "r1")[1])["error"] == "'inputs' is wrong"


def test_a_path_without_a_row_answers_as_its_protocol():
    speaks = {ANTHROPIC_HEADER: "2023-06-01"}
    assert renderer_of("/v1/nothing", {}) is render_openai
    assert renderer_of("/v1/files", speaks) is render_anthropic
    assert renderer_of("/v1/messages/batches", {}) is render_anthropic
    assert renderer_of("/v2/nothing", speaks) is render_inference
    assert renderer_of("/pipeline", {}) is render_platform
    assert renderer_of("/pipeline/x", {}) is render_huggingface
    assert renderer_of("/nothing", speaks) is render_platform
