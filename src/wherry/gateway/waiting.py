"""Requests in line for a version: fair among keys, earliest deadline first within one.

A key that floods a deployment waits behind itself. Keys take turns by start-time fair queueing:
a key that comes back after a pause gets its next turn, never the turns it did not use.
"""

from __future__ import annotations

import heapq
import itertools

from wherry.gateway.exchange import Exchange

MAX_REMEMBERED_KEYS = 1024


class _Lane:
    """What one key has in line."""

    __slots__ = ("ended", "heap", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.heap: list[tuple[float, int, Exchange]] = []
        self.ended = 0
        """How many of those have ended meanwhile: cancelled, or out of time."""

    def note_end(self) -> None:
        self.ended += 1
        if self.ended > len(self.heap) // 2:
            self.heap = [entry for entry in self.heap if not entry[2].is_done]
            heapq.heapify(self.heap)
            self.ended = 0

    def drop_ended(self) -> None:
        while self.heap and self.heap[0][2].is_done:
            heapq.heappop(self.heap)
            self.ended -= 1


class WaitingLine:
    """All that waits. What was sent before and came back goes before everything else."""

    def __init__(self) -> None:
        self._again = _Lane("")
        self._lanes: dict[str, _Lane] = {}
        self._turns: list[tuple[int, int, _Lane]] = []
        """Each lane once, by its next turn."""
        self._turn = 0
        """The turn that was served last."""
        self._next_turns: dict[str, int] = {}
        """Of keys that have nothing in line now."""
        self._order = itertools.count()
        self.count = 0
        """All of them."""

    def __len__(self) -> int:
        return self.count

    def push(self, exchange: Exchange) -> None:
        """Let a request wait."""
        self.count += 1
        exchange.lane = lane = self._again if exchange.attempts else self._lane_of(exchange)
        heapq.heappush(lane.heap, (exchange.deadline, exchange.number, exchange))

    def _lane_of(self, exchange: Exchange) -> _Lane:
        key = exchange.principal.key_id
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            turn = max(self._turn, self._next_turns.pop(key, 0))
            heapq.heappush(self._turns, (turn, next(self._order), lane))
        return lane

    def first(self) -> Exchange | None:
        """The request whose turn it is; it stays in line."""
        if self._again.heap:
            self._again.drop_ended()
            if self._again.heap:
                return self._again.heap[0][2]
        while self._turns:
            turn, _, lane = self._turns[0]
            lane.drop_ended()
            if lane.heap:
                return lane.heap[0][2]
            self._leave(lane, turn)
        return None

    def pop(self) -> None:
        """Take out what `first` has just told."""
        self.count -= 1
        if self._again.heap:
            heapq.heappop(self._again.heap)[2].lane = None
            return
        turn, _, lane = self._turns[0]
        self._turn = turn
        heapq.heappop(lane.heap)[2].lane = None
        if lane.heap:
            heapq.heapreplace(self._turns, (turn + 1, next(self._order), lane))
        else:
            self._leave(lane, turn + 1)

    def _leave(self, lane: _Lane, next_turn: int) -> None:
        heapq.heappop(self._turns)
        del self._lanes[lane.key]
        self._next_turns[lane.key] = next_turn
        if len(self._next_turns) > MAX_REMEMBERED_KEYS:
            later = {key: turn for key, turn in self._next_turns.items() if turn > self._turn}
            self._next_turns = later if len(later) <= MAX_REMEMBERED_KEYS else {}

    def note_end(self, exchange: Exchange) -> None:
        """One that was in line has ended; it is dropped when its turn comes, or before."""
        self.count -= 1
        lane, exchange.lane = exchange.lane, None
        lane.note_end()

    def count_of(self, key: str) -> int:
        """Requests of one key."""
        lane = self._lanes.get(key)
        return len(lane.heap) - lane.ended if lane is not None else 0

    def ahead_of(self, key: str) -> int:
        """Requests that are served before one of this key that comes now."""
        own = self.count_of(key)
        keys = len(self._lanes) + (not own)
        return min(self.count, (own + 1) * keys - 1 + len(self._again.heap))

    def has_its_share(self, key: str, places: int) -> bool:
        """Whether a key has as many in line as it would have if all keys had the same."""
        own = self.count_of(key)
        return own >= places // (len(self._lanes) + (not own))

    def clear(self) -> list[Exchange]:
        """Take out all that wait, the earliest deadline first."""
        lanes = [self._again, *self._lanes.values()]
        waiting = sorted(entry for lane in lanes for entry in lane.heap if not entry[2].is_done)
        self._again = _Lane("")
        self._lanes.clear()
        self._turns.clear()
        self.count = 0
        for _, _, exchange in waiting:
            exchange.lane = None
        return [entry[2] for entry in waiting]
