"""A folder of diffusers, imported and asked for pictures over every door that makes them."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from PIL import Image
from tests.conftest import LiveServer
from tests.tiny_diffusers import torch, write_stable_diffusion

from wherry import Client, errors

PROMPT = "the old river"
NAME = "painter"


@pytest.fixture(scope="module")
def expected(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What the library draws with seed 5 in two steps; the same model is deployed."""
    folder = tmp_path_factory.mktemp("painter") / "tiny"
    pipeline = write_stable_diffusion(folder)
    with Client(server.url, server.key, timeout=300) as client:
        version = client.models.import_model(folder, name=NAME, options={"threads": 1, "steps": 2})
        assert (version.card.task, version.card.runtime) == ("text-to-image", "diffusers")
        client.deployments.deploy(NAME)
    torch.set_num_threads(1)
    generator = torch.Generator("cpu").manual_seed(5)
    made = pipeline(PROMPT, num_inference_steps=2, generator=generator)
    return np.asarray(made.images[0])


def pixels_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_openais_client_gets_the_librarys_picture(server: LiveServer, expected: np.ndarray):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
    made = client.images.generate(
        model=NAME, prompt=PROMPT, n=2, size="64x32", extra_body={"seed": 4}
    )
    first, second = (pixels_of(each.b64_json or "") for each in made.data or [])
    assert first.shape == second.shape == (32, 64, 3)
    assert not np.array_equal(first, second)
    made = client.images.generate(model=NAME, prompt=PROMPT, size="32x32", extra_body={"seed": 5})
    assert np.array_equal(pixels_of((made.data or [])[0].b64_json or ""), expected)


def test_predict_and_hugging_faces_client_give_the_same(server: LiveServer, expected: np.ndarray):
    with Client(server.url, server.key) as client:
        answer = client.predict(NAME, prompt=PROMPT, seed=5)
        assert np.array_equal(pixels_of(answer["image"]), expected)
        with pytest.raises(errors.InvalidInput, match="at most 1024 pixels"):
            client.predict(NAME, prompt=PROMPT, width=2048, height=64)
    hub = InferenceClient(f"{server.url}/hf/{NAME}", token=server.key)
    picture = hub.text_to_image(PROMPT, seed=5, num_inference_steps=2)
    assert np.array_equal(np.asarray(picture), expected)
