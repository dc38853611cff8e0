"""What should run: reading, changing and comparing specs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from wherry import errors
from wherry.client.schema import (
    Change,
    DeploymentSpec,
    Target,
)
from wherry.control import store
from wherry.control.memory import MemoryBudget, memory_of
from wherry.control.pipelines import called_by, check_pipeline
from wherry.control.rollout import Wanted
from wherry.control.store import Desired
from wherry.control.versions import Pick, Versions
from wherry.models.registry.registry import Registry, ResolvedVersion
from wherry.storage.database import Database, add_event, lock

WRITER = "deployments"
"""Locked while specs are checked against each other and written."""


class Deployments:
    """Desired deployments of all teams. Blocking: call it in a thread.

    Args:
        database: where they are kept.
        registry: resolves the models they name.
        budget: refuses what does not fit.
    """

    def __init__(self, database: Database, registry: Registry, budget: MemoryBudget) -> None:
        self._database = database
        self._registry = registry
        self._budget = budget

    def load(self, team_id: str | None = None) -> list[Desired]:
        """All, or one team's."""
        with self._database.read() as connection:
            return store.load_desired(connection, team_id)

    def find(self, team_id: str, name: str) -> Desired:
        """One of the team's, or `ModelNotFound`."""
        for desired in self.load(team_id):
            if desired.spec.name == name:
                return desired
        raise _missing(name)

    def resolve(self, desired: Desired) -> list[tuple[ResolvedVersion, Target]]:
        """The versions a spec means now (aliases are followed live), each with its target."""
        return [
            (self._registry.version(desired.team_id, target.model), target)
            for target in targets_of(desired.spec)
        ]

    def load_versions(self, desired: Desired) -> tuple[Versions, list[Wanted]]:
        """What is kept of a deployment's versions, and those of them that still exist."""
        with self._database.read() as connection:
            kept = store.load_versions(connection, desired.id)
        picks = {each.key: each for each in (*kept.serving, *kept.previous)}
        found: list[Wanted] = []
        for pick in picks.values():
            try:
                version = self._registry.version(desired.team_id, pick.name)
            except errors.NotFound:
                continue
            if version.digest == pick.digest:
                found.append(Wanted(version, pick.weight))
        return kept, found

    def save_versions(
        self, desired: Desired, encoded: str, notes: Sequence[tuple[str, dict[str, Any]]]
    ) -> None:
        """Keep what a deployment serves, with the events that led to it."""
        with self._database.write() as connection:
            store.save_versions(connection, desired.id, encoded)
            for what, data in notes:
                add_event(connection, desired.team_id, "deployments", desired.spec.name, what, data)

    def apply(
        self, team_id: str, specs: list[DeploymentSpec], *, dry_run: bool = False
    ) -> list[Change]:
        """Make deployments as the specs say; all of them or, if one is wrong, none.

        A bare model is pinned to its newest version now: a version that somebody makes later goes
        live when it is deployed, not before. An alias stays an alias and is followed.

        Raises:
            InvalidInput, ModelNotFound, DoesNotFit: naming the deployment.
        """
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise errors.InvalidInput("a deployment is named twice")
        specs = [self._pin(team_id, spec) for spec in specs]
        for spec in specs:
            self._check(team_id, spec)
        changes = _find_changes(self.load(team_id), specs)
        changed = _changed(specs, changes)
        self._check_memory(team_id, changed)
        if dry_run or not changed:
            return changes
        return self._save(team_id, specs)

    def change(self, team_id: str, name: str, *, dry_run: bool = False, **fields: Any) -> Change:
        """Replace some fields of a deployment's spec."""
        before = self.find(team_id, name).spec
        spec = msgspec.structs.replace(before, **fields)
        (change,) = self.apply(team_id, [spec], dry_run=dry_run)
        return change

    def remove(self, team_id: str, name: str, *, dry_run: bool = False) -> Change:
        """Stop and forget a deployment."""
        with self._database.read() if dry_run else self._database.write() as connection:
            lock(connection, WRITER)
            _check_removable(store.load_desired(connection, team_id), name)
            if not dry_run:
                store.delete_deployment(connection, team_id, name)
                add_event(connection, team_id, "deployments", name, "deleted")
        return Change(deployment=name, action="delete")

    def users_of(self, team_id: str, model: str, number: int | None = None) -> list[str]:
        """Names of deployments that serve a model (or one version of it) now."""
        users: list[str] = []
        with self._database.read() as connection:
            kept = store.load_versions_of_team(connection, team_id)
        for desired in self.load(team_id):
            for target in targets_of(desired.spec):
                if target.model.partition("@")[0] != model:
                    continue
                if number is None or self._number_of(team_id, target.model) == number:
                    users.append(desired.spec.name)
            # what serves after a roll-back is not what the spec names
            serving = kept[desired.id].serving if desired.id in kept else ()
            users += [desired.spec.name for pick in serving if _is_pick(pick, model, number)]
        return sorted(set(users))

    def users_of_runtime(self, runtime: str) -> list[Desired]:
        """Deployments of all teams, not stopped, that serve a model of this runtime."""
        return [
            desired
            for desired in self.load()
            if not desired.spec.stopped
            and any(
                each.version.manifest.runtime == runtime
                for each in (*self.load_versions(desired)[1], *self._named_versions(desired))
            )
        ]

    def _named_versions(self, desired: Desired) -> list[Wanted]:
        try:
            return [Wanted(version, target.weight) for version, target in self.resolve(desired)]
        except errors.NotFound:
            return []

    def _number_of(self, team_id: str, model: str) -> int | None:
        try:
            return self._registry.version(team_id, model).number
        except errors.NotFound:
            return None  # an alias or version that is gone uses nothing

    def _save(self, team_id: str, specs: list[DeploymentSpec]) -> list[Change]:
        with self._database.write() as connection:
            lock(connection, WRITER)
            existing = store.load_desired(connection, team_id)  # others may have written since
            changes = _find_changes(existing, specs)
            for spec in _changed(specs, changes):
                store.save_spec(connection, team_id, spec)
                add_event(connection, team_id, "deployments", spec.name, "changed")
        return changes

    # ------------------------------------------------------------------ checks

    def _pin(self, team_id: str, spec: DeploymentSpec) -> DeploymentSpec:
        def pinned(model: str) -> str:
            if "@" in model:
                return model
            return f"{model}@{self._registry.version(team_id, model).number}"

        return msgspec.structs.replace(
            spec,
            model=pinned(spec.model) if spec.model is not None else None,
            targets=[
                msgspec.structs.replace(target, model=pinned(target.model))
                for target in spec.targets
            ],
        )

    def _check(self, team_id: str, spec: DeploymentSpec) -> None:
        targets = targets_of(spec)
        if spec.replicas.max < max(1, spec.replicas.min):
            raise errors.InvalidInput(
                f"deployment {spec.name!r}: replicas.max is below replicas.min",
                param="replicas.max",
            )
        if spec.idle_seconds and spec.replicas.min:
            raise errors.InvalidInput(
                f"deployment {spec.name!r}: idle_seconds needs replicas.min = 0",
                hint="a deployment with a minimum is never unloaded",
                param="idle_seconds",
            )
        if targets and all(target.shadow for target in targets):
            raise errors.InvalidInput(
                f"deployment {spec.name!r} has only shadow targets, which answer nobody",
                param="targets",
            )
        for target in targets:
            version = self._registry.version(team_id, target.model)
            if target.shadow and not version.manifest.idempotent:
                raise errors.InvalidInput(
                    f"deployment {spec.name!r}: model {target.model!r} is not idempotent, so asking "
                    "it twice may do something twice",
                    hint="a shadow needs a model with idempotent = true",
                    param="targets",
                )

    def _check_memory(self, team_id: str, changed: list[DeploymentSpec]) -> None:
        """Refuse what could never run beside all that should run."""
        replaced = {spec.name for spec in changed}
        sums: list[tuple[str, int]] = []
        others_mib = 0  # of other teams, whose names are theirs
        for desired in self.load():
            if desired.team_id == team_id and desired.spec.name in replaced:
                continue
            try:
                need = self._memory_of(desired.team_id, desired.spec)
            except errors.NotFound:
                continue  # its model was removed: it runs nothing
            if desired.team_id == team_id:
                sums.append((desired.spec.name, need))
            else:
                others_mib += need
        sums.append(("other teams", others_mib))
        for spec in changed:
            need = self._memory_of(team_id, spec)
            self._budget.check(spec.name, need, sums)
            sums.append((spec.name, need))

    def _memory_of(self, team_id: str, spec: DeploymentSpec) -> int:
        if spec.stopped:
            return 0
        replicas = spec.replicas.min
        return sum(
            memory_of(self._registry.version(team_id, target.model))
            * (min(1, replicas) if target.shadow else replicas)
            for target in targets_of(spec)
        )


