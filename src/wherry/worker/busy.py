"""How much a worker has worked: the measure that scaling goes by."""

from __future__ import annotations

import time


class BusyTime:
    """Seconds in which slots were taken, as a share of all slots.

    Args:
        slots: that run side by side; one for a batch runtime, whose batch counts once however
            many requests are in it.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self._taken = 0
        self._seconds = 0.0
        self._at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now; a worker that is always wholly busy gains one each second."""
        self._count()
        return self._seconds

    def enter(self) -> None:
        """A slot is taken."""
        self._count()
        self._taken += 1

    def leave(self) -> None:
        """It is free again."""
        self._count()
        self._taken -= 1

    def _count(self) -> None:
        now = time.monotonic()
        self._seconds += (now - self._at) * self._taken / self.slots
        self._at = now
