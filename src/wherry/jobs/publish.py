"""From a folder of files to a version: manifest, environment, trial, registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from wherry import errors
from wherry.jobs.environments import Environments
from wherry.jobs.layout import lay_out, link
from wherry.jobs.trial import CODE_RUNTIMES, Measured, try_model
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest
from wherry.models.registry.assumptions import find_assumptions
from wherry.models.registry.detect import detect, list_model_paths
from wherry.models.registry.manifest import stored_paths
from wherry.models.registry.registry import Registry
from wherry.models.tasks.catalog import find_task
from wherry.settings import Settings

MAX_SAMPLE_BYTES = 256 << 10

Tell = Callable[..., None]
"""`tell("downloading", 3, 10, "B")`: stage, done, total (0 = unknown), unit."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller says of the model; it wins over what is found."""

    task: str | None = None
    labels: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    sample: dict[str, Any] = {}
    description: str = ""
    licence: str = ""
    source: str = ""


class Publisher:
    """Makes versions for one job.

    Args:
        settings: the server's.
        registry: where versions go.
        folder: the job's own, for copies.
        run_folder: short and private, for the trial's sockets.
        tell: hears how far it is.
        check_current: raises if the job may not go on (cancelled, or another attempt runs).
        may_name_servers: whether the model may be one that asks another server.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        registry: Registry,
        folder: Path,
        run_folder: Path,
        tell: Tell,
        check_current: Callable[[], None],
        may_name_servers: bool = False,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._folder = folder
        self._run_folder = run_folder
        self._tell = tell
        self._check_current = check_current
        self._may_name_servers = may_name_servers

    def publish(
        self,
        team_id: str,
        name: str,
        files: Path,
        wish: Wish,
        *,
        alias: str | None = None,
    ) -> dict[str, Any]:
        """Make a version of the files in a folder; gives the job's result.

        Args:
            team_id: whose it is.
            name: of the model.
            files: the folder; left as it is.
            wish: what the caller says of the model.
            alias: let it point to the version.
        """
        settings = self._settings
        self._tell("checking files")
        files = lay_out(files, self._folder / "laid out")
        manifest = detect(
            files,
            task=wish.task,
            labels=wish.labels,
            options=wish.options,
            description=wish.description,
            licence=wish.licence,
            source=wish.source,
            allow_code=settings.allow_code,
            allow_pickle=settings.allow_pickle,
        )
        assumed = find_assumptions(manifest, list_model_paths(files), wish.options)
        if wish.sample:
            manifest = msgspec.structs.replace(manifest, sample=wish.sample)
        self._check_runtime(manifest)
        manifest = with_signature(manifest)
        bundle = self._copy(files, manifest)
        environment = self._ensure_environment(manifest)
        self._tell("trying one answer")
        before = _listing(bundle)
        measured = try_model(bundle, manifest, settings, self._run_folder, environment)
        if written := sorted(_listing(bundle) ^ before):
            raise errors.InvalidInput(
                f"the model wrote into its own folder: {written[0][0]!r}",
                hint="versions do not change: write to a temporary folder, or bring the file along",
            )
        manifest = msgspec.structs.replace(
            manifest,
            sample=_storable(measured),
            signature=measured.signature or manifest.signature,
        )
        self._tell("storing")
        self._check_current()
        version = self._registry.add_version(
            team_id,
            name,
            bundle,
            manifest,
            memory_mib=measured.memory_mib,
            load_seconds=round(measured.load_seconds, 3),
            environment=environment,
            alias=alias,
        )
        made = {"model": version.model, "version": version.number, "digest": version.digest}
        return made | ({"assumed": assumed} if assumed else {})

    def _check_runtime(self, manifest: Manifest) -> None:
        if manifest.runtime in CODE_RUNTIMES and not self._settings.allow_code:
            raise errors.CodeNotAllowed(
                f"the runtime {manifest.runtime!r} runs the model's own code",
                hint="the operator may set WHERRY_ALLOW_CODE=1",
            )
        if manifest.runtime == "upstream" and not self._may_name_servers:
            # deployments follow the newest version, and their secrets would go where it says
            raise errors.NotPermitted(
                "a model that asks another server may be given a deployment's secrets",
                hint="let a key with the scopes publish and operate, for all deployments, make it",
            )

    def _copy(self, files: Path, manifest: Manifest) -> Path:
        """The files that become part of the version, and no others, with their manifest."""
        bundle = self._folder / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir(parents=True, mode=0o700)
        for path in stored_paths(manifest, list_model_paths(files)):
            link(files / path, bundle / path)
        (bundle / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
        return bundle

    def _ensure_environment(self, manifest: Manifest) -> str:
        environments = Environments(
            self._settings.folder / "environments", allow_code=self._settings.allow_code
        )
        return environments.ensure(
            manifest.requirements, lambda line: self._tell(f"installing requirements: {line}")
        )


def with_signature(manifest: Manifest) -> Manifest:
    """The manifest with its task's own tensors, so that who reads it needs neither task nor numpy.

    Of the task `tensor` the signature is the publisher's alone: what it leaves open stays open.
    """
    if manifest.task == "tensor":
        return manifest
    signature = find_task(manifest.task).signature(manifest.task_config())
    return msgspec.structs.replace(manifest, signature=signature)


def _storable(measured: Measured) -> dict[str, Any]:
    """The sample, unless it is too long to be shown to anybody."""
    sample = dict(measured.sample)
    return sample if len(msgspec.json.encode(sample)) <= MAX_SAMPLE_BYTES else {}


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    """Path, size and time of change of every file; Python's own caches aside."""
    return {
        (str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and (status := path.lstat()) and path.is_file()
    }
