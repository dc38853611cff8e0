"""How many workers a deployment's load asks for: up quickly, down slowly, one at a time."""

from __future__ import annotations

UP_AFTER_SECONDS = 1.0
DOWN_AFTER_SECONDS = 60.0
WAIT_WORTH_SCALING_SECONDS = 0.1


class Autoscaler:
    """Remembers since when a deployment has been busy or calm."""

    def __init__(self) -> None:
        self.replicas = 1
        self._busy_since: float | None = None
        self._calm_since: float | None = None

    def observe(self, now: float, waiting: int, wait_seconds: float, *, is_settled: bool) -> int:
        """Workers that should run.

        Args:
            now: monotonic seconds.
            waiting: requests in the gateways' queues.
            wait_seconds: how long the last of them is estimated to wait.
            is_settled: no worker is being started or stopped.
        """
        if waiting and wait_seconds > WAIT_WORTH_SCALING_SECONDS:
            self._calm_since = None
            if self._busy_since is None:
                self._busy_since = now
            if is_settled and now - self._busy_since >= UP_AFTER_SECONDS:
                self.replicas += 1
                self._busy_since = None
            return self.replicas
        self._busy_since = None
        if self._calm_since is None:
            self._calm_since = now
        if self.replicas > 1 and is_settled and now - self._calm_since >= DOWN_AFTER_SECONDS:
            self.replicas -= 1
            self._calm_since = now
        return self.replicas

    def clamp(self, minimum: int, maximum: int) -> int:
        """Stay within what the spec allows."""
        self.replicas = max(minimum, 1, min(maximum, self.replicas))
        return self.replicas
