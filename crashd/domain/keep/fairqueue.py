"""A bounded queue in which no owner waits for all that another has queued.

The next item is the oldest of the owner who used least recently; late items come after the owner's
others. Past use counts half after HALF_LIFE_SECONDS. Pure: the clock is passed in.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Generic, TypeVar

HALF_LIFE_SECONDS: Final = 300.0
_FORGOTTEN_SECONDS: Final = 0.01
"""An owner who used less is forgotten."""
_T = TypeVar("_T")


@dataclass(slots=True)
class _Items(Generic[_T]):
    """What waits of one owner."""

    first: deque[_T] = field(default_factory=deque)
    late: deque[_T] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.first) + len(self.late)

    def __iter__(self) -> Iterator[_T]:
        return chain(self.first, self.late)

    def next(self) -> _T:
        return (self.first or self.late).popleft()

    def drop(self) -> _T:
        return (self.late or self.first).pop()


class FairQueue(Generic[_T]):
    """Items by owner; times are seconds of any clock that never goes back."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._waiting: dict[str, _Items[_T]] = {}
        """In order of turns, among owners with the same use."""
        self._used: dict[str, tuple[float, float]] = {}
        """Seconds that each owner used, and the time for which that holds."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[_T]:
        """Yield what waits, grouped by owner."""
        return (item for items in self._waiting.values() for item in items)

    def put(self, owner: str, item: _T, *, late: bool = False) -> list[_T]:
        """Queue an item; return what no longer fits: the newest item of the owner who has most, a
        late one if there is one.
        """
        items = self._waiting.setdefault(owner, _Items())
        (items.late if late else items.first).append(item)
        if len(self) <= self._maximum:
            return []
        heaviest = max(self._waiting, key=lambda name: (len(self._waiting[name]), name == owner))
        dropped = self._waiting[heaviest].drop()
        self._tidy(heaviest)
        return [dropped]

    def take(self, now: float) -> tuple[str, _T] | None:
        """Remove and return the next item and its owner; None if nothing waits."""
        if not self._waiting:
            return None
        owner = min(self._waiting, key=lambda name: self._used_by(name, now))
        items = self._waiting.pop(owner)
        item = items.next()
        if items:
            self._waiting[owner] = items  # after all owners with the same use
        return owner, item

    def take_more(self, owner: str, fits: Callable[[_T], bool], maximum: int) -> list[_T]:
        """Remove and return more items of an owner, the oldest that fit."""
        taken: list[_T] = []
        items = self._waiting.get(owner)
        if items is None:
            return taken
        for waiting in (items.first, items.late):
            for _ in range(len(waiting)):
                item = waiting.popleft()
                if len(taken) < maximum and fits(item):
                    taken.append(item)
                else:
                    waiting.append(item)
        self._tidy(owner)
        return taken

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
