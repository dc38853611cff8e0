"""What a job has to do, and what queue and runner say to each other."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from wherry.client.schema import Progress
from wherry.settings import Settings

Kind = Literal["pull", "import", "train", "install", "batch"]


class AnyWork(msgspec.Struct, frozen=True, kw_only=True):
    """What all kinds of work have."""

    may_name_servers: bool = False
    """Whether who asked may choose the server that a deployment's secrets are sent to."""


class PullWork(AnyWork, frozen=True, kw_only=True, tag="pull", tag_field="kind"):
    """Get a model from the catalogue or a source."""

    source: str
    name: str
    task: str | None = None
    sha256: str | None = None
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    recipe: str = ""
    """Import string of the recipe that makes this entry of the catalogue, if one does."""


class ImportWork(AnyWork, frozen=True, kw_only=True, tag="import", tag_field="kind"):
    """Make a version of an upload."""

    upload: str
    name: str
    task: str | None = None
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    sample: dict[str, Any] = {}
    description: str = ""
    licence: str = ""
    alias: str | None = None


class TrainWork(AnyWork, frozen=True, kw_only=True, tag="train", tag_field="kind"):
    """Run a recipe."""

    recipe: str
    """Import string `module:ATTRIBUTE`."""
    name: str
    parameters: dict[str, Any] = {}


class InstallWork(AnyWork, frozen=True, kw_only=True, tag="install", tag_field="kind"):
    """Install a runtime into an environment of its own."""

    runtime: str


class BatchWork(AnyWork, frozen=True, kw_only=True, tag="batch", tag_field="kind"):
    """Answer the requests of a batch."""

    batch: str
    key_id: str
    """Who asked: its limits hold, and it is charged."""


Work = PullWork | ImportWork | TrainWork | InstallWork | BatchWork

decode_work = msgspec.json.Decoder(Work).decode


def kind_of(work: Work) -> Kind:
    """The job's kind, as clients see it."""
    return work.__struct_config__.tag  # type: ignore[return-value]


class RunnerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Read by a runner from the descriptor it is given."""

    job_id: str
    attempt: int
    """Fences: a runner whose attempt is not the row's any more may not make a version."""
    team_id: str
    work: Work
    settings: Settings
    run_folder: str
    """Short, for sockets; the runner makes a folder of its own in it."""
    token: str = ""
    """By which gateways learn from the queue for whom this runner speaks; a batch's only."""
    parent: int
    """Process id of the queue: the runner dies with it."""


class Progressed(msgspec.Struct, tag="progress"):
    """Runner to queue: how far it is."""

    progress: Progress


class Succeeded(msgspec.Struct, tag="result"):
    """Runner to queue: it is done."""

    result: dict[str, Any]


class Failed(msgspec.Struct, tag="failure"):
    """Runner to queue: it cannot be done, and what to do about it."""

    code: str
    message: str
    hint: str = ""


RunnerReport = Progressed | Succeeded | Failed

encode_report = msgspec.json.Encoder().encode
decode_report = msgspec.json.Decoder(RunnerReport).decode
