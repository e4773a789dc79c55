"""Restore records lost in a power cut. The first record of a crash is not synced, because its
process waits: after a power cut it can be empty or missing, and its row in the index, which is
synced, can be all that is left of it. A disk can damage a record, too, and earlier crashds wrote
some that are too large.
"""

import contextlib
import json
import os
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from crashd.domain.crash.model import (
    BOOT_UNKNOWN,
    ID_PATTERN,
    SCHEMA,
    Core,
    Crash,
    Kind,
    State,
    from_json,
)
from crashd.errors import CrashdError, FormatError, NewerError, NotFoundError
from crashd.store.entry import (
    CORE,
    RECORD,
    RECORD_MAX,
    RECORD_STAGED,
    Entry,
    create,
    open_entry,
)
from crashd.store.index import Index
from crashd.store.paths import Paths

_COLUMNS = ("doc", "time_ns", "token", "sequence", "owner_uid")


def restore_record(paths: Paths, index: Index, crash_id: str) -> bool:
    """Restore the record of a crash if it is missing or cannot be read, on disk on return: from the
    record that was about to replace it, or else from the index, or else from its id. Return whether
    that was needed. A newer crashd's record stays as it is, and so does one whose writer lives.

    Raises:
        CrashdError: the store or the index cannot be read.
        OSError: the disk is full, read-only or broken.

    """
    try:
        entry = open_entry(paths, crash_id)
    except NotFoundError:
        crash = _known(index, crash_id)
        with create(paths, crash) as entry:
            entry.write(crash, sync=True)
        return True
    with entry:
        if _is_sound(entry) or not entry.try_lock():
            return False
        if _is_sound(entry):  # a writer finished it before we got the lock
            return False
        names = entry.file_names()
        if RECORD not in names and CORE in names:  # an interrupted deletion
            return False
        if _is_staged(entry):
            os.rename(RECORD_STAGED, RECORD, src_dir_fd=entry.fd, dst_dir_fd=entry.fd)
            os.fsync(entry.fd)
        else:
            entry.write(_known(index, crash_id), sync=True)
    return True


def _is_sound(entry: Entry) -> bool:
    try:
        entry.read()
    except NewerError:
        return True
    except (FormatError, NotFoundError):
        return False
    return True


def unreadable(entry: Entry, error: CrashdError) -> Crash:
    """Build a record from what is known without one: the id's contents and the core's size.

    Raises:
        FormatError: the id contains no time.

    """
    stored = entry.stored_bytes()
    crash = _of_id(entry.id)
    return replace(
        crash,
        state=State.LOST if stored is None else State.TRUNCATED,
        capture=replace(crash.capture, reason=f"the record cannot be read: {error}"[:500]),
        core=Core() if stored is None else Core(CORE, stored_bytes=stored),
    )


def _is_staged(entry: Entry) -> bool:
    with contextlib.suppress(CrashdError, ValueError, RecursionError):
        raw = entry.read_file(RECORD_STAGED, RECORD_MAX)
        return raw is not None and from_json(json.loads(raw)).id == entry.id
    return False


def _known(index: Index, crash_id: str) -> Crash:
    sql = f"SELECT {', '.join(_COLUMNS)} FROM crash WHERE id = ?"
    for doc, *values in index.fetch(sql, [crash_id]):
        document: dict[str, Any] = {**json.loads(doc), "schema": SCHEMA}
        with contextlib.suppress(ValueError):
            document["argv"] = shlex.split(str(document.get("cmdline") or ""))
        return from_json(document | dict(zip(_COLUMNS[1:], values, strict=True)))
    return _of_id(crash_id)


def _of_id(crash_id: str) -> Crash:
    if not ID_PATTERN.fullmatch(crash_id):
        raise FormatError(f"{crash_id!r} is not a crash id")
    stamp, boot, pid, _ = crash_id.split("-")
    try:
        time = datetime.strptime(stamp, "%Y%m%dt%H%M%S").replace(tzinfo=UTC)
    except ValueError as e:
        raise FormatError(f"crash id {crash_id} has no time") from e
    return Crash(
        crash_id,
        Kind.PROCESS,
        State.CAPTURING,
        int(time.timestamp()) * 10**9,
        boot + BOOT_UNKNOWN[len(boot) :],
        pid=int(pid) or None,
    )
