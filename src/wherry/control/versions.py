"""Which versions a deployment serves, served before and refuses: what must survive a restart.

Pure transitions of one record per deployment. What the spec *means* is not always what *serves*: a
canary shares the traffic with the version before it, and a version that was rolled back is refused
until the spec means something else (or an operator promotes it).
"""

from __future__ import annotations

import msgspec

from wherry import errors
from wherry.client.schema import Rollout
from wherry.control.canary import Trial
from wherry.control.rollout import Wanted


class Pick(msgspec.Struct, frozen=True):
    """A version and its share."""

    model: str
    number: int
    digest: str
    weight: int

    @property
    def key(self) -> str:
        """As `Wanted.key`."""
        return f"{self.model}@{self.number}:{self.digest}"

    @property
    def name(self) -> str:
        """`model@number`."""
        return f"{self.model}@{self.number}"


Picks = tuple[Pick, ...]


class Canary(msgspec.Struct, frozen=True):
    """A version on trial beside what serves."""

    candidate: Pick
    step: int
    begun_at: float
    """Unix seconds, of the whole trial."""
    trial: Trial
    """What both did in this step; grows in place."""


class Versions(msgspec.Struct, frozen=True):
    """The record; kept in the database as JSON."""

    serving: Picks = ()
    """What served last as a whole."""
    previous: Picks = ()
    """What served before that."""
    refused: Picks = ()
    """What was rolled back, as long as the spec means it."""
    accepted: Picks = ()
    """What an operator promoted: it takes over without a trial."""
    canary: Canary | None = None
    reason: str = ""
    """Why the last change ended as it did."""
    at: float = 0.0


class Note(msgspec.Struct, frozen=True):
    """A change worth an event."""

    what: str
    reason: str = ""


Step = tuple[Versions, Note | None]


def picks_of(wanted: list[Wanted]) -> Picks:
    """Versions with their weights, in a form that can be compared and kept."""
    is_single = len(wanted) == 1
    return tuple(
        Pick(
            each.version.model,
            each.version.number,
            each.version.digest,
            100 if is_single else each.weight,
        )
        for each in wanted
    )


def names_of(picks: Picks) -> str:
    """`m@1` or `m@1 and m@2`."""
    return " and ".join(each.name for each in picks) or "nothing"


def follow(versions: Versions, meaning: Picks, rules: Rollout, now: float) -> Step:
    """The spec means this now: what follows of it."""
    canary = versions.canary
    if not meaning or not versions.serving or meaning in (versions.serving, versions.refused):
        if canary is not None and meaning:
            note = Note("canary given up", f"the spec went back to {names_of(meaning)}")
            return msgspec.structs.replace(versions, canary=None), note
        return versions, None
    if canary is not None and meaning == (canary.candidate,):
        return versions, None
    is_trial = rules.strategy == "canary" and len(meaning) == 1 and meaning != versions.accepted
    after = msgspec.structs.replace(
        versions,
        refused=(),
        accepted=versions.accepted if meaning == versions.accepted else (),
        canary=Canary(meaning[0], 0, now, Trial()) if is_trial else None,
    )
    note = Note("canary begun", f"{rules.steps[0]:g} % for {names_of(meaning)}")
    return after, note if is_trial else None


def planned(versions: Versions, meaning: Picks, rules: Rollout) -> Picks:
    """What should be served now, with weights."""
    if not versions.serving or meaning == versions.serving:
        return meaning
    if not meaning or meaning == versions.refused:
        return versions.serving
    canary = versions.canary
    if canary is None:
        return meaning
    share = share_of(canary, rules)
    total = sum(each.weight for each in versions.serving)
    kept = tuple(
        msgspec.structs.replace(each, weight=round(each.weight * (100 - share) * 100))
        for each in versions.serving
    )
    taken = msgspec.structs.replace(canary.candidate, weight=round(total * share * 100))
    return (*kept, taken)


def share_of(canary: Canary, rules: Rollout) -> float:
    """Per cent of the requests that the candidate gets."""
    return rules.steps[min(canary.step, len(rules.steps) - 1)]


def settle(versions: Versions, meaning: Picks, now: float) -> Step:
    """All that the spec means serves, and nothing else."""
    if meaning == versions.serving:
        return versions, None
    before = versions.serving
    reason = versions.reason if meaning == versions.accepted else ""
    after = msgspec.structs.replace(
        versions,
        serving=meaning,
        previous=before or versions.previous,
        accepted=(),
        canary=None,
        reason=reason,
        at=now,
    )
    note = Note("changed version", f"{names_of(before)} -> {names_of(meaning)}")
    return after, note if before else None


def advance(versions: Versions, now: float, reason: str) -> Step:
    """The canary passed a step: more traffic, and new evidence."""
    assert versions.canary is not None
    canary = versions.canary
    next_step = Canary(canary.candidate, canary.step + 1, canary.begun_at, Trial())
    after = msgspec.structs.replace(versions, canary=next_step, at=now)
    return after, Note("canary step", reason)


def promote(versions: Versions, meaning: Picks, now: float, reason: str) -> Step:
    """What the spec means takes over, on trial or refused as it may be.

    Raises:
        Conflict: it serves already.
    """
    if versions.canary is None and meaning != versions.refused:
        raise errors.Conflict(
            "there is nothing to promote: no version is on trial or was rolled back",
            hint="wherry ps",
        )
    after = msgspec.structs.replace(
        versions, refused=(), accepted=meaning, canary=None, reason=reason, at=now
    )
    return after, Note("promoted", f"{names_of(meaning)}: {reason}")


def roll_back(versions: Versions, meaning: Picks, now: float, reason: str) -> Step:
    """Back to what served before; what the spec means is refused as long as it means that.

    Raises:
        Conflict: nothing served before.
    """
    change: dict[str, object] = {"canary": None, "accepted": (), "reason": reason, "at": now}
    is_changing = meaning not in (versions.serving, versions.refused)
    if versions.serving and (versions.canary is not None or is_changing):
        left, back = meaning, versions.serving
        change |= {"refused": meaning}
    elif versions.previous:
        left, back = versions.serving, versions.previous
        change |= {
            "serving": back,
            "previous": left,
            "refused": () if back == meaning else meaning,
        }
    else:
        raise errors.Conflict(
            "there is nothing to go back to: no other version has served", hint="wherry ps"
        )
    after = msgspec.structs.replace(versions, **change)
    return after, Note("rolled back", f"{names_of(left)} -> {names_of(back)}: {reason}")
