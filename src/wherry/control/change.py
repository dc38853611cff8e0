"""Changes of versions as they happen: what operators order, what a canary showed, what failed."""

from __future__ import annotations

import time

from wherry import errors
from wherry.control import versions as steps
from wherry.control.canary import Verdict, judge
from wherry.control.rollout import FREE_CRASHES
from wherry.control.running import Order, Running
from wherry.telemetry import get_logger

log = get_logger("control.change")

CANARY_LOAD_FAILURES = 3
SQUEEZED_LOAD_FAILURES = 2
"""Of a version whose predecessor had to be ended first: nothing serves meanwhile."""


def decide(running: Running) -> None:
    """Take the next step of a deployment's versions, if there is one."""
    now = time.time()
    _take(running, steps.follow(running.versions, running.picks, running.rules, now))
    for order in running.orders:
        _carry_out(running, order, now)
    running.orders.clear()
    if not running.is_loaded or not running.meaning:
        return
    if running.versions.canary is not None:
        _judge(running, now)
    else:
        _fall_back(running, now)


def settle(running: Running) -> None:
    """Note that all that the spec means serves, if it does."""
    if not running.meaning or not running.is_loaded or running.candidate:
        return
    if running.picks == running.versions.refused:
        return  # it may still take traffic, until what serves instead of it is ready
    ready = running.ready_by_version()
    keys = [each.key for each in running.meaning]
    if running.routed != keys or not all(ready.get(key) for key in keys):
        return
    if running.versions.serving and running.picks != running.versions.serving:
        _keep_warm(running)
    _take(running, steps.settle(running.versions, running.picks, time.time()))


def _take(running: Running, step: steps.Step) -> None:
    after, note = step
    running.versions = after
    if note is not None:
        running.notes.append(note)
        log.info(note.what, deployment=running.desired.full_name, reason=note.reason)


def _keep_warm(running: Running) -> None:
    running.warm_until = time.monotonic() + running.rules.keep_warm_seconds


def _carry_out(running: Running, order: Order, now: float) -> None:
    try:
        if order.what == "promote":
            _promote(running, now, "by an operator")
        else:
            roll_back(running, now, "by an operator")
    except errors.WherryError as error:
        if not order.done.done():
            order.done.set_exception(error)
    else:
        if not order.done.done():
            order.done.set_result(None)


def _promote(running: Running, now: float, reason: str) -> None:
    candidate = running.candidate
    _take(running, steps.promote(running.versions, running.picks, now, reason))
    if candidate:
        running.take_over(candidate)


def roll_back(running: Running, now: float, reason: str) -> None:
    """Go back to what served before.

    Raises:
        Conflict: there is nothing, or it was removed.
    """
    step = steps.roll_back(running.versions, running.picks, now, reason)
    missing = [each.name for each in step[0].serving if each.key not in running.known]
    if missing:
        raise errors.Conflict(
            f"version {missing[0]!r} was removed", hint="deploy another one: wherry deploy"
        )
    is_flip = step[0].serving != running.versions.serving
    _take(running, step)
    if is_flip:
        _keep_warm(running)


def _judge(running: Running, now: float) -> None:
    """Look at the canary: what it showed decides."""
    canary, rules = running.versions.canary, running.rules
    assert canary is not None
    failures = running.failures_of(canary.candidate.key)
    name = canary.candidate.name
    if failures.load_failures >= CANARY_LOAD_FAILURES:
        verdict = Verdict("roll back", f"{name} does not load: {failures.cause}")
    elif len(failures.crashes) > FREE_CRASHES:
        count = len(failures.crashes)
        verdict = Verdict("roll back", f"{name} crashed {count} times: {failures.cause}")
    else:
        verdict = judge(canary.trial, rules, canary.step)
        if verdict.action == "wait" and now - canary.begun_at > rules.timeout_seconds:
            words = f"not decided within {rules.timeout_seconds:g} s: {verdict.reason}"
            verdict = Verdict("roll back", words)
    running.canary_words = verdict.reason
    if verdict.action == "roll back":
        roll_back(running, now, verdict.reason)
    elif verdict.action == "promote":
        _promote(running, now, verdict.reason)
    elif verdict.action == "step":
        _take(running, steps.advance(running.versions, now, verdict.reason))


def _fall_back(running: Running, now: float) -> None:
    """A version that does not load, and whose predecessor is not loaded any more, gives way."""
    serving, picks = running.versions.serving, running.picks
    if not serving or picks in (serving, running.versions.refused):
        return
    keys = {each.key for each in serving}
    if any(each.wanted.key in keys and each.is_live for each in running.replicas.values()):
        return
    if not all(key in running.known for key in keys):
        return
    for pick in picks:
        failures = running.failures_of(pick.key)
        if pick.key not in keys and failures.load_failures >= SQUEEZED_LOAD_FAILURES:
            roll_back(running, now, f"{pick.name} does not load: {failures.cause}")
            return
