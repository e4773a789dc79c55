"""Metrics for Prometheus. Only importer of prometheus_client in the daemon. It is one idea despite
its length: a table of all metrics, and one short method for each event.

A scrape only reads memory. Labels come from closed sets. Every combination exists from the first
scrape on, at 0, so that rate() sees the first crash. OpenMetrics scrapes also get the id of the
newest crash with each count of crashes and each bucket of the hold time.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, product

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from crashd.domain.cause.analysis import AnalysisState
from crashd.domain.crash.model import Disposition, DropReason, Engine, Kind, State
from crashd.domain.fleet.outcome import Failure, Lost, What
from crashd.domain.keep.kernel import DumpLimit
from crashd.domain.keep.limiter import Scope, Verdict
from crashd.domain.keep.process import Limit
from crashd.domain.signals import CORE_SIGNALS, signal_name
from crashd.domain.web.httphead import wants_openmetrics
from crashd.domain.web.unitcounts import OTHER, UnitCounts

HOLD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds, seconds."""
ANALYSIS_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds, seconds."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CONFIGURED = ("max_use", "keep_free", "buffer", "spill", "max_core")
"""The configured limits that are exported, in bytes."""
_STAGES = ("logical", "resident", "stored")


# -- the metrics -----------------------------------------------------------------------------------

_KINDS = tuple(kind.value for kind in Kind)
_DISPOSITIONS = tuple(kept.value for kept in Disposition)
_SIGNALS = (*(signal_name(number) for number in sorted(CORE_SIGNALS)), OTHER)
_REASONS = tuple(reason.value for reason in DropReason)
_SCOPES = tuple(scope.value for scope in Scope)
_DUMP_STATES = tuple(
    state
    for state in State
    if Kind.KERNEL in state.kinds and (state.has_core or not state.is_final)
)
_FOREIGN = "foreign"
"""In place of a state: a directory named like a dump's, which is not root's."""
_UNSEEN = "unseen"
"""In place of a state: names in a dump's directory that were not examined; too many are there."""
_RESULTS = tuple(state.value for state in AnalysisState if state.is_over)
_LIMITS = tuple({reason.value: None for reason in (*Limit, *DumpLimit)})
_COUNTERS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "crashd_crashes": ("Crashes recorded.", {"kind": _KINDS, "disposition": _DISPOSITIONS}),
    "crashd_crashes_by_signal": ("Process crashes recorded.", {"signal": _SIGNALS}),
    "crashd_capture_bytes": (
        "Bytes captured: as dumped, without zeros, on disk.",
        {"stage": _STAGES},
    ),
    "crashd_spilled_bytes": ("Bytes of cores that waited on disk to be compressed.", {}),
    "crashd_limited": ("Crashes of which the limiter kept less.", {"scope": _SCOPES}),
    "crashd_analysis": ("Analyses that ended.", {"result": _RESULTS}),
    "crashd_retention_deleted": (
        "Crashes and dumps deleted by retention.",
        {"kind": _KINDS, "reason": _LIMITS},
    ),
    "crashd_retention_freed_bytes": ("Bytes freed by retention.", {"kind": _KINDS}),
    "crashd_dropped": ("Events that lost something or took a slower way.", {"reason": _REASONS}),
    "crashd_ship_sent": (
        "Records, cores and logs stored in the fleet's object storage, and policies fetched.",
        {"what": tuple(what.value for what in What)},
    ),
    "crashd_ship_bytes": (
        "Bytes sent there, and fetched.",
        {"what": tuple(what.value for what in What)},
    ),
    "crashd_ship_failures": (
        "Failed attempts; they are repeated.",
        {"reason": tuple(failure.value for failure in Failure)},
    ),
    "crashd_ship_lost": (
        "Records and cores that will not be sent.",
        {"reason": tuple(lost.value for lost in Lost)},
    ),
    "crashd_new_signatures": (
        "Signatures that the index did not know, since the daemon's start.",
        {},
    ),
    "crashd_control_refused": ("Refused connections to the control socket.", {}),
}
_GAUGES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "crashd_ship_outbox_records": ("Records that wait to be sent to the fleet.", {}),
    "crashd_ship_outbox_oldest_seconds": ("How long the oldest of them has waited.", {}),
    "crashd_captures_in_flight": ("Captures running or waiting.", {}),
    "crashd_holders": ("Crashed processes that are held while their cores are read.", {}),
    "crashd_storers": (
        "Cores being stored, or waiting for it, after their processes' release.",
        {},
    ),
    "crashd_store_bytes": ("Bytes of stored cores.", {"kind": _KINDS}),
    "crashd_store_entries": ("Crashes in the store.", {"kind": _KINDS}),
    "crashd_store_free_bytes": ("Free bytes on the store's file system.", {}),
    "crashd_last_crash_timestamp_seconds": (
        "Time of the newest crash; 0 if there is none.",
        {"kind": _KINDS},
    ),
    "crashd_last_recorded_timestamp_seconds": (
        "When this daemon recorded the newest crash, maybe long after it happened; 0 if none.",
        {"kind": _KINDS},
    ),
    "crashd_last_new_signature_timestamp_seconds": (
        "When this daemon saw the newest signature for the first time; 0 if none.",
        {},
    ),
    "crashd_spool_entries": ("Crashes in the spool that wait to be imported.", {}),
    "crashd_spool_bytes": ("Bytes of their cores on disk.", {}),
    "crashd_analysis_waiting": ("Crashes that wait for their analysis.", {}),
    "crashd_configured_limit_bytes": (
        "Limits in force; +Inf if there is none.",
        {"limit": CONFIGURED},
    ),
    "crashd_config_last_reload_successful": ("1 if the last reload was accepted.", {}),
    "crashd_config_last_reload_success_timestamp_seconds": (
        "When the configuration in force was loaded.",
        {},
    ),
    "crashd_core_pattern_owned": ("1 if kernel.core_pattern names crashd's handler.", {}),
    "crashd_signatures": ("Distinct signatures of the crashes in the index.", {}),
    "crashd_kdump_ready": ("1 if the next kernel crash should leave a dump.", {}),
    "crashd_kdump_crashkernel_bytes": ("Memory reserved for the capture kernel.", {}),
    "crashd_kdump_dumps": ("Kernel dumps on disk.", {"state": (*_DUMP_STATES, _FOREIGN, _UNSEEN)}),
}
"""Help text, and each label with all its values; names of counters get `_total`."""


