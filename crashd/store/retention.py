"""Retention of process crashes on disk: lists what there is, for domain/keep/process.py to plan
with, and carries out a planned deletion.

The core goes; its record stays as a tombstone in state `evicted` that says why and since when, and
goes later. The order is: the id into `retention.pending`, the record, the core, the row. If the
process is killed in between, the next one that deletes finishes it first.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Final

from crashd.base.files import read_space
from crashd.domain.crash.model import Crash, Kind, State, time_text
from crashd.domain.keep.process import Deletion, Limit, StoredCrash, Usage
from crashd.errors import (
    CrashdError,
    FormatError,
    NewerError,
    NotFoundError,
    UnavailableError,
)
from crashd.store import spool
from crashd.store.entry import Entry, open_entry, remove_locked
from crashd.store.index import BLOCK_BYTES, Index
from crashd.store.paths import Paths
from crashd.store.pending import BATCH, Pending, open_pending
from crashd.store.users import Users

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
METADATA_INODES: Final = 2
"""Directory and record; an analysed crash has one more."""

_COLUMNS = f"""
id, coalesce(sequence, time_ns), time_ns, stored_bytes, pinned, state,
uid, coalesce(user_unit, unit, ''),
coalesce(signature, hex(coalesce(exe, comm)) || ' ' || coalesce(signal, ''))
    || coalesce(' in ' || container_id, ''),
record_bytes, {METADATA_INODES} + (signature IS NOT NULL)
"""
_ALL = f"SELECT {_COLUMNS} FROM crash WHERE kind = 'process'"
# each half uses its own index: most crashes have no core and are not read
_CORES = f"""
SELECT {_COLUMNS} FROM crash INDEXED BY crash_core
WHERE kind = 'process' AND stored_bytes > 0
UNION SELECT {_COLUMNS} FROM crash INDEXED BY crash_capturing
WHERE kind = 'process' AND state = 'capturing'
"""


@dataclass(frozen=True, slots=True)
class Removed:
    """A deletion that was carried out, or finished after another process was killed at it."""

    id: str
    reason: Limit | None
    """None: the process that began it has counted it."""
    freed_bytes: int
    tombstone: Crash | None
    """None: the record is gone as well."""


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Told:
    """Callbacks that report how a plan is carried out."""

    done: Callable[[Removed], None]
    """Puts the tombstone into the index, or takes the row out of it."""
    failed: Callable[[str, Exception], None] = _ignore
    settled: Callable[[], bool] = lambda: True
    """Waits until the index has everything reported; returns False if it does not take it."""
    progress: Callable[[int, int], None] = _ignore
    """Gets the number of deletions done, and the total."""


class RowWriter:
    """Puts deletions into an index when no daemon does that."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._waiting: list[Removed] = []

    def add(self, removed: Removed) -> None:
        """Keep a deletion for `write`."""
        self._waiting.append(removed)

    def write(self) -> bool:
        """Write the rows of all kept deletions."""
        self._index.put([r.tombstone for r in self._waiting if r.tombstone is not None])
        self._index.remove([r.id for r in self._waiting if r.tombstone is None])
        self._waiting.clear()
        return True


@dataclass(slots=True)
class Outcome:
    """The result of a plan."""

    freed_bytes: int = 0
    count: int = 0
    kept: set[str] = field(default_factory=set)
    """Crashes that may not go now: pinned meanwhile, locked, or their cores are being read."""