def targets_of(spec: DeploymentSpec) -> list[Target]:
    """The targets of a spec, its `model` shorthand written out; none of a pipeline.

    Raises:
        InvalidInput: it names none, or both forms, or a model twice.
    """
    if spec.steps:
        if spec.model is not None or spec.targets:
            raise errors.InvalidInput(
                f"deployment {spec.name!r} has both a model and steps",
                hint="a pipeline has steps only",
                param="steps",
            )
        return []
    if spec.model is not None and spec.targets:
        raise errors.InvalidInput(
            f"deployment {spec.name!r} has both `model` and `targets`", hint="use one of them"
        )
    targets = [Target(model=spec.model)] if spec.model is not None else spec.targets
    if not targets:
        raise errors.InvalidInput(f"deployment {spec.name!r} names no model", param="model")
    if len({target.model for target in targets}) < len(targets):
        raise errors.InvalidInput(f"deployment {spec.name!r} names a model twice", param="targets")
    return targets


def scaled(spec: DeploymentSpec, minimum: int, maximum: int | None) -> dict[str, Any]:
    """Fields of a spec for `scale`: zero replicas means stopped, as the operator expects."""
    if minimum == 0 and maximum is None and not spec.idle_seconds:
        return {"stopped": True}
    top = maximum if maximum is not None else max(1, minimum)
    replicas = msgspec.structs.replace(spec.replicas, min=minimum, max=top)
    return {"stopped": False, "replicas": replicas}


