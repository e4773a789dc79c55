"""Retention of process crashes on disk: what there is, for domain/retention.py to plan with, and
how a planned deletion is carried out.

The core goes, its record stays as a tombstone in state `evicted` that says why; later that goes
too. Killed anywhere in between, what is left is found by the next plan: a core whose record is a
tombstone is `verify`'s finding, and is removed here first.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from crashd.domain.model import Core, Crash, Kind, State
from crashd.domain.retention import Deletion, Reason, StoredCrash, Usage
from crashd.errors import CrashdError, FormatError, NotFoundError
from crashd.store.entry import open_entry, remove
from crashd.store.index import Index
from crashd.store.paths import Paths

METADATA_BYTES: Final = 48 << 10
"""What an entry without core takes on disk, about: directory, crash.json, analysis.json."""
METADATA_INODES: Final = 3
SYNCHRONISED: Final = Path("/run/systemd/timesync/synchronized")
"""There once systemd-timesyncd has set the clock."""
CLOCK_JUMP_NS: Final = 3600 * 10**9

_SELECT = """
SELECT id, rowid, time_ns, stored_bytes, pinned, state,
    coalesce(unit, user_unit, 'uid ' || coalesce(uid, '-')),
    coalesce(signature, hex(coalesce(exe, comm)) || ' ' || coalesce(signal, ''))
FROM crash WHERE kind = 'process'
"""


@dataclass(frozen=True, slots=True)
class Removed:
    """A deletion that was carried out."""

    deletion: Deletion
    freed_bytes: int
    tombstone: Crash | None
    """None: the record is gone as well."""


def read_stored(index: Index, where: str = "", values: Sequence[object] = ()) -> list[StoredCrash]:
    """Read the crashes of processes as a plan wants them, from the index alone."""
    found = []
    for row in index.fetch(_SELECT + where, values):
        crash_id, sequence, time_ns, stored, pinned, state, owner, key = row
        found.append(
            StoredCrash(
                id=crash_id,
                sequence=sequence,
                time_ns=time_ns,
                stored_bytes=stored + METADATA_BYTES,
                inodes=METADATA_INODES + (1 if stored else 0),
                owner=owner,
                signature_key=key,
                pinned=bool(pinned),
                has_core=stored > 0,
                in_flight=state == State.CAPTURING,
                metadata_bytes=METADATA_BYTES,
                metadata_inodes=METADATA_INODES,
            )
        )
    return found


def read_usage(paths: Paths) -> Usage:
    """Ask the store's file system.

    Raises:
        OSError: it cannot be asked.

    """
    fs = os.statvfs(paths.crashes)
    return Usage(
        total_bytes=fs.f_blocks * fs.f_frsize,
        free_bytes=fs.f_bavail * fs.f_frsize,
        free_inodes=fs.f_favail,
        total_inodes=fs.f_files,
    )


class SaneClock:
    """The wall clock, where it can be believed not to run ahead."""

    def __init__(self) -> None:
        self._offset_ns = _offset_ns()

    def now_ns(self) -> int | None:
        """Tell the time; None where it jumped and no time server confirmed it."""
        jumped = abs(_offset_ns() - self._offset_ns) > CLOCK_JUMP_NS
        if jumped and not SYNCHRONISED.exists():
            return None
        return time.time_ns()


def _offset_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def why_text(deletion: Deletion) -> str:
    """Say why a crash is deleted, for its tombstone."""
    limit = "inodes" if deletion.reason is Reason.INODES else f"retention.process.{deletion.reason}"
    return f"deleted by retention: {limit}"


def carry_out(paths: Paths, deletion: Deletion) -> Removed | None:
    """Carry a deletion out; None where the crash may not go any more: pinned, or being written to.

    Raises:
        OSError: the file system refuses.
        CrashdError: the entry cannot be read.

    """
    if deletion.whole:
        with contextlib.suppress(NotFoundError):
            return Removed(deletion, remove(paths, deletion.id), None)
        return Removed(deletion, 0, None)
    try:
        with open_entry(paths, deletion.id) as entry:
            if not entry.try_lock():
                return None
            crash = entry.read()
            if crash.pinned or crash.kind is not Kind.PROCESS or crash.state is State.CAPTURING:
                return None
            stored = entry.stored_bytes() or 0
            tombstone = replace(
                crash,
                state=State.EVICTED,
                capture=replace(crash.capture, reason=why_text(deletion)),
                core=Core(size_bytes=crash.core.size_bytes),
            )
            # the record first: it never names a core that is not there
            entry.write(tombstone, sync=True)
            entry.drop_core()
    except NotFoundError:
        return Removed(deletion, 0, None)
    return Removed(deletion, stored, tombstone)


def carry_out_all(
    paths: Paths,
    deletions: Sequence[Deletion],
    *,
    done: Callable[[Removed], None],
    failed: Callable[[Deletion, Exception], None],
) -> None:
    """Carry out a plan, as far as it can be; tell of each."""
    for deletion in deletions:
        try:
            removed = carry_out(paths, deletion)
        except (OSError, FormatError, CrashdError) as e:
            failed(deletion, e)
            continue
        if removed is not None:
            done(removed)


def finish_evictions(paths: Paths, index: Index) -> int:
    """Remove cores whose record is a tombstone: somebody was killed in between; give the bytes."""
    freed = 0
    for (crash_id,) in index.fetch("SELECT id FROM crash WHERE state = 'evicted'"):
        try:
            with open_entry(paths, crash_id) as entry:
                stored = entry.stored_bytes()
                if stored is not None and entry.try_lock() and entry.read().core.path is None:
                    entry.drop_core()
                    freed += stored
        except (CrashdError, OSError):
            continue  # `verify` tells of it
    return freed
