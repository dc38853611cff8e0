"""The one smoke inference, with real workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs.conftest import Site

from wherry import errors
from wherry.jobs import trial
from wherry.jobs.publish import Publisher, Wish, with_signature
from wherry.jobs.trial import Measured, Output, try_model
from wherry.models.bundle import MANIFEST, Manifest, decode_manifest, encode_manifest

TENSOR = """
task = "tensor"
runtime = "python_class"
files = ["model.py"]
[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1]}]
outputs = [{name = "X", datatype = "FP32", shape = [-1]}]
"""


def make_bundle(folder: Path, code: str, toml: str = TENSOR) -> tuple[Path, Manifest]:
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "model.py").write_text(code)
    (bundle / MANIFEST).write_text(toml)
    return bundle, decode_manifest(toml)


def attempt(site: Site, code: str, toml: str = TENSOR) -> Measured:
    bundle, manifest = make_bundle(site.folder, code, toml)
    return try_model(bundle, manifest, site.settings, site.run_folder)


def test_an_answer_is_measured(site: Site) -> None:
    measured = attempt(
        site,
        "class Model:\n"
        "    def predict(self, batch):\n"
        "        self.kept = b'x' * (64 << 20)\n"
        "        return batch\n",
    )
    assert measured.sample == {"X": [0.0]}
    assert 64 < measured.memory_mib < 500
    assert 0 < measured.load_seconds < 60


def test_a_class_that_refuses_the_made_up_input_has_answered(site: Site) -> None:
    code = (
        "from wherry.errors import InvalidInput\n"
        "class Model:\n"
        "    def predict(self, batch): raise InvalidInput('only even numbers')\n"
    )
    assert attempt(site, code).sample == {}


def test_a_class_that_refuses_its_own_sample_has_not(site: Site) -> None:
    code = (
        "from wherry.errors import InvalidInput\n"
        "class Model:\n"
        "    def predict(self, batch): raise InvalidInput('only even numbers')\n"
    )
    with pytest.raises(errors.InvalidInput, match="its sample: only even numbers"):
        attempt(site, code, "sample = {X = [1.0]}\n" + TENSOR)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class Model:\n    def predict(self, b): return b + [1]\n", "2 results for 1 inputs"),
        ("class Model: pass\n", "no method 'predict'"),
        ("import nosuchmodule\nclass Model:\n    def predict(self, b): return b\n", "nosuchmodule"),
        (
            "class Model:\n    def load(self, f): raise SystemExit(7)\n    def predict(self, b): ...\n",
            "7",
        ),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_what_is_wrong_is_said_without_our_paths(site: Site, code: str, said: str) -> None:
    with pytest.raises(errors.WherryError) as caught:
        attempt(site, code)
    assert said in caught.value.message
    assert str(site.folder) not in caught.value.text
    assert "site-packages" not in caught.value.text
    assert "wherry/" not in caught.value.text


def test_a_model_that_takes_for_ever_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "ANSWER_SECONDS", 0.3)
    code = "import time\nclass Model:\n    def predict(self, b): time.sleep(60)\n"
    with pytest.raises(errors.TimedOut, match=r"took over 0\.3 s to answer"):
        attempt(site, code)


def test_a_model_that_cannot_fit_is_not_even_tried(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "WEIGHT_FACTOR", 1 << 40)
    bundle, _ = make_bundle(site.folder, "x")
    (bundle / "weights.bin").write_bytes(b"0" * (2 << 20))
    with pytest.raises(errors.DoesNotFit, match="MiB are free"):
        trial.check_memory(bundle)


def test_the_width_of_a_row_is_learned_from_the_model(site: Site) -> None:
    pytest.importorskip("sklearn")
    import skops.io
    from sklearn.linear_model import LinearRegression

    bundle = site.folder / "bundle"
    bundle.mkdir()
    model = LinearRegression().fit([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0]], [1.0, 2.0])
    skops.io.dump(model, bundle / "model.skops")
    manifest = Manifest(task="tabular-regression", runtime="sklearn", files=("model.skops",))
    manifest = with_signature(manifest)
    (bundle / MANIFEST).write_text(encode_manifest(manifest))
    measured = try_model(bundle, manifest, site.settings, site.run_folder)
    assert measured.sample == {"row": [0.0, 0.0, 0.0]}


@pytest.mark.parametrize("sandbox", ["auto", "off"])
def test_a_model_that_writes_into_its_folder_becomes_no_version(site: Site, sandbox: Any) -> None:
    code = (
        "class Model:\n"
        "    def load(self, folder): (folder / 'cache.bin').write_text('x')\n"
        "    def predict(self, batch): return batch\n"
    )
    bundle, _ = make_bundle(site.folder, code)
    publisher = Publisher(
        settings=msgspec.structs.replace(site.settings, sandbox=sandbox),
        registry=site.registry,
        folder=site.folder / "job",
        run_folder=site.run_folder,
        tell=lambda *_: None,
        check_current=lambda: None,
    )
    # in the sandbox it cannot: what it tried is told; out of it, what it did
    error = errors.ModelFailed if sandbox == "auto" else errors.InvalidInput
    with pytest.raises(error, match=r"cache\.bin"):
        publisher.publish(site.team_id, "m", bundle, Wish())
    assert site.registry.models(site.team_id) == []


def test_only_the_publishers_part_of_a_traceback_is_told(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.write(
        None,  # type: ignore[arg-type]
        f"""noise
Traceback (most recent call last):
  File "/opt/wherry/worker/loop.py", line 9, in run
    x
  File "{tmp_path}/model.py", line 3, in predict
    y
  File "/usr/lib/python3/json.py", line 1, in loads
    z
json.decoder.JSONDecodeError: cannot read {tmp_path}/data.json
more noise
""".encode(),
    )
    said = "json.decoder.JSONDecodeError: cannot read data.json (model.py, line 3)"
    assert output.last_exception() == said
    assert Output(tmp_path).last_exception() == ""


def test_output_that_never_ends_is_not_kept(tmp_path: Path) -> None:
    output = Output(tmp_path)
    for _ in range(100):
        output.write(None, b"x" * 10_000)  # type: ignore[arg-type]
    assert output._size <= trial.KEPT_OUTPUT_BYTES + 10_000


def test_signatures_are_those_of_the_task_but_open_ones_stay_open() -> None:
    text = with_signature(Manifest(task="text-classification", runtime="x", labels=("a", "b")))
    assert [spec.name for spec in text.signature.inputs] == ["text"]
    toml: Mapping[str, Any] = {"task": "tensor", "runtime": "x"}
    assert with_signature(Manifest(**toml)) == Manifest(**toml)


def test_what_a_model_says_does_nothing_to_a_terminal(site: Site) -> None:
    with pytest.raises(errors.ModelFailed) as caught:
        attempt(site, 'raise ValueError("\\x1b[2Jboom\\x1b]0;mine\\x07")')
    assert "boom" in caught.value.message
    assert caught.value.message.isprintable()
