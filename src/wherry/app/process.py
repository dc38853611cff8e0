"""What both kinds of process do when they start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


def set_title(title: str) -> None:
    """Say in the process list what this process is."""
    from setproctitle import setproctitle

    setproctitle(title)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it exists."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
