"""Blocking iterators as asynchronous ones: each piece is made in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Executor
from typing import TypeVar

Piece = TypeVar("Piece")


async def iterate_in(
    threads: Executor, make: Callable[[], Generator[Piece, None, None]]
) -> AsyncIterator[Piece]:
    """What a generator gives; it is closed in a thread, too, when nobody reads on."""
    loop = asyncio.get_running_loop()
    pieces = make()
    try:
        while (piece := await loop.run_in_executor(threads, next, pieces, None)) is not None:
            yield piece
    finally:
        await loop.run_in_executor(threads, pieces.close)
