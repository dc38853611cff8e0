"""An oracle of tables: its rows follow from a nonce and a key, and so does its one true answer.

It is so quick that requests which come together are run as one table (`wherry.worker.rows`): a row
that is swapped with another gives an answer that no other nonce has.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import skops.io
from sklearn.linear_model import LinearRegression
from tests.faults.load import Entry, Load
from tests.faults.oracle import KEY, Command, expected_answer

from wherry.models.bundle import Manifest, encode_manifest
from wherry.models.tasks.task import Signature, TensorSpec

FEATURES = 4
WEIGHTS = np.array([1000.0, -300.0, 77.0, 5.0])
CLOSE = 1e-6
"""Rounding is far below, the distance between two answers nearly always far above."""


def row_of(nonce: int) -> list[float]:
    """What the model is asked."""
    digest = hmac.digest(KEY, b"row %d" % nonce, hashlib.sha256)
    return [int.from_bytes(digest[4 * at : 4 * at + 4], "big") / 2**32 for at in range(FEATURES)]


class TableLoad(Load):
    """Clients that send one row each."""

    def make_body(self, nonce: int, command: Command, argument: int) -> bytes:
        """Its row; there is nothing else that a linear model could be told to do."""
        tensor = {"name": "X", "shape": [1, FEATURES], "datatype": "FP64", "data": row_of(nonce)}
        return json.dumps({"inputs": [tensor]}).encode()

    def read_answer(self, entry: Entry, content: bytes) -> list[int]:
        """As an oracle would have answered, if the number is right."""
        answered = json.loads(content)
        (value,) = answered["outputs"][0]["data"]
        number = int(answered["model_version"])
        is_right = abs(value - float(np.array(row_of(entry.nonce)) @ WEIGHTS)) < CLOSE
        return [expected_answer(entry.nonce, number) if is_right else -1, number]


def write_table_oracle(folder: Path) -> Path:
    """A bundle of the oracle."""
    folder.mkdir(parents=True, exist_ok=True)
    model = LinearRegression().fit(np.eye(FEATURES), WEIGHTS)
    model.coef_, model.intercept_ = WEIGHTS, 0.0
    skops.io.dump(model, folder / "model.skops")
    signature = Signature(
        (TensorSpec("X", "FP64", (-1, FEATURES)),), (TensorSpec("value", "FP64", (-1,)),)
    )
    manifest = Manifest(
        task="tabular-regression", runtime="sklearn", files=("model.skops",), signature=signature
    )
    (folder / "wherry.toml").write_text(encode_manifest(manifest))
    return folder
