"""Finds the texts at which an answer must stop, while it is being written."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Holds back what may be the beginning of a stop text, and no more than that."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = ""
        """The stop text that was met; "" = none so far."""

    def feed(self, text: str) -> str:
        """What may be shown of the answer so far; nothing after a stop text was found."""
        if self.found:
            return ""
        whole = self._held + text
        places = [(at, stop) for stop in self._stops if (at := whole.find(stop)) >= 0]
        if places:
            at, self.found = min(places, key=lambda place: place[0])
            self._held = ""
            return whole[:at]
        keep = max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def finish(self) -> str:
        """What was held back, of an answer that has ended otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Longest end of `text` that is a beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
