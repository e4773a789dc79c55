"""The crashes that wait for their analysis, and their order."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

from crashd.daemon.indexer import Indexer
from crashd.domain.keep.fairqueue import FairQueue

QUEUE_MAX = 1000
SITES_MAX = 4096
"""Sites that are remembered, so that a crash like an earlier one waits for those that are new."""
BEGUN_SECONDS = 1.0
"""Charged when an analysis begins, so that other owners' crashes come before a second one."""


class Backlog:
    """Crashes to analyse: the ones that root asked for first, then each owner's in turn. Of one
    owner, crashes at a site that is new come before those like an earlier one, which are analysed
    together.

    For use from any thread. The threads that analyse wait in `take`.
    """

    def __init__(self, indexer: Indexer) -> None:
        self._indexer = indexer
        self._waiting: FairQueue[str] = FairQueue(QUEUE_MAX)
        self._asked: deque[str] = deque()
        """Root waits for these, so they come first."""
        self._known: set[str] = set()
        """Crashes that wait for their owner's turn, or are being analysed."""
        self._site_of: dict[str, str] = {}
        """The sites of those that may be analysed together with others."""
        self._sites: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Owners and sites of earlier crashes, the newest last."""
        self._condition = threading.Condition()
        self._workers = 0
        self._closed = False
        self.overflowed = False
        """Whether some did not fit and must be found later."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked)

    def open_for(self, workers: int) -> None:
        """Give crashes to this many threads, starting with number 0; 0 turns analysis off."""
        with self._condition:
            self._workers = workers
            self._condition.notify_all()

    def close(self) -> None:
        """Give out no more crashes: wake the waiting threads, which get None."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def put(self, owner: str, crash_id: str, site: str = "", *, late: bool = False) -> bool:
        """Queue a crash unless it is queued; False if the owner's share is full, or if analysis is
        turned off. Without a site it is analysed alone.
        """
        with self._condition:
            if crash_id in self._known:
                return True
            if not self._workers:
                return False
            self._known.add(crash_id)
            if site:
                self._site_of[crash_id] = site
            late = self._was_seen(owner, site) or late
            for dropped in self._waiting.put(owner, crash_id, late=late):
                self._known.discard(dropped)
                self._site_of.pop(dropped, None)
                self.overflowed = True
            self._condition.notify()
            return crash_id in self._known

    def _was_seen(self, owner: str, site: str) -> bool:
        """Remember a site; return whether it was known."""
        if not site:
            return False
        seen = (owner, site) in self._sites
        self._sites[owner, site] = None
        self._sites.move_to_end((owner, site))
        if len(self._sites) > SITES_MAX:
            self._sites.popitem(last=False)
        return seen

    def put_first(self, crash_id: str) -> bool:
        """Queue a crash before all others; False if the queue is full, or analysis is turned off.

        A crash that waits for its turn moves to the front. If its analysis is running, another one
        follows: the result may be written already, and root waits for a newer one.
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

    def take(self, number: int, together: int = 1) -> tuple[str, list[str]] | None:
        """Wait for the next crash to analyse, for the thread of this number; return the owner and
        its id, with those of up to `together` crashes at the same site, or None at the end.
        """
        with self._condition:
            while not self._closed:
                if number < self._workers and self._asked:
                    return "", [self._asked.popleft()]
                now = time.monotonic()
                if number < self._workers and (taken := self._waiting.take(now)):
                    if taken[1] not in self._known:
                        continue  # root asked for it, and it was analysed before its turn
                    self._waiting.charge(taken[0], BEGUN_SECONDS, now)
                    return taken[0], [taken[1], *self._like(*taken, together - 1)]
                self._condition.wait()
        return None

    def _like(self, owner: str, crash_id: str, maximum: int) -> list[str]:
        """Take more crashes of an owner at the site of one that was taken."""
        site = self._site_of.pop(crash_id, None)
        if site is None or maximum < 1:
            return []
        more = self._waiting.take_more(
            owner, lambda other: self._site_of.get(other) == site and other in self._known, maximum
        )
        for other in more:
            del self._site_of[other]
        return more

    def done(self, owner: str, crash_ids: Sequence[str], seconds: float) -> None:
        """Note that the crashes that were taken are done, and how long they took."""
        with self._condition:
            self._known.difference_update(crash_ids)
            self._waiting.charge(owner, max(0.0, seconds - BEGUN_SECONDS), time.monotonic())

    def ids(self) -> frozenset[str]:
        """List the crashes that wait for their analysis, or are being analysed."""
        with self._condition:
            return frozenset(self._known.union(self._asked))

    def unexplained(self) -> frozenset[str]:
        """List the crashes whose signature may still come; retention cannot group these yet."""
        return self._indexer.untold() | self.ids()