class Exporter(Collector):
    """All metrics, in memory; its methods may be called from any thread.

    They raise ValueError for values outside of the closed sets, and then count nothing. They do not
    use prometheus_client's Counter and Histogram, because those export `_created` times of this
    process, and Prometheus would then take the seeded totals for new crashes.
    """

    def __init__(
        self,
        version: str,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {
            name: dict.fromkeys(product(*labels.values()), 0)
            for name, (_, labels) in (*_COUNTERS.items(), *_GAUGES.items())
        }
        # For each engine the count of every bucket, and of values above the last.
        self._hold = {engine.value: [0] * (len(HOLD_BUCKETS) + 1) for engine in Engine}
        self._hold_sum = dict.fromkeys(self._hold, 0.0)
        self._newest_of: dict[tuple[str, ...], Exemplar] = {}
        self._newest_held: dict[tuple[str, int], Exemplar] = {}
        """By engine and bucket."""
        self._units = UnitCounts()
        self._analysis = [0] * (len(ANALYSIS_BUCKETS) + 1)
        self._analysis_sum = 0.0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def add_process(self) -> None:
        """Also export `process_*`: this process's CPU, memory, descriptors and start. Without
        /proc/stat there are none.
        """
        ProcessCollector(registry=self.registry)

    def seed(
        self,
        by_disposition: Mapping[tuple[str, str], int],
        by_signal: Mapping[int | None, int],
        last_ns: Mapping[str, int],
    ) -> None:
        """Add the counts of earlier daemons; call this once, before the first crash.

        `by_disposition` is keyed by (kind, disposition), `last_ns` by kind.
        """
        crashes = {_crash_labels(*key): count for key, count in by_disposition.items()}
        newest = {Kind(kind).value: time_ns for kind, time_ns in last_ns.items()}
        with self._lock:
            for labels, count in crashes.items():
                self._values["crashd_crashes"][labels] += count
            for number, count in by_signal.items():
                self._values["crashd_crashes_by_signal"][_signal_labels(number)] += count
            for kind, time_ns in newest.items():
                self._newest(kind, time_ns)

    def seed_units(self, units: Mapping[str | None, int]) -> None:
        """Add the counts of earlier daemons by unit; call this once.

        The key None counts crashes outside of any unit, and of units that are not named.
        """
        with self._lock:
            self._units.seed(units)

    def crash(
        self,
        kind: str,
        disposition: str,
        signal: int | None,
        time_ns: int,
        unit: str | None = None,
        crash_id: str = "",
    ) -> None:
        """Count one recorded crash."""
        labels = _crash_labels(kind, disposition)
        with self._lock:
            if crash_id:
                self._newest_of[labels] = _exemplar(crash_id, 1, time_ns)
            self._values["crashd_crashes"][labels] += 1
            if labels[0] == Kind.PROCESS:
                self._values["crashd_crashes_by_signal"][_signal_labels(signal)] += 1
                self._units.add(unit, self._monotonic())
            self._newest(labels[0], time_ns)
            self._values["crashd_last_recorded_timestamp_seconds"][labels[:1]] = self._clock()

    def _newest(self, kind: str, time_ns: int) -> None:
        last = self._values["crashd_last_crash_timestamp_seconds"]
        last[(kind,)] = max(last[(kind,)], time_ns / 1e9)

    def captured(
        self,
        engine: str,
        hold_seconds: float | None,
        logical: int,
        resident: int,
        stored: int,
        *,
        crash_id: str = "",
        time_ns: int = 0,
    ) -> None:
        """Count one captured core; sizes are in bytes, and hold is None if no process was held."""
        sizes = (logical, resident, stored)
        if min(sizes) < 0 or (hold_seconds is not None and not hold_seconds >= 0):
            raise ValueError(f"capture of {sizes} bytes in {hold_seconds} s")
        engine = Engine(engine).value
        with self._lock:
            for stage, size in zip(_STAGES, sizes, strict=True):
                self._values["crashd_capture_bytes"][(stage,)] += size
            if hold_seconds is not None:
                bucket = bisect_left(HOLD_BUCKETS, hold_seconds)
                if crash_id:
                    newest = _exemplar(crash_id, hold_seconds, time_ns)
                    self._newest_held[engine, bucket] = newest
                self._hold[engine][bucket] += 1
                self._hold_sum[engine] += hold_seconds

    def dropped(self, reason: DropReason) -> None:
        """Count one event that lost something."""
        with self._lock:
            self._values["crashd_dropped"][(DropReason(reason).value,)] += 1

    def control_refused(self) -> None:
        """Count a refused connection to the control socket."""
        with self._lock:
            self._values["crashd_control_refused"][()] += 1

    def limited(self, verdict: Verdict) -> None:
        """Count a verdict with which the limiter keeps less than the rules allow."""
        if verdict.scope is not None:
            with self._lock:
                self._values["crashd_limited"][(verdict.scope.value,)] += 1

    def in_flight(self, count: int) -> None:
        """Set how many captures are running or waiting."""
        self._set("crashd_captures_in_flight", count)

    def stages(self, holders: int, storers: int) -> None:
        """Set how many of them are held, and how many stored."""
        self._set("crashd_holders", holders)
        self._set("crashd_storers", storers)

    def spilled(self, size_bytes: int) -> None:
        """Count what a core had on disk until it was compressed."""
        with self._lock:
            self._values["crashd_spilled_bytes"][()] += size_bytes

    def store(self, kind: str, entries: int, size_bytes: int) -> None:
        """Set the entries and bytes of one kind in the store."""
        with self._lock:
            self._values["crashd_store_entries"][(Kind(kind).value,)] = entries
            self._values["crashd_store_bytes"][(Kind(kind).value,)] = size_bytes

    def store_usage(self) -> dict[str, tuple[int, int]]:
        """Return the entries and bytes in the store, by kind."""
        with self._lock:
            entries, sizes = (self._values[f"crashd_store_{what}"] for what in ("entries", "bytes"))
            return {kind: (int(entries[(kind,)]), int(sizes[(kind,)])) for kind in _KINDS}

    def store_free(self, size_bytes: int) -> None:
        """Set how much is free on the store's file system."""
        self._set("crashd_store_free_bytes", size_bytes)

    def core_pattern_owned(self, owned: bool) -> None:
        """Set whether kernel.core_pattern names crashd's handler."""
        self._set("crashd_core_pattern_owned", int(owned))

    def analysed(self, result: AnalysisState, seconds: float) -> None:
        """Count a finished analysis."""
        with self._lock:
            self._values["crashd_analysis"][(AnalysisState(result).value,)] += 1
            self._analysis[bisect_left(ANALYSIS_BUCKETS, seconds)] += 1
            self._analysis_sum += seconds

    def signatures(self, count: int) -> None:
        """Set how many distinct signatures the index has."""
        self._set("crashd_signatures", count)

    def new_signatures(self, count: int) -> None:
        """Count signatures that the index did not know."""
        if count:
            with self._lock:
                self._values["crashd_new_signatures"][()] += count
            self._set("crashd_last_new_signature_timestamp_seconds", self._clock())

    def spooled(self, entries: int, size_bytes: int) -> None:
        """Set how many crashes wait in the spool, and the bytes of their cores."""
        self._set("crashd_spool_entries", entries)
        self._set("crashd_spool_bytes", size_bytes)

    def analysis_waiting(self, count: int) -> None:
        """Set how many crashes wait for their analysis."""
        self._set("crashd_analysis_waiting", count)

    def configured(self, limits: Mapping[str, int | None]) -> None:
        """Set the limits in force, by name of CONFIGURED, in bytes; None is no limit."""
        with self._lock:
            for name, size in limits.items():
                key = (CONFIGURED[CONFIGURED.index(name)],)
                limit = float("inf") if size is None else size
                self._values["crashd_configured_limit_bytes"][key] = limit

    def reloaded(self, accepted: bool) -> None:
        """Set whether the configuration that was read last is in force."""
        self._set("crashd_config_last_reload_successful", int(accepted))
        if accepted:
            self._set("crashd_config_last_reload_success_timestamp_seconds", self._clock())

    def kernel_dumps(self, states: Mapping[State, int], *, foreign: int, unseen: int) -> None:
        """Set how many kernel dumps there are in each state, how many are not root's, and how many
        names were not examined.
        """
        with self._lock:
            for state in _DUMP_STATES:
                self._values["crashd_kdump_dumps"][(state,)] = states.get(state, 0)
            self._values["crashd_kdump_dumps"][(_FOREIGN,)] = foreign
            self._values["crashd_kdump_dumps"][(_UNSEEN,)] = unseen

    def kdump_ready(self, ready: bool, crashkernel_bytes: int) -> None:
        """Set whether the next kernel crash should leave a dump."""
        self._set("crashd_kdump_ready", int(ready))
        self._set("crashd_kdump_crashkernel_bytes", crashkernel_bytes)

    def deleted(self, kind: Kind, limit: Limit | DumpLimit, freed_bytes: int) -> None:
        """Count one deletion by retention."""
        with self._lock:
            self._values["crashd_retention_deleted"][(kind.value, limit.value)] += 1
            self._values["crashd_retention_freed_bytes"][(kind.value,)] += freed_bytes

    def ship_waiting(self, records: int, oldest_seconds: float) -> None:
        """Set how many records wait to be sent, and for how long the oldest one."""
        self._set("crashd_ship_outbox_records", records)
        self._set("crashd_ship_outbox_oldest_seconds", oldest_seconds)

    def shipped(self, what: What, count: int, size_bytes: int) -> None:
        """Count what was sent, or fetched."""
        with self._lock:
            self._values["crashd_ship_sent"][(what.value,)] += count
            self._values["crashd_ship_bytes"][(what.value,)] += size_bytes

    def ship_failed(self, failure: Failure) -> None:
        """Count one failed attempt to send something."""
        with self._lock:
            self._values["crashd_ship_failures"][(failure.value,)] += 1

    def ship_lost(self, totals: Mapping[str, int]) -> None:
        """Set how much was lost by each reason, by this daemon and earlier ones."""
        with self._lock:
            for reason in Lost:
                self._values["crashd_ship_lost"][(reason.value,)] = totals.get(reason.value, 0)

    def ship_losses(self) -> dict[str, int]:
        """Return how much was lost, by reason; only those that have lost something."""
        with self._lock:
            lost = self._values["crashd_ship_lost"]
            return {reason: int(count) for (reason,), count in lost.items() if count}

    def _set(self, name: str, value: float) -> None:
        with self._lock:
            self._values[name][()] = value

    def render(self, accept: str) -> tuple[bytes, str]:
        """Build a scrape's body, and its content type, for an Accept header."""
        # Never pass the header itself: parts of it would appear in the content type.
        content_type = OPENMETRICS if wants_openmetrics(accept) else TEXT
        encode, _ = choose_encoder(content_type)
        return encode(self.registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Build all metrics as of one moment; the registry calls this."""
        build = GaugeMetricFamily("crashd_build_info", "1, with the version.", labels=("version",))
        build.add_metric((self._version,), 1)
        analysis = HistogramMetricFamily("crashd_analysis_seconds", "Time of an analysis.")
        units = CounterMetricFamily(
            "crashd_unit_crashes", "Process crashes of a unit.", labels=("unit",)
        )
        steps = [*map(str, map(float, ANALYSIS_BUCKETS)), "+Inf"]
        with self._lock:
            counted = zip(steps, accumulate(map(float, self._analysis)), strict=True)
            analysis.add_metric((), list(counted), self._analysis_sum)
            for unit, number in self._units.items():
                units.add_metric((unit,), number)
            return [build, self._collect_hold(), analysis, units, *self._collect_closed()]

    def _collect_hold(self) -> Metric:
        hold = HistogramMetricFamily(
            "crashd_capture_hold_seconds",
            "Time from the handler's start to the release of the crashed process.",
            labels=("engine",),
        )
        bounds = [*map(str, map(float, HOLD_BUCKETS)), "+Inf"]
        for engine, counts in self._hold.items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for number, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True)):
                newest = self._newest_held.get((engine, number))
                buckets.append((bound, count, newest) if newest else (bound, count))
            hold.add_metric((engine,), buckets, self._hold_sum[engine])
        return hold

    def _collect_closed(self) -> Iterator[Metric]:
        for name, (text, labels) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=tuple(labels))
            newest = self._newest_of if name == "crashd_crashes" else {}
            for values, value in self._values[name].items():
                counter.add_metric(values, value, exemplar=newest.get(values))
            yield counter
        for name, (text, labels) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=tuple(labels))
            for values, value in self._values[name].items():
                gauge.add_metric(values, value)
            yield gauge


def _exemplar(crash_id: str, value: float, time_ns: int) -> Exemplar:
    return Exemplar({"crash_id": crash_id}, value, time_ns / 1e9)


def _crash_labels(kind: str, disposition: str) -> tuple[str, str]:
    return Kind(kind).value, Disposition(disposition).value


def _signal_labels(number: int | None) -> tuple[str]:
    return (signal_name(number) if number is not None and number in CORE_SIGNALS else OTHER,)
