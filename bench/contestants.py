"""The peers in their settings: as their guides say, and the better one that we found.

A workload is `iris` (a row), `minilm` (a text) or `mean` (a big tensor).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import ENVIRONMENTS, PEERS, install
from bench.load import write_bodies
from bench.servers import Check, Contestant, Launch, Request, free_port, peer_launch

PATH = "/v2/models/model/infer"
TRITON_LIBRARIES = "lib/python3.11/site-packages/nvidia_pytriton.libs"


@dataclass(frozen=True)
class Workload:
    """What all contestants of a scenario are asked."""

    name: str
    inputs: Sequence[Any]
    """Rows or texts; one a request, in turn."""
    datatype: str
    shape: Sequence[int]
    """Of the tensor of one request."""
    check: Check
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    tensor: str = "input"
    """Name of the input."""

    def request(self, path: str = PATH, wrap: Callable[[Any], Any] | None = None) -> Request:
        """The request of a contestant, in the Open Inference form unless `wrap` says else."""
        make = wrap or self.open_inference
        name = f"{self.name}-{path.strip('/').replace('/', '-')}-{make.__name__}.json"
        bodies = [json.dumps(make(each), ensure_ascii=False).encode() for each in self.inputs]
        file = write_bodies(self.folder / name, bodies)
        return Request(path, file, self.check, many=len(bodies) > 1)

    def open_inference(self, item: Any) -> dict[str, Any]:
        """The body that nearly all take."""
        data = item if isinstance(item, list) else [item]
        tensor = {
            "name": self.tensor, "datatype": self.datatype, "shape": list(self.shape), "data": data
        }  # fmt: skip
        return {"inputs": [tensor]}

    def launch(self, peer: str, mode: str, *arguments: str, **variables: str) -> Any:
        """The process of a peer with this workload."""
        every = {**self.variables, **variables}
        return peer_launch(peer, mode, self.name, *arguments, **every)


def make_fastapi(work: Workload) -> list[Contestant]:
    """uvicorn with httptools and uvloop."""
    uvicorn = ("-m", "uvicorn", "serve:app", "--port", "{port}", "--loop", "uvloop",
               "--http", "httptools")  # fmt: skip
    quiet = ("--log-level", "warning", "--no-access-log")
    return [
        Contestant(
            "fastapi", "FastAPI", "as its guide says: `def` endpoint in a thread, access log",
            work.launch("fastapi", "sync", *uvicorn), work.request(),
        ),
        Contestant(
            "fastapi-lean", "FastAPI", "`async def` endpoint, no access log",
            work.launch("fastapi", "lean", *uvicorn, *quiet), work.request(),
        ),
    ]  # fmt: skip


def make_flask(work: Workload) -> list[Contestant]:
    """The development server."""
    launch = work.launch("flask", "", str(PEERS / "flask" / "serve.py"), "{port}")
    return [Contestant("flask", "Flask", "development server", launch, work.request())]


def make_mosec(work: Workload) -> list[Contestant]:
    """One worker."""
    arguments = (str(PEERS / "mosec" / "serve.py"), "--port", "{port}", "--address", "127.0.0.1")
    request = work.request("/inference")
    return [
        Contestant(
            "mosec", "mosec", "no batching", work.launch("mosec", "single", *arguments), request
        ),
        Contestant(
            "mosec-batch", "mosec", "batches of up to 32, 10 ms of waiting",
            work.launch("mosec", "batch", *arguments), request,
        ),
    ]  # fmt: skip


def make_litserve(work: Workload) -> list[Contestant]:
    """One worker, one API server; its queue over shared memory is the better setting."""
    script, request = str(PEERS / "litserve" / "serve.py"), work.request("/predict")
    return [
        Contestant(
            "litserve", "LitServe", "no batching, as its guide says",
            work.launch("litserve", "single", script), request,
        ),
        Contestant(
            "litserve-fast", "LitServe", "no batching, `fast_queue`",
            work.launch("litserve", "single", script, BENCH_FAST_QUEUE="1"), request,
        ),
        Contestant(
            "litserve-batch", "LitServe", "batches of up to 32, 10 ms of waiting, `fast_queue`",
            work.launch("litserve", "batch", script, BENCH_FAST_QUEUE="1"), request,
        ),
    ]  # fmt: skip


def make_mlserver(work: Workload) -> list[Contestant]:
    """Its own scikit-learn runtime; a custom one for texts, as it has none for plain ONNX."""

    def with_probabilities(item: Any) -> dict[str, Any]:
        body = work.open_inference(item)
        return body | {"outputs": [{"name": "predict_proba"}]} if work.name == "iris" else body

    def launch(mode: str) -> Callable[[int], Launch]:
        def on_port(port: int) -> Launch:
            ports = {
                "BENCH_GRPC_PORT": str(free_port()), "BENCH_METRICS_PORT": str(free_port()),
            }  # fmt: skip
            script = str(PEERS / "mlserver" / "prepare.py")
            folder = str(work.folder / f"mlserver-{work.name}-{mode}")
            return work.launch("mlserver", mode, script, folder, **ports)(port)

        return on_port

    settings = {
        "guide": "as installed: one parallel worker, debug, access log",
        "lean": "no parallel worker, no debug, no access log",
        "batch": "the same with adaptive batching, 32 at most, 10 ms of waiting",
    }
    request = work.request(wrap=with_probabilities)
    return [
        Contestant(f"mlserver-{mode}", "MLServer", text, launch(mode), request)
        for mode, text in settings.items()
    ]


def make_bentoml(work: Workload) -> list[Contestant]:
    """One worker; uvloop and httptools are installed."""

    def as_list(item: Any) -> dict[str, Any]:
        return {"rows" if work.name == "iris" else "texts": [item]}

    def launch(mode: str, **variables: str) -> Any:
        arguments = ("-m", "bentoml", "serve", "service:Model", "--port", "{port}",
                     "--host", "127.0.0.1", "--working-dir", str(PEERS / "bentoml"))  # fmt: skip
        home = {"BENTOML_HOME": str(work.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        return work.launch("bentoml", mode, *arguments, **home, **variables)

    quiet = {"BENCH_QUIET": "1"}
    single, batch = work.request("/infer"), work.request("/infer", as_list)
    return [
        Contestant(
            "bentoml", "BentoML", "as its guide says: no batching, access log", launch("single"),
            single,
        ),
        Contestant(
            "bentoml-quiet", "BentoML", "no batching, no access log", launch("single", **quiet),
            single,
        ),
        Contestant(
            "bentoml-batch", "BentoML", "adaptive batching, 32 at most; no access log; a body of "
            "its own", launch("batch", **quiet), batch,
        ),
    ]  # fmt: skip


def make_ray(work: Workload) -> list[Contestant]:
    """Started for each visit: its eleven processes use a core even when idle."""

    def launch(mode: str) -> Any:
        quiet = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0",
                 "RAY_DISABLE_IMPORT_WARNING": "1"}  # fmt: skip
        return work.launch("ray", mode, str(PEERS / "ray" / "serve_app.py"), "{port}", **quiet)

    request = work.request("/")
    settings = {
        "single": "no batching, `RAY_SERVE_THROUGHPUT_OPTIMIZED`, no access log",
        "batch": "the same with `@serve.batch`, 32 at most, 10 ms of waiting",
    }
    return [
        Contestant(f"ray-{mode}", "Ray Serve", text, launch(mode), request, is_resident=False)
        for mode, text in settings.items()
    ]


def make_pytriton(work: Workload) -> list[Contestant]:
    """Its dynamic batcher is on by default; 100 µs of waiting is the better setting."""

    def on_port(port: int) -> Launch:
        libraries = ENVIRONMENTS / "pytriton" / TRITON_LIBRARIES
        others = (str(free_port()), str(free_port()))
        arguments = (str(PEERS / "pytriton" / "serve.py"), str(port), *others)
        path = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        home = str(work.folder / "pytriton")
        return work.launch("pytriton", "", *arguments, LD_LIBRARY_PATH=path, PYTRITON_HOME=home)(
            port
        )

    def with_batch_dimension(item: Any) -> dict[str, Any]:
        body = work.open_inference(item)
        if len(work.shape) == 1:
            body["inputs"][0]["shape"] = [1, *work.shape]
        return body

    text = "dynamic batcher, 32 at most, 100 µs of waiting"
    request = work.request(wrap=with_batch_dimension)
    return [Contestant("pytriton", "PyTriton", text, on_port, request)]


MAKERS: dict[str, Callable[[Workload], list[Contestant]]] = {
    "fastapi": make_fastapi,
    "flask": make_flask,
    "mosec": make_mosec,
    "litserve": make_litserve,
    "mlserver": make_mlserver,
    "bentoml": make_bentoml,
    "ray": make_ray,
    "pytriton": make_pytriton,
}


def make_peers(
    work: Workload, peers: Sequence[str], only: Sequence[str] = ()
) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants of some peers (those named in `only`, if it is given), and the peers that
    cannot be installed here with the reason."""
    found: list[Contestant] = []
    skipped: dict[str, str] = {}
    for peer in peers:
        wanted = [each for each in MAKERS[peer](work) if not only or each.name in only]
        if wanted:
            reason = install(peer)
            if reason:
                skipped[peer] = reason
                print(f"  {peer} is skipped: {reason}", flush=True)
            else:
                found += wanted
    return found, skipped
