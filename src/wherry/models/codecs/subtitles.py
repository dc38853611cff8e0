"""Segments of speech as subtitles: SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.models.tasks.speech_recognition import Segment


def write_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered, with decimal commas."""
    return "".join(
        f"{number}\n{_clock(each.start, ',')} --> {_clock(each.end, ',')}\n{_line(each)}\n\n"
        for number, each in enumerate(segments, 1)
    )


def write_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT. https://www.w3.org/TR/webvtt1/."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(each.start, '.')} --> {_clock(each.end, '.')}\n{_escaped(_line(each))}\n\n"
        for each in segments
    )


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _line(segment: Segment) -> str:
    """One line that cannot be taken for the end of a cue, or its times."""
    return " ".join(segment.text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
