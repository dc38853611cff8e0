"""Writes the folder that `mlserver start` reads; `MODE`: guide, lean or batch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

MODE, WORKLOAD = os.environ["BENCH_MODE"], os.environ["BENCH_WORKLOAD"]
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
port = int(os.environ["BENCH_PORT"])
settings = {
    "host": "127.0.0.1",
    "http_port": port,
    "grpc_port": int(os.environ["BENCH_GRPC_PORT"]),
    "metrics_port": int(os.environ["BENCH_METRICS_PORT"]),
}
if MODE != "guide":
    settings |= {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
model = {"name": "model", "implementation": "runtime.Embeddings"}
if WORKLOAD == "iris":
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, species = load_iris(return_X_y=True)
    joblib.dump(LogisticRegression(max_iter=500).fit(rows, species), folder / "model.joblib")
    model |= {
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(folder / "model.joblib")},
    }
elif WORKLOAD == "mean":
    model["implementation"] = "runtime.Mean"
if MODE == "batch":
    model |= {"max_batch_size": 32, "max_batch_time": 0.01}
(folder / "settings.json").write_text(json.dumps(settings))
(folder / "model-settings.json").write_text(json.dumps(model))
os.execvp("mlserver", ["mlserver", "start", str(folder)])
