"""What each kind of job does, inside its runner."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from wherry.jobs.batches.batches import Batches
from wherry.jobs.batches.run import BatchRun
from wherry.jobs.files.files import Files
from wherry.jobs.publish import Publisher, Tell, Wish
from wherry.jobs.recipes import load_recipe, read_parameters
from wherry.jobs.runtime_environments import RuntimeEnvironments
from wherry.jobs.uploads import FILES, TAKEN, Uploads
from wherry.jobs.work import (
    BatchWork,
    ImportWork,
    InstallWork,
    PullWork,
    RunnerOrder,
    TrainWork,
)
from wherry.models.bundle import MANIFEST, encode_manifest
from wherry.models.registry.catalog import CatalogModel, catalog, fetch_entry
from wherry.models.registry.registry import Registry
from wherry.models.sources.catalog import fetch, pin
from wherry.models.sources.source import parse_reference
from wherry.storage.database import Database

COUNTING_SCHEMES = frozenset({"hf", "ms"})
"""Sources whose progress counts files, not bytes."""


class Workshop(msgspec.Struct, kw_only=True):
    """What a job works with."""

    order: RunnerOrder
    database: Database
    registry: Registry
    folder: Path
    """The job's own; outlives an attempt that is killed."""
    run_folder: Path
    """Short and private, for sockets."""
    tell: Tell
    check_current: Callable[[], None]
    """Raises if the job may not go on."""

    @property
    def cache(self) -> Path:
        """Where downloads continue after an interruption."""
        return self.order.settings.folder / "cache"

    def empty_folder(self, name: str) -> Path:
        """A folder of the job's, without what an earlier attempt left in it."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def publish(
        self, name: str, files: Path, wish: Wish, alias: str | None = None
    ) -> dict[str, Any]:
        """Make a version of the files in a folder; gives the job's result."""
        publisher = Publisher(
            settings=self.order.settings,
            registry=self.registry,
            folder=self.folder,
            run_folder=self.run_folder,
            tell=self.tell,
            check_current=self.check_current,
            may_name_servers=self.order.work.may_name_servers,
        )
        return publisher.publish(self.order.team_id, name, files, wish, alias=alias)


def run_work(shop: Workshop) -> dict[str, Any]:
    """Do a job; gives its result: of those that make a version `{"model", "version", "digest"}`."""
    work = shop.order.work
    if isinstance(work, BatchWork):
        return answer_batch(shop, work)
    if isinstance(work, PullWork):
        return pull(shop, work)
    if isinstance(work, ImportWork):
        return import_upload(shop, work)
    if isinstance(work, InstallWork):
        return install_runtime(shop, work)
    return train(shop, work)


def pull(shop: Workshop, work: PullWork) -> dict[str, Any]:
    """Fetch from the catalogue or a source, then publish."""
    entry = catalog().get(work.source)
    if entry is not None:
        return pull_entry(shop, work, entry)
    reference = parse_reference(work.source)
    unit = "" if reference.scheme in COUNTING_SCHEMES else "B"
    source = pin(work.source, shop.cache)
    files = shop.empty_folder("files")
    fetch(
        source,
        files,
        cache=shop.cache,
        progress=lambda stage, done, total: shop.tell(stage, done, total, unit),
        sha256=work.sha256 or "",
    )
    wish = Wish(
        task=work.task, labels=work.labels, options=work.options, source=shown_source(source)
    )
    return shop.publish(work.name, files, wish)


def pull_entry(shop: Workshop, work: PullWork, entry: CatalogModel) -> dict[str, Any]:
    """Fetch an entry's files: they are the model, or the data of its recipe."""
    fetched = fetch_entry(
        entry,
        shop.empty_folder("files"),
        cache=shop.cache,
        progress=lambda stage, done, total: shop.tell(stage, done, total, "B"),
    )
    if entry.recipe:
        files = run_recipe(shop, work.recipe, entry.parameters, fetched)
    else:
        files = shop.folder / "files"
        (files / MANIFEST).write_text(encode_manifest(entry.manifest), encoding="utf-8")
    wish = Wish(task=work.task, labels=work.labels, options=work.options)
    return shop.publish(work.name, files, wish)


def import_upload(shop: Workshop, work: ImportWork) -> dict[str, Any]:
    """Take the upload, so that nobody changes it any more, then publish."""
    taken = shop.folder / TAKEN
    if not taken.exists():  # an earlier attempt may have it already
        settings = shop.order.settings
        uploads = Uploads(settings.folder / "uploads", settings.max_upload_bytes)
        uploads.take(shop.order.team_id, work.upload, taken)
    wish = Wish(
        task=work.task,
        labels=work.labels,
        options=work.options,
        sample=work.sample,
        description=work.description,
        licence=work.licence,
    )
    return shop.publish(work.name, taken / FILES, wish, work.alias)


def train(shop: Workshop, work: TrainWork) -> dict[str, Any]:
    """Fetch a recipe's sources, run it, publish what it made."""
    recipe = load_recipe(work.recipe)
    read_parameters(recipe, work.parameters)  # wrong ones are told before anything is fetched
    data = shop.empty_folder("data")
    sources: dict[str, Path] = {}
    for number, (name, reference) in enumerate(recipe.sources.items()):
        (sources[name],) = fetch(
            reference,
            data / str(number),
            cache=shop.cache,
            progress=lambda stage, done, total: shop.tell(stage, done, total, "B"),
        )
    files = run_recipe(shop, work.recipe, work.parameters, sources)
    return shop.publish(work.name, files, Wish())


def answer_batch(shop: Workshop, work: BatchWork) -> dict[str, Any]:
    """Answer a batch's requests, or go on where an earlier attempt was killed."""
    order = shop.order
    batches = Batches(shop.database, Files(shop.database, order.settings), order.settings)

    async def answer() -> str:
        run = BatchRun(
            batches,
            batches.load(work.batch),
            settings=order.settings,
            token=order.token,
            run_folder=Path(order.run_folder),
            check_current=shop.check_current,
            tell=shop.tell,
        )
        return await run.run()

    return {"batch": work.batch, "state": asyncio.run(answer())}


def install_runtime(shop: Workshop, work: InstallWork) -> dict[str, Any]:
    """Make a runtime's own environment, with pip's words as progress."""
    environments = RuntimeEnvironments(shop.order.settings.folder / "environments")
    installed = environments.install(work.runtime, lambda line: shop.tell(f"installing: {line}"))
    return {"runtime": installed.name, "place": installed.place, "packages": installed.packages}


def run_recipe(
    shop: Workshop, path: str, parameters: Mapping[str, Any], sources: Mapping[str, Path]
) -> Path:
    """The folder of the bundle that a recipe made."""
    recipe = load_recipe(path)
    target = shop.empty_folder("made")
    recipe.run(read_parameters(recipe, parameters), sources, target, shop.tell)
    return target


def shown_source(reference: str) -> str:
    """The source as the card shows it: of the operator's own folders only the last part."""
    parsed = parse_reference(reference)
    if parsed.scheme != "file":
        return reference
    return f"file:{Path(parsed.place).name}"
