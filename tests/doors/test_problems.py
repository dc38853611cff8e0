"""What a server says is wrong with it."""

from __future__ import annotations

import pytest

from wherry.client.schema import Deployment, DeploymentSpec
from wherry.doors.platform_models import name_from
from wherry.doors.problems import find_deployment_problems, find_exposure
from wherry.errors import InvalidInput
from wherry.models.sources.source import parse_reference
from wherry.settings import Settings


def make_deployment(name: str, state: str, **fields: str) -> Deployment:
    spec = DeploymentSpec(name=name, model="m")
    return Deployment(name=name, team="t", state=state, spec=spec, **fields)  # type: ignore[arg-type]


def test_only_deployments_that_need_somebody_are_told_and_the_worst_first() -> None:
    states = ["ready", "idle", "stopped", "starting", "degraded", "failing"]
    problems = find_deployment_problems(make_deployment(state, state) for state in states)
    assert [(each.subject, each.severity) for each in problems] == [
        ("failing", "error"),
        ("degraded", "warning"),
    ]
    assert problems[0].remedy == "wherry logs failing"


@pytest.mark.parametrize(
    ("settings", "subjects", "listening"),
    [
        (Settings(), [], "only this machine"),
        (Settings(allow_code=True), ["allow_code"], "only this machine"),
        (Settings(allow_pickle=True), ["allow_pickle"], "only this machine"),
        (Settings(host="::1"), [], "only this machine"),
        (Settings(host="0.0.0.0", tls_cert="c", tls_key="k"), [], "with TLS"),
        (Settings(host="0.0.0.0", behind_proxy=True), [], "without TLS, trusting a proxy"),
        (Settings(allowed_hosts=("*",)), ["allowed_hosts"], "only this machine"),
    ],
)
def test_what_the_settings_open_is_told(
    settings: Settings, subjects: list[str], listening: str
) -> None:
    *warnings, network = find_exposure(settings)
    assert [each.subject for each in warnings] == subjects
    assert all(each.severity == "warning" and each.remedy for each in warnings)
    assert (network.subject, network.severity) == ("network", "info")
    assert listening in network.what


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("file:/models/Some Model", "some-model"),
        ("hf:owner/All-MiniLM-L6@main", "all-minilm-l6"),
        ("pypi:Some_Package==1.0!/a/model.onnx", "some_package"),
        ("file:/models/iris/", "iris"),
        ("file:/" + "x" * 200, "x" * 63),
    ],
)
def test_a_model_is_named_after_its_place(reference: str, name: str) -> None:
    assert name_from(parse_reference(reference)) == name


def test_a_place_that_gives_no_name_needs_one() -> None:
    with pytest.raises(InvalidInput) as caught:
        name_from(parse_reference("file:/模型"))
    assert caught.value.param == "name"
