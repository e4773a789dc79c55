"""Retention of process crashes: when it is time, in a thread of its own.

After a capture it is asked first, cheaply, whether a limit is reached at all; a plan of everything
is made then, and now and then for what has grown old.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from crashd.domain.model import Crash, Kind
from crashd.domain.retention import Deletion, Policy, Usage, plan
from crashd.domain.units import Amount, format_size
from crashd.errors import CrashdError
from crashd.store.expiry import (
    Removed,
    SaneClock,
    carry_out_all,
    finish_evictions,
    read_stored,
    read_usage,
)
from crashd.store.index import Index
from crashd.store.paths import Paths

log = logging.getLogger("crashd.retention")

EVERY_SECONDS = 600.0
SETTLE_SECONDS = 1.0
"""Captures of a storm are looked at together."""
SLACK = 20
"""A plan that is needed for room makes a twentieth more than is needed, so that the next capture
does not need one again."""


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told, from the thread."""

    changed: Callable[[Crash], None]
    removed: Callable[[str], None]
    counted: Callable[[str, int], None]
    """The reason and the bytes freed, of each deletion."""


class Expiry:
    """The thread. `start` it, `configure` it, tell it of each `captured` crash, `stop` it."""

    def __init__(self, paths: Paths, told: Told) -> None:
        self._paths = paths
        self._told = told
        self._policy = Policy()
        self._clock = SaneClock()
        self._signatures: set[str] = set()
        self._fresh = False
        self._stopping = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Start the thread, which looks at everything at once; nothing where it runs already."""
        if self._thread.ident is None:
            self._thread.start()

    def configure(self, policy: Policy) -> None:
        """Take new limits, and meet them soon."""
        with self._condition:
            self._policy, self._fresh = policy, True
            self._condition.notify()

    def captured(self, signature: str | None) -> None:
        """Note that there is one more crash, or that its signature is known now."""
        with self._condition:
            self._fresh = True
            if signature is not None:
                self._signatures.add(signature)
            self._condition.notify()

    def stop(self) -> None:
        """End the thread after what it is doing."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        everything_s = 0.0
        while not self._stopping:
            try:
                if time.monotonic() >= everything_s:
                    everything_s = time.monotonic() + EVERY_SECONDS
                    self._meet_all(finish=True)
                else:
                    self._meet_needed()
            except Exception as e:  # boundary: a store that cannot be read now may be, later
                known = isinstance(e, CrashdError | OSError)
                log.error("retention: %s, trying again", e, exc_info=not known)
            self._wait(everything_s)

    def _wait(self, until_s: float) -> None:
        with self._condition:
            while not self._fresh and not self._stopping and time.monotonic() < until_s:
                self._condition.wait(max(0.0, until_s - time.monotonic()))
            if self._fresh and not self._stopping:
                self._condition.wait(SETTLE_SECONDS)
            self._fresh = False

    def _meet_all(self, *, finish: bool = False) -> None:
        with Index.open(self._paths.index) as index:
            if finish and (freed := finish_evictions(self._paths, index)):
                log.info("cores of crashes that had been given up: %s freed", format_size(freed))
            crashes = read_stored(index)
        usage = read_usage(self._paths)
        self._delete(plan(crashes, usage, self._policy, self._clock.now_ns()))

    def _meet_needed(self) -> None:
        """Look at what a capture can have changed: room, count, and its signature."""
        policy, usage = self._policy, read_usage(self._paths)
        with self._condition:
            signatures, self._signatures = self._signatures, set()
        with Index.open(self._paths.index) as index:
            short = is_short(index, usage, policy)
            crashes = read_stored(index) if short else []
            of_signatures = [
                read_stored(index, " AND signature = ?", [signature])
                for signature in sorted(signatures)
                if policy.max_per_signature is not None
            ]
        if short:
            self._delete(plan(crashes, usage, with_slack(policy, usage), None))
        for same in of_signatures:
            limit = Policy(max_per_signature=policy.max_per_signature)
            self._delete(plan(same, usage, limit, None))

    def _delete(self, deletions: tuple[Deletion, ...]) -> None:
        if not deletions:
            return
        freed = 0

        def done(removed: Removed) -> None:
            nonlocal freed
            freed += removed.freed_bytes
            self._told.counted(removed.deletion.reason.value, removed.freed_bytes)
            if removed.tombstone is not None:
                self._told.changed(removed.tombstone)
            else:
                self._told.removed(removed.deletion.id)

        def failed(deletion: Deletion, error: Exception) -> None:
            log.warning("crash %s was not deleted: %s, ignoring", deletion.id, error)

        carry_out_all(self._paths, deletions, done=done, failed=failed)
        reasons = ", ".join(sorted({deletion.reason.value for deletion in deletions}))
        count, size = len(deletions), format_size(freed)
        log.info("retention (%s): %d crashes, %s freed", reasons, count, size)


def is_short(index: Index, usage: Usage, policy: Policy) -> bool:
    """Tell whether one of the limits that a capture can reach is reached."""
    entries, stored = index.usage()[Kind.PROCESS.value]
    if policy.max_count is not None and entries > policy.max_count:
        # tombstones are entries too
        ((cores,),) = index.fetch(
            "SELECT count(*) FROM crash WHERE kind = 'process' AND stored_bytes > 0"
        )
        if cores > policy.max_count:
            return True
    if policy.max_use is not None and stored > _less(policy.max_use.of(usage.total_bytes)):
        return True
    if policy.keep_free is None:
        return False
    free = policy.keep_free.of(usage.total_bytes)
    inodes = free * usage.total_inodes // usage.total_bytes if usage.total_bytes else 0
    return usage.free_bytes < free + headroom(usage) or usage.free_inodes < inodes


def headroom(usage: Usage) -> int:
    """Tell how much more than `keep_free` is kept: what the next capture writes to."""
    return min(1 << 30, usage.total_bytes // 100)


def with_slack(policy: Policy, usage: Usage) -> Policy:
    """Make the limits a little narrower: for the captures to come."""
    max_use, keep_free, max_count = policy.max_use, policy.keep_free, policy.max_count
    if max_use is not None:
        max_use = Amount(size_bytes=_less(max_use.of(usage.total_bytes)))
    if keep_free is not None:
        keep_free = Amount(size_bytes=keep_free.of(usage.total_bytes) + headroom(usage))
    if max_count is not None:
        max_count -= max_count // SLACK
    return replace(policy, max_use=max_use, keep_free=keep_free, max_count=max_count)


def _less(size_bytes: int) -> int:
    return size_bytes - size_bytes // SLACK
