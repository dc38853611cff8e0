"""Pictures by folders of diffusers: the same that the library draws, and stopped between two steps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_diffusers import NATIVE_SIDE, torch, write_stable_diffusion

from wherry.errors import FormatNotAllowed, InvalidInput
from wherry.models.bundle import encode_manifest, open_bundle
from wherry.models.registry.detect import detect
from wherry.models.tasks.text_to_image import Picture, PictureRequest
from wherry.worker.runtimes.catalog import create_runtime

PROMPT = "the old river"


class Model:
    """A folder, the pipeline that wrote it, and the runtime that has opened it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipeline: Any = write_stable_diffusion(folder)
        self.manifest = detect(folder, options={"threads": 1, "max_side": 128})
        (folder / "wherry.toml").write_text(encode_manifest(self.manifest))
        self.runtime: Any = create_runtime("diffusers", "text-to-image")
        self.runtime.load(open_bundle(folder), "cpu")

    def draw(self, cancelled: threading.Event | None = None, **wishes: Any) -> list[Picture]:
        """What the runtime gives for a request."""
        item = PictureRequest(prompt=PROMPT, **wishes)

        async def collect() -> list[Picture]:
            stream = self.runtime.stream(item, cancelled or threading.Event(), "t")
            return [each async for each in stream]

        return asyncio.run(collect())

    def reference(self, seed: int, **arguments: Any) -> np.ndarray:
        """What the library's own call draws, as its own picture."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return np.asarray(self.pipeline(PROMPT, generator=generator, **arguments).images[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    made = Model(tmp_path_factory.mktemp("diffusers") / "tiny")
    yield made
    made.runtime.close()


def test_a_picture_is_the_librarys_own_to_the_bit(model: Model):
    (picture,) = model.draw(seed=7, steps=3)
    assert picture.pixels.shape == (NATIVE_SIDE, NATIVE_SIDE, 3)
    assert np.array_equal(picture.pixels, model.reference(7, num_inference_steps=3))
    assert (picture.seed, picture.prompt, picture.usage.rows) == (7, PROMPT, 1)


def test_every_wish_reaches_the_model(model: Model):
    (picture,) = model.draw(
        seed=7, steps=2, guidance=3.0, negative_prompt="green ship", size=(48, 64)
    )
    expected = model.reference(
        7, num_inference_steps=2, guidance_scale=3.0, negative_prompt="green ship",
        height=48, width=64,
    )  # fmt: skip
    assert np.array_equal(picture.sized(), expected)
    (other,) = model.draw(seed=7, steps=2, guidance=3.0, size=(48, 64))
    assert not np.array_equal(picture.pixels, other.pixels)


def test_a_seed_that_is_drawn_makes_the_picture_again(model: Model):
    (first,) = model.draw(steps=2)
    (second,) = model.draw(steps=2)
    assert first.seed != second.seed
    (again,) = model.draw(steps=2, seed=first.seed)
    assert np.array_equal(first.pixels, again.pixels)


def test_a_side_that_the_model_cannot_draw_to_the_pixel_is_made_smaller(model: Model):
    (picture,) = model.draw(seed=1, steps=1, size=(33, 41))
    assert picture.pixels.shape[0] >= 33
    assert picture.sized().shape == (33, 41, 3)


def test_work_that_nobody_waits_for_ends_at_its_next_step(model: Model):
    cancelled = threading.Event()
    seen: list[int] = []
    unet = model.runtime._pipeline.unet

    def look(*_: Any) -> None:
        seen.append(1)
        cancelled.set()

    watched = unet.register_forward_hook(look)
    try:
        assert model.draw(cancelled, seed=1, steps=50) == []
    finally:
        watched.remove()
    assert len(seen) == 1
    assert model.draw(seed=1, steps=1)


def test_nothing_is_drawn_of_what_was_cancelled_before_its_turn(model: Model):
    cancelled = threading.Event()
    cancelled.set()
    assert model.draw(cancelled, seed=1) == []


@pytest.mark.parametrize(
    ("wishes", "param"),
    [({"steps": 101}, "steps"), ({"size": (129, 64)}, "size"), ({"size": (64, 2048)}, "size")],
)
def test_what_would_take_too_long_is_refused(model: Model, wishes: dict[str, Any], param: str):
    with pytest.raises(InvalidInput) as refused:
        model.draw(**wishes)
    assert refused.value.param == param


def test_the_folder_is_recognised_and_only_what_is_used_is_kept(model: Model):
    manifest = model.manifest
    assert (manifest.task, manifest.runtime) == ("text-to-image", "diffusers")
    assert manifest.files[0] == "model_index.json"
    kinds = {Path(path).parts[0] for path in manifest.files}
    assert kinds == {
        "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"
    }  # fmt: skip


def copy_of(model: Model, folder: Path) -> Path:
    """The folder without a manifest, to be spoilt."""
    for path in model.manifest.files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((model.folder / path).read_bytes())
    return folder


def test_of_weights_in_several_precisions_the_plain_ones_are_taken(model: Model, tmp_path: Path):
    folder = copy_of(model, tmp_path)
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(plain.read_bytes())
    assert "unet/diffusion_pytorch_model.fp16.safetensors" not in detect(folder).files
    for each in ("unet", "vae", "text_encoder"):
        for weights in (folder / each).glob("*.safetensors"):
            if ".fp16." not in weights.name:
                weights.rename(weights.with_suffix(".fp16.safetensors"))
    manifest = detect(folder)
    assert manifest.options["variant"] == "fp16"
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    runtime: Any = create_runtime("diffusers", "text-to-image")
    runtime.load(open_bundle(folder), "cpu")
    runtime.close()


@pytest.mark.parametrize("library", ["os", "my_parts", "diffusers.pipelines.other"])
def test_a_part_of_any_other_library_is_refused(model: Model, tmp_path: Path, library: str):
    folder = copy_of(model, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = [library, "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FormatNotAllowed, match="neither diffusers nor transformers"):
        detect(folder)


def test_weights_that_are_pickles_are_refused(model: Model, tmp_path: Path):
    folder = copy_of(model, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FormatNotAllowed, match="are pickles"):
        detect(folder)


def test_a_pipeline_that_needs_a_picture_is_refused_at_load(model: Model, tmp_path: Path):
    folder = copy_of(model, tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "wherry.toml").write_text(encode_manifest(detect(folder)))
    with pytest.raises(FormatNotAllowed, match="of texts alone"):
        create_runtime("diffusers", "text-to-image").load(open_bundle(folder), "cpu")
