"""The blocking client: `Client`; and `import_model`, which needs no client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from wherry.client.calls.jobs import OnProgress
from wherry.client.local import find_address
from wherry.client.schema import Version
from wherry.client.transport import (
    DEFAULT_MAX_RETRIES,
    DEFAULT_TIMEOUT_SECONDS,
    BlockingResource,
    BlockingTransport,
    blocking,
    blocking_stream,
)


class Models(BlockingResource):
    """Models, their versions and aliases."""

    list = blocking(models.list_models)
    get = blocking(models.get_model)
    versions = blocking(models.list_versions)
    version = blocking(models.get_version)
    pull = blocking(models.pull_model)
    train = blocking(models.train_model)
    import_model = blocking(models.import_model)
    upload = blocking(uploads.upload_files)
    import_upload = blocking(models.import_upload)
    remove = blocking(models.remove_model)
    set_alias = blocking(models.set_alias)
    remove_alias = blocking(models.remove_alias)


class Deployments(BlockingResource):
    """Names that clients call."""

    list = blocking(deployments.list_deployments)
    get = blocking(deployments.get_deployment)
    deploy = blocking(deployments.deploy)
    apply = blocking(deployments.apply_specs)
    wait = blocking(deployments.wait_until_ready)
    scale = blocking(deployments.scale_deployment)
    start = blocking(deployments.start_deployment)
    stop = blocking(deployments.stop_deployment)
    roll_back = blocking(deployments.roll_back)
    promote = blocking(deployments.promote)
    remove = blocking(deployments.remove_deployment)
    logs = blocking_stream(deployments.read_logs)


class Jobs(BlockingResource):
    """Work longer than a request."""

    list = blocking(jobs.list_jobs)
    get = blocking(jobs.get_job)
    wait = blocking(jobs.wait_for_job)
    events = blocking_stream(jobs.watch_job)
    cancel = blocking(jobs.cancel_job)


class Batches(BlockingResource):
    """Files of requests that are answered when there is time."""

    list = blocking(batches.list_batches)
    get = blocking(batches.get_batch)
    create = blocking(batches.create_batch)
    wait = blocking(batches.wait_for_batch)
    save = blocking(batches.save_results)
    cancel = blocking(batches.cancel_batch)


class Runtimes(BlockingResource):
    """What runs models, and where it is installed."""

    list = blocking(runtimes.list_runtimes)
    install = blocking(runtimes.install_runtime)
    remove = blocking(runtimes.remove_runtime)


class Keys(BlockingResource):
    """Keys of your team."""

    list = blocking(accounts.list_keys)
    create = blocking(accounts.create_key)
    revoke = blocking(accounts.revoke_key)


class Client(BlockingResource):
    """Talks to a Wherry server.

    Example:
        >>> with Client() as client:
        ...     client.predict("sentiment", text="what a lovely day")

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
        super().__init__(BlockingTransport(address, timeout=timeout, max_retries=max_retries))
        self.models = Models(self.transport)
        self.deployments = Deployments(self.transport)
        self.jobs = Jobs(self.transport)
        self.batches = Batches(self.transport)
        self.keys = Keys(self.transport)
        self.runtimes = Runtimes(self.transport)

    predict = blocking(inference.predict)
    embed = blocking(inference.embed)
    infer = blocking(tensors.infer)
    overview = blocking(server.read_overview)
    workers = blocking(server.list_workers)
    catalog = blocking(server.list_catalog)
    problems = blocking(server.find_problems)
    metrics = blocking(server.read_metrics)
    events = blocking_stream(server.watch_events)
    is_ready = blocking(server.check_ready)
    usage = blocking(accounts.read_usage)

    @overload
    def chat(
        self, deployment: str, messages: Messages, *, stream: Literal[False] = False, **params: Any
    ) -> ChatAnswer: ...

    @overload
    def chat(
        self, deployment: str, messages: Messages, *, stream: Literal[True], **params: Any
    ) -> Iterator[str]: ...

    def chat(
        self, deployment: str, messages: Messages, *, stream: bool = False, **params: Any
    ) -> ChatAnswer | Iterator[str]:
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

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        """Without the key."""
        return f"Client({self.url!r})"


def import_model(
    model_or_path: object,
    *,
    name: str,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    sample: Any = None,
    alias: str | None = None,
    on_progress: OnProgress | None = None,
) -> Version:
    """Make a version of a fitted model, a file or a folder, on the server that `Client()` finds.

    Args:
        model_or_path: an object (e.g. a scikit-learn pipeline), or a path.
        name: name of the model.
        task: what it does, where the model does not say.
        labels: names of its classes, in the order of its outputs.
        sample: one input, or a few rows.
        alias: let this alias point to the new version.
        on_progress: called while it is uploaded and imported.
    """
    with Client() as client:
        return client.models.import_model(
            model_or_path,
            name=name,
            task=task,
            labels=labels,
            sample=sample,
            alias=alias,
            on_progress=on_progress,
        )
