"""Crashes that never reached crashd, from the kernel's own log: each gets a record, too."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from crashd.daemon.after.faults import FaultLines
from crashd.daemon.kernel.side import KernelSide
from crashd.domain.crash.losses import LogRecord, Loss, find_loss
from crashd.edge.host.kmsg import Kmsg
from crashd.errors import UnavailableError, reason_of
from crashd.registration import is_owned
from crashd.store.paths import Paths
from crashd.store.statefile import read_state, write_state

log = logging.getLogger("crashd.losses")

BATCH_MAX = 256
"""Records read in one turn of the daemon's loop."""


@dataclass(frozen=True, slots=True)
class LostCrash:
    """A crash that the kernel did not hand over."""

    loss: Loss
    time_ns: int
    """CLOCK_REALTIME."""
    token: str
    """Identifies the record; the same each time the record is read."""


class LossWatch:
    """Follows the log from the point where the last daemon of this boot stopped."""

    def __init__(self, paths: Paths, boot_id: str, kernel: KernelSide, faults: FaultLines) -> None:
        """`kernel` and `faults` receive every record; `kernel` says which one the next daemon must
        read again.
        """
        self._faults = faults
        self._paths = paths
        self._path = paths.kernel_log_state
        self._boot_id = boot_id
        self._kernel = kernel
        self._log: Kmsg | None = None
        self._since_ns = time.monotonic_ns()
        self._sequence = self._saved = -1

    def open(self, passed: int | None = None) -> Kmsg | None:
        """Open the log for a selector to wait on; None if there is no log. `passed` is its
        descriptor, if systemd keeps it for us.
        """
        match read_state(self._path):
            case {"boot_id": self._boot_id, "sequence": int(sequence)}:
                self._since_ns, self._sequence = 0, sequence
            case {"boot_id": str(), "sequence": int()}:
                self._since_ns = 0  # of another boot: every record of this one is new
        self._saved = self._sequence
        try:
            self._log = Kmsg(passed)
        except UnavailableError as e:
            log.warning("%s: crashes that the kernel drops are not recorded, ignoring", e)
        return self._log

    def read(self) -> Iterator[LostCrash]:
        """Read new records of the log, and yield the crashes that they report as lost.

        Raises:
            UnavailableError: the log cannot be read any more.

        """
        if self._log is None:
            return
        try:
            records = self._log.read(BATCH_MAX)
        except OSError as e:
            raise UnavailableError(f"cannot read the kernel's log: {reason_of(e)}") from e
        for record in records:
            if record.sequence > self._sequence:
                self._sequence = record.sequence
                # records from before crashd's first start: crashd could not catch those crashes
                if record.monotonic_ns >= self._since_ns:
                    self._kernel.heard(record)
                    self._faults.hear(record, _time_of(record))
                    if (lost := self._find_lost(record)) is not None:
                        yield lost

    def _find_lost(self, record: LogRecord) -> LostCrash | None:
        loss = find_loss(record.text)
        if loss is None or not is_owned(self._paths):  # another tool catches crashes
            return None
        token = f"kmsg-{self._boot_id[:8]}-{record.sequence}"
        return LostCrash(loss, _time_of(record), token)

    def save(self) -> None:
        """Save how far the log was read, if that changed."""
        pending = self._kernel.pending_from
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
        """Save the position and close the log."""
        if self._log is not None:
            self.save()
            self._log.close()
            self._log = None


def _time_of(record: LogRecord) -> int:
    """Return the time of a record of this boot (CLOCK_REALTIME)."""
    return time.time_ns() - max(0, time.monotonic_ns() - record.monotonic_ns)
