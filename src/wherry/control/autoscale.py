"""How many workers a version's load asks for: up at once, down slowly, without swinging.

The measure is work, not requests: seconds that workers were busy in each second (what is running),
and the estimated seconds of what waits for them. One long answer may be worth a thousand short ones.
"""

from __future__ import annotations

import math
from collections import deque

UP_AFTER_SECONDS = 1.5
"""A shorter peak is not worth a worker."""
DOWN_AFTER_SECONDS = 60.0
"""As long as this, all of the time, fewer must have been enough."""
DOWN_PAUSE_SECONDS = 20.0
"""Between one worker less and the next."""
CLEAR_SECONDS = 5.0
"""In this time what waits should be done."""
CALM_SHARE = 0.75
"""Of the target: the fewer workers that are left must have room, or they would come back."""


class Autoscaler:
    """Remembers what a version's load asked for lately.

    Args:
        replicas: to begin with.
    """

    def __init__(self, replicas: int = 1) -> None:
        self.replicas = replicas
        self._above: deque[tuple[float, int]] = deque()
        """What was asked for while it was more than there is, without a gap."""
        self._needed: deque[tuple[float, int]] = deque()
        """The greatest need of each second, of the last minute."""
        self._since: float | None = None
        self._shrunk_at = -math.inf

    def observe(
        self, now: float, busy: float, waiting_seconds: float, *, target: float, most: int
    ) -> int:
        """Workers that should run.

        Args:
            now: monotonic seconds.
            busy: workers' work in each second; 2.5 = two and a half workers always busy.
            waiting_seconds: of work that no worker has begun.
            target: how busy a worker should be, 0 to 1.
            most: never more than so many.
        """
        if self._since is None:
            self._since = now
        backlog = waiting_seconds / CLEAR_SECONDS
        asked = min(most, _round_up(busy / target + backlog))
        self._note_need(now, min(most, _round_up(busy / (target * CALM_SHARE) + backlog)))
        if asked > self.replicas:
            self._above.append((now, asked))
            if now - self._above[0][0] >= UP_AFTER_SECONDS:
                # what the whole of that time asked for, not its highest peak
                self.replicas = max(self.replicas + 1, min(each for _, each in self._above))
                self._above.clear()
        else:
            self._above.clear()
            self._shrink(now)
        return self.replicas

    def _note_need(self, now: float, needed: int) -> None:
        if self._needed and int(self._needed[-1][0]) == int(now):
            at, before = self._needed[-1]
            self._needed[-1] = (at, max(before, needed))
        else:
            self._needed.append((now, needed))
        while now - self._needed[0][0] > DOWN_AFTER_SECONDS:
            self._needed.popleft()

    def _shrink(self, now: float) -> None:
        assert self._since is not None
        if now - self._since < DOWN_AFTER_SECONDS or now - self._shrunk_at < DOWN_PAUSE_SECONDS:
            return
        if max(each for _, each in self._needed) < self.replicas:
            self.replicas -= 1
            self._shrunk_at = now

    def clamp(self, minimum: int, maximum: int) -> int:
        """Stay within what the spec allows."""
        self.replicas = max(minimum, 1, min(maximum, self.replicas))
        return self.replicas


def _round_up(workers: float) -> int:
    # a hair above a whole number is noise
    return max(1, math.ceil(workers - 0.05))


class WorkMeter:
    """How much work a request of one version is, learned from what its workers did."""

    HALF_LIFE_SECONDS = 60.0

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        self._requests = 0.0
        self._at: float | None = None

    def add(self, now: float, busy_seconds: float, requests: int) -> None:
        """Workers were busy for so long, and so many requests ended."""
        if self._at is not None:
            kept = 0.5 ** ((now - self._at) / self.HALF_LIFE_SECONDS)
            self._busy_seconds *= kept
            self._requests *= kept
        self._at = now
        self._busy_seconds += busy_seconds
        self._requests += requests

    @property
    def seconds_per_request(self) -> float:
        """Worker time of one request; while none has ended, all that was worked so far."""
        return self._busy_seconds / max(1.0, self._requests)
