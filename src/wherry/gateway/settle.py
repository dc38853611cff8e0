"""The end of a request: meter it, journal it, count it; only then may the reply leave."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence, Set

from wherry.accounts.keys import Principal
from wherry.accounts.limits import KeyMeters
from wherry.errors import InvalidInput
from wherry.gateway.admit import Inbound
from wherry.gateway.exchange import Exchange
from wherry.gateway.route import DeploymentRoute, VersionRoute
from wherry.gateway.tally import VersionTally
from wherry.gateway.track import Track
from wherry.storage.journal import JournalWriter, OutcomeRecord
from wherry.storage.segment import Answer, Stamp, encode_frame
from wherry.telemetry import LATENCY_BUCKETS_SECONDS, Counter, Family, Histogram, Registry

PIPELINE = "pipeline"
"""What stands for the task of a pipeline's own record."""


class Meters:
    """The counters of one deployment and door, found once and kept."""

    __slots__ = ("answered", "queue_seconds", "seconds", "tokens_in", "tokens_out")

    def __init__(self, settler: Settler, deployment: str, door: str) -> None:
        self.answered = settler.requests.labels(deployment, door, "ok")
        self.seconds = settler.seconds.labels(deployment)
        self.queue_seconds = settler.queue_seconds.labels(deployment)
        self.tokens_in = settler.tokens.labels(deployment, "in")
        self.tokens_out = settler.tokens.labels(deployment, "out")


