"""Kernel dumps: watched for, read, recorded and expired, in a thread of their own, for a network
file system may be slow, or never answer.

inotify says when to look, a scan says what there is: so nothing is missed where events get lost
(overflow, NFS, a mount over the directory). A directory that is being written is looked at every
POLL_NS until it is whole, or has not changed for so long that nobody writes it any more.
"""

import contextlib
import logging
import os
import secrets
import select
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crashd.daemon.kernel.dumpstate import SETTLE_NS, DumpSettings, Known, Listeners
from crashd.daemon.kernel.look import is_unfinished, look_into
from crashd.daemon.kernel.retention import expire
from crashd.daemon.kernel.symbols import SymbolState
from crashd.daemon.kernel.symbolwork import SymbolWork
from crashd.domain.crash.model import Crash, State
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.kdump.record import Look, build_record
from crashd.domain.kdump.vmcore import Completeness
from crashd.domain.text import printable
from crashd.edge.host.inotify import DirectoryWatch
from crashd.errors import CrashdError, FormatError, NotFoundError, UnavailableError, reason_of
from crashd.store import entry as entries
from crashd.store.entry import open_entry
from crashd.store.kerneldumps import DumpRoot, Seen
from crashd.store.paths import Paths

log = logging.getLogger("crashd.kdump")

POLL_NS = 400 * 10**6
"""Between two looks at a dump that is being written."""
WRITER_GONE_NS = 300 * 10**9
"""An unfinished dump that has not changed for so long is nobody's."""
SCAN_SHARE = 10
"""Scans take a tenth of the time at most, whatever is going on in the directory."""
SCAN_MIN_NS = 200 * 10**6
FOREIGN_TOLD_MAX = 20
"""Names that are not to be trusted and are told of, one line each; the rest is a number."""
KNOWN_MAX = 20_000


