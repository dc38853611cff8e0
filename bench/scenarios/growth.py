"""Growth: what a request costs as deployments, keys, gateways and replicas become more."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from bench.contestants import Workload
from bench.ours import Home, Publish
from bench.rounds import Plan, run_rounds
from bench.scenarios.small_json import ROW, train
from bench.servers import Contestant, close_to
from wherry import Client
from wherry.accounts import store
from wherry.accounts.keys import hash_secret, make_secret, show_prefix
from wherry.accounts.secret_files import load_pepper
from wherry.client.schema import DeploymentSpec, Replicas
from wherry.storage.database import Database, bump_revision, new_id
from wherry.storage.tables import keys

NAME = "growth"
QUICK = ()
DEPLOYMENTS = (1, 10, 100)
KEYS = (10, 100_000)
GATEWAYS = (1, 2)
REPLICAS = (1, 2)
CONNECTIONS = (64,)
IDLE_SECONDS = 60.0


def run(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """On one core: deployments and keys. On all cores: gateways and replicas."""
    model, expected = train()
    work = Workload("iris", [ROW], "FP64", (1, 4), close_to(expected), plan.folder)
    pinned = {f"deployments-{count}": {"deployments": count} for count in DEPLOYMENTS}
    pinned |= {f"keys-{count}": {"keys_count": count} for count in KEYS}
    spread = {
        f"gateways-{gateways}-replicas-{replicas}": {"gateways": gateways, "replicas": replicas}
        for gateways in GATEWAYS
        for replicas in REPLICAS
    }
    everywhere = replace(plan, server_cores=plan.server_cores | plan.client_cores)

    def measure(sizes: dict[str, dict[str, int]], plan: Plan) -> list[dict[str, Any]]:
        contestants = [
            make(name, model, work, plan, **counts)
            for name, counts in sizes.items()
            if not only or name in only
        ]
        return [each.to_plain() for each in run_rounds(contestants, CONNECTIONS, plan)]

    print("  deployments and keys", flush=True)
    on_one_core = measure(pinned, plan)
    print("  gateways and replicas", flush=True)
    on_all_cores = measure(spread, everywhere)
    return {
        "one_core": on_one_core,
        "all_cores": on_all_cores,
    }


def make(
    name: str, model: Any, work: Workload, plan: Plan, *,
    deployments: int = 1, keys_count: int = 0, gateways: int = 1, replicas: int = 1,
) -> Contestant:  # fmt: skip
    """A server with so many of each; one deployment is called, the others are idle."""
    home = Home(plan.folder / name, ("--gateways", str(gateways)))
    key = home.prepare(publisher(model, deployments, replicas), set(plan.server_cores))
    if keys_count:
        add_keys(home.folder / "data", keys_count)
    request = replace(work.request(), headers={"Authorization": f"Bearer {key}"})
    return Contestant(name, "Wherry", "", home.launch, request)


def publisher(model: Any, deployments: int, replicas: int) -> Publish:
    """One deployment that runs, and others whose models are unloaded until somebody calls."""

    def publish(client: Client) -> None:
        client.models.import_model(model, name="model")
        idle = [
            DeploymentSpec(
                name=f"idle-{number}",
                model="model",
                replicas=Replicas(min=0, max=1),
                idle_seconds=IDLE_SECONDS,
            )
            for number in range(deployments - 1)
        ]
        if idle:
            client.deployments.apply(idle)
        client.deployments.deploy("model", replicas=replicas)

    return publish


def add_keys(data: Path, count: int) -> None:
    """Keys in the database, as `Keys.create_key` writes them, in one transaction.

    A team may have 10 000, so they are spread over teams.
    """
    database, pepper = Database.for_folder(data, ""), load_pepper(data / "secrets")
    with database.write() as connection:
        bump_revision(connection, store.KEYS)
        number = store.read_keys_revision(connection)
        rows: list[dict[str, Any]] = []
        for start in range(0, count, 10_000):
            team_id = new_id("team")
            now = time.time()
            store.add_team(connection, {"id": team_id, "name": f"team-{start}", "created_at": now})
            for _ in range(min(10_000, count - start)):
                secret = make_secret()
                rows.append(
                    {
                        "id": new_id("key"), "team_id": team_id, "name": "one of many",
                        "prefix": show_prefix(secret),
                        "digest": hash_secret(pepper, secret.encode()),
                        "scopes": '["invoke"]', "deployments": "[]", "limits": "{}",
                        "created_at": now, "expires_at": None, "changed_revision": number,
                    }
                )  # fmt: skip
        connection.execute(insert(keys), rows)
    database.close()
