"""TorchScript, exported programs, Keras files and SavedModels are looked into without a framework.

That what real frameworks write passes, and is loaded: `tests/worker/runtimes`.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import FormatNotAllowed
from wherry.models.registry.detect import detect
from wherry.models.trust.formats import check_format

SOURCE = """class Net(Module):
  __parameters__ = ["weight", ]
  weight : Tensor
  def forward(self: __torch__.Net, x: Tensor) -> Tensor:
    return torch.add(ops.quantized.relu6(x), self.weight)
"""
NODE = {"target": "torch.ops.aten.add.Tensor", "inputs": [], "outputs": []}
SIZE = "Max(1, 2*Symbol('s17', positive=True, integer=True) + 1)"
GUARD = "L['x'].size()[0] == L['y'].size()[0] // 2"
TREE = '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'
DENSE: dict[str, Any] = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {"units": 2, "activation": "relu"},
    "registered_name": None,
}


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


# ------------------------------------------------------------------------------ TorchScript


def script(folder: Path, source: str) -> Path:
    members = {"m/code/__torch__.py": source.encode(), "m/data.pkl": b"", "m/constants.pkl": b""}
    return zip_of(folder / "m.pt", members)


def test_torch_script_that_computes_is_taken(tmp_path: Path):
    assert check_format(script(tmp_path, SOURCE)) == "torchscript"
    assert detect(tmp_path).runtime == "torch"


@pytest.mark.parametrize(
    "line",
    [
        'y = torch.from_file("/etc/passwd", False, 4)',
        'torch.save(x, "/tmp/a")',
        'y = ops.aten.from_file("/etc/passwd")',
        "y = ops.mine.do(x)",
        "y = ops . mine . do(x)",
        "y = ops.\n    mine.do(x)",
        "s : __torch__.torch.classes.dist_rpc.Store",
        "y = rpc_sync(x)",
    ],
)
def test_torch_script_that_could_do_more_is_refused(tmp_path: Path, line: str):
    with pytest.raises(FormatNotAllowed) as refused:
        check_format(script(tmp_path, SOURCE + "    " + line))
    assert refused.value.hint


def test_a_zip_file_of_folders_is_no_torch_script(tmp_path: Path):
    with pytest.raises(FormatNotAllowed, match="ZIP"):
        check_format(zip_of(tmp_path / "m.pt", {"code/": b"", "a/": b""}))


# ------------------------------------------------------------------------------ exported programs


def program(folder: Path, **changes: Any) -> Path:
    graph = {
        "graph_module": {"graph": {"nodes": [changes.pop("node", NODE)]}},
        "sizes": [{"as_expr": {"expr_str": changes.pop("size", SIZE)}}],
        "guards_code": [changes.pop("guard", GUARD)],
        "module_call_graph": [{"signature": {"in_spec": changes.pop("tree", TREE)}}],
    }
    config = {"config": {"w": {"path_name": "weight_0", "use_pickle": False}}}
    members = {
        "m/archive_format": b"pt2",
        "m/models/model.json": json.dumps(graph).encode(),
        "m/data/weights/weight_0": b"1234",
        "m/data/weights/model_weights_config.json": json.dumps(config).encode(),
        "m/data/sample_inputs/model.pt": changes.pop("examples", b""),
    }
    return zip_of(folder / "m.pt2", members | changes.pop("members", {}))


def saved(value: Any) -> bytes:
    """As torch.save wraps a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
    return buffer.getvalue()


def test_a_program_that_computes_is_taken(tmp_path: Path):
    assert check_format(program(tmp_path, examples=saved(OrderedDict()))) == "torch-export"
    assert detect(tmp_path).runtime == "torch"


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.mine.do.default",
        "_operator.attrgetter",
        "math.__loader__.load_module",
        "#custom:thing",
        "torch.ops.aten.add.Tensor\n",
    ],
)
def test_an_operator_that_could_do_more_is_refused(tmp_path: Path, target: str):
    with pytest.raises(FormatNotAllowed, match="operator"):
        check_format(program(tmp_path, node={"target": target}))


CODE = [
    "__import__('os').system('touch CANARY')",
    "().__class__.__base__",
    "exec(s0)",
    "s0.subs(1)",
    "lambda: s0",
    "'a'",
    "[s0 for s0 in s1]",
    "Symbol('s0\\x27')",
    "s0" * 6000,
    7,
]


@pytest.mark.parametrize("text", CODE)
def test_a_size_that_is_code_is_refused(tmp_path: Path, text: Any):
    with pytest.raises(FormatNotAllowed, match="size"):
        check_format(program(tmp_path, size=text))


@pytest.mark.parametrize("text", [*CODE, "L['x'].numpy()", "L['x'].size()[0].__class__"])
def test_a_guard_that_is_code_is_refused(tmp_path: Path, text: Any):
    with pytest.raises(FormatNotAllowed, match="guard"):
        check_format(program(tmp_path, guard=text))


@pytest.mark.parametrize("kind", ["os.system", "collections.defaultdict", "mine.Type", 5])
def test_a_structure_of_other_kinds_is_refused(tmp_path: Path, kind: Any):
    with pytest.raises(FormatNotAllowed, match="arguments of type"):
        check_format(program(tmp_path, tree=json.dumps([1, {"type": kind}])))


