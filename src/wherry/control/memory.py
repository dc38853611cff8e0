"""Whether a model fits into this machine's memory, with the sum that says so."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from wherry import errors
from wherry.models.registry.registry import ResolvedVersion

DEFAULT_SHARE = 0.8
PROCESS_MIB = 80
"""A worker with its runtime before any weights, where nothing was measured."""
WEIGHT_FACTOR = 1.3


class MemoryBudget:
    """The memory that workers may use together.

    Args:
        limit_mib: 0 = a share of the machine's.
    """

    def __init__(self, limit_mib: int = 0) -> None:
        total_mib = psutil.virtual_memory().total >> 20
        self.limit_mib = limit_mib or int(total_mib * DEFAULT_SHARE)

    def fits(self, need_mib: int, used: Sequence[tuple[str, int]]) -> bool:
        """Whether so much more may run beside what runs."""
        return need_mib + sum(mib for _, mib in used) <= self.limit_mib

    def check(self, name: str, need_mib: int, used: Sequence[tuple[str, int]]) -> None:
        """`DoesNotFit`, with the sum, if it does not."""
        if not self.fits(need_mib, used):
            raise errors.DoesNotFit(
                f"{name!r} does not fit: {self.explain(need_mib, used)}",
                hint="stop another deployment, or raise memory_limit_mib",
            )

    def explain(self, need_mib: int, used: Sequence[tuple[str, int]]) -> str:
        """The sum in words."""
        taken = sum(mib for _, mib in used)
        parts = ", ".join(f"{name} {mib}" for name, mib in used if mib) or "nothing"
        return (
            f"needs {need_mib} MiB; limit {self.limit_mib} - used {taken} ({parts}) = "
            f"{self.limit_mib - taken} MiB free"
        )


def memory_of(version: ResolvedVersion) -> int:
    """MiB of one worker: as measured at import, else a guess from the size of its files."""
    if version.memory_mib:
        return version.memory_mib
    size_mib = sum(file.size for file in version.files) >> 20
    return int(size_mib * WEIGHT_FACTOR) + PROCESS_MIB
