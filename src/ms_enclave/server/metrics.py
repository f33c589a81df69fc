"""What the server counts, for Prometheus: calls, creations, failures, and what there is now.

Labels are few and closed: routes as they are written, codes of errors, types of sandboxes, tenants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric

from ms_enclave.utils.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ms_enclave.model import SandboxInfo
    from ms_enclave.model.events import SandboxEvent

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one server. Each server has its own registry, so that two can live in one
    process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "ms_enclave_calls", "Calls that were answered, or whose caller had gone (499).",
            ["tenant", "route", "status"], registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "ms_enclave_call_seconds", "Seconds from a call's head to the end of its answer.",
            ["tenant", "route"], registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self._failures = Counter(
            "ms_enclave_failures", "Calls that failed, by the code of their error.",
            ["tenant", "code"], registry=self.registry,
        )  # fmt: skip
        self._events = Counter(
            "ms_enclave_sandbox_events", "Sandboxes that started, stopped, failed, were deleted.",
            ["tenant", "type", "event"], registry=self.registry,
        )  # fmt: skip
        self._there = Gauge(
            "ms_enclave_sandboxes", "Sandboxes that there are.", ["tenant", "type", "state"],
            registry=self.registry,
        )  # fmt: skip
        self._memory = Gauge(
            "ms_enclave_sandbox_memory_limit_bytes", "Memory that running sandboxes may have.",
            ["tenant"], registry=self.registry,
        )  # fmt: skip
        self._waiting = Gauge(
            "ms_enclave_pool_waiting", "Callers who wait for a sandbox of the pool.", ["tenant"],
            registry=self.registry,
        )  # fmt: skip
        self._known: dict[tuple[Any, ...], Any] = {}

    def _of(self, metric: Any, *labels: str) -> Any:
        """The child of a metric; looked up once, since the library takes a lock for it."""
        place = (metric, *labels)
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = metric.labels(*labels)
        return found

    def count(self, tenant: str, route: str, status: int, code: str | None, seconds: float) -> None:
        """A call has ended.

        Args:
            code: of the error that it failed with.
        """
        self._of(self._calls, tenant, route, str(status)).inc()
        self._of(self._seconds, tenant, route).observe(seconds)
        if code is not None:
            self._of(self._failures, tenant, code).inc()

    def tell(self, tenant: str, event: SandboxEvent) -> None:
        """Something happened to a sandbox."""
        self._of(self._events, tenant, event.sandbox_type, event.event).inc()

    def see(self, tenant: str, infos: Iterable[SandboxInfo], stats: dict[str, Any]) -> None:
        """What somebody has at the moment."""
        for place, child in self._known.items():
            if place[0] is self._there and place[1] == tenant:
                child.set(0)
        memory = 0
        for info in infos:
            self._of(self._there, tenant, info.type, info.status.value).inc()
            if info.status.value == "running":
                memory += _bytes(info.config.get("memory_limit"))
        self._of(self._memory, tenant).set(memory)
        self._of(self._waiting, tenant).set(int(stats.get("pool_waiting", 0) or 0))

    def text(self, tenant: str | None = None) -> bytes:
        """All of it as Prometheus reads it; or what is somebody's."""
        if tenant is None:
            return generate_latest(self.registry)
        return generate_latest(_Part(self.registry, tenant))  # type: ignore[arg-type]


class _Part:
    """What a registry has of one tenant."""

    def __init__(self, registry: CollectorRegistry, tenant: str) -> None:
        self._registry = registry
        self._tenant = tenant

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            part.samples = [s for s in metric.samples if s.labels.get("tenant") == self._tenant]
            if part.samples:
                yield part


def _bytes(limit: Any) -> int:
    if isinstance(limit, int):
        return limit
    return parse_size(limit) if isinstance(limit, str) else 0
