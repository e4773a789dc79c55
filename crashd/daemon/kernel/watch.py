"""Watch for kernel dumps, read, record and delete them. All of it runs in its own thread because a
network file system may be slow or hang.

inotify says when to look, and a scan says what is there, so nothing is missed if events get lost
(overflow, NFS, a mount over the directory). The thread looks at a directory that is being written
every POLL_NS until it is complete, or has not changed for WRITER_GONE_NS.

Over 400 lines, because it is one thread and its state.
"""

import contextlib
import logging
import os
import select
import threading
import time
from dataclasses import replace
from pathlib import Path

from crashd.daemon.kernel.book import SETTLE_NS, WRITER_GONE_NS, DumpBook, Key, Known
from crashd.daemon.kernel.look import is_unfinished, look_into
from crashd.daemon.kernel.reports import ReportBook
from crashd.daemon.kernel.retention import DumpRetention
from crashd.daemon.kernel.settings import DumpSettings, KernelSettings
from crashd.daemon.kernel.symbolwork import SymbolWork
from crashd.domain.crash.model import State
from crashd.domain.kdump.ready import assess
from crashd.domain.kdump.record import Look
from crashd.domain.kdump.vmcore import Completeness
from crashd.domain.text import printable
from crashd.edge.host.inotify import DirectoryWatch
from crashd.edge.host.kdumpfacts import read_facts
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, FormatError, NotFoundError, UnavailableError, reason_of
from crashd.store.kerneldumps import DumpRoot, Seen
from crashd.store.paths import Paths

log = logging.getLogger("crashd.kdump")

POLL_NS = 400 * 10**6
"""Interval between looks at a dump that is being written."""
SCAN_SHARE = 10
"""Scans take a tenth of the time at most, whatever happens in the directory."""
SCAN_MIN_NS = 200 * 10**6
FOREIGN_TOLD_MAX = 20
"""Untrusted names that are logged, one line each; the others are only counted."""