def read_stored(
    index: Index,
    *,
    cores_only: bool = False,
    growing: Mapping[str, int] | None = None,
    kept: AbstractSet[str] = frozenset(),
    unlike: Callable[[], AbstractSet[str]] = frozenset,
    users: Users | None = None,
) -> list[StoredCrash]:
    """Read process crashes in the form that a plan needs, from the index alone.

    Args:
        index: where they are.
        cores_only: leave out crashes that have no core and get none.
        growing: how many bytes each crash being captured may come to have.
        kept: crashes that count, but may not go now.
        unlike: called after the index is read: crashes that stand alone, not for a signature.
        users: says which user a uid counts for.

    """
    expected, found = growing or {}, []
    rows = index.fetch(_CORES if cores_only else _ALL)
    alone, user_of = unlike(), (users or Users()).user_of
    for row in rows:
        crash_id, sequence, time_ns, stored, pinned, state, uid, unit, key, record, inodes = row
        capturing = state == State.CAPTURING
        core = expected.get(crash_id, 0) if capturing else stored
        found.append(
            StoredCrash(
                id=crash_id,
                sequence=sequence,
                time_ns=time_ns,
                stored_bytes=-(-core // BLOCK_BYTES) * BLOCK_BYTES + record,
                inodes=inodes + (1 if stored or capturing else 0),
                owner=unit,
                user="" if uid is None else str(user_of(uid)),
                signature_key=crash_id if crash_id in alone else key,
                pinned=bool(pinned),
                has_core=stored > 0,
                in_flight=capturing or crash_id in kept,
                metadata_bytes=record,
                metadata_inodes=inodes,
            )
        )
    return found


def read_usage(paths: Paths, *, reserved_bytes: int = 0, unlisted_bytes: int = 0) -> Usage:
    """Return the usage of the store's file system. The spool counts as free: it is taken in and
    removed, and no stored core has to go for it.

    Raises:
        OSError: the file system cannot be examined.

    """
    # the spool first: a core removed meanwhile then counts twice, not never
    spooled_bytes = spool.stored_bytes(paths)
    space = read_space(paths.crashes)
    return Usage(
        total_bytes=space.total_bytes,
        free_bytes=space.free_bytes + spooled_bytes,
        free_inodes=space.free_inodes,
        total_inodes=space.total_inodes,
        reserved_bytes=reserved_bytes,
        unlisted_bytes=unlisted_bytes,
    )


def unlisted_bytes(index: Index, listed: Sequence[StoredCrash]) -> int:
    """Return the bytes of all records that a list of cores only leaves out."""
    return max(0, index.records_bytes() - sum(crash.metadata_bytes for crash in listed))


def carry_out(paths: Paths, deletion: Deletion) -> Removed | None:
    """Carry a deletion out; None if the crash may not go now: pinned, locked, being read.

    Raises:
        OSError: the file system refuses.
        CrashdError: the entry cannot be read.

    """
    try:
        with open_entry(paths, deletion.id) as entry:
            if not entry.try_lock():
                return None
            crash = _read(entry)
            if crash is not None and (
                crash.kind is not Kind.PROCESS or crash.state is State.CAPTURING or crash.pinned
            ):
                return None
            if entry.is_core_in_use():
                return None  # deleting it would not free its space
            if deletion.whole or crash is None:
                return Removed(deletion.id, deletion.reason, remove_locked(paths, entry), None)
            return _delete_core(entry, crash, deletion.reason)
    except NotFoundError:
        return Removed(deletion.id, None, 0, None)


def _read(entry: Entry) -> Crash | None:
    """Read a record; None if it is unreadable. Then there is no tombstone, and all of it goes."""
    try:
        return entry.read()
    except NewerError:
        raise
    except FormatError:
        return None


def _delete_core(entry: Entry, crash: Crash, limit: Limit) -> Removed:
    """Delete a crash's core, and leave a tombstone."""
    if crash.core.path is not None:
        # the record first, so that it never names a core that is missing
        crash = replace(
            crash,
            state=State.EVICTED,
            evicted={"reason": limit.value, "time": time_text(time.time_ns())},
            core=replace(crash.core, path=None, stored_bytes=0, complete=False),
        )
        try:
            crash = entry.write(crash, sync=True)
        except OSError as e:
            if e.errno not in _FULL:
                raise
            return _delete_core_first(entry, crash, limit)
    return _drop_core(entry, crash, limit)


def _drop_core(entry: Entry, crash: Crash, limit: Limit | None) -> Removed:
    """Unlink the core of a crash whose record is already a tombstone."""
    stored = entry.stored_bytes()
    if stored is None:
        return Removed(entry.id, None, 0, crash)
    entry.drop_core()
    os.fsync(entry.fd)
    return Removed(entry.id, limit, stored, crash)


def _delete_core_first(entry: Entry, crash: Crash, limit: Limit) -> Removed:
    """Free the tombstone's space by deleting the core first, because the disk is full."""
    stored = entry.stored_bytes()
    entry.drop_core()
    crash = entry.write(crash, sync=True)
    return Removed(entry.id, limit, stored or 0, crash)


def carry_out_all(paths: Paths, deletions: Sequence[Deletion], told: Told) -> Outcome:
    """Carry out a plan as far as possible, after finishing what a killed process left.

    Raises:
        UnavailableError: another process is deleting, or the index does not take the changes.
        OSError: the planned deletions cannot be written down.

    """
    outcome = Outcome()
    with open_pending(paths) as pending:
        _finish(paths, pending, told)
        for start in range(0, len(deletions), BATCH):
            batch = deletions[start : start + BATCH]
            try:
                pending.note(deletion.id for deletion in batch)
            except OSError as e:
                if e.errno not in _FULL:
                    raise
                pending.clear()  # it may be half-written; `verify` finds what is interrupted now
            for number, deletion in enumerate(batch, start + 1):
                _try(paths, deletion, told, outcome)
                told.progress(number, len(deletions))
            _settle(paths, pending, told)
    return outcome


def finish_all(paths: Paths, told: Told) -> None:
    """Finish what a killed process left."""
    carry_out_all(paths, (), told)


def _try(paths: Paths, deletion: Deletion, told: Told, outcome: Outcome) -> None:
    try:
        removed = carry_out(paths, deletion)
    except (OSError, CrashdError) as e:
        told.failed(deletion.id, e)
        outcome.kept.add(deletion.id)
        return
    if removed is None:
        outcome.kept.add(deletion.id)
        return
    outcome.freed_bytes += removed.freed_bytes
    outcome.count += removed.reason is not None
    told.done(removed)


def _settle(paths: Paths, pending: Pending, told: Told) -> None:
    directory = os.open(paths.crashes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    if not told.settled():
        raise UnavailableError("the index does not take what was deleted")
    pending.clear()


def _finish(paths: Paths, pending: Pending, told: Told) -> None:
    ids = pending.ids()
    if not ids:
        return
    for crash_id in ids:
        try:
            removed = _finish_one(paths, crash_id)
        except (OSError, CrashdError) as e:
            told.failed(crash_id, e)
            continue
        if removed is not None:
            told.done(removed)
    _settle(paths, pending, told)


def _finish_one(paths: Paths, crash_id: str) -> Removed | None:
    try:
        with open_entry(paths, crash_id) as entry:
            if not entry.try_lock():
                return None  # a command is pinning it
            try:
                crash = entry.read()
            except NotFoundError:  # the record goes first when a whole crash is deleted
                return Removed(crash_id, None, remove_locked(paths, entry), None)
            if crash.state is not State.EVICTED or crash.core.path is not None:
                return None  # its deletion had not begun
            return _drop_core(entry, crash, None)
    except NotFoundError:
        return Removed(crash_id, None, 0, None)


def describe(index: Index, deletions: Sequence[Deletion]) -> list[dict[str, Any]]:
    """Describe a plan's deletions as `crashctl vacuum` prints them."""
    found = []
    for deletion in deletions:
        doc = index.get(deletion.id) or {}
        found.append(
            {
                "id": deletion.id,
                "reason": deletion.reason.value,
                "frees_bytes": deletion.frees_bytes,
                "whole": deletion.whole,
                "time": doc.get("time"),
                "title": doc.get("title"),
            }
        )
    return found
