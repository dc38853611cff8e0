"""Checks Keras files: `.keras` wholly, `.h5` as far as can be told without a reader of HDF5.

The configuration of an `.h5` file is checked in the worker, in its sandbox, before Keras loads it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from wherry.errors import FormatNotAllowed
from wherry.models.keras_config import check_keras_config
from wherry.models.trust.archives import checked_zip
from wherry.models.trust.files import open_regular

WEIGHTS = "model.weights.h5"
CONFIG = "config.json"
MEMBERS = re.compile(r"config\.json|metadata\.json|model\.weights\.h5|assets/[\w./-]+")
MAX_CONFIG_BYTES = 64 << 20
AGAIN = "save the whole model: model.save('model.keras')"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def check_keras(path: Path) -> None:
    """Raises `FormatNotAllowed`: no `.keras` file, or one of other layers than Keras's own."""
    with checked_zip(path) as archive:
        names = set(archive.namelist())
        if not {CONFIG, WEIGHTS} <= names or not all(map(MEMBERS.fullmatch, names)):
            raise FormatNotAllowed(
                f"{path.name!r} holds other files than a Keras model does", hint=AGAIN
            )
        if archive.getinfo(CONFIG).file_size > MAX_CONFIG_BYTES:
            raise FormatNotAllowed(
                f"{path.name!r} has a configuration that is too large", hint=AGAIN
            )
        try:
            config = json.loads(archive.read(CONFIG))
        except (ValueError, RecursionError) as error:
            raise FormatNotAllowed(
                f"{path.name!r} has a {CONFIG} that is not JSON", hint=AGAIN
            ) from error
        with archive.open(WEIGHTS) as weights:
            if weights.read(len(HDF5_MAGIC)) != HDF5_MAGIC:
                raise FormatNotAllowed(f"{path.name!r} has weights that are not HDF5", hint=AGAIN)
    check_keras_config(path.name, config)


def check_hdf5(path: Path) -> None:
    """Raises `FormatNotAllowed`: not HDF5, or cut off."""
    with open_regular(path) as file:
        head = file.read(len(HDF5_MAGIC) + 1)
    if head[:-1] != HDF5_MAGIC or head[-1] > 3:  # versions of its superblock
        raise FormatNotAllowed(f"{path.name!r} is not a Keras model in HDF5", hint=AGAIN)
