"""The book of kernel dumps: each directory that was seen, and its record.

A record outlives its dump. The book remembers a directory after it is gone, because it may come
back: a file system is mounted late, or a backup is restored.
"""

import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.symbols import SymbolState
from crashd.daemon.kernel.symbolwork import SymbolWork
from crashd.domain.crash.model import Crash, Kind, State
from crashd.domain.crash.query import Query
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.kdump.record import DUMP_NOT_KNOWN, Look, build_record
from crashd.domain.kdump.vmcore import Completeness
from crashd.errors import CrashdError
from crashd.store import entry as entries
from crashd.store.entry import open_entry
from crashd.store.index import Index
from crashd.store.kerneldumps import DumpRoot, Seen
from crashd.store.paths import Paths

log = logging.getLogger("crashd.kdump")

SETTLE_NS = 10 * 10**9
"""Wait this long for a dump that has its final name but looks cut, and for a log after its dump."""
WRITER_GONE_NS = 300 * 10**9
"""An unfinished dump that has not changed for this long no longer has a writer."""
KNOWN_MAX = 20_000
TRY_AGAIN_NS = 600 * 10**9
TRY_AGAIN_MAX = 6
"""How often a dump is judged again for which no worker was available."""

Key = tuple[str, bytes]
"""Identifies a dump: the watched directory, and the name in it."""


@dataclass(slots=True)
class Known:
    """A dump's directory as it was at the last look."""

    root: str
    seen: Seen
    told: DumpDirectory
    changed_at_ns: int
    """Monotonic time of the last noticed change."""
    crash_id: str | None = None
    state: State = State.CAPTURING
    growing: bool = True
    first_seen_ns: int = 0
    time_ns: int = 0
    sure: bool = False
    """Whether the end of the dump was seen."""
    maybe: bool = False
    """Whether the dump seems complete, but its end could not be seen."""
    try_again: int = 0
    """How many more times to look for the end, each TRY_AGAIN_NS after the last look."""
    judged_at_ns: int = 0
    """Monotonic time at which the dump itself was judged; 0: not by this daemon."""
    removal_failed: bool = False
    log_pending: bool = False
    """There is no log file, and the dump's own log was not read yet: the file may still arrive."""

    symbols: SymbolState = field(default_factory=SymbolState)

    @property
    def key(self) -> Key:
        """Its key in the book."""
        return self.root, self.seen.entry.name

    def take_verdict(self, look: Look) -> None:
        """Note what a look says about the dump itself."""
        verdict = look.verdict
        self.sure = verdict is not None and verdict.sure
        self.maybe = (
            verdict is not None
            and verdict.completeness is Completeness.COMPLETE
            and not verdict.sure
        )
        if not (self.maybe and look.try_again):
            self.try_again = 0
        elif self.judged_at_ns:
            self.try_again = max(0, self.try_again - 1)
        else:
            self.try_again = TRY_AGAIN_MAX
        self.judged_at_ns = time.monotonic_ns()

    def is_due_again(self, now_ns: int) -> bool:
        """Return whether to judge the dump again, because no worker was available before."""
        return self.try_again > 0 and now_ns - self.judged_at_ns >= TRY_AGAIN_NS

    def is_active(self, now_ns: int) -> bool:
        """Return whether to look at it again without waiting for an event."""
        return self.growing or self.log_pending or now_ns - self.changed_at_ns < SETTLE_NS


def _is_settled(crash: Crash) -> bool:
    """Return whether hooks may run: the record is final, including its title."""
    return crash.state.is_final and not (crash.kernel or {}).get("log_pending")


