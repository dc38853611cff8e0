"""Ends an answer at the first of its stop texts, for models that do not do so themselves.

The first is the one that is complete first, so that it does not matter in which pieces text comes.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text on as far as it cannot be the beginning of a stop text. Made for one answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = ""
        """The stop text that has ended the answer."""
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> str:
        """What is certain after some more text; nothing more once a stop text has been found."""
        if self.found:
            return ""
        self._held += text
        places = [
            (at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0
        ]
        if places:
            _, at, self.found = min(places)
            sure, self._held = self._held[:at], ""
            return sure
        return self._release(len(self._held) - self._count_doubtful())

    def finish(self) -> str:
        """What was held back, now that no more comes."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        sure, self._held = self._held[:count], self._held[count:]
        return sure

    def _count_doubtful(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
