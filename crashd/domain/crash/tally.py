"""Counts crashes for `crashctl stats` and `report`. Pure; the rows are those of `list --json`.

The crashed processes chose the texts in the rows: code that shows a name must escape it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from crashd.domain.crash.model import time_text

NAMES_MAX: Final = 1000
"""Names per subject in the JSON."""
NO_UNIT: Final = "(no unit)"
NO_NAME: Final = "(unknown)"
KINDS: Final = ("process", "kernel")

_S, _MIN, _H, _D = 10**9, 60 * 10**9, 3600 * 10**9, 86400 * 10**9
STEPS: Final = (
    *(_S, 2 * _S, 5 * _S, 10 * _S, 30 * _S),
    *(_MIN, 2 * _MIN, 5 * _MIN, 10 * _MIN, 15 * _MIN, 30 * _MIN),
    *(_H, 2 * _H, 3 * _H, 6 * _H, 12 * _H),
    *(_D, 2 * _D, 7 * _D, 30 * _D, 90 * _D, 365 * _D, 3650 * _D),
)
"""The possible lengths of one column of a timeline."""

Row = Mapping[str, Any]
Count = tuple[str, int]


@dataclass(slots=True)
class Timeline:
    """Crashes by time, in columns of equal length; the last column ends at `end_ns`."""

    end_ns: int
    step_ns: int
    counts: dict[str, list[int]]
    """For each kind, oldest column first."""

    @property
    def start_ns(self) -> int:
        """The time at which the first column begins."""
        return self.end_ns - self.step_ns * len(self)

    def __len__(self) -> int:
        return len(self.counts[KINDS[0]])

    def totals(self) -> list[int]:
        """Return the sum of all kinds for each column."""
        return [sum(column) for column in zip(*self.counts.values(), strict=True)]

    def add(self, time_ns: int, kind: str) -> None:
        """Count one crash; ignore it if it is before or after all columns."""
        column = (time_ns - self.start_ns) // self.step_ns
        counts = self.counts.get(kind)
        if counts is not None and 0 <= column < len(counts):
            counts[column] += 1


@dataclass(slots=True)
class Group:
    """The crashes with one signature; without one, those with the same title and program."""

    signature: str | None
    newest: Row
    count: int = 0
    first: str = ""
    """ISO 8601, like `last`."""
    last: str = ""


@dataclass(slots=True)
class Tally:
    """The result of counting."""

    timeline: Timeline
    total: int = 0
    names: dict[str, Counter[str]] = field(default_factory=dict)
    """How often each name occurs, by subject (`SUBJECTS`)."""
    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)

    def ranked(self, subject: str) -> list[Count]:
        """Return the names of a subject, most frequent first."""
        return sorted(self.names[subject].items(), key=lambda item: (-item[1], item[0]))

    def top(self) -> list[Group]:
        """Return the groups, most frequent first, then newest first."""
        newest_first = sorted(self.groups.values(), key=lambda group: group.last, reverse=True)
        return sorted(newest_first, key=lambda group: -group.count)

    def to_json(self) -> dict[str, Any]:
        """Build the JSON object."""
        line = self.timeline
        return {
            "since": time_text(line.start_ns),
            "until": time_text(line.end_ns),
            "total": self.total,
            "bucket_seconds": line.step_ns // 10**9,
            "timeline": [
                {"time": time_text(line.start_ns + column * line.step_ns)}
                | {kind: line.counts[kind][column] for kind in KINDS}
                for column in range(len(line))
            ],
        } | {
            subject: [{"name": n, "count": c} for n, c in self.ranked(subject)[:NAMES_MAX]]
            for subject in SUBJECTS
        }


def _signal(row: Row) -> str:
    if row.get("kind") == "kernel":
        return str((row.get("kernel") or {}).get("panic_kind") or "kernel")
    return str(row.get("signal_name") or NO_NAME)


def _unit(row: Row) -> str:
    container = row.get("container_id")
    named = row.get("unit") or (f"container {str(container)[:12]}" if container else None)
    return str(named or NO_UNIT)


def program(row: Row) -> str:
    """Return the name of what crashed."""
    if row.get("kind") == "kernel":
        return f"kernel {(row.get('kernel') or {}).get('release') or ''}".rstrip()
    return str(row.get("exe") or row.get("comm") or NO_NAME)


SUBJECTS: Final[Mapping[str, Callable[[Row], str]]] = {
    "kinds": lambda row: str(row.get("kind")),
    "signals": _signal,
    "units": _unit,
    "programs": program,
    "dispositions": lambda row: str((row.get("capture") or {}).get("disposition") or NO_NAME),
    "states": lambda row: str(row.get("state")),
}
"""The function that names each subject; the keys are those of the JSON."""


def plan_timeline(since_ns: int, until_ns: int, columns_max: int) -> Timeline:
    """Return an empty timeline back to `since_ns` or further, in at most `columns_max` columns.

    It is shorter if that many of the longest steps do not reach `since_ns`.
    """
    span_ns = max(until_ns - since_ns, 1)
    step_ns = next((step for step in STEPS if span_ns <= step * columns_max), STEPS[-1])
    columns = min(-(-span_ns // step_ns), columns_max)
    return Timeline(until_ns, step_ns, {kind: [0] * columns for kind in KINDS})


def tally(rows: Iterable[Row], timeline: Timeline) -> Tally:
    """Count crashes, also in `timeline`."""
    found = Tally(timeline, names={subject: Counter() for subject in SUBJECTS})
    for row in rows:
        found.total += 1
        for subject, name_of in SUBJECTS.items():
            found.names[subject][name_of(row)] += 1
        time_ns = parse_time_ns(row.get("time"))
        if time_ns is not None:
            timeline.add(time_ns, str(row.get("kind")))
        _group(found.groups, row)
    return found


def _group(groups: dict[tuple[str, ...], Group], row: Row) -> None:
    signature = row.get("signature")
    key = (str(signature),) if signature else (str(row.get("title")), program(row))
    time = str(row.get("time") or "")
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(str(signature) if signature else None, row, 0, time, time)
    group.count += 1
    group.first = min(group.first, time)
    if time > group.last:
        group.last, group.newest = time, row


def parse_time_ns(text: object) -> int | None:
    """Parse a record's time (ISO 8601, UTC); None if it is malformed."""
    try:
        moment = datetime.fromisoformat(str(text))
        return int(moment.timestamp() * 1000) * 10**6
    except (ValueError, OverflowError):
        return None
