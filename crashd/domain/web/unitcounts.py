"""Counts crashes by unit under a bounded number of names. Pure.

Names that exist once for each login, container or start are folded, so that they share one count.
If all places are taken, a unit that crashes often takes the place of one that does not.
"""

import math
import re
from collections.abc import Iterator, Mapping

OTHER = "other"
UNITS_MAX = 50
"""Units counted by name."""
CANDIDATES_MAX = 256
"""Units without a place of which it is known how often they crashed recently."""
HALF_LIFE_SECONDS = 900.0
RECENT_MIN = 3.0
"""Recent crashes of a unit that takes another one's place, which has at most half as many."""
CHANGE_SECONDS = 60.0
"""A place changes its unit at most this often: each name is a series, which Prometheus keeps."""
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,120}\.(service|scope|socket|slice|mount|timer)")
_INSTANCE = re.compile(r"(.*?@).+(\.[a-z]+)")
_TRANSIENT = re.compile(r"(run-)(?:u[0-9]+|r[0-9a-f]{32}|p[0-9]+-i[0-9]+)(\.[a-z]+)")
"""Named by systemd-run(1)."""
_SCOPE_PART = re.compile(
    r"(?<![A-Za-z0-9])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z]?[0-9]+|[0-9a-f]{8,})"
    r"(?![A-Za-z0-9])"
)


def fold_unit(unit: str | None) -> str:
    """Return the name under which a unit is counted; OTHER if it is not a unit's name.

    The star, which no unit's name has, stands for what differs: `getty@*.service`,
    `session-*.scope`, `docker-*.scope`, `run-*.service`.
    """
    if unit is None or not _UNIT.fullmatch(unit):
        return OTHER
    if match := _INSTANCE.fullmatch(unit) or _TRANSIENT.fullmatch(unit):
        return f"{match[1]}*{match[2]}"
    if unit.endswith(".scope"):
        return _SCOPE_PART.sub("*", unit)
    return unit


class UnitCounts:
    """The counts; times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {OTHER: 0}
        self._recent: dict[str, tuple[float, float]] = {}
        """How many crashes, each halved every HALF_LIFE_SECONDS, and the time of the last."""
        self._candidates: dict[str, tuple[float, float]] = {}
        self._changed: float | None = None

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield each name with its count; OTHER is always there, and counts what had no name."""
        return iter(self._counts.items())

    def seed(self, units: Mapping[str | None, int]) -> None:
        """Add the counts of earlier daemons; None counts crashes outside of units."""
        folded: dict[str, int] = {}
        for unit, count in units.items():
            name = fold_unit(unit)
            folded[name] = folded.get(name, 0) + count
        for name, count in sorted(folded.items(), key=lambda item: (-item[1], item[0])):
            there = name in self._counts or len(self._counts) <= UNITS_MAX
            self._counts[name if there else OTHER] = (
                self._counts.get(name if there else OTHER, 0) + count
            )

    def add(self, unit: str | None, now: float) -> None:
        """Count one crash."""
        name = fold_unit(unit)
        if name not in self._counts and len(self._counts) > UNITS_MAX:
            name = self._find_place(name, now)
        if name != OTHER:
            self._recent[name] = (_faded(self._recent.get(name), now) + 1, now)
        self._counts[name] = self._counts.get(name, 0) + 1

    def _find_place(self, name: str, now: float) -> str:
        """Return the name to count under: its own if it takes another one's place, else OTHER."""
        recent = _faded(self._candidates.pop(name, None), now) + 1
        lightest = min(
            (unit for unit in self._counts if unit != OTHER),
            key=lambda unit: (_faded(self._recent.get(unit), now), self._counts[unit]),
        )
        waited = self._changed is None or now - self._changed >= CHANGE_SECONDS
        lighter = recent >= RECENT_MIN and recent > 2 * _faded(self._recent.get(lightest), now)
        if waited and lighter:
            del self._counts[lightest]
            self._recent.pop(lightest, None)
            self._changed = now
            # What it crashed recently is visible at once; `other` has counted that, too.
            self._counts[name], self._recent[name] = int(recent) - 1, (recent - 1, now)
            return name
        if len(self._candidates) >= CANDIDATES_MAX:
            fewest = min(self._candidates, key=lambda unit: _faded(self._candidates[unit], now))
            del self._candidates[fewest]
        self._candidates[name] = (recent, now)
        return OTHER


def _faded(recent: tuple[float, float] | None, now: float) -> float:
    if recent is None:
        return 0.0
    count, then = recent
    return count * math.exp2(-max(0.0, now - then) / HALF_LIFE_SECONDS)
