"""The platform API's models: the catalogue, versions, aliases, and the jobs that make them."""

from __future__ import annotations

import asyncio
import re
import time
from importlib.metadata import entry_points
from typing import Any

import msgspec

from wherry import errors
from wherry.accounts.keys import Principal
from wherry.client import schema
from wherry.control.deployments import targets_of
from wherry.doors.platform_base import (
    PageOf,
    Parts,
    make_row,
    name_of,
    number_of,
    page_of,
    read_body,
    read_cursor,
    read_flag,
    read_limit,
    write_cursor,
)
from wherry.doors.route import Inquiry, Response, Row, encode_json, json_response
from wherry.jobs.recipes import check_parameters
from wherry.jobs.work import ImportWork, PullWork, TrainWork, Work, kind_of
from wherry.learning.recipes import catalog as recipes
from wherry.models.registry.catalog import catalog, describe_entries, find_entry
from wherry.models.registry.names import check_alias
from wherry.models.sources.catalog import scheme_names
from wherry.models.sources.source import Reference, parse_reference
from wherry.models.tasks.catalog import task_names

SHA256 = re.compile(r"[0-9a-f]{64}")
PAGED = ("limit", "cursor")
MODEL = "/models/{model}"
VERSION = "/models/{model}/versions/{number}"
ALIAS = "/models/{model}/aliases/{alias}"
MAX_PAGE_BYTES = 8 << 20
"""A page of models ends before it is larger: cards hold labels and texts of publishers."""
MAX_CHECKS = 2
"""Processes that check a recipe's parameters at once."""


