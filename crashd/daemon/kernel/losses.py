"""Crashes that never reached us, from the kernel's own log: each is a record, too."""

import logging
import time
from collections.abc import Callable

from crashd.domain.crash.losses import LogRecord, Loss, find_loss
from crashd.edge.host.kmsg import KernelLog
from crashd.errors import UnavailableError, reason_of
from crashd.store.paths import Paths
from crashd.store.statefile import read_state, write_state

log = logging.getLogger("crashd.losses")

BATCH_MAX = 256
"""Records read in one turn of the daemon's loop."""


class LossWatch:
    """Follows the log from where the last daemon of this boot left it."""

    def __init__(
        self,
        paths: Paths,
        boot_id: str,
        *,
        is_ours: Callable[[], bool],
        lost: Callable[[Loss, int, str], None],
        heard: Callable[[LogRecord], None],
        pending_from: Callable[[], int | None],
    ) -> None:
        """`is_ours` tells whether crashes are crashd's to catch, `lost` is told of each loss, its
        time (CLOCK_REALTIME ns), and a token of its own. `heard` is told of every record, and
        `pending_from` tells which one must be heard again by the next daemon.
        """
        self._path = paths.kernel_log_state
        self._boot_id = boot_id
        self._is_ours = is_ours
        self._lost = lost
        self._heard = heard
        self._pending_from = pending_from
        self._log: KernelLog | None = None
        self._since_ns = time.monotonic_ns()
        self._sequence = self._saved = -1

    def open(self, passed: int | None = None) -> KernelLog | None:
        """Open the log, for a selector to wait for; None where there is none. `passed` is its
        descriptor, where systemd keeps that for us.
        """
        match read_state(self._path):
            case {"boot_id": self._boot_id, "sequence": int(sequence)}:
                self._since_ns, self._sequence = 0, sequence
            case {"boot_id": str(), "sequence": int()}:
                self._since_ns = 0  # of another boot: all of this one's is news
        self._saved = self._sequence
        try:
            self._log = KernelLog(passed)
        except UnavailableError as e:
            log.warning("%s: crashes that the kernel drops are not recorded, ignoring", e)
        return self._log

    def readable(self) -> bool:
        """Take what was logged; False when the log cannot be read any more."""
        if self._log is None:
            return False
        try:
            records = self._log.read(BATCH_MAX)
        except OSError as e:
            log.warning("cannot read the kernel's log: %s, ignoring it", reason_of(e))
            return False
        for record in records:
            if record.sequence > self._sequence:
                self._sequence = record.sequence
                # what was logged before crashd was here for the first time was not its to catch
                if record.monotonic_ns >= self._since_ns:
                    self._heard(record)
                    self._take(record)
        return True

    def _take(self, record: LogRecord) -> None:
        loss = find_loss(record.text)
        if loss is not None and self._is_ours():
            age_ns = max(0, time.monotonic_ns() - record.monotonic_ns)
            token = f"kmsg-{self._boot_id[:8]}-{record.sequence}"
            self._lost(loss, time.time_ns() - age_ns, token)

    def save(self) -> None:
        """Write down how far the log was read, where that changed."""
        pending = self._pending_from()
        sequence = self._sequence if pending is None else min(pending - 1, self._sequence)
        if sequence == self._saved:
            return
        try:
            write_state(self._path, {"boot_id": self._boot_id, "sequence": sequence})
        except OSError as e:
            log.error("cannot write %s: %s, ignoring", self._path, reason_of(e))
        else:
            self._saved = sequence

    def close(self) -> None:
        """Save, and close the log."""
        if self._log is not None:
            self.save()
            self._log.close()
            self._log = None
