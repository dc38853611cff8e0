"""Starts llama.cpp's server in this process, quiet and reachable for nobody else.

It cannot be kept from listening: it gets a Unix socket in a private folder and a random key.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.worker.cores import count_cores
from wherry.worker.runtimes.llama_native import llama
from wherry.worker.runtimes.socket_folder import new_socket_folder

SOCKET_NAME = "llama.sock"


class StartedServer(msgspec.Struct):
    """llama.cpp with a model, and where it listens."""

    native: Any
    folder: Path
    key: str

    @property
    def socket(self) -> Path:
        """Its Unix socket."""
        return self.folder / SOCKET_NAME


def new_parameters(file: Path, device: str, *, threads: int = 0, batch_threads: int = 0) -> Any:
    """Parameters for a file's model; 0 threads are half of the cores, and all for prompts."""
    parameters = llama.CommonParams()
    parameters.model.path = str(file)
    parameters.n_gpu_layers = 0 if device == "cpu" else 999
    parameters.mmproj_use_gpu = device != "cpu"
    if device.startswith("cuda:"):
        parameters.main_gpu = int(device.removeprefix("cuda:"))
    parameters.cpuparams.n_threads = threads or max(1, count_cores() // 2)
    parameters.cpuparams_batch.n_threads = batch_threads or count_cores()
    # caches that are shared by whoever asks: see llama_slots
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.ui = False
    parameters.warmup = False
    parameters.verbosity = 1  # errors only, to standard error
    parameters.model_alias = ["model"]
    return parameters


def start_server(parameters: Any) -> StartedServer:
    """Load the model that the parameters name; `InvalidInput` if llama.cpp cannot."""
    folder = new_socket_folder(SOCKET_NAME)
    key = secrets.token_urlsafe(24)
    parameters.hostnames, parameters.api_keys = [str(folder / SOCKET_NAME)], [key]
    mask_before = os.umask(0o077)
    try:
        return StartedServer(llama.Server(parameters), folder, key)
    except (RuntimeError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise cannot_load(Path(parameters.model.path)) from error
    finally:
        os.umask(mask_before)


def cannot_load(file: Path) -> InvalidInput:
    """What is said of a model that does not load."""
    return InvalidInput(
        f"llama.cpp could not load {file.name!r}",
        hint="the reason is in the log; the file may be damaged or too new",
    )
