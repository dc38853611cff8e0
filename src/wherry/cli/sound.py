"""Sound on the command line: which files are sound, and where an answer's is kept."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from wherry.cli.output import HERE, new_file, note

SOUND_SUFFIXES = frozenset(
    {".aac", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm"}
)


def save_sound(answer: dict[str, Any], name: str, folder: Path = HERE) -> dict[str, Any]:
    """The answer with its sound, if it has any, in a new file of the folder."""
    if answer.get("content_type") != "audio/wav" or not isinstance(answer.get("audio"), str):
        return answer
    path = new_file(name, ".wav", folder)
    path.write_bytes(base64.b64decode(answer["audio"]))
    note(f"saved the sound as {path}")
    return {**answer, "audio": str(path)}
