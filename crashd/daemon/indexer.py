"""The index's only writer in the daemon. It runs in its own thread so that an fsync never delays a
crash.

It reads the records on disk (crash.json) and puts them into the index, so a row and a rebuilt row
cannot differ; then it counts, logs and publishes the outcome of each crash. It is one idea despite
its length: one queue, one writer, and the comparison that repairs what the queue missed.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from crashd.domain.crash.boundedrecord import slim
from crashd.domain.crash.model import Crash, DropReason, Kind, State
from crashd.domain.signals import signal_name
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, IndexCorruptError, IndexOutdatedError, NotFoundError
from crashd.store import signatures
from crashd.store.catalog import reindex
from crashd.store.entry import entry_ids, open_entry, record_size
from crashd.store.index import Index
from crashd.store.indexfile import WAL_ALARM_BYTES, set_index_aside, wal_bytes
from crashd.store.paths import Paths
from crashd.store.restoring import restore_record

log = logging.getLogger("crashd.index")

SETTLE_SECONDS = 60.0
LAG_NS = 120 * 10**9
"""The longest time between writing a record and its row, if nothing fails."""
QUIET_SECONDS = 0.02
"""How long a crash that was just admitted waits for its row. Its process is held now, and by then
most are released, and their records final. So the index does not compete with the capture for the
CPU, and a small crash takes one transaction.
"""
BATCH_MAX = 256
"""Limit on crashes put into the index in one transaction."""
BATCH_BYTES = 16 << 20
"""Limit on the bytes of their records, which are all in memory at the same time."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    crash: Crash


@dataclass(frozen=True, slots=True)
class _Changed:
    crash: Crash
    is_explained: bool = False


@dataclass(frozen=True, slots=True)
class _Removed:
    crash_id: str


@dataclass(frozen=True, slots=True)
class _Finished:
    crash_id: str


@dataclass(frozen=True, slots=True)
class _Unfinished:
    pass


@dataclass(frozen=True, slots=True)
class _Reconcile:
    pass


@dataclass(frozen=True, slots=True)
class _Mark:
    passed: threading.Event
    """Set once everything queued before it is in the index."""


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Item = _Recorded | _Changed | _Removed | _Finished | _Unfinished | _Reconcile | _Mark | _Stop


def open_index(paths: Paths) -> Index:
    """Open the index for writing. An unreadable index is set aside and replaced by an empty one; an
    index of an older crashd is rebuilt at once, so that counters and sequence numbers continue.
    """
    try:
        return Index.open(paths.index)
    except IndexOutdatedError as e:
        log.info("%s, rebuilding it", e)
        log.info("%d crashes are in the new index", reindex(paths))
        return Index.open(paths.index)
    except IndexCorruptError as e:
        return replace_index(paths, e)


def replace_index(paths: Paths, error: IndexCorruptError) -> Index:
    """Set the damaged index aside, and open an empty one."""
    log.error("%s, rebuilding it; the old one is kept as %s", error, set_index_aside(paths.index))
    return Index.open(paths.index)


def _written_ns(paths: Paths) -> int:
    """Return when the index was last written, 0 if it does not exist. Its -shm file is left out,
    because readers write that, too.
    """
    written_ns = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            status = os.stat(paths.index.with_name(paths.index.name + suffix))
            written_ns = max(written_ns, status.st_mtime_ns)
    return written_ns


def _changed_ns(paths: Paths, crash_id: str) -> int:
    """Return when a file of an entry was last put in place; 0 if the entry is gone."""
    try:
        return os.stat(paths.crashes / crash_id).st_mtime_ns
    except OSError:
        return 0


class Audience(Protocol):
    """Receives the indexer's results, in the indexer's thread."""

    def finished(self, crash: Crash) -> None:
        """Take a crash whose record is final; called once for each."""
        ...

    def explained(self, crash: Crash) -> None:
        """Take a crash whose analysis is done; called after `finished`."""
        ...

    def unfinished(self, ids: Sequence[str]) -> None:
        """Take the ids of all crashes that are being captured according to the index."""
        ...