class DumpWatch:
    """The thread. `start` it, `allow` it to begin, `stop` it."""

    def __init__(
        self,
        paths: Paths,
        book: DumpBook,
        symbols: SymbolWork,
        reports: ReportBook,
        kernel_settings: KernelSettings,
        exporter: Exporter,
    ) -> None:
        self._paths = paths
        self._book = book
        self._symbols = symbols
        self._reports = reports
        self._kernel_settings = kernel_settings
        self._exporter = exporter
        self._retention = DumpRetention(book, exporter)
        self._settings = DumpSettings()
        self._foreign: set[Key] = set()
        self._foreign_count = 0
        self._unseen: dict[str, int] = {}
        """Names of each directory that were not examined."""
        self._watches: dict[str, DirectoryWatch | None] = {}
        self._dirty = True
        self._loaded = False
        self._news = False
        self._warned: dict[str, str] = {}
        """The last warning about each directory, so that it is logged once."""
        self._next_scan_ns = self._scanned_ns = self._scan_took_ns = 0
        self._looked_ns = 0
        """Time spent in looks at dumps. Each dump is looked at once: the next scan is cheaper."""
        self._wake_out, self._wake_in = -1, -1
        self._stopping = threading.Event()
        self._allowed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdump", daemon=True)

    # -- from other threads ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which waits for `allow`."""
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread.start()

    def allow(self) -> None:
        """Begin: the index now has all crashes on disk."""
        self._allowed.set()

    def look(self) -> None:
        """Scan everything soon, with the settings at that time."""
        self._dirty = True
        self._wake()

    def analyze(self, crash_id: str) -> bool:
        """Look for a dump's symbols before all others; False if the id is unknown, or analysis is
        turned off.
        """
        if self._book.find_id(crash_id) is None or self._settings.analysis is None:
            return False
        self._symbols.ask(crash_id)
        self._dirty = True  # its files may have been replaced since the last scan
        self._wake()
        return True

    def stop(self) -> None:
        """End the thread; leave it alone if it hangs in a network file system."""
        self._stopping.set()
        self._allowed.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _wake(self) -> None:
        if self._wake_out >= 0:
            with contextlib.suppress(BlockingIOError):  # the thread is awake already
                os.write(self._wake_out, b"\0")

    # -- the loop ----------------------------------------------------------------------------------

    def _run(self) -> None:
        self._allowed.wait()
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as e:  # boundary: what one directory did must not cost the others
                known = isinstance(e, CrashdError | OSError)
                log.error("kernel dumps: %s, trying again", e, exc_info=not known)
                self._stopping.wait(1)
        for watch in self._watches.values():
            if watch is not None:
                watch.close()

    def _turn(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_scan_ns or (self._dirty and now_ns >= self._earliest_ns()):
            self._dirty, self._looked_ns = False, 0
            self._scan_all()
            self._scan_took_ns = time.monotonic_ns() - now_ns - self._looked_ns
            self._scanned_ns = time.monotonic_ns()
            self._next_scan_ns = self._scanned_ns + self._settings.rescan_ns
        else:
            self._poll_active()
            self._dirty = self._dirty or self._news  # one dump more: another may have to go
        self._symbols.next(self._book)
        if self._news:
            self._news = False
            self._count()
        self._wait()

    def _earliest_ns(self) -> int:
        return self._scanned_ns + max(SCAN_MIN_NS, SCAN_SHARE * self._scan_took_ns)

    def _wait(self) -> None:
        now_ns = time.monotonic_ns()
        due_ns = self._next_scan_ns
        if self._dirty:
            due_ns = self._earliest_ns()
        if self._book.list_active(now_ns) or self._symbols.waiting:
            due_ns = min(due_ns, now_ns + POLL_NS)
        if self._symbols.pending:
            due_ns = now_ns
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        sources = {w.fileno(): w for w in self._watches.values() if w is not None and w.alive}
        for fd in sources:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(max(0.0, (due_ns - now_ns) / 1e6)):
            if fd == self._wake_in:
                os.read(fd, 4096)
            else:
                sources[fd].read()

    def _event(self, name: str) -> None:
        del name  # a scan finds out what changed
        self._dirty = True

    def _overflow(self) -> None:
        self._dirty = True

    # -- scanning ----------------------------------------------------------------------------------

    def _scan_all(self) -> None:
        if not self._loaded:
            self._book.load()
            self._loaded = True
        self._foreign_count = 0
        self._settings = self._kernel_settings.resolve()
        self._symbols.begin_scan(self._settings)
        wanted = {os.fspath(path) for path in self._settings.paths}
        for name in [name for name in self._watches if name not in wanted]:
            self._disarm(name)
        for path in self._settings.paths:
            self._scan(path)
        self._count()
        self._tell_readiness()
        self._reports.read_pstore()  # after the scan, so that dumps of the same crash are known

    def _tell_readiness(self) -> None:
        readiness = assess(read_facts(self._paths.root))
        self._exporter.kdump_ready(readiness.ready, readiness.crashkernel_bytes)

    def _scan(self, path: Path) -> None:
        """Read one directory: meet each dump, mark missing ones, apply retention.

        The newest dumps come first, because the book is bounded. Retention leaves a directory alone
        that other users can change.
        """
        root_name = os.fspath(path)
        self._arm(path)
        try:
            root = DumpRoot(path)
        except NotFoundError:
            self._disarm(root_name)
            self._book.keep_present(root_name, ())
            return
        except UnavailableError as e:
            self._warn(root_name, f"{e}: kernel dumps there are not seen")
            return
        with root:
            found = sorted(root.list(), key=lambda seen: -seen.entry.mtime_ns)
            self._tell_unseen(root_name, root.unseen)
            for seen in found:
                if self._stopping.is_set():
                    return
                self._meet(root, seen)
            if not root.unseen:  # else a dump may be there without having been seen
                self._book.keep_present(root_name, (seen.entry.name for seen in found))
            self._tell_foreign()
            if root.distrust is None:
                self._warned.pop(root_name, None)
                self._retention.meet(root, self._settings)
            else:
                self._warn(root_name, f"{root_name} {root.distrust}: its dumps are never deleted")

    def _tell_unseen(self, root_name: str, unseen: int) -> None:
        """Count the names that were not examined, and log that there are any, once."""
        if unseen and not self._unseen.get(root_name):
            text = "%s has too many names: %d of them were not examined for kernel dumps, ignoring"
            log.warning(text, root_name, unseen)
        self._unseen[root_name] = unseen

    def _warn(self, root_name: str, text: str) -> None:
        """Log a warning about a directory, unless it was the last one already."""
        if self._warned.get(root_name) != text:
            self._warned[root_name] = text
            log.warning("%s, ignoring", text)

    def _arm(self, path: Path) -> None:
        name = os.fspath(path)
        watch = self._watches.get(name)
        if watch is not None and not watch.is_current():
            self._disarm(name)
            watch = None
        if watch is None and path.is_dir():
            try:
                self._watches[name] = DirectoryWatch(path, self._event, self._overflow)
            except CrashdError as e:
                if name not in self._watches:
                    seconds = self._settings.rescan_ns // 10**9
                    log.warning("%s: looked at every %d s instead, ignoring", e, seconds)
                self._watches[name] = None

    def _disarm(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.close()

    def _meet(self, root: DumpRoot, seen: Seen) -> None:
        key = (os.fspath(root.path), seen.entry.name)
        known = self._book.find(key)
        now_ns = time.monotonic_ns()
        unchanged = known is not None and known.seen.stamp == seen.stamp and known.crash_id
        # A file that grows changes its own stamp, but not its directory's.
        settled = known is not None and known.state is State.COMPLETE and known.sure
        if unchanged and settled and known is not None and not known.is_active(now_ns):
            return
        try:
            self._examine(root, seen, key, known)
        except FileNotFoundError:
            self._dirty = True  # renamed or removed while we looked
        except (OSError, FormatError) as e:
            why = reason_of(e)
            self._distrust(key, f"cannot be read: {why}")

    def _poll_active(self) -> None:
        now_ns = time.monotonic_ns()
        active = self._book.list_active(now_ns)
        for name in {known.root for known in active}:
            try:
                root = DumpRoot(Path(name))
            except CrashdError:
                self._dirty = True
                continue
            with root:
                for known in (known for known in active if known.root == name):
                    try:
                        self._meet(root, root.look(known.seen.entry.name))
                    except FileNotFoundError:
                        self._dirty = True

    def _examine(self, root: DumpRoot, seen: Seen, key: Key, known: Known | None) -> None:
        told = root.classify(seen)
        if told is None or told.faults:
            self._book.drop(key)
            if told is not None:
                self._distrust(key, told.faults[0])
            return
        now_ns = time.monotonic_ns()
        if known is None:
            if self._book.is_full:
                self._foreign_count += 1
                return
            known = self._book.begin(root, seen, told)
            if not known.growing:
                return  # its record is complete
        elif known.told != told or known.seen.inode != seen.inode:
            known.told, known.changed_at_ns = told, now_ns
            if abs(time.time_ns() - told.changed_ns) > WRITER_GONE_NS:
                # A copy that keeps the files' times sets them last: no writer of a dump does so.
                known.changed_at_ns -= WRITER_GONE_NS - SETTLE_NS
        elif known.seen.stamp == seen.stamp and known.crash_id and not known.growing:
            log_due = known.log_pending and now_ns - known.changed_at_ns >= SETTLE_NS
            if not log_due and not known.is_due_again(now_ns):
                return
        elif known.growing and known.crash_id and now_ns - known.changed_at_ns < SETTLE_NS:
            known.seen = seen
            return  # nothing new since the last look
        known.seen = seen
        self._record(root, known, now_ns)

    def _record(self, root: DumpRoot, known: Known, now_ns: int) -> None:
        """Look into the directory, and record what is there."""
        quiet_ns = now_ns - known.changed_at_ns
        unfinished = is_unfinished(root, known.seen, known.told)
        growing = unfinished and quiet_ns < WRITER_GONE_NS
        if growing and known.crash_id is not None and known.state is State.CAPTURING:
            return
        asked = self._settings.analysis if quiet_ns >= SETTLE_NS else None
        # Nothing writes to it any more, so it makes sense to read a compressed dump to its end.
        worker = self._settings.worker if quiet_ns >= SETTLE_NS else None
        begun_ns = time.monotonic_ns()
        look = look_into(
            root,
            known.seen,
            known.told,
            growing=growing,
            analysis=asked,
            worker=worker,
            scratch=self._paths.state_dir,
        )
        self._looked_ns += time.monotonic_ns() - begun_ns
        if not growing and not unfinished and quiet_ns < SETTLE_NS and not _is_whole(look):
            growing = True
            look = look_into(root, known.seen, known.told, growing=True)
        known.growing = growing
        known.take_verdict(look)
        known.log_pending = asked is None and not growing and _wants_log(look, self._settings)
        try:
            self._book.record(known, replace(look, log_pending=known.log_pending))
        except (OSError, CrashdError) as e:
            log.error("a kernel dump cannot be recorded: %s, trying again later", e)
            known.growing = False  # not before the next scan
            return
        self._news = True

    # -- untrusted directories ---------------------------------------------------------------------

    def _distrust(self, key: Key, why: str) -> None:
        self._foreign_count += 1
        if key in self._foreign:
            return
        if len(self._foreign) < FOREIGN_TOLD_MAX:
            self._foreign.add(key)
            log.warning("%s is not a trusted kernel dump: %s, ignoring", printable(key[1]), why)

    def _tell_foreign(self) -> None:
        more = self._foreign_count - FOREIGN_TOLD_MAX
        if more > 0 and ("", b"more") not in self._foreign:
            self._foreign.add(("", b"more"))
            log.warning("%d more directories are not trusted kernel dumps, ignoring", more)

    def _count(self) -> None:
        self._exporter.kernel_dumps(
            self._book.count(), foreign=self._foreign_count, unseen=sum(self._unseen.values())
        )


def _wants_log(look: Look, settings: DumpSettings) -> bool:
    usable = look.verdict is not None and look.verdict.head is not None
    return settings.analysis is not None and usable and not look.log


def _is_whole(look: Look) -> bool:
    """Return whether a dump with its final name is certainly complete."""
    if look.directory.dump is None or look.verdict is None:
        return False
    return look.verdict.completeness is Completeness.COMPLETE and look.verdict.sure
