"""How long systemd lets a service dump core, by the texts of its unit files.

Source: systemd.service(5), systemd.unit(5); config_parse_service_timeout() of
src/core/load-fragment.c. Messages of a service at run time (EXTEND_TIMEOUT_USEC=, WATCHDOG_USEC=)
are unknown here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from crashd.domain.units import DURATION_MAX_NS, parse_duration
from crashd.errors import UsageError

NEVER: Final = DURATION_MAX_NS
"""A timeout that never expires."""
DEFAULT_STOP_NS: Final = 90 * 10**9
"""The built-in DefaultTimeoutStopSec=."""
_LINES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class UnitTimes:
    """The timeouts that can end a dump early."""

    stop_ns: int = DEFAULT_STOP_NS
    """TimeoutStopSec=: from SIGTERM to SIGKILL."""
    abort_ns: int | None = None
    """TimeoutAbortSec=: from the watchdog's SIGABRT to SIGKILL; None: same as `stop_ns`."""
    watchdog_ns: int = NEVER
    """WatchdogSec=."""

    @property
    def dump_ns(self) -> tuple[int, str]:
        """How long a dump may take, and which setting limits it."""
        if self.watchdog_ns == NEVER:
            return self.stop_ns, "TimeoutStopSec"
        abort_ns = self.stop_ns if self.abort_ns is None else self.abort_ns
        if abort_ns <= self.stop_ns:
            return abort_ns, "TimeoutAbortSec"
        return self.stop_ns, "TimeoutStopSec"


def parse_times(texts: Iterable[str], defaults: UnitTimes) -> UnitTimes:
    """Parse a unit and its drop-ins, in order; invalid settings are ignored, as by systemd."""
    times = defaults
    for text in texts:
        for key, value in _assignments(text, "Service"):
            times = _assign(times, defaults, key, value)
    return times


def parse_defaults(texts: Iterable[str]) -> UnitTimes:
    """Parse system.conf and its drop-ins for the defaults of units (systemd-system.conf(5))."""
    times = UnitTimes()
    for text in texts:
        for key, value in _assignments(text, "Manager"):
            if key in ("DefaultTimeoutStopSec", "DefaultTimeoutAbortSec"):
                times = _assign(times, UnitTimes(), key.removeprefix("Default"), value)
    return times


def drop_in_directories(unit: str) -> tuple[str, ...]:
    """Return the names of a unit's drop-in directories, lowest precedence first.

    `service.d`, `a-.service.d` for `a-b.service`, `a@.service.d` for an instance, its own.
    """
    name, dot, kind = unit.rpartition(".")
    prefix, at, _ = name.partition("@")
    parts = (prefix if at else name).split("-")
    dashed = ["-".join(parts[: count + 1]) + "-" for count in range(len(parts) - 1)]
    names = [kind, *(f"{dash}{at}{dot}{kind}" for dash in dashed)]
    names += [f"{prefix}@{dot}{kind}"] if at else []
    return tuple(f"{name}.d" for name in (*names, unit))


def fragment_names(unit: str) -> tuple[str, ...]:
    """Return the names of the files that may define a unit: its own, and its template."""
    prefix, at, rest = unit.partition("@")
    return (unit, f"{prefix}@.{rest.rpartition('.')[2]}") if at else (unit,)


def _assignments(text: str, wanted: str) -> Iterator[tuple[str, str]]:
    section, waiting = "", ""
    for raw in text.splitlines()[:_LINES_MAX]:
        if raw.lstrip().startswith(("#", ";")):
            continue  # between continued lines too
        line = waiting + raw
        waiting = ""
        if line.endswith("\\"):
            waiting = line[:-1] + " "
            continue
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            continue
        key, equals, value = line.partition("=")
        if equals and section == wanted:
            yield key.strip(), value.strip()


def _assign(times: UnitTimes, defaults: UnitTimes, key: str, value: str) -> UnitTimes:
    span = _span(value)
    if value and span is None:
        return times
    match key:
        case "TimeoutStopSec" | "TimeoutSec":
            return replace(times, stop_ns=defaults.stop_ns if span is None else span or NEVER)
        case "TimeoutAbortSec":
            return replace(times, abort_ns=defaults.abort_ns if span is None else span or NEVER)
        case "WatchdogSec":
            return replace(times, watchdog_ns=span or NEVER)
    return times


def _span(value: str) -> int | None:
    if value == "infinity":
        return NEVER
    try:
        return parse_duration(value)
    except UsageError:
        return None
