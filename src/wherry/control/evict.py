"""Whose workers make room when memory is short: a pure choice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MIN_RESIDENCY_SECONDS = 30.0
"""What was loaded for somebody is not unloaded at once: two models would push each other out."""
QUIET_SECONDS = 1.0
"""Unused for less than this = in use: a client may be between two calls."""


class Resident(msgspec.Struct, frozen=True):
    """A deployment that has workers, as the choice sees it."""

    id: str
    memory_mib: int
    may_be_unloaded: bool
    """`replicas.min` = 0 and not pinned: its operator lets it be unloaded and wake again."""
    is_working: bool
    """It loads, answers or has requests that wait."""
    loaded_seconds: float
    """Since its youngest worker became ready."""
    idle_seconds: float
    """Since its last request."""

    @property
    def is_evictable(self) -> bool:
        """Whether it may be unloaded now."""
        return (
            self.may_be_unloaded
            and not self.is_working
            and self.loaded_seconds >= MIN_RESIDENCY_SECONDS
            and self.idle_seconds >= QUIET_SECONDS
        )


def choose_victims(residents: Sequence[Resident], missing_mib: int) -> list[str]:
    """Ids of deployments to unload, the longest unused first; none if that would not be enough."""
    freed = 0
    victims: list[Resident] = []
    candidates = [each for each in residents if each.is_evictable]
    for each in sorted(candidates, key=lambda one: -one.idle_seconds):
        if freed >= missing_mib:
            break
        victims.append(each)
        freed += each.memory_mib
    if freed < missing_mib:
        return []
    # the last one alone may be enough: what is not needed stays
    for each in list(victims):
        if freed - each.memory_mib >= missing_mib:
            victims.remove(each)
            freed -= each.memory_mib
    return [each.id for each in victims]


def will_make_room(residents: Sequence[Resident], missing_mib: int) -> bool:
    """Whether enough may be unloaded some time, so that waiting is no waste."""
    return sum(each.memory_mib for each in residents if each.may_be_unloaded) >= missing_mib
