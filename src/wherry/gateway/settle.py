"""The end of a request: meter it, journal it, count it; only then may the reply leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set

from wherry.accounts.keys import Principal
from wherry.accounts.limits import Admission, KeyMeters
from wherry.gateway.exchange import Exchange
from wherry.gateway.tally import VersionTally
from wherry.storage.journal import JournalWriter, OutcomeRecord
from wherry.telemetry import Counter, Family, Histogram, Registry


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
        meters: limits of keys.
        journal: where outcomes go.
        registry: where metrics are kept.
        status_of: HTTP status of an error code, for the record.
    """

    def __init__(
        self,
        meters: KeyMeters,
        journal: JournalWriter,
        registry: Registry,
        status_of: Callable[[str], int],
    ) -> None:
        self._meters = meters
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

    def reserve(self, principal: Principal, tokens_bound: int) -> Admission:
        """Take the key's allowance for a request.

        Raises:
            QuotaExceeded: a limit of the key is reached.
            Unavailable: the journal cannot record, so nothing is executed.
        """
        error = self._journal.error
        if error is not None:
            raise error
        return self._meters.admit(principal, tokens_bound)

    def release(self, admission: Admission) -> None:
        """Give an allowance back: the request was refused and cost nothing."""
        self._meters.settle(admission)

    def limit_headers(self, principal: Principal) -> dict[str, str]:
        """What the key has left, in OpenAI's headers; empty for a key without limits."""
        return self._meters.headers(principal)

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

    def settle(self, exchange: Exchange, kept: Callable[[Exception | None], None]) -> None:
        """Account for an exchange that has ended; `kept` is called when its record is safe."""
        usage = exchange.usage
        self._meters.settle(exchange.admission, usage.input_tokens + usage.output_tokens)
        now = time.monotonic()
        total = now - exchange.admitted_at
        queued = (exchange.started_at or now) - exchange.admitted_at
        name = exchange.deployment.full_name
        self.last_used[name] = now
        version = exchange.version
        if version is not None:
            tally = self.tally_of(name, version.model, version.number, version.digest)
            tally.count(exchange.code, total)
        bound = self._bound.get((name, exchange.door))
        if bound is None:
            bound = self._bound[name, exchange.door] = Meters(self, name, exchange.door)
        if exchange.code == "ok":
            bound.answered.add()
        else:
            self.requests.labels(name, exchange.door, exchange.code).add()
        bound.seconds.observe(total)
        bound.queue_seconds.observe(queued)
        bound.tokens_in.add(usage.input_tokens)
        bound.tokens_out.add(usage.output_tokens)
        self._journal.append(self._record(exchange, total, queued), kept)

    def _record(self, exchange: Exchange, total: float, queued: float) -> OutcomeRecord:
        version, usage = exchange.version, exchange.usage
        is_answer = exchange.code == "ok"
        return OutcomeRecord(
            request_id=exchange.call.request_id,
            at=time.time(),
            team_id=exchange.principal.team_id,
            key_id=exchange.principal.key_id,
            deployment=exchange.deployment.name,
            model=version.model if version else "",
            version=version.number if version else 0,
            digest=version.digest if version else "",
            door=exchange.door,
            task=version.task if version else "",
            status=200 if is_answer else self._status_of(exchange.code),
            code="" if is_answer else exchange.code,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            rows=usage.rows,
            queued_ms=queued * 1000,
            run_ms=(total - queued) * 1000,
            total_ms=total * 1000,
            attempts=max(1, exchange.attempts),
        )
