"""Models, their immutable numbered versions, and the aliases that point to them."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry.client import schema
from wherry.errors import Conflict, ModelNotFound, NotFound
from wherry.models.bundle import MANIFEST, Manifest, decode_manifest, encode_manifest
from wherry.models.registry import store
from wherry.models.registry.cards import describe_models, describe_version
from wherry.models.registry.detect import list_model_paths
from wherry.models.registry.manifest import check_manifest, stored_paths
from wherry.models.registry.names import check_alias, check_name, parse_ref
from wherry.models.registry.store import Connection, StoredModel, StoredVersion
from wherry.models.trust.files import BundleFile, bundle_digest, check_files, open_regular
from wherry.models.trust.materialise import bundle_folder, remove_bundle, sweep_unfinished
from wherry.storage.blobs import Blobs
from wherry.storage.database import Database, add_event, bump_revision, lock, new_id

BUNDLES_FOLDER = "bundles"
CLEANER = "blobs"
"""Name of the lock that keeps removals and additions apart."""
DAY_SECONDS = 86_400
MAX_MODELS_A_PAGE = 1000
MODELS_A_LOOK = 20
DIGEST_START = re.compile(r"[0-9a-f]{7,64}")
MAX_NUMBER_DIGITS = 9

decode_files = msgspec.json.Decoder(tuple[BundleFile, ...]).decode


class ResolvedVersion(msgspec.Struct, frozen=True):
    """All that is needed to load a version."""

    model: str
    number: int
    digest: str
    """`sha256:…`"""
    manifest: Manifest
    files: tuple[BundleFile, ...]
    memory_mib: int
    load_seconds: float
    environment: str
    """Digest of its Python environment; empty = the server's own."""


class Snapshot(msgspec.Struct, frozen=True):
    """A version as people see it, and its files."""

    team: str
    version: schema.Version
    files: tuple[BundleFile, ...]
    """By path."""