class DumpWatch:
    """The thread. `start` it, `allow` it to begin, `stop` it."""

    def __init__(self, paths: Paths, hostname: bytes, listeners: Listeners) -> None:
        self.paths = paths
        self.known: dict[tuple[str, bytes], Known] = {}
        self.settings = DumpSettings()
        self.listeners = listeners
        self.symbols = SymbolWork(self)
        self._hostname = hostname
        self._foreign: set[tuple[str, bytes]] = set()
        self._foreign_count = 0
        self._watches: dict[str, DirectoryWatch | None] = {}
        self._before: dict[tuple[str, bytes], Mapping[str, Any]] = {}
        self._dirty = True
        self._loaded = False
        self._news = False
        self._missing_told: set[str] = set()
        self._next_scan_ns = self._scanned_ns = self._scan_took_ns = 0
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
        """Begin: the index now has all crashes that are on disk."""
        self._allowed.set()

    def look(self) -> None:
        """Have everything looked at soon, by the settings as they are then."""
        self._dirty = True
        self._wake()

    def analyze(self, crash_id: str) -> bool:
        """Have a dump's symbols looked for before all others; False where none is known by this id,
        or nothing is analysed.
        """
        known = any(known.crash_id == crash_id for known in tuple(self.known.values()))
        if not known or self.settings.analysis is None:
            return False
        self.symbols.ask(crash_id)
        self._wake()
        return True

    def stop(self) -> None:
        """End the thread; one that hangs in a network file system is left to itself."""
        self._stopping.set()
        self._allowed.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _wake(self) -> None:
        if self._wake_out >= 0:
            with contextlib.suppress(BlockingIOError):  # it is awake already
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
            self._dirty = False
            self._scan_all()
            self._scan_took_ns = time.monotonic_ns() - now_ns
            self._scanned_ns = time.monotonic_ns()
            self._next_scan_ns = self._scanned_ns + self.settings.rescan_ns
        else:
            self._poll_active()
            self._dirty = self._dirty or self._news  # one more: another may have to go
        self.symbols.next()
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
        if any(known.is_active(now_ns) for known in self.known.values()):
            due_ns = min(due_ns, now_ns + POLL_NS)
        if self.symbols.pending:
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
        del name  # whatever it is, a scan tells
        self._dirty = True

    def _overflow(self) -> None:
        self._dirty = True

    # -- scanning ----------------------------------------------------------------------------------

    def _scan_all(self) -> None:
        if not self._loaded:
            self._load()
            self._loaded = True
        self._foreign_count = 0
        self.settings = self.listeners.resolve()
        self.symbols.begin_scan()
        wanted = {os.fspath(path) for path in self.settings.paths}
        for name in [name for name in self._watches if name not in wanted]:
            self._disarm(name)
        for path in self.settings.paths:
            self._scan(path)
        self._count()
        self.listeners.scanned()

    def _load(self) -> None:
        """Learn from the index what was known before this daemon started."""
        for row in self.listeners.known():
            kernel = row.get("kernel")
            path = kernel.get("path") if isinstance(kernel, dict) else None
            if isinstance(path, str):
                root, _, name = path.rpartition("/")
                self._before[(root, os.fsencode(name))] = row

    def _scan(self, path: Path) -> None:
        root_name = os.fspath(path)
        self._arm(path)
        try:
            root = DumpRoot(path)
        except NotFoundError:
            self._disarm(root_name)
            self._forget(root_name, set())
            return
        except UnavailableError as e:
            if root_name not in self._missing_told:
                self._missing_told.add(root_name)
                log.warning("%s: kernel dumps there are not seen, ignoring", e)
            return
        with root:
            found = sorted(root.list(), key=lambda seen: -seen.entry.mtime_ns)
            for seen in found:
                if self._stopping.is_set():
                    return
                self._meet(root, seen)
            self._forget(root_name, {seen.entry.name for seen in found})
            self._tell_foreign()
            if root.distrust is None:
                expire(
                    self, root, [known for known in self.known.values() if known.root == root_name]
                )
            elif root_name not in self._missing_told:
                self._missing_told.add(root_name)
                log.warning("%s %s: no dump in it is ever deleted", root_name, root.distrust)

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
                    seconds = self.settings.rescan_ns // 10**9
                    log.warning("%s: looked at every %d s instead, ignoring", e, seconds)
                self._watches[name] = None

    def _disarm(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.close()

    def _meet(self, root: DumpRoot, seen: Seen) -> None:
        key = (os.fspath(root.path), seen.entry.name)
        known = self.known.get(key)
        now_ns = time.monotonic_ns()
        unchanged = known is not None and known.seen.stamp == seen.stamp and known.crash_id
        # A file that grows changes its own stamp, and not its directory's.
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
        active = [known for known in self.known.values() if known.is_active(now_ns)]
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

    def _examine(
        self, root: DumpRoot, seen: Seen, key: tuple[str, bytes], known: Known | None
    ) -> None:
        told = root.classify(seen)
        if told is None or told.faults:
            self.known.pop(key, None)
            if told is not None:
                self._distrust(key, told.faults[0])
            return
        now_ns = time.monotonic_ns()
        if known is None:
            known = self._begin(root, seen, told, key)
            if known is None:
                return
        elif known.told != told or known.seen.inode != seen.inode:
            known.told, known.changed_at_ns = told, now_ns
        elif known.seen.stamp == seen.stamp and known.crash_id and not known.growing:
            if not known.log_pending or now_ns - known.changed_at_ns < SETTLE_NS:
                return
        elif known.growing and known.crash_id and now_ns - known.changed_at_ns < SETTLE_NS:
            known.seen = seen
            return  # nothing new since the last look
        known.seen = seen
        self._record(root, known, now_ns)

    def _begin(
        self, root: DumpRoot, seen: Seen, told: DumpDirectory, key: tuple[str, bytes]
    ) -> Known | None:
        """Make what is known of a directory that is met for the first time."""
        if len(self.known) >= KNOWN_MAX:
            self._foreign_count += 1
            return None
        known = Known(os.fspath(root.path), seen, told, time.monotonic_ns())
        if abs(time.time_ns() - told.changed_ns) > WRITER_GONE_NS:
            known.changed_at_ns -= WRITER_GONE_NS  # nobody has written to it for long
        known.first_seen_ns = time.time_ns()
        self.known[key] = known
        row = self._before.pop(key, None)
        if row is None:
            return known
        kernel = row["kernel"]
        known.crash_id, known.state = row["id"], State(row["state"])
        known.first_seen_ns = kernel.get("first_seen_ns") or known.first_seen_ns
        crashed = kernel.get("crash_time")
        known.time_ns = crashed * 10**9 if isinstance(crashed, int) else known.told.stamp_ns
        known.sure = kernel.get("dump_sure") is True
        known.symbols = SymbolState.of(kernel)
        same = (kernel.get("inode"), kernel.get("changed_ns")) == (seen.inode, told.changed_ns)
        same = same and "dump_sure" in kernel  # an older crashd judged it by its head alone
        if same and known.state in (State.COMPLETE, State.INCOMPLETE):
            known.growing = False
            return None
        return known

    def _record(self, root: DumpRoot, known: Known, now_ns: int) -> None:
        """Look into the directory, and write down what is there."""
        quiet_ns = now_ns - known.changed_at_ns
        unfinished = is_unfinished(root, known.seen, known.told)
        growing = unfinished and quiet_ns < WRITER_GONE_NS
        if growing and known.crash_id is not None and known.state is State.CAPTURING:
            return
        asked = self.settings.analysis if quiet_ns >= SETTLE_NS else None
        look = look_into(root, known.seen, known.told, growing=growing, analysis=asked)
        if not growing and not unfinished and quiet_ns < SETTLE_NS and not _is_whole(look):
            growing = True
            look = look_into(root, known.seen, known.told, growing=True)
        known.growing = growing
        known.sure = look.verdict is not None and look.verdict.sure
        known.log_pending = asked is None and not growing and _wants_log(look, self.settings)
        try:
            crash = self._write(look, known)
        except (OSError, CrashdError) as e:
            log.error("a kernel dump cannot be recorded: %s, trying again later", e)
            known.growing = False  # not before the next scan
            return
        known.crash_id, known.state, known.time_ns = crash.id, crash.state, crash.time_ns
        known.symbols = SymbolState.of(crash.kernel or {})
        self._news = True

    def read(self, crash_id: str) -> Crash | None:
        """Read a record; None where it was deleted by hand."""
        try:
            with open_entry(self.paths, crash_id) as entry:
                return entry.read()
        except CrashdError:
            return None

    def _write(self, look: Look, known: Known) -> Crash:
        """Write down what was seen, and tell of it; under the record's lock, for somebody may pin
        it meanwhile.
        """

        def build(before: Crash | None) -> Crash:
            crash = build_record(
                look,
                before,
                hostname=self._hostname,
                random=secrets.randbits(40),
                seen_ns=known.first_seen_ns,
            )
            return self.symbols.carry(crash, before)

        if known.crash_id is None or self.read(known.crash_id) is None:
            crash = build(None)
            with entries.create(self.paths, crash) as entry:
                entry.write(crash, sync=True)
            self.listeners.recorded(crash)
            if crash.state is not State.CAPTURING:
                self.listeners.finished(crash.id)
            return crash
        before, crash = entries.change(self.paths, known.crash_id, build)
        # told also where it is as it was: who wrote it may have been killed before the index knew
        if crash.state is not State.CAPTURING and State.CAPTURING in (before.state, known.state):
            self.listeners.finished(crash.id)
        else:
            self.listeners.changed(crash)
        return crash

    # -- what is not there, or not ours ------------------------------------------------------------

    def _forget(self, root: str, present: set[bytes]) -> None:
        """Mark what is gone: kdump-tools, Apport or the administrator deleted it."""
        gone = [key for key in self.known if key[0] == root and key[1] not in present]
        for key in gone:
            self.forget(key)
            self._mark_missing(key)
        for key in [key for key in self._before if key[0] == root and key[1] not in present]:
            if self._before[key].get("state") not in (State.EVICTED, State.MISSING):
                self._mark_missing(key)

    def forget(self, key: tuple[str, bytes]) -> None:
        """Take a dump for one that is no longer there, but may come back: a file system can."""
        known = self.known.pop(key)
        if known.crash_id is not None:
            kernel = {"first_seen_ns": known.first_seen_ns}
            row = {"id": known.crash_id, "state": known.state, "kernel": kernel}
            self._before[key] = row

    def _mark_missing(self, key: tuple[str, bytes]) -> None:
        row = self._before.get(key)
        crash = self.read(row["id"]) if row is not None else None
        if row is None or crash is None or crash.state in (State.EVICTED, State.MISSING):
            return
        why = "the dump's directory was deleted, not by crashd"
        log.info("crash %s: %s", crash.id, why)
        self.write_state(crash.id, State.MISSING, why)
        self._before[key] = {**row, "state": State.MISSING}

    def write_state(self, crash_id: str, state: State, why: str | None) -> None:
        """Give a record another state; what is no longer on disk uses no space.

        Raises:
            CrashdError: it is to be evicted, and was pinned meanwhile; or it cannot be read.
            OSError: the disk does not take it.

        """

        def how(crash: Crash) -> Crash:
            if state is State.EVICTED and crash.pinned:
                raise CrashdError(f"crash {crash_id} was pinned")
            size = 0 if state in (State.EVICTED, State.MISSING) else crash.core.size_bytes
            return replace(
                crash,
                state=state,
                capture=replace(crash.capture, reason=why),
                core=replace(crash.core, stored_bytes=size, complete=state is State.COMPLETE),
            )

        _, changed = entries.change(self.paths, crash_id, how)
        self.listeners.changed(changed)

    def _distrust(self, key: tuple[str, bytes], why: str) -> None:
        self._foreign_count += 1
        if key in self._foreign:
            return
        if len(self._foreign) < FOREIGN_TOLD_MAX:
            self._foreign.add(key)
            log.warning("%s is no dump of root's: %s, ignoring", printable(key[1]), why)

    def _tell_foreign(self) -> None:
        more = self._foreign_count - FOREIGN_TOLD_MAX
        if more > 0 and ("", b"more") not in self._foreign:
            self._foreign.add(("", b"more"))
            log.warning("%d more directories are no dumps of root's, ignoring", more)

    def _count(self) -> None:
        states = {"complete": 0, "incomplete": 0, "capturing": 0, "foreign": self._foreign_count}
        for known in self.known.values():
            if known.state.value in states:
                states[known.state.value] += 1
        self.listeners.counted(states)


def _wants_log(look: Look, settings: DumpSettings) -> bool:
    usable = look.verdict is not None and look.verdict.head is not None
    return settings.analysis is not None and usable and not look.log


def _is_whole(look: Look) -> bool:
    """Tell whether a dump of a final name needs no more time."""
    if look.directory.dump is None or look.verdict is None:
        return False
    return look.verdict.completeness is Completeness.COMPLETE
