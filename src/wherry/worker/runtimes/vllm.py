"""Runtime `vllm`: language models as Hugging Face folders, by a vLLM server of the worker's own.

The server is a child process that listens on a Unix socket in a private folder; the worker asks it
as `upstream` asks any server. When it ends, so does the worker, and a new one is started. Bundle
options: `vllm_server.VllmOptions`. What the sandbox lets it do: docs/security.md.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from threading import Event

from wherry.errors import InvalidInput, ModelFailed
from wherry.models.bundle import Bundle
from wherry.models.tasks.generation import (
    GENERATION_TASKS,
    ChatInput,
    GenerationInput,
    TextDelta,
)
from wherry.models.tasks.image_text_to_text import IMAGE_TEXT_TO_TEXT
from wherry.worker.runtimes.chat_prompt import Neutraliser
from wherry.worker.runtimes.control_tokens import special_tokens_of, without_control_tokens
from wherry.worker.runtimes.kept_program import KeptProgram
from wherry.worker.runtimes.socket_folder import new_socket_folder
from wherry.worker.runtimes.upstream_client import ServerOptions, UpstreamClient, admit
from wherry.worker.runtimes.vllm_server import (
    SERVED_NAME,
    read_vllm_options,
    server_command,
    server_variables,
    wait_until_ready,
)

if importlib.util.find_spec("vllm") is None:  # importing it takes seconds, and only its server does
    raise ModuleNotFoundError("vllm is not installed", name="vllm")

SOCKET_NAME = "vllm.sock"
LOST_SERVER = 5
"""Exit status of a worker whose server has ended."""


class VllmRuntime:
    """One model, in a server of its own."""

    def __init__(self) -> None:
        self.max_concurrency = 1
        self._sees = False
        self._neutralise = Neutraliser(())
        self._folder: Path | None = None
        self._program: KeptProgram | None = None
        self._client: UpstreamClient | None = None

    def load(self, bundle: Bundle, device: str) -> None:
        """Start the server and wait until it answers.

        Raises:
            InvalidInput: an option is wrong, or the bundle's task is not to generate text.
            ModelFailed: the server ended, or is not ready in time.
        """
        if bundle.manifest.task not in GENERATION_TASKS:
            raise InvalidInput(f"the runtime 'vllm' does not do the task {bundle.manifest.task!r}")
        options = read_vllm_options(bundle)
        self._neutralise = Neutraliser(special_tokens_of(bundle.folder))
        self._folder = new_socket_folder(SOCKET_NAME)
        socket = self._folder / SOCKET_NAME
        self._program = KeptProgram(
            server_command(bundle.folder, socket, options),
            server_variables(options, device, self._folder),
            self._lose_server,
        )
        try:
            wait_until_ready(self._program, socket, options.load_timeout_seconds)
        except BaseException:
            self.close()
            raise
        self.max_concurrency = options.max_concurrency
        self._sees = bundle.manifest.task == IMAGE_TEXT_TO_TEXT.name
        self._client = UpstreamClient(
            ServerOptions(
                base_url="http://vllm/v1",
                model=SERVED_NAME,
                max_concurrency=options.max_concurrency,
                takes_top_k=True,
            ),
            socket=str(socket),
        )

    async def stream(
        self, item: GenerationInput, cancelled: Event, tenant: str
    ) -> AsyncIterator[TextDelta]:
        """Deltas as the server sends them; it stops when the connection is closed."""
        if self._client is None:
            raise ModelFailed("the model is not loaded")
        await admit(item, sees=self._sees)
        if isinstance(item, ChatInput):
            item = without_control_tokens(item, self._neutralise)
        # prompts of others are not in the cache: an answer's speed tells nothing of what they asked
        extra = {"cache_salt": hashlib.sha256(tenant.encode()).hexdigest()} if tenant else {}
        async with aclosing(self._client.stream(item, cancelled, extra)) as deltas:
            async for delta in deltas:
                yield delta

    def _lose_server(self, status: int) -> None:
        if self._client is not None:  # else `load` sees it, and tells why
            end_worker(status)

    def memory_mib(self) -> int:
        """Of the server's processes, which are not the worker's."""
        return self._program.memory_mib() if self._program else 0

    def close(self) -> None:
        """End the server."""
        if self._client is not None:
            self._client.close()
        if self._program is not None:
            self._program.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._client = self._program = self._folder = None


def end_worker(status: int) -> None:
    """The server has ended: no request can be answered any more, and the controller will see it."""
    sys.stderr.write(f"vLLM ended with status {status}; so does its worker\n")
    sys.stderr.flush()
    os._exit(LOST_SERVER)
