"""TorchScript and exported programs: answers are torch's own, and files that do more are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Bundle, Manifest
from wherry.models.registry.detect import detect
from wherry.models.tasks.task import Signature, TensorSpec
from wherry.models.tasks.tensor import TensorInput

torch = pytest.importorskip("torch", reason="pip install 'wherry[torch]'")

from wherry.worker.runtimes.torch import TorchRuntime  # noqa: E402 - after importorskip

pytestmark = pytest.mark.filterwarnings("default")  # torch warns of what it will change


class Small(torch.nn.Module):
    """Two inputs, two outputs, weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tanh(self.layer(x)) * self.scale, x + y


class Normalised(torch.nn.Module):
    """The rows of its batch touch each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


OPEN = Signature()
FREE_ROWS = Signature(
    (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))),
    (TensorSpec("score", "FP32", (-1, 3)), TensorSpec("sum", "FP32", (-1, 4))),
)


def save_script(folder: Path, module: Any | None = None) -> Path:
    torch.jit.script((module or Small()).eval()).save(folder / "m.pt")
    return folder / "m.pt"


def save_traced(folder: Path) -> Path:
    example = (torch.zeros(1, 4), torch.zeros(1, 4))
    torch.jit.trace(Small().eval(), example).save(folder / "m.pt")
    return folder / "m.pt"


def save_exported(folder: Path) -> Path:
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        Small().eval(),
        (torch.zeros(2, 4), torch.zeros(2, 4)),
        dynamic_shapes=({0: rows}, {0: rows}),
    )
    torch.export.save(program, folder / "m.pt2")
    return folder / "m.pt2"


def load(path: Path, signature: Signature = OPEN, **manifest: Any) -> TorchRuntime:
    """As a server does: looked at first, then loaded."""
    assert detect(path.parent).runtime == "torch"
    runtime = TorchRuntime()
    fields: dict[str, Any] = {"task": "tensor", "signature": signature, **manifest}
    runtime.load(
        Bundle(path.parent, Manifest(runtime="torch", files=(path.name,), **fields)), "cpu"
    )
    return runtime


def ask(runtime: TorchRuntime, **tensors: Any) -> dict[str, np.ndarray]:
    (output,) = runtime.run([runtime.prepare(TensorInput(tensors))])
    return output.tensors


def numbers(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)


@pytest.mark.parametrize("save", [save_script, save_traced, save_exported])
def test_answers_are_those_of_the_module_itself(save: Callable[[Path], Path], tmp_path: Path):
    runtime = load(save(tmp_path))
    x, y = numbers(3), numbers(3)[::-1].copy()
    with torch.inference_mode():
        expected = Small().eval()(torch.from_numpy(x), torch.from_numpy(y))
    found = [*ask(runtime, x=x, y=y).values()]
    for ours, theirs in zip(found, expected, strict=True):
        # the same kernels on the same numbers; traced code may fuse two of them
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6)


def test_an_exported_program_says_what_it_takes(tmp_path: Path):
    runtime = load(save_exported(tmp_path))
    assert runtime.signature.inputs == FREE_ROWS.inputs
    assert [each.shape for each in runtime.signature.outputs] == [(-1, 3), (-1, 4)]
    assert runtime.joins_rows


def test_torch_script_knows_names_only(tmp_path: Path):
    runtime = load(save_script(tmp_path))
    assert runtime.signature.inputs == (TensorSpec("x", "", ()), TensorSpec("y", "", ()))
    assert [each.name for each in runtime.signature.outputs] == ["output_0", "output_1"]
    assert not runtime.joins_rows


def test_the_signature_of_the_bundle_tells_the_rest(tmp_path: Path):
    runtime = load(save_script(tmp_path), FREE_ROWS)
    assert runtime.signature == FREE_ROWS
    assert runtime.joins_rows
    with pytest.raises(InvalidInput, match="shape"):
        ask(runtime, x=np.zeros((1, 5), np.float32), y=np.zeros((1, 5), np.float32))


def test_numbers_of_json_come_in_the_type_of_the_weights(tmp_path: Path):
    runtime = load(save_script(tmp_path))
    exact = numbers(2).astype(np.float64)
    assert ask(runtime, x=exact, y=exact)["output_0"].dtype == np.float32


@pytest.mark.parametrize("save", [save_script, save_exported])
def test_a_batch_gives_what_each_row_gives_alone(save: Callable[[Path], Path], tmp_path: Path):
    runtime = load(save(tmp_path), FREE_ROWS if save is save_script else OPEN)
    items = [TensorInput({"x": numbers(rows), "y": numbers(rows)}) for rows in (1, 3, 2)]
    together = runtime.run([runtime.prepare(item) for item in items])
    for item, output in zip(items, together, strict=True):
        alone = ask(runtime, **item.tensors)
        for name, array in alone.items():
            # another batch size may choose another kernel: float noise
            np.testing.assert_allclose(output.tensors[name], array, rtol=1e-5, atol=1e-6)


def test_rows_that_touch_each_other_are_never_joined(tmp_path: Path):
    table = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
    assert not load(save_script(tmp_path, Normalised()), table).joins_rows


def test_what_does_not_fit_is_the_callers_to_mend(tmp_path: Path):
    runtime = load(save_script(tmp_path))
    with pytest.raises(InvalidInput, match=r"does not fit the model: .*shape"):
        ask(runtime, x=np.zeros((1, 5), np.float32), y=np.zeros((1, 5), np.float32))
    with pytest.raises(InvalidInput, match="numbers"):
        ask(runtime, x=np.array([b"a"], object), y=np.zeros((1, 4), np.float32))


def test_pictures_are_classified_by_torch_script(tmp_path: Path):
    pillow = pytest.importorskip("PIL.Image")
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    save_script(tmp_path, module)
    image = tmp_path / "red.png"
    pillow.new("RGB", (20, 10), (250, 5, 5)).save(image)
    tensors = {
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }
    runtime = load(
        tmp_path / "m.pt",
        task="image-classification",
        labels=("red", "green", "blue"),
        options={"image_size": [8, 8], "graphs": {"m.pt": tensors}},
    )
    from wherry.models.tasks.catalog import find_task

    task = find_task("image-classification")
    item = task.from_plain({"image": read_base64(image)}, Manifest("tensor", "x").task_config())
    (output,) = runtime.run([runtime.prepare(item)])
    plain = task.to_plain(output, Manifest("tensor", "x").task_config())
    assert "red" in str(plain).partition("green")[0]


def read_base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


# ------------------------------------------------------------------------------ refused


class ReadsAFile(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/passwd", False, 4, dtype=torch.uint8) + x


def test_torch_script_can_read_files_and_is_refused_for_it(tmp_path: Path):
    save_script(tmp_path, ReadsAFile())
    read = torch.jit.load(tmp_path / "m.pt")(torch.zeros(4, dtype=torch.uint8))
    assert bytes(read.tolist()) == Path("/etc/passwd").read_bytes()[:4], "torch itself lets it"
    with pytest.raises(FormatNotAllowed, match="from_file"):
        detect(tmp_path)


def change_model(path: Path, old: str, new: str) -> None:
    """Rewrite the graph of a `.pt2`."""
    with zipfile.ZipFile(path) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("models/model.json"):
                assert old.encode() in data
                data = data.replace(old.encode(), new.encode())
            archive.writestr(name, data)


SIZE = "Symbol('s17', positive=True, integer=True)"
GUARD = "L['x'].size()[0] == L['y'].size()[0]"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("positive=True", "positive=__import__('os').system('true')", "size"),
        ("positive=True", "positive=(lambda: 1)()", "size"),
        (GUARD, "__import__('os').system('true') or L['x'].size()[0]", "guard"),
        (GUARD, "L['x'].size()[0].__class__", "guard"),
        ("torch.ops.aten.add.Tensor", "torch.hub.load", "operator"),
        ("torch.ops.aten.add.Tensor", "torch.ops.aten.from_file.default", "operator"),
        ("torch.ops.aten.add.Tensor", "_operator.attrgetter", "operator"),
        ('\\"builtins.tuple\\"', '\\"os.system\\"', "arguments of type"),
    ],
)
def test_an_exported_program_that_could_run_code_is_refused(
    old: str, new: str, what: str, tmp_path: Path
):
    path = save_exported(tmp_path)
    change_model(path, old, new)
    with pytest.raises(FormatNotAllowed, match=what):
        detect(tmp_path)


def test_a_size_is_python_code_to_torch(tmp_path: Path):
    """The reason for all these checks."""
    path, proof = save_exported(tmp_path), tmp_path / "proof"
    with zipfile.ZipFile(path) as archive:
        graph = next(
            archive.read(each).decode() for each in archive.namelist() if "model.json" in each
        )
    size = graph[graph.index("Symbol(") : graph.index("integer=True)") + len("integer=True)")]
    change_model(path, size, f"__import__('pathlib').Path('{proof}').touch()")
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch fails, but too late
        torch.export.load(path)
    assert proof.exists()


def test_a_pickled_module_is_refused(tmp_path: Path):
    torch.save(Small(), tmp_path / "m.pt")
    with pytest.raises(FormatNotAllowed, match="pickle"):
        detect(tmp_path)


def test_example_inputs_that_import_something_are_refused(tmp_path: Path):
    program = torch.export.export(Small().eval(), (torch.zeros(2, 4), torch.zeros(2, 4)))
    torch.export.save(program, tmp_path / "m.pt2")
    detect(tmp_path)
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    torch.save([Path("x")], tmp_path / "evil")
    (name,) = [each for each in members if each.endswith("sample_inputs/model.pt")]
    members[name] = (tmp_path / "evil").read_bytes()
    (tmp_path / "evil").unlink()
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    with pytest.raises(FormatNotAllowed, match="a pickle that imports 'pathlib"):
        detect(tmp_path)
