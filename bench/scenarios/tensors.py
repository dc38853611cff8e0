"""Binary tensors: 602 KB and 4 MB in, their mean out, beside a relay without any duty."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestants import PATH, Workload, make_mlserver, make_pytriton
from bench.environments import install
from bench.ours import Home
from bench.rounds import Plan, run_rounds
from bench.servers import Contestant, Launch, Request, close_to
from wherry import Client

NAME = "tensors"
SHAPES = {"602 KB": (1, 3 * 224 * 224), "4 MB": (1, 1024 * 1024)}
"""A picture for a vision model, and a large matrix; FP32."""
CONNECTIONS = (1, 8)
QUICK = ("wherry", "relay")
MODEL = """\
class Model:
    task = "tensor"

    def predict(self, batch):
        return [
            {"output": each["input"].reshape(len(each["input"]), -1).mean(axis=1, dtype="f4")[:, None]}
            for each in batch
        ]
"""
MANIFEST = """\
task = "tensor"
runtime = "python_class"
files = ["model.py"]

[[signature.inputs]]
name = "input"
datatype = "FP32"
shape = [-1, -1]

[[signature.outputs]]
name = "output"
datatype = "FP32"
shape = [-1, 1]
"""


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """Every size: ours, the relay, MLServer and PyTriton with the binary form of the protocol."""
    found: dict[str, Any] = {"sizes": {}, "skipped": {}}
    home = Home(plan.folder / "wherry-tensors", ("--allow-code",))
    key = home.prepare(lambda client: publish(client, plan.folder), set(plan.server_cores))
    for size, shape in SHAPES.items():
        tensor = np.random.default_rng(1).random(shape, dtype=np.float32)
        contestants = [
            ours(home, key, binary_request(tensor, plan.folder, size)),
            relay(binary_request(tensor, plan.folder, size)),
        ]
        for peer, make in PEERS.items():
            if only and peer not in only:
                continue
            reason = install(peer)
            if reason:
                found["skipped"][peer] = reason
                continue
            contestants.append(make(tensor, plan.folder, size))
        print(f"  {size}", flush=True)
        results = run_rounds(contestants, CONNECTIONS, plan)
        found["sizes"][size] = [each.to_plain() for each in results]
    return found


def publish(client: Client, folder: Path) -> None:
    """A Python class whose one line of numpy is the peers' one line of numpy."""
    bundle = folder / "mean"
    bundle.mkdir(exist_ok=True)
    (bundle / "model.py").write_text(MODEL)
    (bundle / "wherry.toml").write_text(MANIFEST)
    client.models.import_model(bundle, name="model")
    client.deployments.deploy("model")


def binary_request(tensor: Any, folder: Path, size: str) -> Request:
    """The protocol's binary form: JSON, then the numbers as bytes; the answer is asked as JSON."""
    about = {
        "name": "input", "datatype": "FP32", "shape": list(tensor.shape),
        "parameters": {"binary_data_size": tensor.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [about]}).encode()
    path = folder / f"tensor-{size.replace(' ', '')}.bin"
    path.write_bytes(head + tensor.tobytes())
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    check = close_to([float(tensor.mean(dtype=np.float64))])
    return Request(PATH, path, check, headers, is_whole=True)


def ours(home: Home, key: str, request: Request) -> Contestant:
    headers = {**request.headers, "Authorization": f"Bearer {key}"}
    text = "key, limits and journal on; a Python class"
    return Contestant("wherry", "Wherry", text, home.launch, replace(request, headers=headers))


def relay(request: Request) -> Contestant:
    def launch(port: int) -> Launch:
        root = str(Path(__file__).parents[2])
        return Launch([sys.executable, "-m", "bench.relay", str(port)], {"PYTHONPATH": root})

    return Contestant("relay", "bare relay", "uvloop, two hops, no duties", launch, request)


def _workload(tensor: Any, folder: Path) -> Workload:
    return Workload("mean", [], "FP32", tensor.shape, lambda _: True, folder)


def mlserver(tensor: Any, folder: Path, size: str) -> Contestant:
    (lean,) = [
        each for each in make_mlserver(_workload(tensor, folder)) if each.name == "mlserver-lean"
    ]
    path = folder / f"tensor-{size.replace(' ', '')}-base64.json"
    about = {
        "name": "input", "datatype": "BYTES", "shape": [1, 1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(tensor.tobytes()).decode()],
    }  # fmt: skip
    path.write_text(json.dumps({"inputs": [about]}))
    check = close_to([float(tensor.mean(dtype=np.float64))])
    text = f"{lean.setting}; base64 in JSON, as it takes no binary tensors over REST"
    return replace(lean, setting=text, request=Request(PATH, path, check, is_whole=True))


def pytriton(tensor: Any, folder: Path, size: str) -> Contestant:
    (only,) = make_pytriton(_workload(tensor, folder))
    return replace(only, request=binary_request(tensor, folder, size))


PEERS: dict[str, Callable[[Any, Path, str], Contestant]] = {
    "mlserver": mlserver,
    "pytriton": pytriton,
}
