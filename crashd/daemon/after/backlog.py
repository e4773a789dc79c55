"""The crashes that wait for their analysis, and in which order they come."""

import threading
import time
from collections import deque

from crashd.daemon.indexer import Indexer
from crashd.domain.keep.fairqueue import FairQueue

QUEUE_MAX = 1000
BEGUN_SECONDS = 1.0
"""What an analysis counts as from its beginning on: others' are begun before a second one."""


class Backlog:
    """Crashes to be analysed: those that root asks for first, and then each owner's in turn.

    For any thread. The threads that analyse wait in `take`.
    """

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._waiting: FairQueue[str] = FairQueue(QUEUE_MAX)
        self._asked: deque[str] = deque()
        """Root waits for these: they are first."""
        self._known: set[str] = set()
        """What waits in its owner's turn, and what is being analysed."""
        self._condition = threading.Condition()
        self._workers = 0
        self._closed = False
        self.overflowed = False
        """Some did not fit: look for them later."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked)

    def open_for(self, workers: int) -> None:
        """Give crashes to so many threads, those of the lowest numbers; to none with 0."""
        with self._condition:
            self._workers = workers
            self._condition.notify_all()

    def close(self) -> None:
        """Give out no more: threads that wait are woken up, and get None."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def put(self, owner: str, crash_id: str) -> bool:
        """Queue a crash unless it is queued; False where there is no room for more of that owner's,
        or where nothing is analysed.
        """
        with self._condition:
            if crash_id in self._known:
                return True
            if not self._workers:
                return False
            self._known.add(crash_id)
            for dropped in self._waiting.put(owner, crash_id):
                self._known.discard(dropped)
                self.overflowed = True
            self._condition.notify()
            return crash_id in self._known

    def put_first(self, crash_id: str) -> bool:
        """Queue a crash before all others; False as for `put`.

        One that waits for its turn among others' is moved forward. One that runs is followed by
        another: its result may be written already, and root waits for a newer one.
        """
        with self._condition:
            if crash_id in self._asked:
                return True
            if not self._workers or len(self._asked) >= QUEUE_MAX:
                return False
            self._known.add(crash_id)
            self._asked.append(crash_id)
            self._condition.notify()
        return True

    def take(self, number: int) -> tuple[str, str] | None:
        """Wait for the next crash to analyse, for the thread of this number; return its owner and
        its id, or None at the end.
        """
        with self._condition:
            while not self._closed:
                if number < self._workers and self._asked:
                    return "", self._asked.popleft()
                now = time.monotonic()
                if number < self._workers and (taken := self._waiting.take(now)):
                    if taken[1] not in self._known:
                        continue  # it was asked for, and analysed before its turn came
                    self._waiting.charge(taken[0], BEGUN_SECONDS, now)
                    return taken
                self._condition.wait()
        return None

    def done(self, owner: str, crash_id: str, seconds: float) -> None:
        """Note that what was taken is done, and how long it took."""
        with self._condition:
            self._known.discard(crash_id)
            self._waiting.charge(owner, max(0.0, seconds - BEGUN_SECONDS), time.monotonic())

    def ids(self) -> frozenset[str]:
        """List what is to be analysed, or being."""
        with self._condition:
            return frozenset(self._known.union(self._asked))

    def unexplained(self) -> frozenset[str]:
        """List the crashes whose signature may still come: retention knows none of their like."""
        return self._indexer.untold() | self.ids()
