"""What the watch of kernel dumps knows, is told to do, and tells."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.domain.crash.model import Crash, State
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.kdump.record import Look
from crashd.domain.kdump.vmcore import Completeness
from crashd.domain.keep.kernel import KernelPolicy
from crashd.store.kerneldumps import Seen

SETTLE_NS = 10 * 10**9
"""A dump of a final name that looks cut may be on its way here; and a log comes after its dump."""


TRY_AGAIN_NS = 600 * 10**9
TRY_AGAIN_MAX = 6
"""How often a dump is judged again for which no worker could be had."""


@dataclass(slots=True)
class Known:
    """A dump's directory as it was when last looked at."""

    root: str
    seen: Seen
    told: DumpDirectory
    changed_at_ns: int
    """Monotonic; when a change was last noticed."""
    crash_id: str | None = None
    state: State = State.CAPTURING
    growing: bool = True
    first_seen_ns: int = 0
    time_ns: int = 0
    sure: bool = False
    """Its end was seen."""
    maybe: bool = False
    """Nothing speaks against it, but its end could not be seen."""
    try_again: int = 0
    """How many more times to look whether it can be; TRY_AGAIN_NS after the last."""
    looked_at_ns: int = 0
    """Monotonic; when the dump itself was judged."""
    removal_failed: bool = False
    log_pending: bool = False
    """There is no log, and the dump was not asked: the log may still be on its way."""

    def take_verdict(self, look: Look) -> None:
        """Note what a look says of the dump itself."""
        verdict, now_ns = look.verdict, time.monotonic_ns()
        self.sure = verdict is not None and verdict.sure
        self.maybe = (
            verdict is not None
            and verdict.completeness is Completeness.COMPLETE
            and not verdict.sure
        )
        first = not self.looked_at_ns
        self.looked_at_ns = now_ns
        if not (self.maybe and look.try_again):
            self.try_again = 0
        else:
            self.try_again = TRY_AGAIN_MAX if first else max(0, self.try_again - 1)

    def is_due_again(self, now_ns: int) -> bool:
        """Tell whether a dump of which it is not known should be judged once more."""
        return self.try_again > 0 and now_ns - self.looked_at_ns >= TRY_AGAIN_NS

    def is_active(self, now_ns: int) -> bool:
        """Tell whether it is worth looking at again before anything says so."""
        return self.growing or self.log_pending or now_ns - self.changed_at_ns < SETTLE_NS


@dataclass(frozen=True, slots=True)
class DumpSettings:
    """What the configuration and the makers' own files say."""

    paths: tuple[Path, ...] = ()
    rescan_ns: int = 60 * 10**9
    analysis: AnalysisOptions | None = None
    """How a log is taken out of a dump; None: not at all."""
    worker: AnalysisOptions | None = None
    """How a compressed dump is read to its end; None: not at all, and it is not known."""
    policy: Callable[[int], KernelPolicy] = field(default=lambda total: KernelPolicy())
    """What is kept on a file system of so many bytes."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told; all of them from the thread."""

    recorded: Callable[[Crash], None]
    finished: Callable[[str], None]
    changed: Callable[[Crash], None]
    known: Callable[[], Sequence[Mapping[str, Any]]]
    """Gives the kernel crashes that the index has."""
    counted: Callable[[Mapping[str, int]], None]
    """Told how many dumps there are in which state."""
    deleted: Callable[[str, int], None]
    """Told of each dump that retention deleted: the limit that asked for it, and bytes freed."""
    resolve: Callable[[], DumpSettings]
    """Asked before each scan: the makers' own files decide with, and may have been changed."""
    scanned: Callable[[], None]
    """Called after each scan, for what else wants doing now and then."""