class Settler:
    """Meters, journal and counters of one gateway.

    Args:
        limits: of keys.
        journal: where outcomes go.
        registry: where metrics are kept.
        status_of: HTTP status of an error code, for the record.
    """

    def __init__(
        self,
        limits: KeyMeters,
        journal: JournalWriter,
        registry: Registry,
        status_of: Callable[[str], int],
    ) -> None:
        self._limits = limits
        self._journal = journal
        self._status_of = status_of
        self._bound: dict[tuple[str, str], Meters] = {}
        self.last_used: dict[str, float] = {}
        self._tallies: dict[tuple[str, str, int, str], VersionTally] = {}
        self.requests: Family[Counter] = registry.counter(
            "wherry_requests_total",
            "Admitted requests by outcome.",
            ("deployment", "door", "code"),
        )
        self.seconds: Family[Histogram] = registry.histogram(
            "wherry_request_seconds",
            "Time from admission to the end of the answer.",
            ("deployment",),
        )
        self.queue_seconds: Family[Histogram] = registry.histogram(
            "wherry_queue_seconds", "Time from admission to the start of work.", ("deployment",)
        )
        self.tokens: Family[Counter] = registry.counter(
            "wherry_tokens_total", "Tokens of admitted requests.", ("deployment", "direction")
        )

    @property
    def is_healthy(self) -> bool:
        """Whether outcomes can be recorded; if not, nothing may be admitted."""
        return self._journal.healthy

    def bind(self, track: Track) -> None:
        """Find once what requests on a track are counted by."""
        name, version = track.deployment.full_name, track.version
        key = (name, track.door)
        meters = self._bound.get(key)
        if meters is None:
            meters = self._bound[key] = Meters(self, *key)
        track.meters = meters
        track.meter = self._limits.find_meter(track.principal)
        track.tally = self.tally_of(name, version.model, version.number, version.digest)
        track.stamp = Stamp(
            (
                track.principal.team_id, track.principal.key_id, track.deployment.name,
                version.model, version.number, version.digest, track.door, version.task,
            )
        )  # fmt: skip

    def flush(self) -> None:
        """Write the records of what has ended now, not at the end of the loop's tick."""
        self._journal.flush()

    def reserve(self, track: Track, now: float) -> float:
        """Take the key's allowance for a request; the tokens that are held for it.

        Raises:
            QuotaExceeded: a limit of the key is reached.
            Unavailable: the journal cannot record, so nothing is executed.
        """
        if not self._journal.healthy:
            error = self._journal.error
            if error is not None:
                raise error
        meter = track.meter
        return meter.admit(track.tokens_bound, now) if meter is not None else 0.0

    def reserve_many(self, track: Track, requests: int, now: float) -> bool:
        """As `reserve` for so many that cost no tokens; False, with nothing taken, if any may not."""
        if track.tokens_bound or not self._journal.healthy:
            return False
        return track.meter is None or track.meter.admit_free(requests, now)

    def release(self, track: Track, reserved: float, now: float) -> None:
        """Give an allowance back: the request was refused and cost nothing."""
        if track.meter is not None:
            track.meter.settle(track.tokens_bound, reserved, 0, now)

    def limit_headers(self, principal: Principal) -> dict[str, str]:
        """What the key has left, in OpenAI's headers; empty for a key without limits."""
        return self._limits.headers(principal)

    def counts_of(self, deployment: str) -> tuple[int, int, float]:
        """Answers, errors and seconds of a deployment (`team/name`) since this gateway began."""
        answered = failed = 0
        for (name, _, code), counter in self.requests.series.items():
            if name == deployment:
                answered += counter.value if code == "ok" else 0
                failed += counter.value if code != "ok" else 0
        histogram = self.seconds.series.get((deployment,))
        return answered, failed, histogram.sum if histogram else 0.0

    def tally_of(self, deployment: str, model: str, number: int, digest: str) -> VersionTally:
        """The counts of a version of a deployment (`team/name`)."""
        key = (deployment, model, number, digest)
        found = self._tallies.get(key)
        if found is None:
            found = self._tallies[key] = VersionTally()
        return found

    def keep(self, deployments: Mapping[str, Set[str]]) -> None:
        """Forget the counts of all other deployments (`team/name`): they are deleted.

        Args:
            deployments: those that are left, with the digests of their versions.
        """
        for name in self.last_used.keys() - deployments.keys():
            del self.last_used[name]
        for key in [each for each in self._tallies if each[3] not in deployments.get(each[0], ())]:
            del self._tallies[key]
        self._bound.clear()
        families = (self.requests, self.seconds, self.queue_seconds, self.tokens)
        for family in families:
            for labels in [each for each in family.series if each[0] not in deployments]:
                family.remove(*labels)

    def settle(
        self, exchange: Exchange, kept: Callable[[Exception | None], None], now: float
    ) -> None:
        """Account for an exchange that has ended; `kept` is called when its record is safe."""
        if exchange.code == "ok":
            self.settle_answers(exchange.track, exchange.version, (exchange,), kept, now)
            return
        track, code = exchange.track, exchange.code
        name = track.deployment.full_name
        tally, stamp = self._of_version(track, exchange.version)
        self.last_used[name] = now
        self.requests.labels(name, track.door, code).add()
        _settle_meter(track, (exchange,), now)
        tally.count_failure(code)
        ((request_id, at, *rest),) = _count(track, (exchange,), None, now)
        record = OutcomeRecord(
            request_id,
            at,
            *stamp.alike,
            self._status_of(code),
            code,
            *rest,  # type: ignore[arg-type]
            characters=exchange.usage.characters,
            audio_ms=exchange.usage.audio_ms,
        )
        self._journal.append(record, kept)

    def settle_answers(
        self,
        track: Track,
        version: VersionRoute,
        exchanges: Sequence[Exchange],
        kept: Callable[[Exception | None], None],
        now: float,
    ) -> None:
        """Account for answers on one track by one version, in one frame of the journal."""
        tally, stamp = self._of_version(track, version)
        self.last_used[track.deployment.full_name] = now
        track.meters.answered.value += len(exchanges)
        _settle_meter(track, exchanges, now)
        answers = _count(track, exchanges, tally, now)
        try:
            frame = _frame_of(stamp, exchanges, answers)
        except InvalidInput as error:
            self._journal.refuse(kept, error.message)
            return
        self._journal.append_frame(frame, kept)

    def record_pipeline(
        self, route: DeploymentRoute, inbound: Inbound, code: str, seconds: float
    ) -> asyncio.Future[None]:
        """Account for a call of a pipeline, whose steps account for their units themselves.

        Returns:
            Done when its record is safe; `Unavailable` if it cannot be made.
        """
        who, name = inbound.principal, route.full_name
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def kept(failure: Exception | None) -> None:
            if done.done():
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)
                done.exception()  # a call that has failed otherwise does not wait for it

        self.last_used[name] = time.monotonic()
        self.requests.labels(name, inbound.door, code or "ok").add()
        self.seconds.labels(name).observe(seconds)
        record = OutcomeRecord(
            inbound.request_id,
            time.time(),
            who.team_id,
            who.key_id,
            route.name,
            door=inbound.door,
            task=PIPELINE,
            status=self._status_of(code) if code else 200,
            code=code,
            total_ms=seconds * 1000,
        )
        self._journal.append(record, kept)
        return done

    def _of_version(self, track: Track, version: VersionRoute) -> tuple[VersionTally, Stamp]:
        if version is track.version:
            return track.tally, track.stamp
        team, key, deployment, _, _, _, door, task = track.stamp.alike  # another one took it over
        alike = (team, key, deployment, version.model, version.number, version.digest, door, task)
        name = track.deployment.full_name
        return self.tally_of(name, version.model, version.number, version.digest), Stamp(alike)


