"""Text embeddings: texts of 5 to 200 tokens for MiniLM, beside the bare onnxruntime loop.

The limit is measured in the same rounds: the loop of `bench.minilm` over the same texts, in the
best order and batch, on the core that the servers have. Peers run as their guides show, without
and with batches.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import minilm
from bench.contestants import Workload, make_peers
from bench.ours import Home
from bench.rounds import Plan, run_rounds
from bench.servers import Contestant, close_to
from wherry import Client

NAME = "embeddings"
PEERS = ("fastapi", "mosec", "litserve", "mlserver", "bentoml", "pytriton", "ray")
SETTINGS = (
    "fastapi-lean", "mosec", "mosec-batch", "litserve-fast", "litserve-batch", "mlserver-lean",
    "mlserver-batch", "bentoml-batch", "pytriton", "ray-batch",
)  # fmt: skip
"""One setting without batches and one with, where a peer has both."""
QUICK = ("wherry", "wherry-single")
LOADS: dict[str, tuple[int, ...]] = {
    "wherry": (1, 8, 64),
    "wherry-single": (1, 8, 64),
    "fastapi-lean": (1, 64),
}
"""Others: 64."""
SECONDS_FACTOR = 2.0
"""A text takes milliseconds: visits are longer, so that each has hundreds."""


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """fp32 with all peers; int8 ours beside its own limit."""
    plan = replace(plan, seconds=plan.seconds * SECONDS_FACTOR)
    texts = minilm.texts()
    found: dict[str, Any] = {"skipped": {}}
    for precision in ("fp32", "int8"):
        print(f"  {precision}", flush=True)
        folder = minilm.build(plan.folder / f"minilm-{precision}", precision == "int8")
        work = make_workload(texts, folder, plan)
        contestants = [make_ours(folder, work, plan), make_ours(folder, work, plan, single=True)]
        if precision == "fp32":
            peers, found["skipped"] = make_peers(work, PEERS, only or SETTINGS)
            contestants += peers
        loads = {each.name: LOADS.get(each.name, (64,)) for each in contestants}
        limits: list[float] = []
        results = run_rounds(
            contestants, loads, plan, between=lambda f=folder, m=limits: m.append(limit(f, plan))
        )
        found[precision] = {
            "limit": round(statistics.median(limits), 2) if limits else None,
            "limit_rounds": limits,
            "results": [each.to_plain() for each in results],
        }
    return found


def make_workload(texts: Sequence[str], folder: Path, plan: Plan) -> Workload:
    """Each text in turn; the first one's vector is what answers are checked by."""
    session = minilm.open_session(folder / "model.onnx")
    vectors = minilm.embed(session, minilm.encode(folder, texts[:1]))
    expected = [float(each) for each in vectors[0][:8]]
    check = close_to(expected, 0.02)  # eight-bit weights differ a little with the batch
    variables = {"BENCH_MINILM": str(folder)}
    return Workload("minilm", texts, "BYTES", (1,), check, plan.folder, variables, "text")


def make_ours(folder: Path, work: Workload, plan: Plan, *, single: bool = False) -> Contestant:
    """The same graph and tokenizer, imported over the API; `single`: one text a batch."""
    name = "wherry-single" if single else "wherry"
    bundle = plan.folder / f"{folder.name}-{name}"
    shutil.copytree(folder, bundle)
    if single:
        manifest = bundle / "wherry.toml"
        manifest.write_text(f"max_batch_rows = 1\n{manifest.read_text()}")
    home = Home(plan.folder / f"{name}-{folder.name}")

    def publish(client: Client) -> None:
        client.models.import_model(bundle, name="model")
        client.deployments.deploy("model")

    key = home.prepare(publish, set(plan.server_cores))
    request = replace(work.request(), headers={"Authorization": f"Bearer {key}"})
    text = "one text a batch; the rest the same" if single else "key, limits and journal on"
    return Contestant(name, "Wherry", text, home.launch, request)


def limit(folder: Path, plan: Plan) -> float:
    """Texts a second of the bare loop on the servers' core, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from bench import minilm; "
        "print(minilm.bare_limit(Path(sys.argv[1]), rounds=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, plan.server_cores),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout.split()[-1])
