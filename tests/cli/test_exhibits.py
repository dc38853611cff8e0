"""The full demo: a real question for every task that has a model here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.client.twin import Twin

from wherry import Client
from wherry.cli.exhibits import exhibits, media
from wherry.cli.gallery import Gallery
from wherry.models.registry.catalog import catalog, find_entry
from wherry.models.tasks.catalog import BUILT_IN
from wherry.models.tasks.questions import QUESTIONS


def test_every_task_that_the_catalogue_has_a_model_for_is_shown():
    shown = {exhibit.task for exhibit in exhibits()}
    assert shown <= BUILT_IN.keys()
    assert {entry.task for entry in catalog().values()} <= shown


@pytest.mark.parametrize("exhibit", exhibits(), ids=lambda each: f"{each.deployment}-{each.task}")
def test_an_exhibit_asks_a_model_that_does_its_task(exhibit):
    assert set(exhibit.files.values()) <= media().keys()
    assert exhibit.words
    if not exhibit.model:
        assert exhibit.task == "tensor"
        return
    if exhibit.through:
        assert exhibit.through in {other.deployment for other in exhibits()}
        return
    does = {find_entry(exhibit.model).task}
    does |= {each.key for each in QUESTIONS if each.tasks & does and each.key in exhibit.question}
    keys = {each.key for each in QUESTIONS if exhibit.task in each.tasks}
    assert exhibit.task in does or keys & does


def test_one_name_is_one_model():
    by_name = {exhibit.deployment: exhibit.model for exhibit in exhibits()}
    assert all(by_name[exhibit.deployment] == exhibit.model for exhibit in exhibits())


def test_what_cannot_be_shown_is_named_with_what_mends_it(twin: Twin, tmp_path: Path, capsys):
    with Client() as client:
        assert not Gallery(client, tmp_path).show()
    told = capsys.readouterr().err
    assert "sentiment   “A warm and funny film" in told
    assert "→ negative" in told
    assert "faces       left out:" in told
    assert "hint:" in told
    assert twin.deployments["sentiment"].spec.idle_seconds > 0


def test_a_whole_demo_is_asked_for_with_the_demo_only(run: Run):
    outcome = run("serve", "--all")
    assert outcome.code == 2
    assert "wherry serve --demo --all" in outcome.err
