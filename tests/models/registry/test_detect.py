"""What a folder holds is found by looking at it; what cannot be served is refused with advice."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gguf_files import write_gguf

from wherry.errors import CodeNotAllowed, FormatNotAllowed, InvalidInput
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest
from wherry.models.registry.detect import detect
from wherry.models.registry.manifest import stored_paths
from wherry.models.tasks.task import Signature, TensorSpec

onnx = pytest.importorskip("onnx")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def onnx_bytes(inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)) -> bytes:
    kind = INT64 if "input_ids" in inputs else FLOAT
    values = [onnx.helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in inputs]
    results = [onnx.helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in outputs]
    nodes = [onnx.helper.make_node("Identity", [inputs[0]], [name]) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "g", values, results)
    return onnx.helper.make_model(graph).SerializeToString()


def gguf_bytes() -> bytes:
    name, tensor = b"general.architecture", b"weight"
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, 5) + b"llama"
    header += struct.pack("<Q", len(tensor)) + tensor + struct.pack("<IQIQ", 1, 8, 0, 0)
    return header + bytes(-len(header) % 32) + bytes(32)


def skops_bytes(*classes: str) -> bytes:
    buffer = io.BytesIO()
    schema = {"__class__": "Pipeline", "content": [{"__class__": name} for name in classes]}
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    return buffer.getvalue()


def fill(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict | list):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


TEXT_GRAPH = onnx_bytes(("input_ids", "attention_mask"), ("last_hidden_state",))
LOGITS_GRAPH = onnx_bytes(("input_ids", "attention_mask"), ("logits",))
TENSOR = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
TINY_SAFETENSORS = struct.pack("<Q", len(TENSOR)) + TENSOR + bytes(4)
TOKENIZER = {"model": {"vocab": {"auto_map": 1}}}
PYTHON = "class Model:\n    task = 'text-classification'\n    def predict(self, batch): ...\n"


# ------------------------------------------------------------------------------ single files


def test_an_onnx_file_is_a_tensor_model_with_its_own_signature(tmp_path: Path):
    manifest = detect(fill(tmp_path, {"net.onnx": onnx_bytes()}))
    assert manifest == Manifest(
        task="tensor",
        runtime="onnx",
        files=("net.onnx",),
        signature=Signature(
            inputs=(TensorSpec("x", "FP32", (-1, 4)),), outputs=(TensorSpec("y", "FP32", (-1, 4)),)
        ),
    )


def test_external_data_belongs_to_the_model(tmp_path: Path):
    model = onnx.load_from_string(onnx_bytes())
    tensor = model.graph.initializer.add(name="w", data_type=FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="net.onnx.data")
    files = {"sub/net.onnx": model.SerializeToString(), "sub/net.onnx.data": bytes(8)}
    assert detect(fill(tmp_path, files)).files == ("sub/net.onnx", "sub/net.onnx.data")


def test_a_gguf_file_is_a_language_model(tmp_path: Path):
    manifest = detect(fill(tmp_path, {"tiny.gguf": gguf_bytes(), "README.md": "hi"}))
    assert (manifest.task, manifest.runtime) == ("text-generation", "llama_cpp")
    assert manifest.files == ("tiny.gguf",)


def test_a_gguf_model_with_a_projector_beside_it_sees(tmp_path: Path):
    files = {
        "tiny.gguf": gguf_bytes(),
        "mmproj-q8.gguf": gguf_bytes(),
        "mmproj-F16.gguf": gguf_bytes(),
    }
    manifest = detect(fill(tmp_path, files))
    assert (manifest.task, manifest.runtime) == ("image-text-to-text", "llama_cpp")
    assert manifest.files == ("tiny.gguf", "mmproj-F16.gguf")
    reads_only = detect(tmp_path, task="text-generation")
    assert (reads_only.task, reads_only.files) == ("text-generation", ("tiny.gguf",))


def test_a_projector_alone_is_no_model(tmp_path: Path):
    with pytest.raises(InvalidInput, match="there is no model"):
        detect(fill(tmp_path, {"mmproj-model.gguf": gguf_bytes()}))


def test_a_gguf_model_that_says_how_it_pools_makes_vectors(tmp_path: Path):
    metadata = {"general.architecture": "bert", "bert.pooling_type": 2}
    write_gguf(tmp_path / "tiny.gguf", metadata, {"x": np.zeros(4, np.float32)})
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.runtime) == ("feature-extraction", "llama_embeddings")


def test_a_split_gguf_model_is_one_model(tmp_path: Path):
    parts = {f"m-{number:05}-of-00003.gguf": gguf_bytes() for number in (3, 1, 2)}
    assert detect(fill(tmp_path, parts)).files == tuple(sorted(parts))
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(InvalidInput, match="missing"):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("classes", "task"),
    [
        (("StandardScaler", "LogisticRegression"), "tabular-classification"),
        (("StandardScaler", "Ridge"), "tabular-regression"),
        (("RandomForestRegressor", "DecisionTreeRegressor"), "tabular-regression"),
        (("GradientBoostingClassifier", "DecisionTreeRegressor"), "tabular-classification"),
        (("TfidfVectorizer", "LogisticRegression"), "text-classification"),
    ],
)
def test_a_skops_file_tells_its_task(tmp_path: Path, classes: tuple[str, ...], task: str):
    manifest = detect(fill(tmp_path, {"model.skops": skops_bytes(*classes)}))
    assert (manifest.task, manifest.runtime) == (task, "sklearn")


def test_what_skops_really_writes_is_accepted(tmp_path: Path):
    """Trees are arrays of records, pipelines hold arrays of texts: neither is an object array."""
    skops_io = pytest.importorskip("skops.io")
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough")
    model = make_pipeline(columns, RandomForestClassifier(n_estimators=2))
    model.fit([[0, 1.5], [1, 2.5], [0, 3.5], [1, 4.5]], ["a", "b", "a", "b"])
    skops_io.dump(model, tmp_path / "model.skops")
    assert detect(tmp_path).task == "tabular-classification"


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib"])
def test_a_pickle_needs_the_operator(tmp_path: Path, name: str):
    fill(tmp_path, {name: pickle.dumps({"a": 1}, protocol=4)})
    with pytest.raises(CodeNotAllowed) as refused:
        detect(tmp_path)
    assert "WHERRY_ALLOW_PICKLE" in refused.value.hint
    assert detect(tmp_path, allow_pickle=True).runtime == "sklearn"


def test_what_the_importer_says_wins(tmp_path: Path):
    manifest = detect(
        fill(tmp_path, {"model.skops": skops_bytes("Ridge")}),
        task="tabular-classification",
        labels=["no", "yes"],
        options={"feature_names": ["a"]},
        description="mine",
        licence="MIT",
        source="file:/x",
    )
    assert manifest.task == "tabular-classification"
    assert manifest.labels == ("no", "yes")
    assert manifest.options == {"feature_names": ["a"]}
    assert (manifest.description, manifest.licence, manifest.source) == ("mine", "MIT", "file:/x")


# ------------------------------------------------------------------------------ Hugging Face


def test_a_sentence_encoder_is_recognised(tmp_path: Path):
    files = {
        "onnx/model.onnx": TEXT_GRAPH,
        "onnx/model_quantized.onnx": TEXT_GRAPH,
        "tokenizer.json": TOKENIZER,
        "config.json": {"architectures": ["BertModel"], "max_position_embeddings": 512},
        "tokenizer_config.json": {"model_max_length": 1000000000000000019884624838656},
        "sentence_bert_config.json": {"max_seq_length": 256},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "modules.json": [{"type": "sentence_transformers.models.Pooling"}],
        "pytorch_model.bin": pickle.dumps({}),
    }
    manifest = detect(fill(tmp_path, files))
    assert (manifest.task, manifest.runtime) == ("feature-extraction", "onnx")
    assert manifest.files == ("onnx/model.onnx", "tokenizer.json", "config.json")
    assert manifest.options == {"max_tokens": 256, "pooling": "cls", "normalise": False}
    assert manifest.signature == Signature()


def test_a_text_classifier_brings_its_labels_in_order(tmp_path: Path):
    config = {
        "architectures": ["RobertaForSequenceClassification"],
        "model_type": "roberta",
        "max_position_embeddings": 514,
        "id2label": {"10": "k", **{str(n): letter for n, letter in enumerate("abcdefghij")}},
        "problem_type": "multi_label_classification",
    }
    files = {"model.onnx": LOGITS_GRAPH, "tokenizer.json": TOKENIZER, "config.json": config}
    manifest = detect(fill(tmp_path, files))
    assert manifest.task == "text-classification"
    assert manifest.labels == tuple("abcdefghijk")
    assert manifest.options == {"max_tokens": 512, "function": "sigmoid"}


def test_a_tokenizer_beside_a_graph_is_enough(tmp_path: Path):
    manifest = detect(fill(tmp_path, {"m.onnx": TEXT_GRAPH, "tokenizer.json": TOKENIZER}))
    assert manifest.task == "feature-extraction"
    assert manifest.options == {"pooling": "mean", "normalise": True}
    as_classifier = detect(tmp_path, task="text-classification", labels=["a", "b"])
    assert as_classifier.labels == ("a", "b")
    assert as_classifier.options == {"function": "softmax"}


def test_a_classifier_of_pictures_is_recognised(tmp_path: Path):
    files = {
        "model.onnx": onnx_bytes(("pixel_values",), ("logits",)),
        "config.json": {
            "architectures": ["ViTForImageClassification"],
            "id2label": {"0": "cat", "1": "dog"},
        },
        "preprocessor_config.json": {
            "size": {"height": 224, "width": 200},
            "rescale_factor": 0.5,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.25, 0.25, 0.25],
        },
    }
    manifest = detect(fill(tmp_path, files))
    assert manifest.task == "image-classification"
    assert manifest.labels == ("cat", "dog")
    assert manifest.options == {
        "function": "softmax",
        "image_size": [224, 200],
        "pixel_scale": 0.5,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }


@pytest.mark.parametrize(
    ("architecture", "task", "options"),
    [
        ("SegformerForSemanticSegmentation", "image-segmentation", {"function": "softmax"}),
        ("DetrForObjectDetection", "object-detection", {"family": "detr", "max_overlap": 1.0}),
    ],
)
def test_other_models_of_pictures_are_recognised(
    tmp_path: Path, architecture: str, task: str, options: dict[str, Any]
):
    files = {
        "model.onnx": onnx_bytes(("pixel_values",), ("logits",)),
        "config.json": {"architectures": [architecture], "id2label": {"0": "sky", "1": "sea"}},
        "preprocessor_config.json": {"size": {"height": 64, "width": 64}},
    }
    manifest = detect(fill(tmp_path, files))
    assert (manifest.task, manifest.labels) == (task, ("sky", "sea"))
    assert options.items() <= manifest.options.items()
    assert manifest.options["image_size"] == [64, 64]


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        b"[" * 100_000,
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"text_config": {"trust_remote_code": True}},
        {"_attn_implementation_internal": "evil/kernel"},
    ],
)
def test_a_config_that_is_broken_or_loads_code_is_refused(tmp_path: Path, config: Any):
    files = {"model.onnx": TEXT_GRAPH, "tokenizer.json": TOKENIZER, "config.json": config}
    with pytest.raises(InvalidInput):
        detect(fill(tmp_path, files))


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"a": "b"}},
        {"id2label": {"1": "b"}},
        {"id2label": ["x"]},
        {"architectures": "BertModel"},
        {"max_position_embeddings": -5},
        {"max_position_embeddings": True},
        [1],
        "text",
    ],
)
def test_claims_that_make_no_sense_are_passed_over(tmp_path: Path, config: Any):
    files = {"model.onnx": TEXT_GRAPH, "tokenizer.json": TOKENIZER}
    fill(tmp_path, {**files, "config.json": json.dumps(config)})
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.labels) == ("feature-extraction", ())
    assert "max_tokens" not in manifest.options


# ------------------------------------------------------------------------------ Python


def test_python_needs_the_operator(tmp_path: Path):
    fill(tmp_path, {"model.py": PYTHON})
    with pytest.raises(CodeNotAllowed) as refused:
        detect(tmp_path)
    assert "WHERRY_ALLOW_CODE=1" in refused.value.hint


def test_a_python_model_brings_its_files_and_requirements(tmp_path: Path):
    files = {
        "model.py": PYTHON,
        "helper.py": "x = 1",
        "weights.bin": pickle.dumps(1),
        "requirements.txt": "# what it needs\nnumpy>=2\n\ntorch==2.4  # large\n",
        "__pycache__/model.pyc": b"x",
        ".git/config": "x",
    }
    manifest = detect(fill(tmp_path, files), allow_code=True)
    assert (manifest.task, manifest.runtime) == ("text-classification", "python_class")
    assert manifest.files == ("model.py", "helper.py", "requirements.txt", "weights.bin")
    assert manifest.requirements == ("numpy>=2", "torch==2.4")
    assert manifest.options == {"entry": "model.py:Model"}


def test_a_single_python_file_may_have_any_name(tmp_path: Path):
    manifest = detect(fill(tmp_path, {"echo.py": "class Model: ..."}), allow_code=True)
    assert manifest.options == {"entry": "echo.py:Model"}
    assert manifest.task == "tensor"


def test_the_class_may_be_named(tmp_path: Path):
    fill(tmp_path, {"a/b.py": "class Mine: ...", "model.py": PYTHON})
    manifest = detect(tmp_path, options={"entry": "a/b.py:Mine"}, allow_code=True)
    assert manifest.files[0] == "a/b.py"
    for entry in ("a/b.py:Other", "c.py:Mine", "../x.py:Model", "", 5):
        with pytest.raises(InvalidInput, match="no class"):
            detect(tmp_path, options={"entry": entry}, allow_code=True)


def test_python_is_never_run_to_look_at_it(tmp_path: Path):
    fill(tmp_path, {"model.py": "open('CANARY', 'w')\n" + PYTHON})
    detect(tmp_path, allow_code=True)
    assert not Path("CANARY").exists()


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--index-url=https://evil.example",
        "-e .",
        "evil @ file:///tmp/evil",
        "evil @ https://evil.example/x.whl",
        "./local",
        "a b",
    ],
)
def test_requirements_are_names_with_versions(tmp_path: Path, line: str):
    fill(tmp_path, {"model.py": PYTHON, "requirements.txt": f"numpy\n{line}\n"})
    with pytest.raises(InvalidInput, match="requirement"):
        detect(tmp_path, allow_code=True)


@pytest.mark.parametrize("code", ["class Model(", "\x00", "x = " + "(" * 5000, b"\xff\xfe"])
def test_python_that_is_none_is_refused(tmp_path: Path, code: Any):
    with pytest.raises(InvalidInput):
        detect(fill(tmp_path, {"model.py": code}), allow_code=True)


def test_a_packages_own_code_beside_a_model_is_left_out(tmp_path: Path):
    fill(tmp_path, {"net.onnx": onnx_bytes(), "__init__.py": "", "train.py": "print('hi')"})
    for allow_code in (False, True):
        manifest = detect(tmp_path, allow_code=allow_code)
        assert manifest.runtime == "onnx"
        assert stored_paths(manifest, ["net.onnx", "train.py"]) == ["net.onnx"]


def test_code_alone_is_no_model(tmp_path: Path):
    fill(tmp_path, {"train.py": "print('hi')", "weights.npz": b"PK"})
    with pytest.raises(FormatNotAllowed, match=r"train\.py"):
        detect(tmp_path, allow_code=True)


def test_labels_lie_beside_a_model_of_pictures(tmp_path: Path):
    fill(tmp_path, {"net.onnx": onnx_bytes(), "labels.txt": "cat\ndog\n"})
    assert detect(tmp_path, task="image-classification").labels == ("cat", "dog")
    assert detect(tmp_path, task="image-classification", labels=["a", "b"]).labels == ("a", "b")
    assert detect(tmp_path).labels == ()


# ------------------------------------------------------------------------------ strangers' folders


@pytest.mark.parametrize("name", ["model_quantized", "model_int8", "model_fp16", "model_q4"])
def test_graphs_of_transformers_js_are_found_by_their_names(tmp_path: Path, name: str):
    files = {f"onnx/{name}.onnx": TEXT_GRAPH, "tokenizer.json": TOKENIZER}
    manifest = detect(fill(tmp_path, files))
    assert manifest.files[0] == f"onnx/{name}.onnx"
    fill(tmp_path, {"onnx/decoder_extra.onnx": TEXT_GRAPH, "onnx/model.onnx": TEXT_GRAPH})
    assert detect(tmp_path).files[0] == "onnx/model.onnx"


def test_numbers_for_each_token_are_names_of_tokens(tmp_path: Path):
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["input_ids"], ["logits"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("input_ids", INT64, ["batch", "tokens"])],
        [value("logits", FLOAT, ["batch", "tokens", 5])],
    )
    data = onnx.helper.make_model(graph).SerializeToString()
    fill(tmp_path, {"tagger.onnx": data, "tokenizer.json": TOKENIZER})
    assert detect(tmp_path).task == "token-classification"
    fill(tmp_path, {"config.json": {"architectures": ["BertForMaskedLM"]}})
    assert detect(tmp_path).task == "feature-extraction"


def test_names_that_an_exporter_wrote_into_the_graph_are_its_labels(tmp_path: Path):
    model = onnx.load_model_from_string(onnx_bytes())
    onnx.helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}", "stride": "32"})
    fill(tmp_path, {"net.onnx": model.SerializeToString()})
    assert detect(tmp_path, task="image-classification").labels == ("cat", "dog")
    assert detect(tmp_path, task="tensor").labels == ()


def test_of_an_encoder_and_a_decoder_the_way_out_is_told(tmp_path: Path):
    fill(tmp_path, {"encoder.onnx": onnx_bytes(), "decoder.onnx": onnx_bytes()})
    with pytest.raises(InvalidInput) as refusal:
        detect(tmp_path)
    assert "Python class" in refusal.value.hint


def test_a_pair_that_hears_but_is_no_whisper_is_told_the_way_out(tmp_path: Path):
    files = {
        "onnx/encoder_model.onnx": onnx_bytes(("input_features",), ("last_hidden_state",)),
        "onnx/decoder_model_merged.onnx": TEXT_GRAPH,
        "config.json": {"model_type": "speech_to_text"},
    }
    with pytest.raises(InvalidInput, match="speech_to_text") as refusal:
        detect(fill(tmp_path, files))
    assert "Python class" in refusal.value.hint


def test_a_pair_that_sees_takes_its_pixels_from_the_preprocessor(tmp_path: Path):
    files = {
        "encoder_model.onnx": onnx_bytes(("pixel_values",), ("last_hidden_state",)),
        "decoder_model.onnx": TEXT_GRAPH,
        "decoder_model_merged_quantized.onnx": TEXT_GRAPH,
        "config.json": {"model_type": "vision-encoder-decoder"},
        "generation_config.json": {"num_beams": 4, "max_length": 64, "length_penalty": 2.0},
        "preprocessor_config.json": {
            "size": {"height": 384, "width": 384},
            "resample": 3,
            "image_mean": [0.5, 0.5, 0.5],
        },
    }
    fill(tmp_path, files)
    with pytest.raises(InvalidInput, match=r"no 'tokenizer\.json'"):
        detect(tmp_path)
    found = detect(fill(tmp_path, {"tokenizer.json": TOKENIZER}))
    assert (found.task, found.runtime) == ("image-to-text", "onnx")
    assert found.files[:2] == ("encoder_model.onnx", "decoder_model.onnx"), "the fuller precision"
    assert found.options["image_size"] == [384, 384]
    assert found.options["resample"] == "bicubic"
    assert (found.options["num_beams"], found.options["max_tokens"]) == (4, 64)


def test_a_decoder_may_have_another_precision_than_its_encoder(tmp_path: Path):
    files = {
        "onnx/encoder_model.onnx": onnx_bytes(("input_features",), ("last_hidden_state",)),
        "onnx/decoder_model_merged_q4.onnx": TEXT_GRAPH,
        "config.json": {"model_type": "whisper"},
        "tokenizer.json": TOKENIZER,
    }
    found = detect(fill(tmp_path, files))
    assert found.task == "automatic-speech-recognition"
    assert found.files[:2] == ("onnx/encoder_model.onnx", "onnx/decoder_model_merged_q4.onnx")


def test_a_table_of_vectors_is_taken_before_the_graph_beside_it(tmp_path: Path):
    header = b'{"embeddings":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
    files = {
        "model.safetensors": struct.pack("<Q", len(header)) + header + bytes(4),
        "tokenizer.json": TOKENIZER,
        "config.json": {"model_type": "model2vec", "normalize": True},
        "onnx/model.onnx": onnx_bytes(("input_ids", "offsets"), ("embeddings",)),
    }
    found = detect(fill(tmp_path, files))
    assert (found.task, found.runtime) == ("feature-extraction", "static_embeddings")
    assert found.files == ("model.safetensors", "tokenizer.json")


def test_of_weights_that_see_or_hear_the_way_to_onnx_is_told(tmp_path: Path):
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    files = {
        "config.json": config,
        "preprocessor_config.json": {"feature_size": 80},
        "tokenizer.json": TOKENIZER,
        "model.safetensors": TINY_SAFETENSORS,
    }
    with pytest.raises(InvalidInput, match="WhisperForConditionalGeneration") as refused:
        detect(fill(tmp_path, files))
    assert "optimum-cli export onnx" in refused.value.hint


# ------------------------------------------------------------------------------ wherry.toml


def manifest_text(**change: Any) -> str:
    values = {"task": "tensor", "runtime": "onnx", "files": ["net.onnx"], **change}
    import tomli_w

    return tomli_w.dumps(values)


def test_the_owners_manifest_is_kept(tmp_path: Path):
    mine = Manifest(
        task="tensor", runtime="onnx", files=("net.onnx",), description="mine", labels=("a",)
    )
    fill(tmp_path, {MANIFEST: encode_manifest(mine), "net.onnx": onnx_bytes(), "train.py": "x"})
    assert detect(tmp_path) == mine


def test_a_manifest_that_names_no_files_takes_all(tmp_path: Path):
    fill(tmp_path, {MANIFEST: "task = 'tensor'\nruntime = 'upstream'", "a.json": {}, "b.txt": ""})
    manifest = detect(tmp_path)
    assert stored_paths(manifest, ["a.json", "b.txt", MANIFEST]) == ["a.json", "b.txt"]
    fill(tmp_path, {"c.bin": b"\x7fELF"})
    with pytest.raises(FormatNotAllowed):
        detect(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "mind-reading"}, "mind-reading"),
        ({"runtime": "../onnx"}, "runtime"),
        ({"runtime": "llama_cpp"}, "llama_cpp"),
        ({"files": ["other.onnx"]}, "other.onnx"),
        ({"files": ["../net.onnx"]}, "net.onnx"),
        ({"files": ["./net.onnx"]}, "net.onnx"),
        ({"files": []}, "names no files"),
        ({"labels": ["a", "a"]}, "two labels"),
        ({"labels": ["a" * 1000]}, "too long"),
        ({"requirements": ["numpy"]}, "requirements"),
        ({"max_batch_rows": -1}, "max_batch_rows"),
        ({"format_version": 99}, "format version"),
        ({"colour": "red"}, "colour"),
        ({"task": 5}, "str"),
        (
            {"signature": {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [1]}]}},
            "FLOAT",
        ),
        (
            {"signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}},
            "shape",
        ),
        (
            {"signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2}},
            "same name",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change: dict[str, Any], named: str):
    fill(tmp_path, {MANIFEST: manifest_text(**change), "net.onnx": onnx_bytes()})
    with pytest.raises(InvalidInput) as refused:
        detect(tmp_path)
    assert named in refused.value.text


def test_a_manifest_cannot_bring_code_in(tmp_path: Path):
    text = manifest_text(runtime="python_class", files=["model.py"])
    fill(tmp_path, {MANIFEST: text, "model.py": PYTHON})
    with pytest.raises(CodeNotAllowed):
        detect(tmp_path)
    assert detect(tmp_path, allow_code=True).runtime == "python_class"


@pytest.mark.parametrize("data", [b"\xff", b"task =", b"x" * (5 << 20)])
def test_a_manifest_that_is_no_toml_is_refused(tmp_path: Path, data: bytes):
    with pytest.raises(InvalidInput, match=r"wherry\.toml"):
        detect(fill(tmp_path, {MANIFEST: data, "net.onnx": onnx_bytes()}))


def test_options_with_nulls_are_refused_before_they_are_lost(tmp_path: Path):
    fill(tmp_path, {"net.onnx": onnx_bytes()})
    with pytest.raises(InvalidInput, match="options"):
        detect(tmp_path, options={"a": {"b": None}})


# ------------------------------------------------------------------------------ nothing, or too much


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({}, "nothing"),
        ({"README.md": "hi"}, "README.md"),
        ({"model.safetensors": b"x", "config.json": {}}, "export the model to ONNX"),
        ({"model.pt": b"x"}, "TorchScript"),
        ({"model.keras": b"x"}, "Keras"),
    ],
)
def test_no_model_is_said_with_what_was_found(tmp_path: Path, files: dict[str, Any], advice: str):
    with pytest.raises(InvalidInput) as refused:
        detect(fill(tmp_path, files))
    assert advice in refused.value.text
    assert ".gguf" in refused.value.hint


@pytest.mark.parametrize("suffix", ["onnx", "gguf", "skops"])
def test_several_models_are_not_guessed_between(tmp_path: Path, suffix: str):
    content = {"onnx": onnx_bytes(), "gguf": gguf_bytes(), "skops": skops_bytes()}[suffix]
    with pytest.raises(InvalidInput, match="2 models") as refused:
        detect(fill(tmp_path, {f"a.{suffix}": content, f"b.{suffix}": content}))
    assert "wherry.toml" in refused.value.hint


def test_a_link_in_the_folder_is_refused(tmp_path: Path):
    fill(tmp_path, {"net.onnx": onnx_bytes()})
    (tmp_path / "labels.txt").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="link"):
        detect(tmp_path)


@pytest.mark.parametrize("text", ["\x1b]0;mine\x07", "a\x9b31m", "gpj\u202e.exe"])
@pytest.mark.parametrize("field", ["description", "licence", "good_at", "source", "labels"])
def test_what_people_read_holds_no_codes_for_their_terminals(
    tmp_path: Path, field: str, text: str
) -> None:
    manifest = {
        "task": "tensor",
        "runtime": "onnx",
        "files": ("model.onnx",),
        field: (text,) if field == "labels" else text,
    }
    toml = encode_manifest(Manifest(**manifest))
    with pytest.raises(InvalidInput, match="control character"):
        detect(fill(tmp_path, {"model.onnx": onnx_bytes(), MANIFEST: toml}))


def test_a_description_is_no_book(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"model.onnx": onnx_bytes()})
    assert detect(folder, description="line\n\tline, 说明 🙂").description
    with pytest.raises(InvalidInput, match="description"):
        detect(folder, description="a" * 20_001)


# ------------------------------------------------------------------------------ heads of encoders


@pytest.mark.parametrize(
    ("config", "columns", "task", "options"),
    [
        (
            {"id2label": {"0": "O", "1": "B-PER"}, "architectures": ["BertForTokenClassification"]},
            2,
            "token-classification",
            {},
        ),
        (
            {
                "id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"},
                "architectures": ["BertForSequenceClassification"],
            },
            3,
            "zero-shot-classification",
            {},
        ),
        (
            {"id2label": {"0": "LABEL_0"}, "architectures": ["BertForSequenceClassification"]},
            1,
            "text-ranking",
            {},
        ),
        (
            {
                "id2label": {"0": "LABEL_0"},
                "architectures": ["BertForSequenceClassification"],
                "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
            },
            1,
            "text-ranking",
            {"function": "none"},
        ),
        (
            {
                "id2label": {"0": "negative", "1": "positive"},
                "architectures": ["BertForSequenceClassification"],
            },
            2,
            "text-classification",
            {"function": "softmax"},
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_a_head_does_is_read_from_its_configuration(
    tmp_path: Path, config: dict[str, Any], columns: int, task: str, options: dict[str, Any]
):
    pytest.importorskip("tokenizers")
    from tests.tiny_encoders import write_encoder

    write_encoder(
        tmp_path, columns=columns, per_token=task == "token-classification", config=config
    )
    manifest = detect(tmp_path)
    assert (manifest.task, manifest.options) == (task, options)
    if len(config["id2label"]) > 1:
        assert manifest.labels == tuple(config["id2label"].values())