class Registry:
    """The models of every team. Threads and processes may share its database and folder.

    Methods take a team's id and see that team's models only: all others are `ModelNotFound`.

    Args:
        database: Migrated.
        blobs: Where the files go.
        folder: The data folder; `bundles/` inside it holds verified copies for workers.
    """

    def __init__(self, database: Database, blobs: Blobs, folder: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._bundles = folder / BUNDLES_FOLDER

    # ------------------------------------------------------------------ looking

    def models(
        self, team_id: str, *, after: str = "", limit: int = MAX_MODELS_A_PAGE
    ) -> list[schema.Model]:
        """Models by name, from the one after `after`."""
        with self._database.read() as connection:
            rows = store.list_models(connection, team_id, after, min(limit, MAX_MODELS_A_PAGE))
            return describe_models(connection, rows)

    def each_model(self, team_id: str, after: str = "") -> Iterator[schema.Model]:
        """Models by name, from the one after `after`, a few in memory at once."""
        while found := self.models(team_id, after=after, limit=MODELS_A_LOOK):
            yield from found
            after = found[-1].name

    def sources(self, team_id: str) -> set[str]:
        """Where the newest versions of the team's models came from."""
        return {
            each.latest.card.source for each in self.each_model(team_id) if each.latest is not None
        }

    def model(self, team_id: str, name: str) -> schema.Model:
        """One model; `ModelNotFound` if the team has none of this name."""
        with self._database.read() as connection:
            return describe_models(connection, [_find_model(connection, team_id, name)])[0]

    def versions(self, team_id: str, name: str) -> list[schema.Version]:
        """Versions of a model, oldest first."""
        with self._database.read() as connection:
            model = _find_model(connection, team_id, name)
            aliases = store.list_aliases(connection, [model.id])[model.id]
            rows = store.list_versions(connection, model.id)
            return [describe_version(name, row, aliases) for row in rows]

    def describe(self, team_id: str, ref: str) -> schema.Version:
        """The version that `ref` means, for people; see `version`."""
        with self._database.read() as connection:
            model, row = _find_version(connection, team_id, ref)
            aliases = store.list_aliases(connection, [model.id])[model.id]
            return describe_version(model.name, row, aliases)

    def version(self, team_id: str, ref: str) -> ResolvedVersion:
        """What `model` (newest), `model@3` or `model@alias` means now.

        Raises:
            ModelNotFound: no such model, version or alias of this team.
        """
        with self._database.read() as connection:
            model, row = _find_version(connection, team_id, ref)
        return ResolvedVersion(
            model=model.name,
            number=row.number,
            digest=row.digest,
            manifest=decode_manifest(row.manifest),
            files=decode_files(row.files),
            memory_mib=row.memory_mib,
            load_seconds=row.load_seconds,
            environment=row.environment,
        )

    def snapshot(self, team_id: str, name: str, revision: str = "") -> Snapshot:
        """What a version consists of.

        Args:
            team_id: Whose model.
            name: Of the model.
            revision: An alias, a number, or the beginning of a digest in hex; empty = the newest.

        Raises:
            ModelNotFound: no such model of this team (`param` is "model"), or revision of it
                ("revision").
        """
        with self._database.read() as connection:
            model = _find_model(connection, team_id, name)
            aliases = store.list_aliases(connection, [model.id])[model.id]
            row = _find_revision(connection, model, aliases, revision)
            version = describe_version(model.name, row, aliases)
            return Snapshot(model.team, version, decode_files(row.files))

    # ------------------------------------------------------------------ adding

    def add_version(
        self,
        team_id: str,
        name: str,
        folder: Path,
        manifest: Manifest,
        *,
        memory_mib: int = 0,
        load_seconds: float = 0.0,
        environment: str = "",
        alias: str | None = None,
    ) -> schema.Version:
        """Store the manifest's files of a folder as the model's next version.

        The same files and manifest again give the version that has them. Formats are for
        `detect` to check, before.

        Raises:
            InvalidInput: the name, the manifest or a file's name is wrong.
            Conflict: the model does another task.
            Unavailable: the disk is full; nothing is left behind that `clean_up` would not take.
        """
        check_name(name, "model")
        if alias is not None:
            check_alias(alias)
        paths = stored_paths(manifest, list_model_paths(folder))
        check_manifest(manifest, paths)
        measured = {
            "memory_mib": memory_mib,
            "load_seconds": load_seconds,
            "environment": environment,
        }
        # A removal may take a blob that both versions have, between our storing and our inserting.
        # Then store again, the second time inside the lock that keeps removals out.
        files = self._store_files(folder, manifest, paths)
        with self._database.write() as connection:
            lock(connection, CLEANER)
            if not all(self._blobs.has(file.sha256) for file in files):
                files = self._store_files(folder, manifest, paths)
            return self._insert(connection, team_id, name, manifest, files, measured, alias)

    def _store_files(
        self, folder: Path, manifest: Manifest, paths: Iterable[str]
    ) -> list[BundleFile]:
        files: list[BundleFile] = []
        for path in paths:
            with open_regular(folder / path) as source:
                blob = self._blobs.put(source)
            files.append(BundleFile(path, blob.size, blob.sha256))
        text = encode_manifest(manifest).encode()
        blob = self._blobs.put(io.BytesIO(text))
        files.append(BundleFile(MANIFEST, blob.size, blob.sha256))
        check_files(files)
        return sorted(files)

    def _insert(
        self,
        connection: Connection,
        team_id: str,
        name: str,
        manifest: Manifest,
        files: Sequence[BundleFile],
        measured: dict[str, Any],
        alias: str | None,
    ) -> schema.Version:
        model = _find_or_add_model(connection, team_id, name, manifest.task)
        digest = bundle_digest(files)
        row = store.find_version(connection, model.id, digest=digest)
        if row is None:
            number = store.next_number(connection, model.id)
            store.insert_version(
                connection,
                [file.sha256 for file in files],
                id=new_id("version"),
                model_id=model.id,
                number=number,
                digest=digest,
                manifest=encode_manifest(manifest),
                files=msgspec.json.encode(files).decode(),
                size_bytes=sum(file.size for file in files),
                created_at=time.time(),
                **measured,
            )
            row = store.find_version(connection, model.id, number=number)
            assert row is not None
            _announce(connection, team_id, name, "version added", {"version": number})
        if alias is not None:
            store.set_alias(connection, model.id, alias, row.number)
            data = {"alias": alias, "version": row.number}
            _announce(connection, team_id, name, "alias set", data)
        aliases = store.list_aliases(connection, [model.id])[model.id]
        return describe_version(name, row, aliases)

    # ------------------------------------------------------------------ aliases

    def set_alias(self, team_id: str, name: str, alias: str, number: int) -> schema.Model:
        """Let an alias point to a version; `ModelNotFound` if there is no such version."""
        check_alias(alias)
        with self._database.write() as connection:
            model, _ = _find_version(connection, team_id, f"{name}@{number}")
            store.set_alias(connection, model.id, alias, number)
            data = {"alias": alias, "version": number}
            _announce(connection, team_id, name, "alias set", data)
            return describe_models(connection, [model])[0]

    def remove_alias(self, team_id: str, name: str, alias: str) -> schema.Model:
        """Forget an alias; `NotFound` if there is none."""
        with self._database.write() as connection:
            model = _find_model(connection, team_id, name)
            if not store.remove_alias(connection, model.id, alias):
                raise NotFound(f"model {name!r} has no alias {alias!r}")
            _announce(connection, team_id, name, "alias removed", {"alias": alias})
            return describe_models(connection, [model])[0]

    # ------------------------------------------------------------------ removing

    def remove_version(self, team_id: str, name: str, number: int) -> schema.Version:
        """Remove a version with its aliases and files; whether it is in use is not asked here."""
        with self._database.write() as connection:
            model, row = _find_version(connection, team_id, f"{name}@{number}")
            aliases = store.list_aliases(connection, [model.id])[model.id]
            store.delete_version(connection, model.id, number)
            _announce(connection, team_id, name, "version removed", {"version": number})
        self._remove_unused([row])
        return describe_version(name, row, aliases)

    def remove_model(self, team_id: str, name: str) -> schema.Model:
        """Remove a model with all versions; whether they are in use is not asked here."""
        with self._database.write() as connection:
            model = _find_model(connection, team_id, name)
            described = describe_models(connection, [model])[0]
            rows = store.list_versions(connection, model.id)
            store.delete_model(connection, model.id)
            _announce(connection, team_id, name, "model removed", {})
        self._remove_unused(rows)
        return described

    def clean_up(self, older_than_seconds: float = DAY_SECONDS) -> int:
        """Remove files that no version needs, as killed imports leave them; how many.

        For the start of a server and once a day. Younger blobs may belong to an import that runs.
        """
        old = [
            digest
            for digest in self._blobs.digests()
            if self._blobs.age_seconds(digest) >= older_than_seconds
        ]
        removed = self._remove_unused_blobs(old)
        if self._bundles.is_dir():
            names = [path.name for path in self._bundles.iterdir() if len(path.name) == 64]
            self._remove_unused_bundles(f"sha256:{name}" for name in names)
        return removed

    def prepare_folder(self) -> None:
        """Remove what interrupted writes left. Call at start, before anything uses the folder."""
        self._blobs.sweep_temporary()
        sweep_unfinished(self._bundles)

    def bundle_folder(self, digest: str) -> Path:
        """Where workers find the verified files of a version."""
        return bundle_folder(self._bundles, digest)

    def _remove_unused(self, rows: Iterable[StoredVersion]) -> None:
        rows = list(rows)
        self._remove_unused_bundles(row.digest for row in rows)
        self._remove_unused_blobs(file.sha256 for row in rows for file in decode_files(row.files))

    def _remove_unused_blobs(self, digests: Iterable[str]) -> int:
        """A second transaction, so that a crash leaves files too many, never versions too few."""
        wanted = set(digests)
        with self._database.write() as connection:
            lock(connection, CLEANER)
            unused = wanted - store.used_blobs(connection, wanted)
            return sum(self._blobs.delete(digest) for digest in sorted(unused))

    def _remove_unused_bundles(self, digests: Iterable[str]) -> None:
        wanted = set(digests)
        with self._database.read() as connection:
            unused = wanted - store.used_bundles(connection, wanted)
        for digest in unused:
            remove_bundle(self._bundles, digest)


def _find_model(connection: Connection, team_id: str, name: str) -> StoredModel:
    row = store.find_model(connection, team_id, name)
    if row is None:
        raise ModelNotFound(
            f"no model {name[:80]!r}", hint="`wherry list` lists yours", param="model"
        )
    return row


def _find_version(
    connection: Connection, team_id: str, ref: str
) -> tuple[StoredModel, StoredVersion]:
    name, selector = parse_ref(ref)
    model = _find_model(connection, team_id, name)
    number: int | None = None
    if selector.isdecimal():
        number = int(selector)
    elif selector:
        number = store.list_aliases(connection, [model.id])[model.id].get(selector)
        if number is None:
            raise _no_version(connection, model, f"alias {selector!r}")
    # no version has so large a number, and databases could not even compare it
    is_possible = number is None or number < 1 << 31
    row = store.find_version(connection, model.id, number=number) if is_possible else None
    if row is None:
        raise _no_version(connection, model, f"version {number}" if selector else "version")
    return model, row


def _find_revision(
    connection: Connection, model: StoredModel, aliases: dict[str, int], revision: str
) -> StoredVersion:
    row: StoredVersion | None = None
    if not revision:
        row = store.find_version(connection, model.id)
    elif revision in aliases:
        row = store.find_version(connection, model.id, number=aliases[revision])
    elif revision.isdecimal() and len(revision) <= MAX_NUMBER_DIGITS:
        row = store.find_version(connection, model.id, number=int(revision))
    elif DIGEST_START.fullmatch(revision):
        row = store.find_version(connection, model.id, prefix=f"sha256:{revision}")
    if row is None:
        raise _no_version(connection, model, f"revision {revision[:80]!r}")
    return row


def _no_version(connection: Connection, model: StoredModel, what: str) -> ModelNotFound:
    numbers = store.list_numbers(connection, [model.id])[model.id]
    aliases = store.list_aliases(connection, [model.id])[model.id]
    known = ", ".join([*map(str, numbers[-20:]), *list(aliases)[:20]]) or "none"
    return ModelNotFound(
        f"model {model.name!r} has no {what}", hint=f"it has: {known}", param="revision"
    )


def _find_or_add_model(connection: Connection, team_id: str, name: str, task: str) -> StoredModel:
    row = store.find_model(connection, team_id, name)
    if row is None:
        store.insert_model(
            connection,
            id=new_id("model"),
            team_id=team_id,
            name=name,
            task=task,
            created_at=time.time(),
        )
        return _find_model(connection, team_id, name)
    if row.task != task:
        raise Conflict(
            f"model {name!r} does {row.task!r}, the new version does {task!r}",
            hint="versions of a model do one task: choose another name",
        )
    return row


def _announce(
    connection: Connection, team_id: str, name: str, what: str, data: dict[str, Any]
) -> None:
    add_event(connection, team_id, "models", name, what, data)
    bump_revision(connection, "models")
