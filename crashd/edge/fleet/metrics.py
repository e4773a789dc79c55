"""Metrics of the fleet's indexer, for Prometheus. Labels come from closed sets."""

import threading
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector


class FleetMetrics(Collector):
    """All metrics of one indexer, in memory; may be called from any thread."""

    def __init__(self, version: str, results: Iterable[str]) -> None:
        self._version = version
        self._lock = threading.Lock()
        self._records = dict.fromkeys(results, 0)
        self._lag_seconds = 0.0
        self._gauges = {"hosts": 0, "overdue_hosts": 0, "quarantine_records": 0, "open_requests": 0}
        self._failures = 0
        self._lists = 0

    def loaded(self, records: Mapping[str, int]) -> None:
        """Count records by result."""
        with self._lock:
            for result, count in records.items():
                self._records[result] += count

    def lag(self, seconds: float) -> None:
        """Set the age of the oldest object of the last pass, when it was committed."""
        with self._lock:
            self._lag_seconds = seconds

    def failed(self) -> None:
        """Count a pass that PostgreSQL or the bucket ended, or that left out a host."""
        with self._lock:
            self._failures += 1

    def fleet(self, gauges: Mapping[str, int], lists: int) -> None:
        """Set what the database says of the fleet, and the LIST requests made so far."""
        with self._lock:
            self._gauges |= gauges
            self._lists = lists

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its type for a request's Accept header."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics."""
        with self._lock:
            records = CounterMetricFamily(
                "crashd_fleet_records", "Records indexed, by result.", labels=["result"]
            )
            for result, count in self._records.items():
                records.add_metric([result], count)
            yield records
            yield GaugeMetricFamily(
                "crashd_fleet_lag_seconds",
                "Time from the arrival of a record in the bucket until it is in the index.",
                value=self._lag_seconds,
            )
            yield CounterMetricFamily(
                "crashd_fleet_failures",
                "Passes that ended in an error, or left out a host whose objects cannot be read.",
                value=self._failures,
            )
            yield CounterMetricFamily(
                "crashd_fleet_lists", "LIST requests to the bucket.", value=self._lists
            )
            for name, text in (
                ("hosts", "Hosts in the bucket."),
                ("overdue_hosts", "Hosts that should have been listed a minute ago."),
                ("quarantine_records", "Refused records that are kept."),
                ("open_requests", "Cores asked for and deletions that hosts have not answered."),
            ):
                yield GaugeMetricFamily(f"crashd_fleet_{name}", text, value=self._gauges[name])
            info = GaugeMetricFamily(
                "crashd_fleet_build_info", "Version of crashd-fleet.", labels=["version"]
            )
            info.add_metric([self._version], 1)
            yield info
