"""Runs scripts of other people's clients against a server that has every model (`make demo ALL=1`).

    .venv/bin/python scripts/run_client_scripts.py FOLDER [NAME ...] [--grpc HOST:PORT]

FOLDER holds any of `openai_client.py`, `anthropic_client.py`, `hf_client.py`, `triton_http.py` and
`triton_grpc.py`: scripts that take an address, a key and names of models, print a line a check and
end with `N passed, N failed`. What they are told here is which deployment of the demo does what.
With `--python PATH` they run in another environment: Hugging Face's client differs by version.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wherry import Client
from wherry.cli.exhibits import media

LETTERS = "letters"
"""A table model whose columns are called a, b, c and d, which the demo has no use for."""
TASKS_BY_NAME = {
    "text_classification": "sentiment",
    "automatic_speech_recognition": "transcripts",
    "chat_completion": "chat",
    "feature_extraction": "embeddings",
    "health": "chat",
    "image_classification": "photos",
    "image_segmentation": "people",
    "image_to_text": "ocr",
    "object_detection": "objects",
    "sentence_similarity": "embeddings",
    "summarization": "summaries",
    "tabular_classification": LETTERS,
    "text_generation": "chat",
    "text_to_image": "drawings",
    "text_to_speech": "voice",
    "token_classification": "entities",
    "translation": "spanish",
    "zero_shot_classification": "embeddings",
}
"""Method of Hugging Face's client → deployment; the first is asked for errors, too."""
OPENAI_GROUPS = (
    "models,auth,errors,headers,chat,stream,json,tools,completions,embeddings,responses,files,"
    "batches,images,audio,moderations"
)


def main() -> int:
    """Run the scripts that are there; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these, without `.py`")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="where gRPC is spoken")
    parser.add_argument("--python", default=sys.executable, help="environment with the clients")
    given = parser.parse_args()
    with Client() as client:
        prepare(client)
        options = options_by_script(client, given.grpc)
    failed = [
        name
        for name, arguments in options.items()
        if (given.folder / f"{name}.py").is_file()
        and (not given.names or name in given.names)
        and not run([given.python, str(given.folder / f"{name}.py"), *arguments])
    ]
    return int(bool(failed))


def prepare(client: Client) -> None:
    """The one model that the demo lacks."""
    if any(each.name == LETTERS for each in client.deployments.list()):
        return
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    flowers = load_iris()
    model = LogisticRegression(max_iter=1000).fit(flowers.data, flowers.target)
    client.models.import_model(
        model, name=LETTERS, labels=[str(name) for name in flowers.target_names]
    )
    client.deployments.deploy(LETTERS)


def options_by_script(client: Client, grpc: str) -> Mapping[str, Sequence[str]]:
    """Name of a script → what it is told."""
    address = client.transport.address
    url, key = address.url, ["--api-key", address.key]
    cache = Path.home() / ".cache" / "wherry-exhibits"
    files = {name: str(each.fetch(cache, lambda *_: None)) for name, each in media().items()}
    picture, speech = files["page.png"], files["beckett.wav"]
    tensors = ["--model", "iris", "--echo-model", "echo"]
    tasks = ",".join(f"{task}={name}" for task, name in TASKS_BY_NAME.items())
    models = {
        "model": "chat",
        "embedding-model": "embeddings",
        "image-model": "drawings",
        "asr-model": "transcripts",
        "tts-model": "voice",
        "moderation-model": "guard",
        "audio-file": speech,
        "groups": OPENAI_GROUPS,
    }
    named = [word for name, value in models.items() for word in (f"--{name}", value)]
    return {
        "triton_http": ["--base-url", url, *key, *tensors],
        "triton_grpc": ["--base-url", grpc, *key, *tensors, "--stream-model", "iris"],
        "anthropic_client": ["--base-url", url, *key, "--model", "chat"],
        "hf_client": [
            *("--base-url", url, *key, "--model", "chat", "--url-template", f"{url}/hf/{{}}"),
            *("--tasks", tasks, "--image", picture, "--audio", speech),
        ],
        "openai_client": ["--base-url", f"{url}/v1", *key, *named],
    }


def run(command: Sequence[str]) -> bool:
    """Run one script; whether all its checks passed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()[-1:] or ["silent"]
    sys.stdout.write(f"{Path(command[1]).stem}: {lines[-1]}\n")
    for line in lines:
        if line.startswith(("FAIL", "SKIP")):
            sys.stdout.write(f"  {line}\n")
    sys.stdout.flush()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
