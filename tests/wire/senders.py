"""How a file reaches a model by each door that takes one: its path, for errors' shape, and the call."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
from tests.conftest import LiveServer

Sender = Callable[[LiveServer, str, bytes], tuple[str, httpx.Response]]
"""Server, deployment and file → the path that was called, and its answer."""


def text_of(file: bytes) -> str:
    """A file in base64."""
    return base64.b64encode(file).decode()


def post_json(live: LiveServer, path: str, body: Any) -> tuple[str, httpx.Response]:
    """The answer to a JSON body."""
    return path, live.http.post(path, json=body)


def post_file(
    live: LiveServer, path: str, file: bytes, kind: str = "application/octet-stream"
) -> tuple[str, httpx.Response]:
    """The answer to a file as the body."""
    return path, live.http.post(path, content=file, headers={"content-type": kind})


def post_tensor(live: LiveServer, name: str, key: str, file: bytes) -> tuple[str, httpx.Response]:
    """The answer to a file in a binary tensor."""
    return post_tensors(live, name, key, [file])


def post_tensors(
    live: LiveServer, name: str, key: str, files: list[bytes]
) -> tuple[str, httpx.Response]:
    """The answer to several files in one binary tensor."""
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": key, "datatype": "BYTES", "shape": [len(files)], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    path = f"/v2/models/{name}/infer"
    return path, live.http.post(path, content=head + raw, headers=headers)


def senders_of(key: str) -> dict[str, Sender]:
    """Doors that take a file for every task; `key` is what the tasks call it."""
    return {
        "predict, a file": lambda live, name, file: post_file(live, f"/predict/{name}", file),
        "predict, base64": lambda live, name, file: post_json(
            live, f"/predict/{name}", {key: text_of(file)}
        ),
        "predict, a data: URL": lambda live, name, file: post_json(
            live, f"/predict/{name}", {key: f"data:{key}/any;base64,{text_of(file)}"}
        ),
        "Open Inference": lambda live, name, file: post_tensor(live, name, key, file),
        "Hugging Face, a file": lambda live, name, file: post_file(
            live, f"/hf/{name}", file, f"{key}/any"
        ),
        "Hugging Face, base64": lambda live, name, file: post_json(
            live, f"/hf/{name}", {"inputs": text_of(file)}
        ),
        "KServe v1": lambda live, name, file: post_json(
            live, f"/v1/models/{name}:predict", {"instances": [text_of(file)]}
        ),
        "MLflow": lambda live, name, file: post_json(
            live, f"/mlflow/{name}/invocations", {"inputs": [text_of(file)]}
        ),
    }


def post_form(live: LiveServer, name: str, file: bytes) -> tuple[str, httpx.Response]:
    """The answer to a file in a form, as OpenAI's clients send it."""
    path = "/v1/audio/transcriptions"
    return path, live.http.post(path, data={"model": name}, files={"file": ("a", file)})


PICTURE_SENDERS = senders_of("image")
SOUND_SENDERS = {**senders_of("audio"), "OpenAI": post_form}


def chat_senders() -> dict[str, Sender]:
    """Doors that take pictures inside conversations."""

    def openai(live: LiveServer, name: str, file: bytes) -> tuple[str, httpx.Response]:
        part = {"type": "image_url", "image_url": {"url": url_of(file)}}
        body = {"model": name, "messages": [{"role": "user", "content": [part]}]}
        return post_json(live, "/v1/chat/completions", body)

    def responses(live: LiveServer, name: str, file: bytes) -> tuple[str, httpx.Response]:
        part = {"type": "input_image", "image_url": url_of(file)}
        body = {"model": name, "input": [{"role": "user", "content": [part]}], "store": False}
        return post_json(live, "/v1/responses", body)

    def anthropic(live: LiveServer, name: str, file: bytes) -> tuple[str, httpx.Response]:
        source = {"type": "base64", "media_type": "image/png", "data": text_of(file)}
        content = [{"type": "image", "source": source}]
        body = {"model": name, "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
        return post_json(live, "/v1/messages", body)

    def ollama(live: LiveServer, name: str, file: bytes) -> tuple[str, httpx.Response]:
        body = {"model": name, "prompt": "What?", "images": [text_of(file)], "stream": False}
        return post_json(live, "/api/generate", body)

    def url_of(file: bytes) -> str:
        return f"data:image/png;base64,{text_of(file)}"

    return {
        "OpenAI": openai,
        "OpenAI's responses": responses,
        "Anthropic": anthropic,
        "Ollama": ollama,
        "predict, a file": PICTURE_SENDERS["predict, a file"],
    }
