"""Flask's development server, which tutorials stop at."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from flask import Flask, request

from models import answer, load, read_item

WORKLOAD = os.environ["BENCH_WORKLOAD"]
run_model = load(WORKLOAD)
app = Flask(__name__)


@app.post("/v2/models/model/infer")
def infer() -> dict[str, Any]:
    item = read_item(WORKLOAD, request.get_json())
    return answer(run_model(np.stack([item]) if WORKLOAD == "iris" else [item])[0])


app.run(host="127.0.0.1", port=int(sys.argv[1]))