class DumpBook:
    """The dumps and their records; for the dumps' thread only, except `find_id`."""

    def __init__(
        self, paths: Paths, hostname: bytes, indexer: Indexer, symbols: SymbolWork
    ) -> None:
        self._paths = paths
        self._hostname = hostname
        self._indexer = indexer
        self._symbols = symbols
        self._known: dict[Key, Known] = {}
        self._absent: dict[Key, Mapping[str, Any]] = {}
        """The index's rows of dumps that this daemon has not seen, or no longer sees."""

    # -- known dumps -------------------------------------------------------------------------------

    def load(self) -> None:
        """Read from the index what was known before this daemon started.

        Raises:
            CrashdError: the index cannot be read.

        """
        with Index.open(self._paths.index) as index:
            rows = index.select(Query(kind=Kind.KERNEL, limit=None), None)
        for row in rows:
            kernel = row.get("kernel")
            path = kernel.get("path") if isinstance(kernel, dict) else None
            if isinstance(path, str):
                root, _, name = path.rpartition("/")
                self._absent[(root, os.fsencode(name))] = row

    @property
    def is_full(self) -> bool:
        """Whether the book is full; it is bounded because anybody may make names there."""
        return len(self._known) >= KNOWN_MAX

    def find(self, key: Key) -> Known | None:
        """Find a dump that was seen before and is still there."""
        return self._known.get(key)

    def list_of(self, root: str) -> list[Known]:
        """List the dumps of one directory."""
        return [known for known in self._known.values() if known.root == root]

    def list_active(self, now_ns: int) -> list[Known]:
        """List the dumps that are worth looking at again soon."""
        return [known for known in self._known.values() if known.is_active(now_ns)]

    def list_all(self) -> list[Known]:
        """List all dumps that are there."""
        return list(self._known.values())

    def find_id(self, crash_id: str) -> Known | None:
        """Find the dump of a record; safe for other threads."""
        there = tuple(self._known.values())
        return next((known for known in there if known.crash_id == crash_id), None)

    def count(self) -> dict[State, int]:
        """Count the dumps by their state."""
        counts = dict.fromkeys(State, 0)
        for known in self._known.values():
            counts[known.state] += 1
        return counts

    # -- dumps that are there ----------------------------------------------------------------------

    def begin(self, root: DumpRoot, seen: Seen, told: DumpDirectory) -> Known:
        """Note a directory that is new to this daemon, with what an older record says about it."""
        known = Known(os.fspath(root.path), seen, told, time.monotonic_ns())
        if abs(time.time_ns() - told.changed_ns) > WRITER_GONE_NS:
            known.changed_at_ns -= WRITER_GONE_NS  # nothing has written to it for a long time
        known.first_seen_ns = time.time_ns()
        self._known[known.key] = known
        row = self._absent.pop(known.key, None)
        if row is None:
            return known
        kernel = row["kernel"]
        known.crash_id, known.state = row["id"], State(row["state"])
        known.first_seen_ns = kernel.get("first_seen_ns") or known.first_seen_ns
        crashed = kernel.get("crash_time")
        known.time_ns = crashed * 10**9 if isinstance(crashed, int) else told.stamp_ns
        known.sure = kernel.get("dump_sure") is True
        known.maybe = kernel.get("dump_state") == DUMP_NOT_KNOWN
        known.symbols = SymbolState.of(kernel)
        same = (kernel.get("inode"), kernel.get("changed_ns")) == (seen.inode, told.changed_ns)
        # An older crashd judged the dump by its head alone, so judge it again.
        same = same and "dump_sure" in kernel and (known.state is not State.COMPLETE or known.sure)
        same = same and not kernel.get("log_pending")
        if same and known.state.has_core:
            known.growing = False
        return known

    def record(self, known: Known, look: Look) -> None:
        """Write the record of a dump, and update the index.

        Raises:
            CrashdError: the record cannot be read.
            OSError: the disk does not take it.

        """
        crash = self._write(look, known)
        known.crash_id, known.state, known.time_ns = crash.id, crash.state, crash.time_ns
        known.symbols = SymbolState.of(crash.kernel or {})

    def _write(self, look: Look, known: Known) -> Crash:
        """Write under the record's lock, because an administrator may pin it at the same time."""

        def build(before: Crash | None) -> Crash:
            crash = build_record(
                look,
                before,
                hostname=self._hostname,
                random=secrets.randbits(40),
                seen_ns=known.first_seen_ns,
            )
            return self._symbols.carry(crash, before)

        if known.crash_id is None or self.read(known.crash_id) is None:
            crash = build(None)
            with entries.create(self._paths, crash) as entry:
                entry.write(crash, sync=True)
            self._indexer.recorded(crash)
            if _is_settled(crash):
                self._indexer.finished(crash.id)
            return crash
        before, crash = entries.change(self._paths, known.crash_id, build)
        # Update the index even if the record did not change: the daemon that wrote it may have been
        # killed before the index had it.
        if _is_settled(crash) and not (_is_settled(before) and known.state.is_final):
            self._indexer.finished(crash.id)
        else:
            self._indexer.changed(crash)
        return crash

    # -- records -----------------------------------------------------------------------------------

    def read(self, crash_id: str) -> Crash | None:
        """Read a record; None if it was deleted by hand."""
        try:
            with open_entry(self._paths, crash_id) as entry:
                return entry.read()
        except CrashdError:
            return None

    def is_pinned(self, crash_id: str) -> bool:
        """Return whether a record is pinned, which only the record itself says."""
        crash = self.read(crash_id)
        return crash is not None and crash.pinned

    def write_state(self, crash_id: str, state: State, why: str | None) -> None:
        """Give a record another state; a dump that is gone counts as 0 bytes.

        Raises:
            CrashdError: it was to be evicted but was pinned in the meantime, or cannot be read.
            OSError: the disk does not take it.

        """

        def how(crash: Crash) -> Crash:
            if state is State.EVICTED and crash.pinned:
                raise CrashdError(f"crash {crash_id} was pinned")
            size = 0 if state.is_gone else crash.core.size_bytes
            return replace(
                crash,
                state=state,
                capture=replace(crash.capture, reason=why),
                core=replace(crash.core, stored_bytes=size, complete=state is State.COMPLETE),
            )

        _, changed = entries.change(self._paths, crash_id, how)
        self._indexer.changed(changed)

    # -- dumps that are not there ------------------------------------------------------------------

    def drop(self, key: Key) -> None:
        """Forget a directory completely, because it cannot be trusted."""
        self._known.pop(key, None)

    def keep_present(self, root: str, present: Iterable[bytes]) -> None:
        """Mark the dumps of a directory that are missing: kdump-tools, Apport or the administrator
        deleted them.
        """
        names = frozenset(present)
        for known in self.list_of(root):
            if known.seen.entry.name not in names:
                self.forget(known)
                self._mark_missing(known.key)
        for key in [key for key in self._absent if key[0] == root and key[1] not in names]:
            if not State(self._absent[key]["state"]).is_gone:
                self._mark_missing(key)

    def forget(self, known: Known) -> None:
        """Treat a dump as absent for now; it may come back."""
        del self._known[known.key]
        if known.crash_id is not None:
            kernel = {"first_seen_ns": known.first_seen_ns}
            row = {"id": known.crash_id, "state": known.state, "kernel": kernel}
            self._absent[known.key] = row

    def _mark_missing(self, key: Key) -> None:
        row = self._absent.get(key)
        crash = self.read(row["id"]) if row is not None else None
        if row is None or crash is None or crash.state.is_gone:
            return
        why = "the dump's directory was deleted, not by crashd"
        log.info("crash %s: %s", crash.id, why)
        self.write_state(crash.id, State.MISSING, why)
        self._absent[key] = {**row, "state": State.MISSING}
