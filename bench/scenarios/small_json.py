"""Small JSON: one row for a scikit-learn classifier as an Open Inference body."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.environments import PEERS, install
from bench.load import write_bodies
from bench.ours import Home
from bench.rounds import Plan, run_rounds
from bench.servers import Contestant, Request, close_to, peer_launch
from wherry import Client

NAME = "small-json"
ROW = [5.1, 3.5, 1.4, 0.2]
BODY: dict[str, Any] = {
    "inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 4], "data": ROW}]
}
PATH = "/v2/models/model/infer"
CONNECTIONS = (1, 64)


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """All contestants, or those whose names are in `only`."""
    model, expected = train()
    bodies = write_bodies(plan.folder / "iris.json", [json.dumps(BODY).encode()])
    skipped: dict[str, str] = {}
    contestants = [make_ours(model, bodies, expected, plan)]
    for peer in sorted({name.partition("-")[0] for name in only} or PEER_MAKERS):
        if peer not in PEER_MAKERS:
            continue
        reason = install(peer)
        if reason:
            skipped[peer] = reason
            print(f"  {peer} is skipped: {reason}", flush=True)
            continue
        contestants += PEER_MAKERS[peer](bodies, expected)
    if only:
        contestants = [each for each in contestants if each.name in only]
    results = run_rounds(contestants, CONNECTIONS, plan)
    return {"results": [each.to_plain() for each in results], "skipped": skipped}


def train() -> tuple[Any, list[float]]:
    """The estimator that everyone serves, and the probabilities of the row."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, species)
    return model, model.predict_proba([ROW])[0].tolist()


def make_ours(model: Any, bodies: Path, expected: list[float], plan: Plan) -> Contestant:
    """`wherry serve` with the model imported and deployed over its API."""
    home = Home(plan.folder / "wherry")

    def publish(client: Client) -> None:
        client.models.import_model(model, name="model")
        client.deployments.deploy("model")

    key = home.prepare(publish, set(plan.server_cores))
    request = Request(PATH, bodies, close_to(expected), {"Authorization": f"Bearer {key}"})
    return Contestant("wherry", "Wherry", "key, limits and journal on", home.launch, request)


# ------------------------------------------------------------------------------ peers


def make_fastapi(bodies: Path, expected: list[float]) -> list[Contestant]:
    """uvicorn with httptools and uvloop; as its guide says, and lean."""
    request = Request(PATH, bodies, close_to(expected))
    uvicorn = ("-m", "uvicorn", "serve:app", "--port", "{port}", "--log-level", "warning")
    fast = ("--loop", "uvloop", "--http", "httptools")
    return [
        Contestant(
            "fastapi", "FastAPI", "`def` endpoint (thread pool), access log, as in its guide",
            peer_launch("fastapi", "sync", "iris", "-m", "uvicorn", "serve:app",
                        "--port", "{port}", *fast), request,
        ),
        Contestant(
            "fastapi-lean", "FastAPI", "`async def` endpoint, no access log",
            peer_launch("fastapi", "lean", "iris", *uvicorn, *fast, "--no-access-log"), request,
        ),
    ]  # fmt: skip


def make_flask(bodies: Path, expected: list[float]) -> list[Contestant]:
    """The development server."""
    launch = peer_launch("flask", "", "iris", str(PEERS / "flask" / "serve.py"), "{port}")
    request = Request(PATH, bodies, close_to(expected))
    return [Contestant("flask", "Flask", "development server", launch, request)]


def make_mosec(bodies: Path, expected: list[float]) -> list[Contestant]:
    """One worker; single requests, and batches of 32."""
    request = Request("/inference", bodies, close_to(expected))

    def launch(mode: str) -> Any:
        script = str(PEERS / "mosec" / "serve.py")
        return peer_launch(
            "mosec", mode, "iris", script, "--port", "{port}", "--address", "127.0.0.1"
        )

    return [
        Contestant("mosec", "mosec", "no batching", launch("single"), request),
        Contestant("mosec-batch", "mosec", "batches of up to 32, 10 ms", launch("batch"), request),
    ]


PEER_MAKERS: dict[str, Callable[[Path, list[float]], list[Contestant]]] = {
    "fastapi": make_fastapi,
    "flask": make_flask,
    "mosec": make_mosec,
}
