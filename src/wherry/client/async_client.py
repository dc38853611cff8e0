"""The client for event loops: `AsyncClient`, with the calls of `Client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from types import TracebackType
from typing import Any, Literal, Self, overload

from wherry.client.answers import ChatAnswer
from wherry.client.calls import (
    accounts,
    batches,
    deployments,
    inference,
    jobs,
    models,
    runtimes,
    server,
    tensors,
    uploads,
)
from wherry.client.calls.inference import Messages
from wherry.client.local import find_address
from wherry.client.transport import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_SECONDS,
    AsyncResource,
    AsyncTransport,
    awaited,
    awaited_stream,
)


class AsyncModels(AsyncResource):
    """Models, their versions and aliases."""

    list = awaited(models.list_models)
    get = awaited(models.get_model)
    versions = awaited(models.list_versions)
    version = awaited(models.get_version)
    pull = awaited(models.pull_model)
    train = awaited(models.train_model)
    import_model = awaited(models.import_model)
    upload = awaited(uploads.upload_files)
    import_upload = awaited(models.import_upload)
    remove = awaited(models.remove_model)
    set_alias = awaited(models.set_alias)
    remove_alias = awaited(models.remove_alias)


class AsyncDeployments(AsyncResource):
    """Names that clients call."""

    list = awaited(deployments.list_deployments)
    get = awaited(deployments.get_deployment)
    deploy = awaited(deployments.deploy)
    apply = awaited(deployments.apply_specs)
    wait = awaited(deployments.wait_until_ready)
    scale = awaited(deployments.scale_deployment)
    start = awaited(deployments.start_deployment)
    stop = awaited(deployments.stop_deployment)
    roll_back = awaited(deployments.roll_back)
    promote = awaited(deployments.promote)
    remove = awaited(deployments.remove_deployment)
    logs = awaited_stream(deployments.read_logs)


class AsyncJobs(AsyncResource):
    """Work longer than a request."""

    list = awaited(jobs.list_jobs)
    get = awaited(jobs.get_job)
    wait = awaited(jobs.wait_for_job)
    events = awaited_stream(jobs.watch_job)
    cancel = awaited(jobs.cancel_job)


class AsyncBatches(AsyncResource):
    """Files of requests that are answered when there is time."""

    list = awaited(batches.list_batches)
    get = awaited(batches.get_batch)
    create = awaited(batches.create_batch)
    wait = awaited(batches.wait_for_batch)
    save = awaited(batches.save_results)
    cancel = awaited(batches.cancel_batch)


class AsyncRuntimes(AsyncResource):
    """What runs models, and where it is installed."""

    list = awaited(runtimes.list_runtimes)
    install = awaited(runtimes.install_runtime)
    remove = awaited(runtimes.remove_runtime)


class AsyncKeys(AsyncResource):
    """Keys of your team."""

    list = awaited(accounts.list_keys)
    create = awaited(accounts.create_key)
    revoke = awaited(accounts.revoke_key)


class AsyncClient(AsyncResource):
    """Talks to a Wherry server from an event loop.

    Example:
        >>> async with AsyncClient() as client:
        ...     await client.predict("sentiment", text="what a lovely day")

    Args:
        url: the server; default: `WHERRY_URL`, else a server of this machine.
        api_key: default: `WHERRY_API_KEY`, else the key that a server of this machine left for
            its user.
        timeout: seconds to wait for the next byte of an answer.
        max_retries: repetitions of what is safe to repeat.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        address = find_address(url, api_key)
        super().__init__(AsyncTransport(address, timeout=timeout, max_retries=max_retries))
        self.models = AsyncModels(self.transport)
        self.deployments = AsyncDeployments(self.transport)
        self.jobs = AsyncJobs(self.transport)
        self.batches = AsyncBatches(self.transport)
        self.keys = AsyncKeys(self.transport)
        self.runtimes = AsyncRuntimes(self.transport)

    predict = awaited(inference.predict)
    embed = awaited(inference.embed)
    infer = awaited(tensors.infer)
    overview = awaited(server.read_overview)
    workers = awaited(server.list_workers)
    catalog = awaited(server.list_catalog)
    problems = awaited(server.find_problems)
    metrics = awaited(server.read_metrics)
    events = awaited_stream(server.watch_events)
    is_ready = awaited(server.check_ready)
    usage = awaited(accounts.read_usage)

    @overload
    def chat(
        self, deployment: str, messages: Messages, *, stream: Literal[False] = False, **params: Any
    ) -> Coroutine[Any, Any, ChatAnswer]: ...

    @overload
    def chat(
        self, deployment: str, messages: Messages, *, stream: Literal[True], **params: Any
    ) -> AsyncIterator[str]: ...

    def chat(
        self, deployment: str, messages: Messages, *, stream: bool = False, **params: Any
    ) -> Coroutine[Any, Any, ChatAnswer] | AsyncIterator[str]:
        """Ask a text generation model.

        Args:
            deployment: the deployment.
            messages: one question, or a conversation as `[{"role": …, "content": …}]`.
            stream: give the answer's text piece by piece as it is made.
            params: `temperature`, `max_tokens` … as OpenAI's chat completions take them.
        """
        if stream:
            return self.transport.iterate(inference.stream_chat(deployment, messages, **params))
        return self.transport.run(inference.chat(deployment, messages, **params))

    @property
    def url(self) -> str:
        """The server."""
        return self.transport.address.url

    async def close(self) -> None:
        """Close the connections."""
        await self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        """Without the key."""
        return f"AsyncClient({self.url!r})"