@pytest.mark.parametrize(
    "members",
    [
        {"m/data/aotinductor/model/a.so": b"\x7fELF"},
        {"m/data/weights/model.pt": b"PK"},
        {"m/models/other.json": b"{}"},
        {"n/models/model.json": b"{}"},
        {"m/models/model.json": b"[" * 100_000},
        {"m/data/constants/model_constants_config.json": b'{"a": {"use_pickle": true}}'},
        {"m/data/constants/model_constants_config.json": b'{"a": {"path_name": "custom_obj_0"}}'},
        {"m/data/sample_inputs/model.pt": pickle.dumps(Path("x"))},
        {"m/data/sample_inputs/model.pt": saved(Path("x"))},
    ],
)
def test_anything_but_a_graph_and_its_numbers_is_refused(tmp_path: Path, members: dict[str, bytes]):
    with pytest.raises(FormatNotAllowed) as refused:
        check_format(program(tmp_path, members=members))
    assert refused.value.hint


# ------------------------------------------------------------------------------ Keras


def keras(folder: Path, layer: dict[str, Any], **others: Any) -> Path:
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    members = {
        "config.json": json.dumps(config | others).encode(),
        "metadata.json": b"{}",
        "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    }
    return zip_of(folder / "m.keras", members)


def test_keras_own_layers_are_taken(tmp_path: Path):
    compiled = {"module": "mine", "class_name": "Loss"}
    assert check_format(keras(tmp_path, DENSE, compile_config={"loss": compiled})) == "keras"
    assert detect(tmp_path).runtime == "keras"


@pytest.mark.parametrize(
    "change",
    [
        {"class_name": "Lambda"},
        {"class_name": "TorchModuleWrapper"},
        {"class_name": 5},
        {"module": "mine.layers"},
        {"module": "keras.utils", "class_name": "get_file"},
        {"module": "keras.src.saving.saving_lib"},
        {"module": "keras.config"},
        {"module": ["keras"]},
        {"registered_name": "Custom>Mine"},
        {"config": {"activation": {"class_name": "__lambda__", "config": {}}}},
        {"config": {"vocabulary": "/etc/passwd"}},
    ],
)
def test_what_is_not_keras_own_is_refused(tmp_path: Path, change: dict[str, Any]):
    with pytest.raises(FormatNotAllowed) as refused:
        check_format(keras(tmp_path, DENSE | change))
    assert refused.value.hint


def test_a_configuration_without_end_is_refused(tmp_path: Path):
    deep: Any = DENSE
    for _ in range(250):
        deep = {"inner": deep}
    with pytest.raises(FormatNotAllowed, match="too deep"):
        check_format(keras(tmp_path, DENSE | {"config": deep}))


def test_a_keras_file_with_more_in_it_is_refused(tmp_path: Path):
    keras(tmp_path, DENSE)
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as archive:
        archive.writestr("hook.py", "print()")
    with pytest.raises(FormatNotAllowed, match="other files"):
        check_format(tmp_path / "m.keras")


def test_hdf5_is_taken_under_its_name_only(tmp_path: Path):
    content = b"\x89HDF\r\n\x1a\n" + bytes(100)
    (tmp_path / "m.h5").write_bytes(content)
    assert detect(tmp_path).runtime == "keras"
    (tmp_path / "m.h5").rename(tmp_path / "m.onnx")
    with pytest.raises(FormatNotAllowed, match="under another name"):
        check_format(tmp_path / "m.onnx")


# ------------------------------------------------------------------------------ SavedModel


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def saved_model(folder: Path, top: str, inner: str) -> Path:
    """A graph with a node, and a function with another."""
    function = field(1, field(3, field(2, inner.encode())))
    graph = field(1, field(1, b"name") + field(2, top.encode())) + field(2, function)
    path = folder / "saved_model.pb"
    path.write_bytes(b"\x08\x01" + field(2, field(2, graph)))
    return path


def test_a_saved_model_that_computes_is_taken_with_its_variables(tmp_path: Path):
    saved_model(tmp_path, "MatMul", "RestoreV2")
    (tmp_path / "variables").mkdir()
    names = ["variables/variables.data-00000-of-00001", "variables/variables.index"]
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x04\x00\x01")  # numbers that begin as a pickle does
    (tmp_path / "fingerprint.pb").write_bytes(b"\x08\x01")
    manifest = detect(tmp_path)
    assert manifest.runtime == "tensorflow"
    assert sorted(manifest.files) == ["saved_model.pb", *names]


@pytest.mark.parametrize(
    "operator",
    [
        "ReadFile",
        "WriteFile",
        "MatchingFiles",
        "PyFunc",
        "EagerPyFunc",
        "TFRecordDatasetV2",
        "PrintV2",
        "DebugIdentityV3",
        "WholeFileReaderV2",
        "RpcCall",
        "Abort",
        "Save",
    ],
)
def test_an_operator_that_does_more_than_compute_is_refused(tmp_path: Path, operator: str):
    for top, inner in ((operator, "MatMul"), ("MatMul", operator)):
        with pytest.raises(FormatNotAllowed, match=operator):
            check_format(saved_model(tmp_path, top, inner))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x01"])
def test_what_is_no_saved_model_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(FormatNotAllowed):
        check_format(tmp_path / "saved_model.pb")
