"""What the requests of one key, through one door, to one deployment have in common.

Most requests are like the one before them. What follows from key, target and routes is worked out
once and kept by the door until the routes change; a request adds its body and its number.
"""

from __future__ import annotations

import time
from typing import Any

from wherry.accounts.limits import KeyMeter
from wherry.frames import Call
from wherry.gateway.admit import DeploymentLoad, Inbound
from wherry.gateway.route import DeploymentRoute, Snapshot, VersionRoute, sticky_of
from wherry.gateway.tally import VersionTally
from wherry.storage.segment import Stamp


class Track:
    """Where requests like `inbound` go, and what they are counted by.

    Args:
        inbound: the request that it was found for.
        deployment: what its name means.
        pinned: the version that the client asked for; no other may answer. Empty = any.
        version: the one that answers.
    """

    def __init__(
        self, inbound: Inbound, deployment: DeploymentRoute, pinned: str, version: VersionRoute
    ) -> None:
        self.principal = inbound.principal
        self.door = inbound.door
        self.word = inbound.sticky
        self.stream = inbound.stream
        self.tokens_bound = inbound.tokens_bound
        self.is_background = inbound.is_background
        self.deployment = deployment
        self.pinned = pinned
        self.version = version
        self.is_lasting = inbound.is_direct and (
            len(deployment.versions) == 1 or bool(pinned) or deployment.split == "key"
        )
        """Whether it holds for the next request with the same head, too."""
        self.queue: Any
        self.snapshot: Snapshot
        self.seconds: float
        """Time that a request has."""
        self.meter: KeyMeter | None
        self.load: DeploymentLoad
        self.meters: Any
        """Counters of the deployment and the door; see `wherry.gateway.settle`."""
        self.tally: VersionTally
        self.stamp: Stamp
        """What all its records in the journal say."""
        self.call = Call(
            codec=inbound.codec,
            request_id="" if inbound.is_direct else inbound.request_id,
            deployment=inbound.deployment,
            version=str(version.number),
            created=0 if inbound.is_direct else int(time.time()),
            headers=inbound.headers,
            stream=inbound.stream,
            tenant=inbound.principal.team_id + "/" + inbound.principal.key_id,
            max_tokens=deployment.tokens,
        )
        """Sent with each request; whoever must change it changes a copy."""

    def sticky(self, request_id: str) -> str:
        """What chooses among several versions."""
        principal = self.principal
        return sticky_of(
            self.deployment, self.word, principal.team_id, principal.key_id, request_id
        )
