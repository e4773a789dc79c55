"""Retention of process crashes: when to run it, in its own thread. The module is one idea, because
reservations, plans and the thread's schedule share the same state under one lock.

After captures, retention plans for the cores alone, which is cheap however many tombstones there
are. It plans for everything from time to time, and when the cores do not suffice. A capture that
begins reports how much it may write. That counts as stored, so that room is made while the core
arrives.

Over 400 lines, because it is one state under one lock.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from crashd.daemon.after.backlog import Backlog
from crashd.domain.keep.process import Policy, StoredCrash, Usage, plan, room
from crashd.domain.units import Amount, format_size
from crashd.errors import CrashdError
from crashd.store import spool
from crashd.store.entry import CORE, CORE_PARTIAL
from crashd.store.index import Index
from crashd.store.keptfiles import make_room, read_kept, remove_unneeded
from crashd.store.paths import Paths
from crashd.store.retention import (
    Outcome,
    Told,
    carry_out_all,
    describe,
    finish_all,
    read_stored,
    read_usage,
    unlisted_bytes,
)
from crashd.store.users import Users

log = logging.getLogger("crashd.retention")

EVERY_SECONDS = 600.0
AGAIN_SECONDS = 60.0
"""Least time between a plan of everything and the next one that no timer asked for."""
POLL_SECONDS = 30.0
"""Interval of checks for free space, because other programs write to the same file system."""
GROWING_SECONDS = 0.05
"""The same interval while captures write."""
SETTLE_SECONDS = 1.0
"""Captures of a storm within this time are handled together."""
ENDING_SECONDS: Final = 30.0
"""A capture's row is in the index within this time after its end."""
ROUNDS: Final = 3
"""Plans per run, before crashes that cannot be deleted now are given up."""
SLACK: Final = 20
"""A plan for room makes a twentieth more than needed, so that the next capture does not need
another plan."""
COMPRESSION: Final = 4
"""A core is expected to take a quarter of its memory's size on disk. Ordinary cores take less, and
a core that takes more is dealt with once it is there."""
_EXPECTED_MIN: Final = 64 << 10
LEAVE_SHARE: Final = 20
"""A user's captures leave half of the free space to other users, but at most a twentieth of the
file system: a large core on an idle host is not cut for users who have no crash."""
_SMALL_BYTES: Final = 1 << 20
"""A core up to this size is stored first; room for it is made afterwards."""


@dataclass(frozen=True, slots=True)
class _StoreView:
    """The store at one moment."""

    crashes: list[StoredCrash]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Allotment:
    """How much of the disk a capture may use."""

    credit_bytes: int = 0
    """Bytes of `keep_free` it may use for a moment, because as much is being deleted for it."""
    leave_bytes: int = 0
    """Bytes beyond `keep_free` that it leaves to the crashes of other users."""


