"""Salvage of an entry whose writer died: keep the data on disk, and record its state."""

import errno
import os
from dataclasses import replace

from crashd.domain.crash import record
from crashd.domain.crash.boundedrecord import bounded
from crashd.domain.crash.model import Core, Crash, Engine, State
from crashd.domain.elf import elfcore
from crashd.errors import CrashdError, FormatError, NotFoundError
from crashd.store import corefile
from crashd.store.entry import CORE, Entry


def salvage(crash: Crash, entry: Entry, reason: str) -> Crash:
    """Finish an entry left in state `capturing`; return the final record, which is on disk.

    A core with all its bytes is complete, even though the writer died. A cut core is truncated, and
    is made readable up to the cut. Without a core the crash is `lost`, with what is known about it.
    """
    partial = entry.open_partial()
    if partial is not None:
        try:
            corefile.repair(partial)
            os.fsync(partial)
        finally:
            os.close(partial)
        entry.commit_core()
    try:
        fd = entry.open_core()
    except NotFoundError:
        return _finish(crash, entry, Core(), State.LOST, reason)
    try:
        size, raw = _measure(fd)
        stored = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size == 0:
        entry.drop_core()
        return _finish(crash, entry, Core(), State.LOST, reason)
    expected: int | None = None
    try:
        head = elfcore.parse_head(raw)
        expected = head.expected_size
        if not crash.threads or crash.si_code is None:
            crash = record.add_head(crash, head)
    except FormatError:
        pass  # cut within its headers: the bytes are kept anyway
    complete = expected is not None and size >= expected
    core = Core(CORE, size, stored, size, expected, complete)
    return _finish(crash, entry, core, State.COMPLETE if complete else State.TRUNCATED, reason)


def _measure(fd: int) -> tuple[int, bytes]:
    """Return the core's size, and up to HEAD_MAX of its first bytes."""
    size, head = 0, bytearray()
    try:
        for chunk in corefile.read_core(fd):
            size += len(chunk)
            if len(head) < elfcore.HEAD_MAX:
                head += chunk[: elfcore.HEAD_MAX - len(head)]
    except FormatError:
        pass  # damaged from here on: the part before it is readable
    return size, bytes(head)


def _is_written(entry: Entry, crash: Crash) -> bool:
    """Return whether the record is in its place: then only syncing its directory failed."""
    try:
        return entry.read() == crash
    except CrashdError:
        return False


def _finish(crash: Crash, entry: Entry, core: Core, state: State, reason: str) -> Crash:
    """Write the final record and return it; on a full disk, drop the core to make room for it."""
    crash = replace(
        crash,
        state=state,
        core=core,
        capture=replace(
            crash.capture,
            engine=Engine.STREAM if core.path else Engine.NONE,
            reason=None if core.complete else reason,
        ),
    )
    crash, _ = bounded(crash)  # as it will be read back
    try:
        entry.write(crash, sync=True)
    except OSError as e:
        if e.errno != errno.ENOSPC or not core.path or _is_written(entry, crash):
            raise
        # a full disk: the record is worth more than the core, so it takes the core's space
        entry.drop_core()
        text = f"{reason}; the core was given up for space to keep this record"
        return _finish(crash, entry, Core(), State.LOST, text)
    return crash