class ModelsPart:
    """Rows of models."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._checks = asyncio.Semaphore(MAX_CHECKS)

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _row(
                "GET",
                "/catalog",
                "any",
                self.catalog,
                "Models that a name is enough for",
                answer=PageOf[schema.CatalogEntry],
                query=PAGED,
            ),
            _row(
                "POST",
                "/models:pull",
                "publish",
                self.pull,
                "Get a model",
                request=schema.PullRequest,
                answer=schema.Job,
                status=202,
            ),
            _row(
                "POST",
                "/models:import",
                "publish",
                self.import_upload,
                "Make a version of an upload",
                request=schema.ImportRequest,
                answer=schema.Job,
                status=202,
            ),
            _row(
                "POST",
                "/models:train",
                "publish",
                self.train,
                "Run a recipe",
                request=schema.TrainRequest,
                answer=schema.Job,
                status=202,
            ),
            _row(
                "GET",
                "/models",
                "any",
                self.models,
                "Models of your team",
                answer=PageOf[schema.Model],
                query=PAGED,
            ),
            _row(
                "GET",
                MODEL,
                "any",
                self.model,
                "A model and its newest version",
                answer=schema.Model,
            ),
            _row(
                "DELETE",
                MODEL,
                "publish",
                self.remove_model,
                "Remove a model",
                answer=schema.Model,
                query=("dry_run",),
            ),
            _row(
                "GET",
                MODEL + "/versions",
                "any",
                self.versions,
                "Versions, oldest first",
                answer=PageOf[schema.Version],
                query=PAGED,
            ),
            _row("GET", VERSION, "any", self.version, "One version", answer=schema.Version),
            _row(
                "DELETE",
                VERSION,
                "publish",
                self.remove_version,
                "Remove a version",
                answer=schema.Version,
                query=("dry_run",),
            ),
            _row(
                "PUT",
                ALIAS,
                "publish",
                self.set_alias,
                "Let an alias point to a version",
                request=schema.AliasRequest,
                answer=schema.Model,
            ),
            _row(
                "DELETE",
                ALIAS,
                "publish",
                self.remove_alias,
                "Forget an alias",
                answer=schema.Model,
                query=("dry_run",),
            ),
        ]

    # ------------------------------------------------------------------ looking

    async def catalog(self, inquiry: Inquiry) -> Response:
        """The catalogue, with what fits into the memory that is free now."""
        team_id = inquiry.principal.team_id
        installed = await asyncio.to_thread(self._parts.registry.sources, team_id)
        used = await self._memory_used(team_id)
        budget = self._parts.budget
        entries = describe_entries(installed, budget.limit_mib - sum(mib for _, mib in used))
        for entry in entries:
            entry.fits = budget.fits(entry.memory_mib, used)
            entry.fit_reason = budget.explain(entry.memory_mib, used)
        places = {entry.name: place for place, entry in enumerate(entries)}
        return page_of(inquiry, entries, lambda entry: places[entry.name])

    async def _memory_used(self, team_id: str) -> list[tuple[str, int]]:
        """By deployment; what other teams use is one sum without names."""
        try:
            workers = await self._parts.uplink.ask("workers", team_id=team_id)
            overview = await self._parts.uplink.ask("overview", team_id=team_id)
        except errors.Unavailable:
            return []
        used: dict[str, int] = {}
        for worker in workers:
            name = worker["deployment"]
            used[name] = used.get(name, 0) + worker.get("memory_mib", 0)
        others = overview["memory_used_mib"] - sum(used.values())
        return [*sorted(used.items()), *([("others", others)] if others > 0 else [])]

    async def models(self, inquiry: Inquiry) -> Response:
        """The team's models by name; a page ends early where cards are long."""
        after = read_cursor(inquiry) or ""
        if not isinstance(after, str):
            raise errors.InvalidInput("this cursor is none of ours", param="cursor")
        team_id, limit = inquiry.principal.team_id, read_limit(inquiry)
        return json_response(await asyncio.to_thread(self._page_of_models, team_id, after, limit))

    def _page_of_models(self, team_id: str, after: str, limit: int) -> PageOf[msgspec.Raw]:
        cards: list[msgspec.Raw] = []
        size = 0
        for model in self._parts.registry.each_model(team_id, after):
            card = msgspec.Raw(encode_json(model))
            size += len(card)
            if len(cards) == limit or (cards and size > MAX_PAGE_BYTES):
                return PageOf(cards, write_cursor(after))
            cards.append(card)
            after = model.name
        return PageOf(cards)

    async def model(self, inquiry: Inquiry) -> Response:
        """One model."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        model = await asyncio.to_thread(self._parts.registry.model, team_id, name)
        if model.latest is not None:
            await self._add_running(team_id, model.latest)
        return json_response(model)

    async def versions(self, inquiry: Inquiry) -> Response:
        """A model's versions, oldest first."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        versions = await asyncio.to_thread(self._parts.registry.versions, team_id, name)
        return page_of(inquiry, versions, lambda version: version.number)

    async def version(self, inquiry: Inquiry) -> Response:
        """One version."""
        team_id = inquiry.principal.team_id
        ref = f"{name_of(inquiry, 'model')}@{number_of(inquiry, 'number')}"
        version = await asyncio.to_thread(self._parts.registry.describe, team_id, ref)
        await self._add_running(team_id, version)
        return json_response(version)

    async def _add_running(self, team_id: str, version: schema.Version) -> None:
        """What its workers chose, if the part that knows is there."""
        try:
            overview = await self._parts.uplink.ask("overview", team_id=team_id)
        except errors.Unavailable:
            return
        version.running = overview["running"].get(f"{version.model}@{version.number}", {})

    # ------------------------------------------------------------------ making

    async def pull(self, inquiry: Inquiry) -> Response:
        """Queue a pull; `file:` names a folder of the operator's machine, so it needs `admin`."""
        request = await read_body(inquiry, schema.PullRequest)
        return await self._submit(
            inquiry, plan_pull(inquiry.principal, request), dry_run=request.dry_run
        )

    async def import_upload(self, inquiry: Inquiry) -> Response:
        """Queue an import of an upload of the team's."""
        request = await read_body(inquiry, schema.ImportRequest)
        _check_task(request.task)
        if request.alias is not None:
            check_alias(request.alias)
        team_id = inquiry.principal.team_id
        upload = await asyncio.to_thread(self._parts.uploads.find, team_id, request.upload)
        if not upload.files:
            raise errors.InvalidInput("the upload has no files", param="upload")
        work = ImportWork(
            upload=upload.id,
            name=request.name,
            task=request.task,
            labels=tuple(request.labels),
            options=request.options,
            sample=request.sample,
            description=request.description,
            licence=request.licence,
            alias=request.alias,
            may_name_servers=may_name_servers(inquiry.principal),
        )
        return await self._submit(inquiry, work, dry_run=request.dry_run)

    async def train(self, inquiry: Inquiry) -> Response:
        """Queue a recipe whose parameters are right."""
        request = await read_body(inquiry, schema.TrainRequest)
        path = recipe_path(request.recipe)
        async with self._checks:
            await asyncio.to_thread(check_parameters, path, request.parameters)
        work = TrainWork(recipe=path, name=request.name, parameters=request.parameters)
        return await self._submit(inquiry, work, dry_run=request.dry_run)

    async def _submit(self, inquiry: Inquiry, work: Work, *, dry_run: bool) -> Response:
        if dry_run:
            job = schema.Job(id="", kind=kind_of(work), state="queued", created_at=time.time())
            return json_response(job)
        team_id = inquiry.principal.team_id
        job = await asyncio.to_thread(self._parts.jobs.submit, team_id, work)
        self._parts.uplink.nudge()
        return json_response(job, 202)

    # ------------------------------------------------------------------ changing

    async def set_alias(self, inquiry: Inquiry) -> Response:
        """Deployments of `model@alias` follow."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        alias = inquiry.params["alias"]
        check_alias(alias)
        request = await read_body(inquiry, schema.AliasRequest)
        registry = self._parts.registry

        def change() -> schema.Model:
            if not request.dry_run:
                return registry.set_alias(team_id, name, alias, request.version)
            registry.describe(team_id, f"{name}@{request.version}")
            model = registry.model(team_id, name)
            model.aliases = {**model.aliases, alias: request.version}
            return model

        return await self._changed(await asyncio.to_thread(change))

    async def remove_alias(self, inquiry: Inquiry) -> Response:
        """Forget an alias that no deployment follows."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        alias = name_of(inquiry, "alias")
        dry_run = read_flag(inquiry, "dry_run")

        def change() -> schema.Model:
            model = self._parts.registry.model(team_id, name)
            if alias not in model.aliases:
                raise errors.NotFound(f"model {name!r} has no alias {alias!r}")
            ref = f"{name}@{alias}"
            users = [
                desired.spec.name
                for desired in self._parts.deployments.load(team_id)
                if any(target.model == ref for target in targets_of(desired.spec))
            ]
            _refuse_used(f"alias {ref!r}", users)
            if not dry_run:
                return self._parts.registry.remove_alias(team_id, name, alias)
            del model.aliases[alias]
            return model

        return await self._changed(await asyncio.to_thread(change))

    async def remove_model(self, inquiry: Inquiry) -> Response:
        """Remove a model that no deployment serves."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        dry_run = read_flag(inquiry, "dry_run")

        def change() -> schema.Model:
            model = self._parts.registry.model(team_id, name)
            _refuse_used(f"model {name!r}", self._parts.deployments.users_of(team_id, name))
            return model if dry_run else self._parts.registry.remove_model(team_id, name)

        return await self._changed(await asyncio.to_thread(change))

    async def remove_version(self, inquiry: Inquiry) -> Response:
        """Remove a version that no deployment serves."""
        team_id, name = inquiry.principal.team_id, name_of(inquiry, "model")
        number = number_of(inquiry, "number")
        dry_run = read_flag(inquiry, "dry_run")

        def change() -> schema.Version:
            ref = f"{name}@{number}"
            version = self._parts.registry.describe(team_id, ref)
            users = self._parts.deployments.users_of(team_id, name, number)
            _refuse_used(f"version {ref!r}", users)
            if not dry_run:
                return self._parts.registry.remove_version(team_id, name, number)
            return version

        return await self._changed(await asyncio.to_thread(change))

    async def _changed(self, answer: Any) -> Response:
        await self._parts.uplink.settle()
        return json_response(answer)


def plan_pull(principal: Principal, request: schema.PullRequest) -> PullWork:
    """What a pull has to do; raises what is wrong with the request."""
    _check_task(request.task)
    if request.sha256 is not None and not SHA256.fullmatch(request.sha256):
        raise errors.InvalidInput("sha256 is not 64 small hex digits", param="sha256")
    if ":" not in request.source:
        entry = find_entry(request.source)
        if request.sha256 is not None:
            raise errors.InvalidInput("the catalogue has its own digests", param="sha256")
        return PullWork(
            source=entry.name,
            name=request.name or entry.name,
            task=request.task,
            labels=tuple(request.labels),
            options=request.options,
            recipe=recipe_path(entry.recipe) if entry.recipe else "",
        )
    reference = parse_reference(request.source)
    if reference.scheme not in scheme_names():
        known = f"catalogue: {', '.join(catalog())}; schemes: {', '.join(scheme_names())}"
        raise errors.InvalidInput(
            f"unknown source {reference.scheme!r}", hint=known, param="source"
        )
    if reference.scheme == "file":
        principal.require("admin")
    return PullWork(
        source=request.source,
        name=request.name or name_from(reference),
        task=request.task,
        labels=tuple(request.labels),
        options=request.options,
        sha256=request.sha256,
        may_name_servers=may_name_servers(principal),
    )


def may_name_servers(principal: Principal) -> bool:
    """Whether a key may publish a model that deployments would send their secrets to."""
    return "operate" in principal.scopes and principal.deployments is None


def name_from(reference: Reference) -> str:
    """A model's name from the place it comes from."""
    last = reference.place.rstrip("/").rpartition("/")[2]
    last = re.split(r"==|@", last)[0].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:63].rstrip("._-")
    if not name:
        raise errors.InvalidInput("the source gives no name to the model", param="name")
    return name


def recipe_path(name: str) -> str:
    """The import string of a recipe; loads nothing."""
    if name in recipes.BUILT_IN:
        return recipes.BUILT_IN[name]
    for point in entry_points(group="wherry.recipes", name=name):
        return point.value
    known = ", ".join(recipes.recipe_names())
    raise errors.NotFound(f"no recipe {name[:80]!r}", hint=f"known: {known}")


def _check_task(task: str | None) -> None:
    if task is not None and task not in task_names():
        known = ", ".join(task_names())
        raise errors.InvalidInput(
            f"unknown task {task[:80]!r}", hint=f"known: {known}", param="task"
        )


def _refuse_used(what: str, users: list[str]) -> None:
    if users:
        shown = ", ".join(users[:10])
        raise errors.Conflict(
            f"{what} is served by {shown}", hint=f"first: wherry undeploy {users[0]}"
        )


def _row(*arguments: Any, **options: Any) -> Row:
    return make_row("models", *arguments, **options)
