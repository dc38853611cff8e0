"""Models that are converted here: what they answer on real photos, and as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.pictures import Served, file_of, open_photo
from tests.real_models import photo, recipe_sources, run_recipe

from wherry.errors import InvalidInput
from wherry.learning.convert.torch_weights import read_torch_weights
from wherry.learning.recipes.catalog import find_recipe
from wherry.models.bundle import Bundle
from wherry.models.registry.catalog import catalog

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from wherry.learning.recipes.efficientnet_lite import (  # noqa: E402 - after importorskip
    EFFICIENTNET_LITE0,
    WEIGHTS,
    write_network,
)

CONVERTED = (
    "centerface",
    "efficientnet-lite0",
    "photo-vectors",
    "nanodet",
    "selfie",
    "digit-pictures",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return run_recipe("efficientnet-lite0", tmp_path_factory.mktemp("efficientnet"))


@pytest.fixture(scope="module")
def classifier(bundle: Bundle) -> Served:
    return Served(bundle)


@pytest.mark.parametrize("name", CONVERTED)
def test_the_catalogue_pins_what_the_recipe_is_made_of(name: str) -> None:
    recipe, entry = find_recipe(name), catalog()[name]
    assert entry.recipe == name
    pinned = {file.name: f"{file.source}#sha256={file.sha256}" for file in entry.files}
    assert pinned == dict(recipe.sources)


@pytest.mark.parametrize("name", CONVERTED)
def test_what_a_recipe_makes_is_what_the_catalogue_says(name: str, tmp_path: Path) -> None:
    entry, manifest = catalog()[name], run_recipe(name, tmp_path).manifest
    assert (manifest.task, manifest.runtime, manifest.licence) == (
        entry.task,
        entry.runtime,
        entry.licence,
    )
    size = sum((tmp_path / file).stat().st_size for file in manifest.files)
    assert entry.size_bytes == pytest.approx(size, rel=0.02)


def test_photos_are_named(classifier: Served) -> None:
    coffee = classifier.ask(image=photo("coffee").read_bytes())
    assert coffee["label"] == "espresso"
    assert coffee["confidence"] > 0.8
    # a tabby with the spots of an Egyptian cat: the model is torn between the two, as torch's is
    cat = classifier.ask(image=photo("chelsea").read_bytes())
    assert {*list(cat["scores"])[:2]} == {"tiger cat", "Egyptian cat"}
    assert sum(list(cat["scores"].values())[:3]) > 0.85


def test_vectors_are_what_the_classifier_decides_by(bundle: Bundle, tmp_path: Path) -> None:
    run_recipe("photo-vectors", tmp_path)
    weights = read_torch_weights(recipe_sources(EFFICIENTNET_LITE0)[WEIGHTS])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    logits, vectors = (
        onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"image": pixels})[0]
        for folder in (bundle.folder, tmp_path)
    )
    assert vectors.shape == (2, 1280)
    expected = vectors @ weights["_fc.weight"].T + weights["_fc.bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)  # the order of float32 sums


def test_a_mirrored_photo_is_nearer_than_another(tmp_path: Path) -> None:
    model = Served(run_recipe("photo-vectors", tmp_path))
    cat = open_photo(photo("chelsea"))
    mirrored = cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures = [file_of(cat), file_of(mirrored), photo("coffee").read_bytes()]
    one, same, other = (np.array(model.ask(image=each)["embedding"]) for each in pictures)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ same > 0.8 > one @ other


def test_few_of_a_thousand_scores_are_shown_and_all_are_tensors(classifier: Served) -> None:
    answer = classifier.ask(image=photo("coffee").read_bytes())
    scores = list(answer["scores"].values())
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    tensors = classifier.task.to_tensors(
        classifier.outputs({"image": photo("coffee").read_bytes()}), classifier.config
    )
    assert tensors["scores"].shape == (1, 1000)
    assert tensors["scores"].sum() == pytest.approx(1, abs=1e-5)
    assert tensors["label"].tolist() == [b"espresso"]


def test_labels_are_a_thousand_different_ones(bundle: Bundle) -> None:
    labels = bundle.manifest.labels
    assert len(set(labels)) == 1000
    assert labels[285] == "Egyptian cat"
    assert (labels[134], labels[517]) == ("crane (134)", "crane (517)")


def test_pictures_of_a_batch_are_answered_as_alone(classifier: Served) -> None:
    bodies = [{"image": photo(name).read_bytes()} for name in ("chelsea", "coffee", "astronaut")]
    # a processor gains nothing from a shared run of pictures of this size, a GPU does
    classifier.runtime.model.max_batch_rows = 3
    for body, joined in zip(bodies, classifier.outputs(*bodies), strict=True):
        alone = classifier.outputs(body)[0]
        assert joined.scores == pytest.approx(alone.scores, abs=1e-5)  # sums of another order


def test_pixels_become_numbers_as_the_reference_does_it(classifier: Served) -> None:
    """Shorter side to 256, the middle 224, as the model's authors evaluate it."""
    scene = open_photo(photo("chelsea"))
    item = classifier.task.from_plain({"image": file_of(scene)}, classifier.config)
    numbers = classifier.runtime.prepare(item).payload
    width = round(scene.width * 256 / scene.height)
    left = (width - 224) // 2
    reference = scene.resize((width, 256), Image.Resampling.BICUBIC).crop(
        (left, 16, left + 224, 240)
    )
    expected = (np.asarray(reference, dtype=np.float32).transpose(2, 0, 1) - 127) / 128
    assert numbers.shape == expected.shape == (3, 224, 224)
    # the reference cuts at a whole column, here half a column from the middle
    assert np.abs(numbers - expected).mean() < 0.05
    session = onnxruntime.InferenceSession(classifier.bundle.main_file)
    ours, theirs = (
        session.run(None, {"image": each[np.newaxis].astype(np.float32)})[0][0]
        for each in (numbers, expected)
    )
    assert set(np.argsort(-ours)[:3]) == set(np.argsort(-theirs)[:3])
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not EfficientNet-Lite0's"):
        write_network({"_fc.weight": np.zeros((2, 2), np.float32)}, tmp_path / "m.onnx")


@pytest.mark.slow
def test_torch_gives_the_same_logits(bundle: Bundle) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch efficientnet-lite-pytorch")
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install torch efficientnet-lite-pytorch"
    )
    path = str(recipe_sources(EFFICIENTNET_LITE0)[WEIGHTS])
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    numbers = np.random.default_rng(0).uniform(-1, 1, (4, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(numbers)).numpy()
    session = onnxruntime.InferenceSession(bundle.main_file)
    # normalisation is folded into the weights: float noise, of logits up to 7
    assert np.abs(session.run(None, {"image": numbers})[0] - expected).max() < 1e-4
