"""What the watch of kernel dumps knows, is told to do, and tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.symbols import SymbolState
from crashd.domain.crash.model import Crash, State
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.keep.kernel import KernelPolicy
from crashd.store.kerneldumps import Seen

SETTLE_NS = 10 * 10**9
"""A dump of a final name that looks cut may be on its way here; and a log comes after its dump."""


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
    removal_failed: bool = False
    log_pending: bool = False
    """There is no log, and the dump was not asked: the log may still be on its way."""

    symbols: SymbolState = field(default_factory=SymbolState)

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
    vmlinux_dirs: tuple[str, ...] = ()
    """Where kernels' vmlinux files are looked for, beside the usual places."""
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
    analysed: Callable[[str, float], None]
    """Told of each dump that a vmlinux was tried on: `done` or `failed`, and seconds."""
    resolve: Callable[[], DumpSettings]
    """Asked before each scan: the makers' own files decide with, and may have been changed."""
    scanned: Callable[[], None]
    """Called after each scan, for what else wants doing now and then."""