class Indexer:
    """Feeds the index from a queue, to which the daemon's loop only appends."""

    def __init__(self, paths: Paths, exporter: Exporter) -> None:
        self._paths = paths
        self._exporter = exporter
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._index: Index | None = None
        self._admitted: set[str] = set()
        """Crashes that are not finished yet: they are counted when they finish, and not when disk
        and index are compared."""
        self._behind = False
        self._stale_since_ns: int | None = None
        """Rows of entries that changed since this time (by file times) may be older than their
        records: a daemon was killed between the two writes, or writing the index failed for a
        while."""
        self._anew = False
        """Whether crashes missing from the index were counted before, because it is a new one."""
        self._alarm_bytes = WAL_ALARM_BYTES
        """The size of the WAL at which the next warning is logged."""

    def start(self, audience: Audience) -> None:
        """Start the thread."""
        self._thread = threading.Thread(
            target=self._run, args=(audience,), name="index", daemon=True
        )
        self._thread.start()

    def recorded(self, crash: Crash) -> None:
        """Note a crash that has been admitted."""
        self._admitted.add(crash.id)
        self._queue.put(_Recorded(crash))

    def changed(self, crash: Crash) -> None:
        """Note that more is known about a crash that was finished before."""
        self._queue.put(_Changed(slim(crash)))  # its record is read again

    def explained(self, crash: Crash) -> None:
        """Note that a crash's analysis is done; the audience gets it, too."""
        self._queue.put(_Changed(slim(crash), is_explained=True))

    def removed(self, crash_id: str) -> None:
        """Note that a crash was deleted, including its record."""
        self._queue.put(_Removed(crash_id))

    def untold(self) -> frozenset[str]:
        """Return the admitted crashes whose final record was not yet passed to the audience."""
        return frozenset(self._admitted)  # a copy in one step, while other threads change it

    def settle(self) -> bool:
        """Wait until everything queued so far is in the index; return False after SETTLE_SECONDS.
        Blocks; not for the loop.
        """
        mark = _Mark(threading.Event())
        self._queue.put(mark)
        return mark.passed.wait(SETTLE_SECONDS)

    def finished(self, crash_id: str) -> None:
        """Note a crash whose record on disk is final."""
        self._queue.put(_Finished(crash_id))

    def reconcile(self) -> None:
        """Compare disk and index, and correct the index where they differ."""
        self._queue.put(_Reconcile())

    def look_for_unfinished(self) -> None:
        """Report unfinished crashes to the audience, and repeat writes that failed before."""
        self._queue.put(_Unfinished())

    def stop(self) -> None:
        """Write everything queued, and end; may be called without `start`."""
        self._queue.put(_Stop())
        if self._thread is not None:
            self._thread.join()

    def _run(self, audience: Audience) -> None:
        """Write batches of queued items until a _Stop; a failed batch is made good by comparing
        disk and index later.
        """
        while True:
            items = [self._queue.get()]
            if isinstance(items[0], _Recorded):
                time.sleep(QUIET_SECONDS)
            size = self._size_of(items[0])
            while len(items) < BATCH_MAX and size < BATCH_BYTES and not self._queue.empty():
                items.append(self._queue.get())
                size += self._size_of(items[-1])
            try:
                self._apply(self._current(), items, audience)
            except Exception as e:  # boundary: the index is a cache; crashes are safe on disk
                known = isinstance(e, CrashdError | OSError)
                log.error(
                    "index is behind: %s, trying again at the next reconciliation",
                    e,
                    exc_info=not known,
                )
                self._exporter.dropped(DropReason.STORE_ERROR)
                self._admitted.difference_update(
                    i.crash_id for i in items if isinstance(i, _Finished)
                )
                self._doubt(time.time_ns())
                self._behind = True
            if any(isinstance(item, _Stop) for item in items):
                self._close()
                return

    def _size_of(self, item: _Item) -> int:
        """Return how many bytes an item makes the indexer read."""
        return record_size(self._paths, item.crash_id) if isinstance(item, _Finished) else 0

    def _batches(self, ids: Iterable[str]) -> Iterator[list[Crash]]:
        """Yield records in batches that fit one transaction."""
        batch: list[Crash] = []
        size = 0
        for crash_id in ids:
            crash = self._read(crash_id)
            if crash is not None:
                batch.append(crash)
                size += record_size(self._paths, crash_id)
            if len(batch) >= BATCH_MAX or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    def _current(self) -> Index:
        """Return the index; open it if it is not open, or was replaced."""
        if self._index is not None and not self._index.is_current():
            self._close()
            self._behind = self._anew = True
        if self._index is None:
            self._doubt(_written_ns(self._paths))
            self._index = open_index(self._paths)
        return self._index

    def _doubt(self, since_ns: int) -> None:
        """Mark rows as doubtful from `since_ns` on: the next reconciliation compares them."""
        known_ns = self._stale_since_ns
        since_ns -= LAG_NS
        self._stale_since_ns = since_ns if known_ns is None else min(since_ns, known_ns)

    def _apply(self, index: Index, items: list[_Item], audience: Audience) -> None:
        try:
            self._write(index, items, audience)
        except IndexCorruptError as e:
            self._close()
            self._behind = self._anew = True
            self._index = replace_index(self._paths, e)
            self._write(self._index, items, audience)

    def _write(self, index: Index, items: list[_Item], audience: Audience) -> None:
        """Put one batch into the index, then report it: only what is in the index is published."""
        rows: dict[str, Crash] = {}
        final: dict[str, Crash] = {}
        changed: set[str] = set()
        for item in items:
            if isinstance(item, _Recorded | _Changed):
                rows[item.crash.id] = item.crash
                if isinstance(item, _Changed):
                    changed.add(item.crash.id)
            elif isinstance(item, _Finished) and self._is_news(index, rows, item.crash_id):
                crash = self._read(item.crash_id)
                if crash is not None and crash.id not in final:
                    final[crash.id] = rows[crash.id] = crash
        gone = [item.crash_id for item in items if isinstance(item, _Removed)]
        new = signatures.unknown(index, {crash.signature for crash in rows.values()})
        index.put(self._to_put(rows, changed.union(final), gone))
        if not self._anew:
            self._exporter.new_signatures(len(new))
        if gone:
            index.remove(gone)
        self._look_at_wal()
        for crash in sorted(final.values(), key=lambda crash: crash.sequence or 0):
            self._tell(crash, audience)
        for item in items:
            if isinstance(item, _Changed) and item.is_explained:
                audience.explained(item.crash)
            if isinstance(item, _Mark):
                item.passed.set()
        if self._behind or any(isinstance(item, _Reconcile) for item in items):
            self._compare(index, audience)
            self._behind = self._anew = False
        elif any(isinstance(item, _Unfinished) for item in items):
            audience.unfinished(index.ids_in_state(State.CAPTURING))
        for kind, (count, size) in index.usage().items():
            self._exporter.store(kind, count, size)
        self._exporter.signatures(signatures.count(index))

    def _look_at_wal(self) -> None:
        """Warn about a WAL that keeps growing, at each doubling; rows are still written."""
        size = wal_bytes(self._paths.index)
        if size < WAL_ALARM_BYTES:
            self._alarm_bytes = WAL_ALARM_BYTES
        elif size >= self._alarm_bytes:
            self._alarm_bytes = 2 * size
            log.warning(
                "the index's WAL has %s, a reader holds it open: fuser -v %s",
                format_size(size),
                self._paths.index,
            )

    def _to_put(
        self, rows: Mapping[str, Crash], again: Set[str], gone: Collection[str]
    ) -> Iterator[Crash]:
        """Yield the crashes for the rows; the records of those in `again` are read again. An
        administrator may have pinned or deleted one meanwhile, and updated the index already.
        """
        for crash_id, crash in rows.items():
            if crash_id in gone:
                continue
            if crash_id in again:
                try:
                    with open_entry(self._paths, crash_id) as entry:
                        yield entry.read()
                    continue
                except NotFoundError:
                    continue
                except CrashdError:
                    pass  # `verify` reports it
            yield crash

    def _is_news(self, index: Index, rows: Mapping[str, Crash], crash_id: str) -> bool:
        """Return whether a crash was not finished before: the loop may report the end twice."""
        if crash_id in rows and crash_id not in self._admitted:
            return rows[crash_id].state is State.CAPTURING
        row = index.get(crash_id)
        unfinished = row is None or row["state"] == State.CAPTURING.value
        return unfinished or crash_id in self._admitted

    def _read(self, crash_id: str) -> Crash | None:
        try:
            with open_entry(self._paths, crash_id) as entry:
                return entry.read()
        except CrashdError as e:
            log.warning("crash %s: %s, ignoring", crash_id, e)
            return None

    def _compare(self, index: Index, audience: Audience) -> None:
        """Add rows for entries without one, mark rows without an entry, and report unfinished
        crashes.
        """
        on_disk, rows = entry_ids(self._paths), set(index.ids())
        unfinished = index.ids_in_state(State.CAPTURING)
        self._restore(index, {*unfinished, *(i for i in on_disk if i not in rows)})
        on_disk = entry_ids(self._paths)
        missing = [crash_id for crash_id in on_disk if crash_id not in rows]
        for found in self._batches(missing):
            index.put(found)
            for crash in found:
                known = self._anew or crash.id in self._admitted
                if crash.state is not State.CAPTURING and not known:
                    self._count(crash)
        if missing:
            log.info("%d crashes were on disk but not in the index", len(missing))
        if self._stale_since_ns is not None:
            self._refresh(index, rows.intersection(on_disk), self._stale_since_ns)
            self._stale_since_ns = None
        gone = rows.difference(on_disk)
        if gone:
            log.warning("%d crashes in the index are no longer on disk", len(gone))
            index.mark_missing(gone)
        audience.unfinished(index.ids_in_state(State.CAPTURING))

    def _restore(self, index: Index, ids: Set[str]) -> None:
        for crash_id in sorted(ids):
            try:
                if restore_record(self._paths, index, crash_id):
                    log.warning("crash %s: its record could not be read, restored", crash_id)
            except (CrashdError, OSError) as e:
                log.warning("crash %s: its record cannot be restored: %s, ignoring", crash_id, e)

    def _refresh(self, index: Index, ids: Set[str], since_ns: int) -> None:
        """Rebuild the rows whose records changed since `since_ns`. Unfinished crashes are left
        alone, because they are counted when they finish.
        """
        unfinished = set(index.ids_in_state(State.CAPTURING))
        changed = [
            crash_id
            for crash_id in sorted(ids - unfinished)
            if _changed_ns(self._paths, crash_id) >= since_ns
        ]
        for read in self._batches(changed):
            stale = {c.id: c for c in read if index.row(c.id) != Index.row_of(c)}
            index.put(self._to_put(stale, stale.keys(), ()))

    def _count(self, crash: Crash) -> None:
        self._exporter.crash(
            crash.kind,
            crash.capture.disposition,
            crash.signal,
            crash.time_ns,
            crash.unit,
            crash.id,
        )

    def _tell(self, crash: Crash, audience: Audience) -> None:
        self._count(crash)
        self._log(crash)
        audience.finished(crash)
        self._admitted.discard(crash.id)

    def _log(self, crash: Crash) -> None:
        """Log one line for a finished crash, and record its capture in the metrics."""
        capture, core = crash.capture, crash.core
        if core.path:
            hold = None if capture.hold_ns is None else capture.hold_ns / 1e9
            self._exporter.captured(
                capture.engine,
                hold,
                core.size_bytes,
                core.resident_bytes,
                core.stored_bytes,
                crash_id=crash.id,
                time_ns=crash.time_ns,
            )
        held = "" if capture.hold_ns is None else f", held {capture.hold_ns / 1e6:.1f} ms"
        if crash.kind is Kind.KERNEL:
            why = f" ({printable(crash.capture.reason)})" if crash.capture.reason else ""
            source = (crash.kernel or {}).get("path") or (crash.kernel or {}).get("source")
            log.warning(
                "kernel crash %s: %s, %s%s, %s", crash.id, crash.title, crash.state, why, source
            )
            return
        log.log(
            logging.INFO if crash.state is not State.LOST else logging.ERROR,
            "crash %s: %s (pid %s, uid %s, %s), %s, core %s stored %s%s%s",
            crash.id,
            crash.title,
            crash.pid,
            crash.uid,
            "no signal" if crash.signal is None else signal_name(crash.signal),
            crash.state,
            format_size(core.size_bytes),
            format_size(core.stored_bytes),
            held,
            f" ({printable(capture.reason)})" if capture.reason else "",
        )
