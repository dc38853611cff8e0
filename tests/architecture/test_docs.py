"""The documents say what is so: settings, errors, commands, links, examples."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from wherry import errors
from wherry.cli import main as cli_main
from wherry.cli.command import app
from wherry.cli.exhibits import exhibits
from wherry.cli.serve import read_setting_docs
from wherry.client.schema import DeploymentSpec
from wherry.doors.errors import HTTP_STATUS
from wherry.gateway.steps import find_dependencies
from wherry.models.bundle import Bundle, Manifest, decode_manifest
from wherry.models.codecs.catalog import BUILT_IN as CODECS
from wherry.models.tasks.catalog import BUILT_IN as TASKS
from wherry.models.tasks.tensor import TensorInput
from wherry.settings import PREFIX, Settings
from wherry.worker.runtimes.catalog import BUILT_IN
from wherry.worker.runtimes.runtime import BatchRuntime

assert cli_main  # its import registers the commands

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "src" / "wherry" / "README.md"]
)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", read(page), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------------------ generated pages


def test_generated_pages_are_what_the_code_says():
    script = ROOT / "scripts" / "build_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every row that a gateway serves, as the pages are made of them."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module("build_docs").all_rows()


def test_every_codec_is_reached_by_a_row_that_names_it(rows: list[Any]):
    named = {row.codec for row in rows if row.codec}
    without_row = {"native", "inference.grpc", "openai.responses.turn"}
    assert named == CODECS.keys() - without_row
    for row in rows:
        if row.direct is not None:
            assert row.direct.codec == row.codec


def test_every_task_has_a_page_and_a_line_in_the_table(rows: list[Any]):
    tables = import_module("task_tables")
    table = tables.readme_table(rows, tables.ENGLISH)
    for task in TASKS:
        page = tables.page_of(task)
        assert (ROOT / "docs" / "tasks" / page).is_file(), f"docs/tasks/{page} is missing"
        assert f"| [{task}](docs/tasks/{page}) |" in table


def test_doors_of_a_task_follow_from_its_codecs(rows: list[Any]):
    tables = import_module("task_tables")
    assert [way.path for way in tables.ways_of("text-to-image", rows)] == ["/v1/images/generations"]
    assert "/v1/embeddings" in [way.path for way in tables.ways_of("feature-extraction", rows)]
    assert tables.ways_of("recommendation", rows) == []
    assert "predict" in tables.doors_of_all(rows)


def test_every_exhibit_has_an_answer_of_a_live_server(rows: list[Any]):
    outputs = import_module("task_tables").read_outputs()
    asked = [(exhibit.task, exhibit.model, exhibit.words) for exhibit in exhibits()]
    assert [(each.task, each.model, each.question) for each in outputs] == asked, (
        "ask again: scripts/record_outputs.py"
    )
    assert all(output.answer for output in outputs)


def test_every_setting_is_explained():
    fields = [field.name for field in msgspec.structs.fields(Settings)]
    page = read(ROOT / "docs" / "settings.md")
    assert read_setting_docs().keys() == set(fields)
    for name in fields:
        assert f"| `{name}` | `{PREFIX}{name.upper()}` |" in page


def test_every_error_has_a_status_and_a_line():
    page = read(ROOT / "docs" / "errors.md")
    assert set(HTTP_STATUS) == set(errors.all_errors())
    for kind in errors.all_errors()[1:]:
        assert f"| `{kind.code}` | {HTTP_STATUS[kind]} |" in page
        assert kind.__doc__


def test_two_errors_never_share_a_code():
    kinds = errors.all_errors()[1:]  # without the base, which nobody raises
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert type(errors.from_code(kind.code, "text")) is kind


# ------------------------------------------------------------------------------ links


def headings(page: Path) -> set[str]:
    """Anchors of a page, as the usual renderers make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        assert found.is_relative_to(ROOT), f"{target} leaves the repository"
        if anchor:
            assert anchor in headings(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_is_reached_from_the_first_one(page: Path):
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        each = waiting.pop()
        if each in reached or each.suffix != ".md" or not each.is_file():
            continue
        reached.add(each)
        links = re.findall(r"\]\(([^)#\s]+)", prose(each))
        waiting += [(each.parent / link).resolve() for link in links if "://" not in link]
    assert page in reached


# ------------------------------------------------------------------------------ commands, examples


def commands_in(text: str) -> Iterator[list[str]]:
    """Words of each `wherry …` in a block of shell, as far as the next pipe or redirection."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        for found in re.finditer(r"(?:^ *(?:\w+=)?|\$\(|&& )(wherry .+)", line):
            command = found[1].partition(")")[0] if found[0].startswith("$(") else found[1]
            lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>;&()")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in lexer:
                if set(word) <= set("|<>;&()"):
                    break
                words.append(word)
            yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_examples_are_commands_that_exist(page: Path):
    for block in blocks(page, "bash", "text"):
        if "Usage: wherry" in block:
            continue  # help, which has a test of its own
        for words in commands_in(block):
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_shell_examples_are_found_at_all():
    found = [
        words[0] for block in blocks(ROOT / "README.md", "bash") for words in commands_in(block)
    ]
    assert {"ps", "env", "run", "import", "deploy", "apply", "keys", "usage"} <= set(found)
    assert list(commands_in("KEY=$(wherry keys create x)\n")) == [["keys", "create", "x"]]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_names_commands_that_exist(page: Path):
    known = {name for name in app if not name.startswith("-")}
    for word in re.findall(r"`wherry ([a-z]+)", prose(page)):
        assert word in known


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_can_be_compiled(page: Path):
    for number, block in enumerate(blocks(page, "python")):
        compile(textwrap.dedent(block), f"{page.name} {number}", "exec")


def test_the_runtime_of_the_contributing_page_answers(tmp_path: Path):
    block = next(
        each for each in blocks(ROOT / "CONTRIBUTING.md", "python") if "AddRuntime" in each
    )
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(block), namespace)
    runtime = namespace["AddRuntime"]()
    assert isinstance(runtime, BatchRuntime)
    runtime.load(Bundle(tmp_path, Manifest("tensor", "add", options={"amount": 5})), "cpu")
    items = [TensorInput({"X": np.array([number])}) for number in (1.0, 2.0)]
    answers: list[Any] = list(runtime.run([runtime.prepare(item) for item in items]))
    assert [answer.tensors["X"].tolist() for answer in answers] == [[6.0], [7.0]]
    runtime.close()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_examples_mean_something(page: Path):
    heredocs = re.findall(r"<<'TOML'\n(.*?)^TOML$", read(page), re.DOTALL | re.MULTILINE)
    for block in [*blocks(page, "toml"), *heredocs]:
        found = tomllib.loads(block)
        if "deployments" in found:
            for spec in msgspec.convert(found["deployments"], list[DeploymentSpec]):
                find_dependencies(spec.steps, spec.answer)
        elif "runtime" in found:
            decode_manifest(block)


# ------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_its_three_parts_and_is_listed(page: Path):
    titles = re.findall(r"^## (.+)$", read(page), re.MULTILINE)
    assert titles == ["Context", "Decision", "Cost"]
    assert f"({page.name})" in read(page.parent / "README.md")
    assert len(read(page).splitlines()) <= 60, "one page"


def test_the_chinese_page_has_the_examples_of_the_english_one():
    english = "\n".join(blocks(ROOT / "README.md", "bash", "python"))
    chinese = [
        words for block in blocks(ROOT / "README.zh-CN.md", "bash") for words in commands_in(block)
    ]
    assert len(chinese) > 10
    for words in chinese:
        assert f"wherry {words[0]}" in english


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_folder_of_one_machine(page: Path):
    assert not re.search(r"(?<![\w.])/(root|work|home/\w+)\b", read(page))


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=name_of)
def test_a_picture_can_be_read_and_says_what_it_shows(picture: Path):
    tree = ElementTree.fromstring(read(picture))
    names = {child.tag.rpartition("}")[2] for child in tree}
    assert {"title", "desc"} <= names
    assert any(picture.name in read(page) for page in PAGES), "no page shows it"


def test_every_runtime_is_in_the_table_with_its_extra():
    table = read(ROOT / "docs" / "runtimes.md").partition("## Install")[0]
    for name, (_, extra) in BUILT_IN.items():
        (row,) = [line for line in table.splitlines() if re.match(rf"\|[^|]*`{name}`", line)]
        assert not extra or f"| `{extra}` |" in row
