"""The clock for a loop's deadlines: it stops while the loop does not listen."""

import time
from collections.abc import Callable

SLACK_NS = 250 * 10**6
"""How late the loop may wake, and how long it may act on events; the clock skips longer times."""


class LoopClock:
    """CLOCK_MONOTONIC less all the time in which the loop could not receive an answer.

    A loop that waits for its disk, or is not scheduled, wakes up late: a process that had to answer
    by then may have answered, or may have waited for this loop. So that time does not count toward
    any deadline. The loop calls `wait` before it waits, and `look` right after that, before it acts
    on the events; it judges deadlines by the time that `look` returned.
    """

    def __init__(self, read_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._read_ns = read_ns
        self._missed_ns = 0
        self._noted_ns = read_ns()
        self._wait_ns = 0

    def now_ns(self) -> int:
        """Return the time, for a deadline that begins now."""
        return self._read_ns() - self._missed_ns

    def wait(self, wait_ns: int) -> None:
        """Note that the loop begins to wait, for at most `wait_ns`."""
        self._note(0)
        self._wait_ns = wait_ns

    def look(self) -> int:
        """Note that the loop has collected all events; return the time."""
        self._note(self._wait_ns)
        return self._noted_ns - self._missed_ns

    def _note(self, meant_ns: int) -> None:
        now_ns = self._read_ns()
        self._missed_ns += max(0, now_ns - self._noted_ns - meant_ns - SLACK_NS)
        self._noted_ns = now_ns