def _frame_of(stamp: Stamp, exchanges: Sequence[Exchange], answers: list[Answer]) -> bytes:
    """What the journal gets: one frame, but of each answer that was metered by rare units its own."""
    usages = [exchange.usage for exchange in exchanges]
    if not any(usage.characters or usage.audio_ms for usage in usages):
        return stamp.frame(answers)
    return b"".join(
        encode_frame(
            OutcomeRecord(
                request_id,
                at,
                *stamp.alike,
                200,
                "",
                *rest,  # type: ignore[arg-type]
                characters=usage.characters,
                audio_ms=usage.audio_ms,
            )
        )
        for (request_id, at, *rest), usage in zip(answers, usages, strict=True)
    )


def _settle_meter(track: Track, exchanges: Sequence[Exchange], now: float) -> None:
    """Give the key back what it did not use."""
    meter, bound = track.meter, track.tokens_bound
    if meter is None:
        return
    if not bound:
        meter.settle_free(len(exchanges))
        return
    for exchange in exchanges:
        used = exchange.usage.input_tokens + exchange.usage.output_tokens
        meter.settle(bound, exchange.reserved, used, now)


def _count(
    track: Track, exchanges: Sequence[Exchange], tally: VersionTally | None, now: float
) -> list[Answer]:
    """Count what has ended on a track; what the record of each says of it alone.

    Args:
        track: theirs.
        exchanges: they.
        tally: of the version that answered them; None if none did.
        now: monotonic.
    """
    at = time.time()
    meters: Meters = track.meters
    seconds, queue_seconds = meters.seconds, meters.queue_seconds
    counts, queue_counts = seconds.counts, queue_seconds.counts
    queues = 0.0
    totals: list[float] = []
    all_in = all_out = 0
    answers: list[Answer] = []
    for exchange in exchanges:
        usage, admitted_at = exchange.usage, exchange.admitted_at
        total, queued = now - admitted_at, (exchange.started_at or now) - admitted_at
        counts[bisect_left(LATENCY_BUCKETS_SECONDS, total)] += 1
        queue_counts[bisect_left(LATENCY_BUCKETS_SECONDS, queued)] += 1
        totals.append(total)
        queues += queued
        tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
        all_in += tokens_in
        all_out += tokens_out
        answers.append(
            (
                exchange.request_id, at, tokens_in, tokens_out, usage.rows,
                queued * 1000, (total - queued) * 1000, total * 1000, exchange.attempts or 1,
            )
        )  # fmt: skip
    if tally is not None:
        tally.count_answers(totals)
    seconds.sum += sum(totals)
    queue_seconds.sum += queues
    if all_in or all_out:
        meters.tokens_in.value += all_in
        meters.tokens_out.value += all_out
    return answers
