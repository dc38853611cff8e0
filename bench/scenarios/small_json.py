"""Small JSON: one row for a scikit-learn classifier as an Open Inference body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.contestants import MAKERS, Workload, make_peers
from bench.ours import Home
from bench.rounds import Plan, run_rounds
from bench.servers import Contestant, close_to
from wherry import Client

NAME = "small-json"
ROW = [5.1, 3.5, 1.4, 0.2]
CONNECTIONS = (1, 64)
MORE_CONNECTIONS = (1, 8, 64)
"""For the three whose curve is drawn."""
DRAWN = ("wherry", "fastapi-lean", "mosec-batch")
QUICK = ("wherry", "fastapi-lean", "mosec-batch")


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """All contestants, or those whose names are in `only`."""
    model, expected = train()
    work = Workload("iris", [ROW], "FP64", (1, 4), close_to(expected), plan.folder)
    contestants, skipped = make_peers(work, list(MAKERS), only)
    if not only or "wherry" in only:
        contestants.insert(0, make_ours(model, work, plan))
    if not only or "wherry-asgi" in only:
        contestants.insert(1, make_ours(model, work, plan, fast_lane=False))
    loads: dict[str, tuple[int, ...]] = {
        each.name: MORE_CONNECTIONS if each.name in DRAWN else CONNECTIONS for each in contestants
    }
    results = run_rounds(contestants, loads, plan)
    return {"results": [each.to_plain() for each in results], "skipped": skipped}


def train() -> tuple[Any, list[float]]:
    """The estimator that everyone serves, and the probabilities of the row."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, species)
    return model, model.predict_proba([ROW])[0].tolist()


def make_ours(model: Any, work: Workload, plan: Plan, *, fast_lane: bool = True) -> Contestant:
    """`wherry serve` with the model imported and deployed over its API."""
    name = "wherry" if fast_lane else "wherry-asgi"
    home = Home(plan.folder / name, variables={"WHERRY_FAST_LANE": str(fast_lane).lower()})

    def publish(client: Client) -> None:
        client.models.import_model(model, name="model")
        client.deployments.deploy("model")

    key = home.prepare(publish, set(plan.server_cores))
    request = replace(work.request(), headers={"Authorization": f"Bearer {key}"})
    text = "key, limits and journal on" + ("" if fast_lane else "; without the fast lane")
    return Contestant(name, "Wherry", text, home.launch, request)
