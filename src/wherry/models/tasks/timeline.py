"""When the values of a series were, and when the next ones will be.

A frequency is a unit with a number before it, in pandas' words: `s`, `min`, `h`, `D`, `W`, `MS` (or
`M`), `QS`, `YS`; `15min`, `2W`. Months are counted from the first day: 31 January is followed by 28
February and 31 March.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from wherry.errors import InvalidInput

FREQUENCY = re.compile(r"([0-9]{0,4})([A-Za-z]{1,5})")
SECONDS = {"s": 1, "min": 60, "t": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MONTHS = {"m": 1, "ms": 1, "me": 1, "q": 3, "qs": 3, "qe": 3, "y": 12, "ys": 12, "ye": 12, "a": 12}
HINT = "known: s, min, h, D, W, MS, QS, YS, with a number before it if need be: 15min"
MAX_SEASON = 400
"""Longest season that follows from a frequency."""

Style = Literal["year", "month", "day", "time"]


class Step(msgspec.Struct, frozen=True):
    """From one value to the next: seconds, or months."""

    seconds: int = 0
    months: int = 0

    @property
    def season(self) -> int:
        """Values after which things are usually alike: a year, a week, a day, an hour; 0 if none."""
        if self.months:
            return 12 // self.months if 12 % self.months == 0 and self.months < 12 else 0
        if self.seconds % 86400 == 0:
            days = self.seconds // 86400
            return {1: 7, 7: 52, 14: 26}.get(days, 0)
        for whole in (86400, 3600, 60):
            if self.seconds < whole and whole % self.seconds == 0:
                count = whole // self.seconds
                if count <= MAX_SEASON:
                    return count
        return 0


class Timeline(msgspec.Struct, frozen=True):
    """Times of a series."""

    start: str
    """ISO 8601, with its time zone if it has one: a packed `datetime` would keep the moment only."""
    step: Step
    style: Style
    """How the client writes times."""

    def times(self, first: int, count: int) -> list[str]:
        """Times of `count` values from that of number `first` on, as the client writes them."""
        try:
            return [self._write(self.time(number)) for number in range(first, first + count)]
        except (OverflowError, ValueError) as error:
            raise InvalidInput("the forecast goes past the year 9999", param="start") from error

    def time(self, number: int) -> datetime:
        """When the value of that number is."""
        start = datetime.fromisoformat(self.start)
        if not self.step.months:
            return start + timedelta(seconds=self.step.seconds * number)
        return add_months(start, self.step.months * number)

    def _write(self, time: datetime) -> str:
        match self.style:
            case "year":
                return f"{time.year:04}"
            case "month":
                return f"{time.year:04}-{time.month:02}"
            case "day":
                return time.date().isoformat()
            case "time":
                return time.isoformat()


def add_months(time: datetime, months: int) -> datetime:
    """The same day some months later, or the last one of a shorter month."""
    year, month = divmod(time.year * 12 + time.month - 1 + months, 12)
    day = min(time.day, calendar.monthrange(year, month + 1)[1])
    return time.replace(year=year, month=month + 1, day=day)


def read_timeline(start: str, frequency: str) -> Timeline:
    """The times of a series that starts then."""
    step = read_frequency(frequency)
    time, style = read_time(start, "start")
    if style == "day" and step.seconds % 86400:
        style = "time"
    return Timeline(time.isoformat(), step, style)


def read_timestamps(timestamps: Sequence[str], frequency: str) -> Timeline:
    """The times of a series that names them all; they must be evenly spaced."""
    times = [read_time(each, f"timestamps[{index}]") for index, each in enumerate(timestamps)]
    start, style = times[0]
    try:
        step = read_frequency(frequency) if frequency else find_step([time for time, _ in times])
        timeline = Timeline(start.isoformat(), step, style)
        for index, (time, _) in enumerate(times):
            if timeline.time(index) != time:
                raise _uneven(index)
    except TypeError as error:  # some with a time zone, some without
        raise InvalidInput("some timestamps have a time zone", param="timestamps") from error
    return timeline


def find_step(times: Sequence[datetime]) -> Step:
    """The step between the first two times, in months if all of them are on one day of the month."""
    if len(times) < 2:
        raise InvalidInput("one timestamp does not tell a frequency", hint=HINT, param="freq")
    first, second = times[:2]
    months = (second.year - first.year) * 12 + second.month - first.month
    if months > 0 and add_months(first, months) == second and (second - first).days >= 28:
        return Step(months=months)
    seconds = (second - first).total_seconds()
    if seconds <= 0 or seconds != int(seconds):
        raise _uneven(1)
    return Step(seconds=int(seconds))


def _uneven(index: int) -> InvalidInput:
    return InvalidInput(
        f"timestamps[{index}] is not one step after the one before",
        hint="timestamps rise evenly; null stands for a missing value",
        param="timestamps",
    )


def read_frequency(text: str) -> Step:
    """A step in pandas' words."""
    found = FREQUENCY.fullmatch(text)
    unit = found[2].lower() if found else ""
    count = int(found[1] or 1) if found else 0
    if not count or (unit not in SECONDS and unit not in MONTHS):
        raise InvalidInput(f"unknown frequency {text[:40]!r}", hint=HINT, param="freq")
    if unit in MONTHS:
        return Step(months=count * MONTHS[unit])
    return Step(seconds=count * SECONDS[unit])


def read_time(text: str, param: str) -> tuple[datetime, Style]:
    """A time in ISO 8601, and how much of one it is."""
    try:
        if re.fullmatch(r"[0-9]{4}", text):
            return datetime(int(text), 1, 1), "year"  # noqa: DTZ001 - as the client means it
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
            return datetime.fromisoformat(f"{text}-01"), "month"
        style: Style = "day" if len(text) == 10 else "time"
        return datetime.fromisoformat(text), style
    except ValueError as error:
        raise InvalidInput(
            f"{param} is no date or time: {text[:40]!r}", hint="2024-12-31", param=param
        ) from error
