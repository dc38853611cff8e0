"""Folders of transformers: what the runtime answers is what the library computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_transformers
from tests.tiny_transformers import torch
from tests.tiny_translators import SENTENCES, write_json

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import Manifest, encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.catalog import find_task
from wherry.worker.runtimes.catalog import create_runtime

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

FLOAT_NOISE = 2e-5
"""Of float32 sums in another order: padding changes the order in which PyTorch adds."""
MOST = 12


def load(folder: Path, task: str | None = None, **options: Any) -> Any:
    """The runtime of a folder as a person has it; the manifest is what `detect` finds out."""
    manifest = detect(folder, task=task, options=options)
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    assert manifest.runtime == "transformers"
    runtime: Any = create_runtime("transformers", manifest.task)
    runtime.load(open_bundle(folder), "cpu")
    return runtime


def answer(runtime: Any, folder: Path, *bodies: dict[str, Any]) -> list[Any]:
    manifest = open_bundle(folder).manifest
    task = find_task(manifest.task)
    items = [task.from_plain(body, manifest.task_config()) for body in bodies]
    return list(runtime.run([runtime.prepare(item) for item in items]))


def ids_of(folder: Path, text: str) -> Any:
    words = tiny_transformers.transformers.AutoTokenizer.from_pretrained(folder)
    return torch.tensor([words(text)["input_ids"]])


# ------------------------------------------------------------------------------ encoders


@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens"])
def test_vectors_are_the_models_pooled_as_the_folder_says(tmp_path: Path, mode: str):
    model = tiny_transformers.write_encoder(tmp_path)
    tiny_transformers.write_pooling(tmp_path, mode)
    runtime = load(tmp_path)
    manifest = open_bundle(tmp_path).manifest
    assert (manifest.task, manifest.options["max_tokens"]) == ("feature-extraction", 64)
    together = answer(runtime, tmp_path, *({"text": each} for each in SENTENCES))
    for sentence, found in zip(SENTENCES, together, strict=True):
        with torch.inference_mode():
            states = model(ids_of(tmp_path, sentence)).last_hidden_state[0].numpy()
        vector = states[0] if mode == "cls_token" else states.mean(axis=0)
        expected = vector / np.linalg.norm(vector)
        (alone,) = answer(runtime, tmp_path, {"text": sentence})
        assert np.allclose(found.vector, expected, atol=FLOAT_NOISE)
        assert np.allclose(found.vector, alone.vector, atol=FLOAT_NOISE)
        assert found.usage.input_tokens == len(sentence.split()) + 1


def test_labels_have_the_models_scores(tmp_path: Path):
    names = {0: "calm", 1: "rough", 2: "foggy"}
    kind = "XLMRobertaForSequenceClassification"
    model = tiny_transformers.write_encoder(tmp_path, kind, id2label=names)
    runtime = load(tmp_path)
    for sentence in SENTENCES:
        (found,) = answer(runtime, tmp_path, {"text": sentence})
        with torch.inference_mode():
            scores = model(ids_of(tmp_path, sentence)).logits.softmax(-1)[0].numpy()
        assert found.labels == ("calm", "rough", "foggy")
        assert np.allclose(found.scores, scores, atol=FLOAT_NOISE)


def test_words_have_the_labels_that_the_model_gives_their_tokens(tmp_path: Path):
    names = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
    kind = "XLMRobertaForTokenClassification"
    model = tiny_transformers.write_encoder(tmp_path, kind, id2label=names)
    runtime = load(tmp_path)
    text = SENTENCES[1]
    (found,) = answer(runtime, tmp_path, {"text": text})
    with torch.inference_mode():
        best = model(ids_of(tmp_path, text)).logits.argmax(-1)[0].tolist()
    named = {word for word, label in zip(text.split(), best, strict=False) if names[label] != "O"}
    assert named
    assert named == {
        word for each in found.entities for word in text[each.start : each.end].split()
    }


# ------------------------------------------------------------------------------ sequence to sequence


def generate(model: Any, folder: Path, text: str, **settings: Any) -> list[int]:
    words = tiny_transformers.transformers.AutoTokenizer.from_pretrained(folder)
    given = torch.tensor([words(text)["input_ids"]])
    with torch.inference_mode():
        found = model.generate(given, do_sample=False, max_new_tokens=MOST, **settings)
    return words.decode(found[0], skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_answers_are_those_of_generate_alone_and_in_a_batch(tmp_path: Path, beams: int, task: str):
    model = tiny_transformers.write_bart(tmp_path)
    runtime = load(tmp_path, task, max_tokens=MOST)
    expected = [generate(model, tmp_path, each, num_beams=beams) for each in SENTENCES]
    assert len(set(expected)) > 1
    bodies = [{"text": each, "num_beams": beams} for each in SENTENCES]
    together = [each.text for each in answer(runtime, tmp_path, *bodies)]
    assert together == expected
    assert [answer(runtime, tmp_path, body)[0].text for body in bodies] == expected


def test_translators_of_marian_know_their_pair_and_say_what_generate_says(tmp_path: Path):
    model = tiny_transformers.write_marian(tmp_path)
    runtime = load(tmp_path, max_tokens=MOST)
    manifest = open_bundle(tmp_path).manifest
    assert manifest.task == "translation"
    assert manifest.options["source_language"] == "en"
    texts = ["the old river", "ships sail under the green moon"]
    found = answer(runtime, tmp_path, *({"text": each} for each in texts))
    assert [each.text for each in found] == [generate(model, tmp_path, each) for each in texts]
    assert (found[0].source_language, found[0].target_language) == ("en", "fr")
    with pytest.raises(InvalidInput, match="does not know the language 'de'"):
        answer(runtime, tmp_path, {"text": "a", "target_language": "de"})


@pytest.mark.parametrize("beams", [1, 3])
def test_ctranslate2_says_of_a_converted_marian_what_transformers_says(tmp_path: Path, beams: int):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="pip install 'wherry[ctranslate2]'")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    model = tiny_transformers.write_marian(source)
    converter = ctranslate2.converters.TransformersConverter(
        str(source), copy_files=["source.spm", "target.spm", "vocab.json", "tokenizer_config.json"]
    )
    converter.convert(str(target))
    manifest = detect(target, options={"max_tokens": MOST})
    assert manifest.runtime == "ctranslate2"
    (target / "wherry.toml").write_text(encode_manifest(manifest))
    runtime: Any = create_runtime("ctranslate2")
    runtime.load(open_bundle(target), "cpu")
    for text in ("the old river", "ships sail under the green moon"):
        (found,) = answer(runtime, target, {"text": text, "num_beams": beams})
        assert found.text == generate(model, source, text, num_beams=beams)


class Part(torch.nn.Module):
    """A model whose outputs are a plain tensor, for the exporter."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Any, mask: Any, states: Any = None) -> Any:
        if states is None:
            return self.model.get_encoder()(first, attention_mask=mask).last_hidden_state
        return self.model(
            decoder_input_ids=first,
            encoder_outputs=(states,),
            attention_mask=mask,
            use_cache=False,
        ).logits


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future
def test_an_exported_pair_says_what_transformers_says(tmp_path: Path, beams: int):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    model = tiny_transformers.write_bart(source, attn_implementation="eager")
    export_pair(model, target)
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    manifest = detect(target, task="summarization", options={"max_tokens": MOST})
    assert manifest.runtime == "onnx"
    (target / "wherry.toml").write_text(encode_manifest(manifest))
    runtime: Any = create_runtime("onnx")
    runtime.load(open_bundle(target), "cpu")
    bodies = [{"text": each, "num_beams": beams} for each in SENTENCES]
    found = [each.text for each in answer(runtime, target, *bodies)]
    assert found == [generate(model, source, each, num_beams=beams) for each in SENTENCES]


