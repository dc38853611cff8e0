"""Ids of requests: unique over all processes, sortable, made in a tenth of a microsecond."""

from __future__ import annotations

import base64
import itertools
import os
import secrets
import time

_EPOCH_SECONDS = 1_735_689_600  # 2025-01-01, so that thirty bits of seconds last until 2059


def _make_prefix() -> str:
    started = max(0, int(time.time()) - _EPOCH_SECONDS) & (1 << 30) - 1
    number = started << 30 | secrets.randbits(30)
    digits = base64.b32hexencode((number << 4).to_bytes(8, "big"))[:12].decode().lower()
    return f"req-{digits}"


_prefix = _make_prefix()
_count = itertools.count()


def request_id() -> str:
    """A new id, `req-` and 22 characters: start of the process, chance, then a counter.

    Ids of one process sort by time, and processes by their start. Ids that clients send are not
    ours: they may repeat, and the ledger counts each id once. Any thread may call this.
    """
    return f"{_prefix}{next(_count):010x}"


def _renew_request_ids() -> None:
    # a forked child must not repeat its parent's ids
    global _prefix
    _prefix = _make_prefix()


os.register_at_fork(after_in_child=_renew_request_ids)
