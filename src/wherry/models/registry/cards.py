"""What people see of models and versions."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.client import schema
from wherry.models.bundle import Manifest, decode_manifest
from wherry.models.registry import store
from wherry.models.registry.store import Connection, StoredModel, StoredVersion
from wherry.models.tasks.catalog import find_task
from wherry.models.tasks.table_columns import read_columns
from wherry.models.tasks.task import TensorSpec


def describe_models(connection: Connection, rows: Sequence[StoredModel]) -> list[schema.Model]:
    """Models with their versions, aliases and newest card."""
    ids = [row.id for row in rows]
    numbers = store.list_numbers(connection, ids)
    aliases = store.list_aliases(connection, ids)
    newest = store.list_newest(connection, ids)
    return [
        schema.Model(
            name=row.name,
            team=row.team,
            task=row.task,
            created_at=row.created_at,
            versions=numbers[row.id],
            aliases=aliases[row.id],
            latest=describe_version(row.name, newest[row.id], aliases[row.id])
            if row.id in newest
            else None,
        )
        for row in rows
    ]


def describe_version(model: str, row: StoredVersion, aliases: dict[str, int]) -> schema.Version:
    """A version, with those of its model's aliases that point to it."""
    return schema.Version(
        model=model,
        number=row.number,
        digest=row.digest,
        created_at=row.created_at,
        card=describe_manifest(
            decode_manifest(row.manifest), row.size_bytes, row.memory_mib, row.load_seconds
        ),
        aliases=[alias for alias, number in aliases.items() if number == row.number],
    )


def describe_manifest(
    manifest: Manifest, size_bytes: int = 0, memory_mib: int = 0, load_seconds: float = 0.0
) -> schema.Card:
    """What people see of a version, whether stored or about to be."""
    signature = find_task(manifest.task).signature(manifest.task_config())
    return schema.Card(
        task=manifest.task,
        runtime=manifest.runtime,
        licence=manifest.licence,
        source=manifest.source,
        description=manifest.description,
        languages=list(manifest.languages),
        good_at=manifest.good_at,
        bad_at=manifest.bad_at,
        labels=list(manifest.labels),
        inputs=[_describe_tensor(spec) for spec in signature.inputs],
        outputs=[_describe_tensor(spec) for spec in signature.outputs],
        columns=_describe_columns(manifest),
        sample=dict(manifest.sample),
        size_bytes=size_bytes,
        memory_mib=memory_mib,
        load_seconds=load_seconds,
    )


def _describe_columns(manifest: Manifest) -> list[schema.ColumnInfo]:
    if not manifest.task.startswith("tabular"):
        return []
    return [
        schema.ColumnInfo(
            name=column.name,
            kind=column.kind,
            required=column.required,
            categories=list(column.categories),
            accepts_unknown=column.accepts_unknown,
        )
        for column in read_columns(manifest.task_config())
    ]


def _describe_tensor(spec: TensorSpec) -> schema.TensorInfo:
    return schema.TensorInfo(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))