def _is_pick(pick: Pick, model: str, number: int | None) -> bool:
    return pick.model == model and number in (None, pick.number)


def _find_changes(existing: list[Desired], specs: list[DeploymentSpec]) -> list[Change]:
    """What specs would change, and whether they may, beside the deployments that there are."""
    before = {desired.spec.name: desired.spec for desired in existing}
    known = before | {spec.name: spec for spec in specs}
    for spec in specs:
        _check_kind(before.get(spec.name, spec), spec)
        check_pipeline(spec, known)
    return [_compare(before.get(spec.name), spec) for spec in specs]


def _changed(specs: list[DeploymentSpec], changes: list[Change]) -> list[DeploymentSpec]:
    return [spec for spec, change in zip(specs, changes, strict=True) if change.action != "none"]


def _check_kind(before: DeploymentSpec, after: DeploymentSpec) -> None:
    if bool(before.steps) != bool(after.steps):
        raise errors.Conflict(
            f"{before.name!r} is a {'pipeline' if before.steps else 'deployment of a model'}"
            " and cannot become the other",
            hint=f"wherry undeploy {before.name}, or choose another name",
        )


def _check_removable(existing: list[Desired], name: str) -> None:
    specs = [desired.spec for desired in existing]
    if name not in {spec.name for spec in specs}:
        raise _missing(name)
    users = [spec.name for spec in specs if name in map(called_by, spec.steps)]
    if users:
        raise errors.Conflict(
            f"deployment {name!r} is a step of {', '.join(users)}",
            hint=f"wherry undeploy {users[0]}, or change its steps",
        )


def _missing(name: str) -> errors.ModelNotFound:
    return errors.ModelNotFound(f"no deployment {name!r}", hint="wherry ps")


def _compare(before: DeploymentSpec | None, after: DeploymentSpec) -> Change:
    new = _flatten(msgspec.to_builtins(after))
    old = _flatten(msgspec.to_builtins(before)) if before is not None else {}
    fields = {
        name: [old.get(name), new.get(name)]
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }
    if before is None:
        unsaid = _flatten(msgspec.to_builtins(DeploymentSpec(name="-")))
        fields = {
            name: pair
            for name, pair in fields.items()
            if pair[1] != unsaid.get(name) or name in ("replicas.min", "replicas.max")
        }
        return Change(deployment=after.name, action="create", fields=fields)
    return Change(deployment=after.name, action="update" if fields else "none", fields=fields)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict) and item and name != "secrets":
            flat |= _flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat
