"""A bounded queue in which no owner waits for all that another has queued.

The next item is the oldest of the owner who used least recently. Past use counts half after
HALF_LIFE_SECONDS. Pure: the clock is passed in.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

HALF_LIFE_SECONDS: Final = 300.0
_FORGOTTEN_SECONDS: Final = 0.01
"""An owner who used less is forgotten."""
_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """Items by owner; times are seconds of any clock that never goes back."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._waiting: dict[str, deque[_T]] = {}
        """In order of turns, among owners with the same use."""
        self._used: dict[str, tuple[float, float]] = {}
        """Seconds that each owner used, and the time for which that holds."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[_T]:
        """Yield what waits, grouped by owner."""
        return (item for items in self._waiting.values() for item in items)

    def put(self, owner: str, item: _T) -> list[_T]:
        """Queue an item; return what no longer fits: the newest item of the owner who has most."""
        self._waiting.setdefault(owner, deque()).append(item)
        if len(self) <= self._maximum:
            return []
        heaviest = max(self._waiting, key=lambda name: (len(self._waiting[name]), name == owner))
        dropped = self._waiting[heaviest].pop()
        self._tidy(heaviest)
        return [dropped]

    def take(self, now: float) -> tuple[str, _T] | None:
        """Remove and return the next item and its owner; None if nothing waits."""
        if not self._waiting:
            return None
        owner = min(self._waiting, key=lambda name: self._used_by(name, now))
        items = self._waiting.pop(owner)
        item = items.popleft()
        if items:
            self._waiting[owner] = items  # after all owners with the same use
        return owner, item

    def charge(self, owner: str, seconds: float, now: float) -> None:
        """Record that work for an owner took `seconds`."""
        self._used[owner] = (self._used_by(owner, now) + seconds, now)
        for name in [n for n in self._used if self._used_by(n, now) < _FORGOTTEN_SECONDS]:
            del self._used[name]

    def _used_by(self, owner: str, now: float) -> float:
        seconds, since = self._used.get(owner, (0.0, now))
        return float(seconds * 0.5 ** (max(0.0, now - since) / HALF_LIFE_SECONDS))

    def _tidy(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]