class Spectator(Protocol):
    """Follows the progress of `vacuum`."""

    def planned(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of the crashes that are about to be deleted."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Take the number of finished deletions, and of all deletions."""
        ...


class Retention:
    """The thread; any other thread may call its methods, and only `vacuum` and `stop` wait."""

    def __init__(
        self,
        paths: Paths,
        told: Told,
        now_ns: Callable[[], int | None],
        backlog: Backlog | None = None,
        users: Users | None = None,
    ) -> None:
        """`now_ns` is a clock that returns None if the host's clock may be wrong: then nothing is
        deleted because of its age.
        """
        self._paths = paths
        self._told = replace(told, failed=self._failed)
        self._now_ns = now_ns
        self._backlog = backlog
        self._users = users or Users()
        self._policy = Policy()
        self._fresh = self._urgent = self._stopping = False
        self._growing: dict[str, int] = {}
        """Bytes that each capture under way may read."""
        self._whose: dict[str, int | None] = {}
        """The users of the same captures."""
        self._ending: dict[str, float] = {}
        """Captures that stopped writing, and when; the index will have them soon."""
        self._credits: dict[str, int] = {}
        """Bytes of `keep_free` that each may use, because as much is being deleted."""
        self._deletable_bytes = 0
        """Bytes that can be deleted for a capture."""
        self._condition = threading.Condition()
        self._deleting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins with a plan of everything, unless it runs already."""
        if self._thread.ident is None:
            self._thread.start()

    def configure(self, policy: Policy) -> None:
        """Take new limits, and meet them soon."""
        with self._condition:
            self._policy, self._fresh = policy, True
            self._condition.notify()

    def captured(self) -> None:
        """Note that a crash is stored now, or has got its signature."""
        with self._condition:
            self._fresh = True
            self._condition.notify()

    def reserve(self, crash_id: str, wanted_bytes: int, user: int | None) -> Allotment:
        """Count a user's capture that is about to read this much; return its share of the disk."""
        policy = self._policy
        with self._condition:
            self._growing[crash_id] = max(_EXPECTED_MIN, wanted_bytes)
            self._whose[crash_id] = user
            growing = sum(self._growing.values())
        try:
            usage, own = read_usage(self._paths), self._coming_bytes(user)
        except OSError:
            return Allotment()  # the capture will run into the same error
        keep_free = policy.keep_free.of(usage.total_bytes) if policy.keep_free else 0
        missing = keep_free + growing - usage.free_bytes
        if missing > 0 or growing > _use(policy, usage) // SLACK:
            with self._condition:
                self._fresh = self._urgent = True
                self._condition.notify()
        free = usage.free_bytes - spool.stored_bytes(self._paths) - keep_free
        # no more than stays free once all expected bytes arrive: no more room than that is made
        leave = min((free + own) // 2, usage.total_bytes // LEAVE_SHARE, -missing)
        credit = self._lend(crash_id, wanted_bytes, keep_free) if missing > 0 else 0
        return Allotment(credit, max(0, leave))

    def _coming_bytes(self, user: int | None) -> int:
        """Return the disk space of a user's crashes that are being captured or are in the spool."""
        with self._condition:
            own = [crash_id for crash_id, whose in self._whose.items() if whose == user]
        written = sum(written_bytes(self._paths, crash_id) for crash_id in own)
        return written + (0 if user is None else spool.stored_bytes(self._paths, user))

    def _lend(self, crash_id: str, wanted_bytes: int, keep_free: int) -> int:
        """Let a capture go below `keep_free`: the first user's by half of it, and further for each
        other user who already does. A flood of large captures cannot keep a small one out.
        """
        with self._condition:
            user, own, others = self._whose.get(crash_id), 0, set[int | None]()
            for other, size in self._credits.items():
                if self._whose.get(other) == user:
                    own += size
                else:
                    others.add(self._whose.get(other))
            left = self._deletable_bytes - sum(self._credits.values())
            most = keep_free - (keep_free >> min(1 + len(others), 8))
            if wanted_bytes <= _SMALL_BYTES:
                self._credits[crash_id] = 0
                return most
            self._credits[crash_id] = max(0, min((left - own) // 2, most))
            return self._credits[crash_id]

    def unreserve(self, crash_id: str) -> None:
        """Note that a capture has stopped writing."""
        with self._condition:
            self._credits.pop(crash_id, None)
            self._whose.pop(crash_id, None)
            if self._growing.pop(crash_id, None) is None:
                return
            self._ending[crash_id] = time.monotonic()
            if not self._growing:
                self._fresh = self._urgent = True  # what was spared for it can be deleted now
                self._condition.notify()

    def stop(self) -> None:
        """End the thread after its current work."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(10)

    def vacuum(self, spectator: Spectator, *, dry_run: bool) -> Outcome:
        """Meet all limits now, in the caller's thread."""
        with self._deleting:
            with Index.open(self._paths.index) as index:
                look = self._look(index, everything=True, kept=set())
                deletions = plan(look.crashes, look.usage, self._policy, self._now_ns())
                rows = describe(index, deletions)
            spectator.planned(rows)
            if dry_run:
                return Outcome()
            told = replace(self._told, progress=spectator.progress)
            return carry_out_all(self._paths, deletions, told)

    def meet(self, *, everything: bool) -> bool:
        """Meet the limits, in the caller's thread, by a plan of the cores alone or of everything.
        Return whether they are met.
        """
        policy, kept = self._policy, set[str]()
        with self._deleting:
            if everything:
                finish_all(self._paths, self._told)
            for _ in range(ROUNDS):
                outcome = self._meet_once(policy, kept, everything=everything)
                if not outcome.kept:
                    break
                kept |= outcome.kept
            with Index.open(self._paths.index) as index:
                look = self._look(index, everything=False, kept=kept)
            self._deletable_bytes = self._room(look, policy)
            self._tidy_files(look.usage, policy, everything=everything)
        over = used_bytes(look.crashes, look.usage) > _use(policy, look.usage)
        return not over and not lacks_space(read_usage(self._paths), policy)

    def _tidy_files(self, usage: Usage, policy: Policy, *, everything: bool) -> None:
        """Remove kept files that no crash needs; sometimes also old ones, as room for new ones."""
        remove_unneeded(self._paths)
        if everything:
            limit = policy.files_bytes(usage.total_bytes)
            if count := make_room(self._paths, limit):
                log.info("retention (keep_files): the files kept with %d crashes", count)

    def _meet_once(self, policy: Policy, kept: set[str], *, everything: bool) -> Outcome:
        with Index.open(self._paths.index) as index:
            look = self._look(index, everything=everything, kept=kept)
            narrow = is_near(look.crashes, look.usage, policy)
            mostly_records = 2 * index.records_bytes() > used_bytes(look.crashes, look.usage)
            if narrow and mostly_records and not everything:
                everything = True  # records must go first, or cores alone would pay for them
                look = self._look(index, everything=True, kept=kept)
        limits = narrowed(policy, look.usage) if narrow else policy
        now_ns = self._now_ns() if everything else None
        deletions = plan(look.crashes, look.usage, limits, now_ns)
        outcome = carry_out_all(self._paths, deletions, self._told)
        self._log(outcome, {deletion.reason.value for deletion in deletions})
        return outcome

    # -- the thread's ------------------------------------------------------------------------------

    def _run(self) -> None:
        everything_s, again_s = 0.0, 0.0
        while not self._stopping:
            now_s = time.monotonic()
            try:
                everything = now_s >= everything_s
                if everything:
                    everything_s, again_s = now_s + EVERY_SECONDS, now_s + AGAIN_SECONDS
                if not self.meet(everything=everything) and not everything:
                    everything_s = min(everything_s, again_s)
            except Exception as e:  # boundary: a store that cannot be read now may be, later
                known = isinstance(e, CrashdError | OSError)
                log.error("retention: %s, trying again", e, exc_info=not known)
                time.sleep(SETTLE_SECONDS)
            self._wait(everything_s)

    def _wait(self, until_s: float) -> None:
        """Wait until there is something to do."""
        with self._condition:
            while not self._fresh and not self._stopping:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return
                often_s = GROWING_SECONDS if self._growing else POLL_SECONDS
                polled = not self._condition.wait(min(left_s, often_s))
                if polled and self._is_pressed():
                    return
            if not self._urgent and not self._stopping:
                self._condition.wait_for(lambda: self._urgent or self._stopping, SETTLE_SECONDS)
            self._fresh = self._urgent = False

    def _is_pressed(self) -> bool:
        """Return whether others use the space that must stay free, or captures are about to."""
        try:
            usage = read_usage(self._paths, reserved_bytes=self._expect()[1])
        except OSError:
            return False
        return lacks_space(usage, self._policy)

    def _expect(self) -> tuple[dict[str, int], int]:
        """Return the expected disk space of captures under way, and how much is not written yet.

        A core that compresses badly shows as it grows: it is expected to grow by as much again.
        """
        with self._condition:
            until_s = time.monotonic() - ENDING_SECONDS
            self._ending = {i: at_s for i, at_s in self._ending.items() if at_s > until_s}
            growing, ending = dict(self._growing), list(self._ending)
        left = 0
        for crash_id, size in growing.items():
            written = written_bytes(self._paths, crash_id)
            growing[crash_id] = min(size, max(size // COMPRESSION, 2 * written))
            left += max(0, growing[crash_id] - written)
        for crash_id in ending:
            growing.setdefault(crash_id, written_bytes(self._paths, crash_id))
        return growing, left

    def _unexplained(self) -> frozenset[str]:
        return frozenset() if self._backlog is None else self._backlog.unexplained()

    def _look(self, index: Index, *, everything: bool, kept: set[str]) -> _StoreView:
        growing, left = self._expect()
        unexplained = self._unexplained()
        crashes = read_stored(
            index,
            cores_only=not everything,
            growing=growing,
            kept=kept,
            unlike=lambda: unexplained | self._unexplained(),
            users=self._users,
        )
        unlisted = 0 if everything else unlisted_bytes(index, crashes)
        unlisted += read_kept(self._paths.kept_files).size_bytes
        usage = read_usage(self._paths, reserved_bytes=left, unlisted_bytes=unlisted)
        if not everything:  # a lack of inodes needs a plan of all entries
            usage = replace(usage, total_inodes=0)
        return _StoreView(crashes, usage)

    def _room(self, look: _StoreView, policy: Policy) -> int:
        """Return how much deletions can free for a user who has no crashes yet."""
        spare = look.usage.free_bytes - look.usage.reserved_bytes
        keep_free = policy.keep_free.of(look.usage.total_bytes) if policy.keep_free else 0
        return max(0, room(look.crashes, look.usage, policy, "", "new") - max(0, spare - keep_free))

    def _log(self, outcome: Outcome, reasons: set[str]) -> None:
        if outcome.count:
            text, size = ", ".join(sorted(reasons)), format_size(outcome.freed_bytes)
            log.info("retention (%s): %d crashes, %s freed", text, outcome.count, size)

    def _failed(self, crash_id: str, error: Exception) -> None:
        log.warning("crash %s was not deleted: %s, ignoring", crash_id, error)


def written_bytes(paths: Paths, crash_id: str) -> int:
    """Return how much of a core is on disk that is being captured, or just was."""
    for name in (CORE_PARTIAL, CORE):
        with contextlib.suppress(OSError):
            return os.stat(f"{paths.crashes}/{crash_id}/{name}").st_blocks * 512
    return 0


def used_bytes(crashes: Sequence[StoredCrash], usage: Usage) -> int:
    """Return the disk space that all crashes use."""
    return sum(crash.stored_bytes for crash in crashes) + usage.unlisted_bytes


def is_near(crashes: Sequence[StoredCrash], usage: Usage, policy: Policy) -> bool:
    """Return whether a limit is reached, or the next captures will reach it."""
    cores = sum(crash.has_core or crash.in_flight for crash in crashes)
    if policy.max_count is not None and cores > policy.max_count:
        return True
    use = _use(policy, usage)
    if used_bytes(crashes, usage) > use - use // (2 * SLACK):
        return True
    if policy.keep_free is None or usage.total_bytes <= 0:
        return False
    keep_free = policy.keep_free.of(usage.total_bytes)
    return usage.free_bytes - usage.reserved_bytes < keep_free + headroom(usage) // 2


def lacks_space(usage: Usage, policy: Policy) -> bool:
    """Return whether less than `keep_free` is free, of bytes or of inodes."""
    if policy.keep_free is None or usage.total_bytes <= 0:
        return False
    keep_free = policy.keep_free.of(usage.total_bytes)
    inodes = keep_free * usage.total_inodes // usage.total_bytes
    return usage.free_bytes - usage.reserved_bytes < keep_free or usage.free_inodes < inodes


def headroom(usage: Usage) -> int:
    """Return how much more than `keep_free` stays free, as room for the next capture."""
    return min(1 << 30, usage.total_bytes // 100)


def narrowed(policy: Policy, usage: Usage) -> Policy:
    """Make the limits a little narrower, as room for the next captures."""
    max_use, keep_free, max_count = policy.max_use, policy.keep_free, policy.max_count
    if max_use is not None:
        use = max_use.of(usage.total_bytes)
        max_use = Amount(size_bytes=use - use // SLACK)
    if keep_free is not None:
        size = keep_free.of(usage.total_bytes) + headroom(usage)
        keep_free = Amount(size_bytes=min(size, usage.total_bytes))
    if max_count is not None:
        max_count -= max_count // SLACK
    return replace(policy, max_use=max_use, keep_free=keep_free, max_count=max_count)


def _use(policy: Policy, usage: Usage) -> int:
    return policy.max_use.of(usage.total_bytes) if policy.max_use is not None else 1 << 63