def export_pair(model: Any, folder: Path) -> None:
    """As optimum names them, by PyTorch's own exporter."""
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    states = torch.zeros(2, 5, 16)
    free = {0: "texts", 1: "tokens"}
    target = torch.ones(2, 3, dtype=torch.long)
    for name, given, names, output in (
        ("encoder_model", (ids, mask), ["input_ids", "attention_mask"], "last_hidden_state"),
        (
            "decoder_model",
            (target, mask, states),
            ["input_ids", "encoder_attention_mask", "encoder_hidden_states"],
            "logits",
        ),
    ):
        axes = {each: dict(free) for each in names}
        if name == "decoder_model":
            axes["input_ids"] = {0: "texts", 1: "answered"}
        torch.onnx.export(
            Part(model).eval(),
            given,
            str(folder / f"{name}.onnx"),
            input_names=names,
            output_names=[output],
            dynamic_axes=axes,
            dynamo=False,
        )


# ------------------------------------------------------------------------------ what is refused


def test_pickles_and_code_are_not_opened(tmp_path: Path):
    tiny_transformers.write_encoder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.away")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="no model was found"):
        detect(tmp_path)
    (tmp_path / "weights.away").rename(tmp_path / "model.safetensors")
    assert "pytorch_model.bin" not in detect(tmp_path).files
    config = (tmp_path / "config.json").read_text()
    write_json(tmp_path / "config.json", {"auto_map": {"AutoModel": "evil.Model"}})
    (tmp_path / "config.json").write_text(config.replace("{", '{"auto_map": {},', 1))
    with pytest.raises(FormatNotAllowed, match="load code"):
        detect(tmp_path)


def test_a_head_whose_weights_are_missing_is_not_made_up(tmp_path: Path):
    tiny_transformers.write_encoder(tmp_path)
    with pytest.raises(FormatNotAllowed, match="made up by chance"):
        load(tmp_path, "text-classification")


def test_a_task_or_a_kind_that_is_not_known_is_refused(tmp_path: Path):
    tiny_transformers.write_encoder(tmp_path)
    manifest = Manifest(task="tensor", runtime="transformers", files=("model.safetensors",))
    (tmp_path / "wherry.toml").write_text(encode_manifest(manifest))
    with pytest.raises(InvalidInput, match="does not do the task"):
        create_runtime("transformers", "tensor").load(open_bundle(tmp_path), "cpu")
    (tmp_path / "wherry.toml").unlink()
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("xlm-roberta", "nobody-knows"))
    with pytest.raises(FormatNotAllowed, match="cannot open the folder"):
        load(tmp_path)
