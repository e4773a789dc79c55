"""Deleting kernel dumps: the plan is domain/kernelretention.py's, the record outlives its dump."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crashd.domain.crash.model import State
from crashd.domain.keep.kernel import Deletion, KernelDump, plan_retention
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import CrashdError, FormatError, NotFoundError
from crashd.store.kerneldumps import DumpRoot

if TYPE_CHECKING:
    from crashd.daemon.kernel.dumpstate import Known
    from crashd.daemon.kernel.watch import DumpWatch

log = logging.getLogger("crashd.kdump")


def expire(watch: "DumpWatch", root: DumpRoot, dumps: Sequence["Known"]) -> None:
    """Delete what the policy gives up of the dumps of one directory."""
    by_id = {
        known.crash_id: known for known in dumps if known.crash_id and not known.removal_failed
    }
    pinned: set[str] = set()
    while True:
        plan = _plan(watch, root, by_id, pinned)
        # asked only of those that are to go: a pin is in the record, not in memory
        held = {deletion.key for deletion in plan if _is_pinned(watch, deletion.key)}
        if not held:
            break
        pinned |= held
    for deletion in plan:
        _delete(watch, root, by_id[deletion.key], deletion)


def _plan(
    watch: "DumpWatch", root: DumpRoot, by_id: dict[str, "Known"], pinned: set[str]
) -> tuple[Deletion, ...]:
    dumps = [
        KernelDump(
            key=crash_id,
            time_ns=known.time_ns,
            seen_ns=known.first_seen_ns,
            size_bytes=known.told.size_bytes,
            complete=known.state is State.COMPLETE and known.sure,
            maybe=known.maybe,
            pinned=crash_id in pinned,
            capturing=known.growing or known.state is State.CAPTURING,
        )
        for crash_id, known in by_id.items()
    ]
    total, free = root.space()
    return plan_retention(dumps, free, watch.settings.policy(total), time.time_ns())


def _is_pinned(watch: "DumpWatch", crash_id: str) -> bool:
    crash = watch.read(crash_id)
    return crash is not None and crash.pinned


def _delete(watch: "DumpWatch", root: DumpRoot, known: "Known", deletion: Deletion) -> None:
    """Delete one dump; the record first, so that it never names what is no longer there."""
    crash = watch.read(deletion.key)
    if crash is None:
        return
    name = known.seen.entry.name
    try:
        watch.write_state(crash.id, State.EVICTED, f"deleted by retention: {deletion.why}")
    except (CrashdError, OSError) as e:
        log.warning("kernel dump %s is not deleted: %s, ignoring", name.decode(), e)
        return
    try:
        freed, left = root.remove(name, known.seen.inode)
    except NotFoundError:
        freed, left = 0, ()  # somebody was faster
    except (FormatError, OSError) as e:
        log.warning("kernel dump %s cannot be deleted: %s, ignoring", name.decode(), e)
        watch.write_state(crash.id, crash.state, crash.capture.reason)
        known.removal_failed = True
        return
    log.info("kernel dump %s deleted (%s): %s", name.decode(), format_size(freed), deletion.why)
    if left:
        files = ", ".join(printable(file[:64]) for file in left[:4])
        log.warning(
            "the directory of kernel dump %s stays: no maker of dumps wrote %s",
            name.decode(),
            files,
        )
    known.state = State.EVICTED
    watch.forget((known.root, name))
    watch.listeners.deleted(deletion.reason.value, freed)
