"""Root's requests on the control socket, passed to the part of the daemon that does the work."""

from crashd.daemon.after.afterwards import Afterwards
from crashd.daemon.after.retention import Spectator
from crashd.daemon.kernel.side import KernelSide
from crashd.store.retention import Outcome


class RootWork:
    """Knows both sides: crashes of processes, and kernel crashes."""

    def __init__(self, kernel: KernelSide, afterwards: Afterwards) -> None:
        self._kernel = kernel
        self._afterwards = afterwards

    def analyze(self, crash_id: str) -> bool:
        """Analyse a crash (again) before all others; return False if that is impossible."""
        return self._kernel.analyze(crash_id) or self._afterwards.analyze(crash_id)

    def vacuum(self, spectator: Spectator, *, dry_run: bool) -> Outcome:
        """Enforce the limits of retention now."""
        return self._afterwards.vacuum(spectator, dry_run=dry_run)
