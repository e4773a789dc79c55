"""Choose the dump that gets symbols next, and record them: one dump at a time, between looks at the
directories, because a dump that is being written must be noticed in the meantime.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.dumpfiles import opened_files
from crashd.daemon.kernel.settings import DumpSettings
from crashd.daemon.kernel.symbols import (
    ModuleFinder,
    SymbolState,
    VmlinuxFinder,
    WantedKernel,
    no_symbols,
    not_readable,
    read_symbols,
)
from crashd.domain.cause.analysis import AnalysisState
from crashd.domain.crash.model import Crash, State
from crashd.domain.kdump.symbols import (
    DONE,
    FAILED,
    NONE,
    Symbols,
    add_symbols,
    keep_symbols,
    modules_in_log,
)
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store import entry as entries
from crashd.store.entry import open_entry
from crashd.store.kerneldumps import DumpRoot
from crashd.store.paths import Paths
from crashd.store.vmlinuxfiles import VmlinuxSearch

if TYPE_CHECKING:
    from crashd.daemon.kernel.book import DumpBook, Known

log = logging.getLogger("crashd.kdump")

_NO_KERNEL = WantedKernel(None, None, None)
_HERE = (State.COMPLETE, State.INCOMPLETE)
ASKED_MAX = 1000
ASKED_WAIT_NS = 30 * 10**9
"""How long one that was asked for may wait for the look at a dump that has just changed."""


class SymbolWork:
    """The part of the dumps' thread that looks for symbols; other threads only `ask`."""

    def __init__(self, paths: Paths, indexer: Indexer, exporter: Exporter) -> None:
        self._paths = paths
        self._indexer = indexer
        self._exporter = exporter
        self._settings = DumpSettings()
        self._finder = VmlinuxFinder(paths.root, ())
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}
        """When each was asked for, in monotonic nanoseconds."""
        self._waiting = False
        """Whether each that was asked for waits until its dump was looked at again."""
        self._untried: list[tuple[str, bytes]] | None = None
        """Dumps that are still to be tried since the last scan; None: all of them."""

    def ask(self, crash_id: str) -> None:
        """Look for one dump's symbols before all others."""
        with self._lock:
            if len(self._asked) < ASKED_MAX:
                self._asked.setdefault(crash_id, time.monotonic_ns())
                self._waiting = False

    @property
    def pending(self) -> bool:
        """Whether there may be more work right now."""
        with self._lock:
            return bool(self._untried) or (bool(self._asked) and not self._waiting)

    @property
    def waiting(self) -> bool:
        """Whether there will be work when dumps that have changed were looked at again."""
        with self._lock:
            return bool(self._asked)

    def begin_scan(self, settings: DumpSettings) -> None:
        """Look for every vmlinux again, because one may have arrived."""
        self._settings = settings
        self._finder = self._new_finder()
        self._untried = None

    def _new_finder(self) -> VmlinuxFinder:
        return VmlinuxFinder(self._paths.root, self._settings.vmlinux_dirs)

    def carry(self, crash: Crash, before: Crash | None) -> Crash:
        """Add to a new record what is known about its symbols without opening the dump."""
        crash = keep_symbols(crash, before)
        state = SymbolState.of(crash.kernel or {})
        if self._settings.analysis is None or state.kernel is None:
            return crash
        search = self._finder.find(state.kernel)
        if crash.state not in _HERE or not state.is_news(search):
            return crash
        return add_symbols(crash, no_symbols(state.kernel, search), state.kernel.build_id)

    def next(self, book: "DumpBook") -> None:
        """Read the symbols of one dump at most, which takes longest: the one that was asked for, or
        the next one whose vmlinux is there.
        """
        if self._settings.analysis is None:
            with self._lock:
                self._asked.clear()  # it was turned off after they were asked for
            return
        if (asked := self._take_asked(book)) is not None:
            self._finder = self._new_finder()
            self._symbolise(asked)
            return
        if self._untried is None:
            self._untried = [known.key for known in book.list_all()]
        while self._untried:
            found = book.find(self._untried.pop(0))
            if found is not None and self._is_ready(found) and self._try(found):
                return

    def _take_asked(self, book: "DumpBook") -> "Known | None":
        """Take the first that was asked for whose dump is as it was at the last look, or has kept
        changing for too long.
        """
        with self._lock:
            asked = list(self._asked.items())
            self._waiting = True
        for crash_id, since_ns in asked:
            known = book.find_id(crash_id)
            late = time.monotonic_ns() - since_ns >= ASKED_WAIT_NS
            if known is None or late or _is_unchanged(known):
                with self._lock:
                    self._asked.pop(crash_id, None)
                    self._waiting = False
                if known is not None:
                    return known
        return None

    def _is_ready(self, known: "Known") -> bool:
        settled = not known.growing and not known.log_pending
        return known.crash_id is not None and known.state in _HERE and settled

    def _try(self, known: "Known") -> bool:
        """Look for a dump's symbols if there may be new ones; return whether that took long."""
        kernel = known.symbols.kernel
        if kernel is None:
            return False
        search = self._finder.find(kernel)
        if known.symbols.is_worth(search):
            if not _is_unchanged(known):
                return False  # the next scan looks at it, and then it is tried again
            self._symbolise(known)
            return True
        if known.symbols.is_news(search):
            self._write(known, no_symbols(kernel, search))
            return True
        return False

    def _symbolise(self, known: "Known") -> None:
        kernel = known.symbols.kernel
        if kernel is None or known.state not in _HERE:
            why = "there is no memory image"
            if known.state is State.CAPTURING:
                why = "the dump is being written"
            self._write(known, not_readable(_NO_KERNEL, VmlinuxSearch(), why))
            return
        symbols = self._read(known, kernel, self._finder.find(kernel))
        if symbols.state != NONE:
            self._exporter.analysed(AnalysisState(symbols.state), symbols.seconds)
        if symbols.state == FAILED:
            log.warning("crash %s: no symbols: %s", known.crash_id, symbols.reason)
        self._write(known, symbols)

    def _read(self, known: "Known", kernel: WantedKernel, search: VmlinuxSearch) -> Symbols:
        options, name = self._settings.analysis, known.told.dump
        if options is None or name is None or search.path is None:
            return no_symbols(kernel, search)
        names, frames = self._of_record(known, name)
        modules = ModuleFinder(self._paths.root, self._settings.vmlinux_dirs)
        likely = modules_in_log(frames)
        scratch = self._paths.state_dir
        try:
            with (
                DumpRoot(Path(known.root)) as root,
                root.open(known.seen) as opened,
                opened_files(opened, names, options, scratch) as fds,
            ):
                return read_symbols(fds, kernel, search, options, modules, likely)
        except (OSError, FormatError, CrashdError) as e:
            return not_readable(kernel, search, f"the dump cannot be opened: {reason_of(e)}")

    def _of_record(
        self, known: "Known", name: bytes
    ) -> tuple[tuple[bytes, ...], tuple[Mapping[str, Any], ...]]:
        """Return the names of a dump's files, and the frames of its log, from its record."""
        try:
            with open_entry(self._paths, known.crash_id or "") as entry:
                crash = entry.read()
        except (OSError, CrashdError):
            return (name,), ()
        parts = (crash.kernel or {}).get("dump_parts") or ()
        names = tuple(os.fsencode(part) for part in parts if isinstance(part, str)) or (name,)
        return names, crash.frames

    def _write(self, known: "Known", symbols: Symbols) -> None:
        kernel = known.symbols.kernel or _NO_KERNEL

        def how(crash: Crash) -> Crash:
            return add_symbols(crash, symbols, kernel.build_id)

        known.symbols.state, known.symbols.reason = symbols.state, symbols.reason
        known.symbols.stamp = symbols.stamp
        try:
            _, changed = entries.change(self._paths, known.crash_id or "", how)
        except (OSError, CrashdError) as e:
            log.error("crash %s: its symbols cannot be recorded: %s", known.crash_id, e)
            return
        known.symbols = SymbolState.of(changed.kernel or {})
        self._indexer.changed(changed)
        if symbols.state == DONE:
            log.info("crash %s: symbols by %s", known.crash_id, symbols.vmlinux)


def _is_unchanged(known: "Known") -> bool:
    """Return whether what the last look saw of a dump is settled, and still there."""
    if known.growing or known.log_pending:
        return False
    try:
        with DumpRoot(Path(known.root)) as root:
            return root.look(known.seen.entry.name).stamp == known.seen.stamp
    except (OSError, CrashdError):
        return False
