"""Delete kernel dumps by the plan of domain/keep/kernel.py; the record outlives its dump."""

import errno
import logging
import os
import time
from collections.abc import Mapping

from crashd.daemon.kernel.book import DumpBook, Known
from crashd.daemon.kernel.settings import DumpSettings
from crashd.domain.crash.model import Kind, State
from crashd.domain.kdump.ready import ALLOW_HINT
from crashd.domain.keep.kernel import DumpDeletion, KernelDump, plan_retention
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, FormatError, NotFoundError
from crashd.store.kerneldumps import DumpRoot

log = logging.getLogger("crashd.kdump")


class DumpRetention:
    """Deletes the dumps that the policy gives up."""

    def __init__(self, book: DumpBook, exporter: Exporter) -> None:
        self._book = book
        self._exporter = exporter

    def meet(self, root: DumpRoot, settings: DumpSettings) -> None:
        """Meet the limits of one directory's file system."""
        dumps = self._book.list_of(os.fspath(root.path))
        by_id = {
            known.crash_id: known for known in dumps if known.crash_id and not known.removal_failed
        }
        pinned: set[str] = set()
        while True:
            plan = _plan(root, settings, by_id, pinned)
            # Read only the records of dumps due for deletion, so that a thousand dumps stay cheap.
            held = {deletion.key for deletion in plan if self._book.is_pinned(deletion.key)}
            if not held:
                break
            pinned |= held
        for deletion in plan:
            self._delete(root, by_id[deletion.key], deletion)

    def _delete(self, root: DumpRoot, known: Known, deletion: DumpDeletion) -> None:
        """Delete one dump; change its record first, so that it never names a deleted dump."""
        crash = self._book.read(deletion.key)
        if crash is None:
            return
        name = known.seen.entry.name
        try:
            why = f"deleted by retention: {deletion.why}"
            self._book.write_state(crash.id, State.EVICTED, why)
        except (CrashdError, OSError) as e:
            log.warning("kernel dump %s is not deleted: %s, ignoring", name.decode(), e)
            return
        try:
            freed, left = root.remove(name, known.seen.inode)
        except NotFoundError:
            freed, left = 0, ()  # another program was faster
        except (FormatError, OSError) as e:
            hint = f" ({ALLOW_HINT} lets it)" if getattr(e, "errno", 0) == errno.EROFS else ""
            log.warning("kernel dump %s cannot be deleted: %s%s, ignoring", name.decode(), e, hint)
            self._book.write_state(crash.id, crash.state, crash.capture.reason)
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
        self._book.forget(known)
        self._exporter.deleted(Kind.KERNEL, deletion.reason, freed)


def _plan(
    root: DumpRoot, settings: DumpSettings, by_id: Mapping[str, Known], pinned: set[str]
) -> tuple[DumpDeletion, ...]:
    dumps = [
        KernelDump(
            key=crash_id,
            time_ns=known.time_ns,
            seen_ns=known.first_seen_ns,
            size_bytes=known.told.size_bytes,
            complete=known.state is State.COMPLETE and known.sure,
            maybe=known.maybe,
            pinned=crash_id in pinned,
            capturing=known.growing or not known.state.is_final,
        )
        for crash_id, known in by_id.items()
    ]
    total, free = root.space()
    return plan_retention(dumps, free, settings.policy(total), time.time_ns())
