"""The daemon itself: everything composed, and the one loop that runs it.

The loop never waits for a disk's fsync, a process's memory or a client: captures are the workers',
the index is the indexer thread's, metrics and control have threads of their own.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from crashd import __version__, registration
from crashd.configuration import files as configfiles
from crashd.configuration import keys as config
from crashd.daemon.after.afterwards import Afterwards
from crashd.daemon.applied import (
    apply_settings,
    give_core_pattern_back,
    take_core_pattern,
)
from crashd.daemon.control import ControlServer
from crashd.daemon.indexer import Indexer, begin_anew, open_index
from crashd.daemon.intake.admission import Admission
from crashd.daemon.intake.dispatch import Dispatcher
from crashd.daemon.intake.ingest import Ingest
from crashd.daemon.intake.intake import Intake
from crashd.daemon.intake.pool import Nursery
from crashd.daemon.intake.spoolwatch import SpoolWatch
from crashd.daemon.kernel.losses import LossWatch
from crashd.daemon.kernel.side import KernelSide
from crashd.daemon.loopclock import LoopClock
from crashd.daemon.web.serving import MetricsFront
from crashd.domain.crash.model import LIST_KEYS, Crash, Mode, to_json
from crashd.edge.capture import handoff, process
from crashd.edge.host import sdaemon
from crashd.edge.host.inotify import DirectoryWatch
from crashd.edge.host.kmsg import KernelLog
from crashd.edge.web import exporter
from crashd.errors import CrashdError, IndexCorruptError, reason_of
from crashd.store import signatures
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.users import Users

log = logging.getLogger("crashd.service")

HOUSEKEEPING_NS = 60 * 10**9
OWNERSHIP_NS = 30 * 10**9
STOP_NS = 60 * 10**9
"""How long a graceful stop waits for captures; systemd's own TimeoutStopSec is 90 s."""
HEALTHY_NS = 120 * 10**9
"""A loop that has not turned for so long is not healthy (it turns at least every OWNERSHIP_NS)."""
FAILURES_MAX = 100
"""Turns of the loop that fail, one after another, until the daemon gives up to be restarted."""
_Source = socket.socket | DirectoryWatch | KernelLog
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Service:
    """The running daemon."""

    def __init__(
        self, paths: Paths, settings: config.Settings, nursery: Nursery, *, register: bool
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._register = register
        self._selector = selectors.DefaultSelector()
        self._timers: dict[str, tuple[int, int, Callable[[], object]]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._turned_ns = time.monotonic_ns()
        self._clock = LoopClock()
        self._started_ns = time.time_ns()
        self._stop_ns: int | None = None
        self._signals: deque[int] = deque()
        self._ready = False
        self._crashes = 0
        self._notifier = sdaemon.Notifier(os.environ)
        self._exporter = exporter.Exporter(__version__)
        self._users = Users()
        self._admission = self._make_admission()
        self._dispatcher = self._make_dispatcher(nursery)
        self._index = open_index(paths)
        self._indexer = Indexer(
            paths, self._exporter, publish=self._publish, unfinished=self._from_indexer
        )
        self._ingest = Ingest(
            paths,
            self._dispatcher,
            recorded=self._indexer.recorded,
            dropped=self._drop,
            id_of_token=self._id_of_token,
            finished=self._indexer.finished,
            refuses=self._admission.refuses,
            user_of=self._users.user_of,
        )
        self._control: ControlServer | None = None
        self._metrics = MetricsFront(self._exporter, self._healthy, lambda: self._ready)
        self._spool_watch = SpoolWatch(
            paths, watch=self._watch, unwatch=self._unwatch, look=self._ingest.import_spool
        )
        self._mode = Mode.PIPE
        after = (self._indexer, self._exporter, self._is_busy, self._users.user_of)
        self._afterwards = Afterwards(paths, *after)
        self._kernel = KernelSide(paths, self._exporter, self._indexer)
        self._losses = self._make_loss_watch()
        self._intake = Intake(
            paths, self._ingest, selector=self._selector, later=self._timer, dropped=self._drop
        )

    def _make_admission(self) -> Admission:
        return Admission(
            self._paths,
            self._exporter.limited,
            reserve=lambda *capture: self._afterwards.reserve(*capture),
            unreserve=lambda crash_id: self._afterwards.unreserve(crash_id),
            user_of=self._users.user_of,
        )

    def _make_loss_watch(self) -> LossWatch:
        return LossWatch(
            self._paths,
            process.boot_id(),
            is_ours=lambda: registration.is_owned(self._paths),
            lost=self._ingest.add_lost,
            heard=self._kernel.heard,
            pending_from=lambda: self._kernel.pending_from,
        )

    def _make_dispatcher(self, nursery: Nursery) -> Dispatcher:
        return Dispatcher(
            nursery,
            watch=lambda worker: self._watch(
                worker.channel, lambda: self._dispatcher.readable(worker)
            ),
            unwatch=lambda worker: self._unwatch(worker.channel),
            done=self._finished,
            dropped=self._drop,
            refused=self._handler_keeps_it,
            decide=self._admission.decide,
            ended=self._admission.ended,
            clock=self._clock,
        )

    # -- life ------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        self._seed()
        self._apply_settings(self._settings)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._close)
            self._open(cleanup)
            if self._register:
                cleanup.callback(give_core_pattern_back, self._paths)
                take_core_pattern(self._paths, self._pipe_limit(), self._mode)
            self._check_ownership()
            self._indexer.reconcile()  # and then, when every token is known, the spool
            self._ready = True
            self._notifier.ready(self._status_line())
            log.info("crashd %s is ready, store %s", __version__, self._paths.crashes)
            self._loop()
        log.info("crashd has stopped")
        return int(self._dispatcher.helpless)

    def _open(self, cleanup: contextlib.ExitStack) -> None:
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._watch(self._wake_in, self._woken)
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        cleanup.callback(self._reset_signals, previous)
        devices: dict[str, int] = {}
        given = sdaemon.listen_fds(os.environ, devices)
        self._indexer.start()
        self._mode = self._intake.open(self._settings.capture.mode, given)
        control = given.get("control") or handoff.listen_unix(
            self._paths.control_socket, socket.SOCK_STREAM, 0o666
        )
        self._control = ControlServer(
            control,
            self._paths,
            self._status,
            self._analyze,
            self._afterwards.vacuum,
            logging.getLogger("crashd.control"),
            self._exporter.control_refused,
        )
        self._control.start()
        self._metrics.open(self._settings.http, given.get("metrics"))
        kernel_log = self._losses.open(devices.get("kmsg"))
        if kernel_log is not None:
            self._watch(kernel_log, lambda: self._read_kernel_log(kernel_log))
        self._spool_watch.renew()
        self._kernel.start()
        self._timer("housekeeping", HOUSEKEEPING_NS, self._housekeep)
        self._timer("ownership", OWNERSHIP_NS, self._check_ownership)
        if self._notifier.watchdog_interval_ns:
            self._timer("watchdog", self._notifier.watchdog_interval_ns, self._notifier.watchdog)

    def _close(self) -> None:
        """Take everything down, in the order that loses nothing."""
        self._ready = False
        self._intake.close()
        self._kernel.stop()
        self._afterwards.stop()
        self._losses.close()
        left = self._dispatcher.abandon()
        self._admission.save()
        if left:
            log.warning("%d captures are left to their workers: %s", len(left), ", ".join(left[:8]))
        self._metrics.close()
        if self._control is not None:
            self._control.stop()
        self._spool_watch.drop()
        self._indexer.stop()
        self._index.close()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    # -- the loop ----------------------------------------------------------------------------------

    def _watch(
        self, source: socket.socket | DirectoryWatch | KernelLog, act: Callable[[], None]
    ) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _unwatch(self, source: _Source) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def _timer(self, name: str, every_ns: int, act: Callable[[], object]) -> None:
        """Have `act` called every so often; never again with 0."""
        if not every_ns:
            self._timers.pop(name, None)
            return
        self._timers[name] = (time.monotonic_ns() + every_ns, every_ns, act)

    def _loop(self) -> None:
        failures = 0
        while not self._is_over():
            try:
                self._turn()
                failures = 0
            except Exception:  # boundary: what one event did must not cost the crashes to come
                failures += 1
                if failures >= FAILURES_MAX:
                    raise
                log.exception("an event in the daemon's loop failed, ignoring")

    def _turn(self) -> None:
        wait_ns = self._wait_ns()
        self._clock.wait(wait_ns)
        events = self._selector.select(wait_ns / 1e9)
        heard_ns = self._clock.look()
        for key, _ in events:
            key.data()
        while self._signals:
            self._act_on_signal(self._signals.popleft())
        while self._calls:
            self._calls.popleft()()
        self._turned_ns = now_ns = time.monotonic_ns()
        self._dispatcher.tick(heard_ns)
        self._kernel.look()
        for name, (due_ns, every_ns, act) in list(self._timers.items()):
            if now_ns >= due_ns:
                self._timers[name] = (now_ns + every_ns, every_ns, act)
                act()
        self._exporter.in_flight(self._dispatcher.in_flight + self._dispatcher.queued)

    def _wait_ns(self) -> int:
        now_ns = time.monotonic_ns()
        due = [due_ns - now_ns for due_ns, _, _ in self._timers.values()]
        due += [d - now_ns for d in (self._stop_ns, self._kernel.due_ns) if d is not None]
        jobs_ns = self._dispatcher.wait_ns()
        return max(0, min(due if jobs_ns is None else [*due, jobs_ns]))

    def _is_over(self) -> bool:
        if self._dispatcher.helpless:
            log.error("no worker is left, and none can be forked: stopping, to be started anew")
            return True
        if self._stop_ns is None:
            return False
        idle = self._dispatcher.in_flight + self._dispatcher.queued == 0
        return idle or time.monotonic_ns() >= self._stop_ns

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _call_soon(self, act: Callable[[], None]) -> None:
        """Have `act` called in the loop; from any thread."""
        self._calls.append(act)
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_out.send(b"\0")

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        self._signals.append(number)

    def _reset_signals(self, previous: dict[signal.Signals, Any]) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)

    def _act_on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
        elif self._stop_ns is None:
            log.info("stopping on %s", signal.Signals(number).name)
            self._stop_ns = time.monotonic_ns() + STOP_NS
            self._ready = False
            # first of all the kernel must know: crashes from now on are the previous handler's, or
            # spooled
            if self._register:
                give_core_pattern_back(self._paths)
            self._ingest.stop_import()
            self._intake.accept()
            self._notifier.stopping()
        else:
            self._stop_ns = 0

    # -- crashes -----------------------------------------------------------------------------------

    def _read_kernel_log(self, kernel_log: KernelLog) -> None:
        if not self._losses.readable():
            self._unwatch(kernel_log)

    def _finished(self, crash_id: str) -> None:
        self._crashes += 1
        self._indexer.finished(crash_id)
        self._intake.resume()
        self._ingest.import_more()

    def _handler_keeps_it(self) -> None:
        """Take in soon what a handler that gave up spools, or note that it did not."""
        self._call_soon(self._ingest.import_spool)
        self._look_soon()

    def _id_of_token(self, token: str) -> str | None:
        if not self._index.is_current():  # it was damaged, and is made anew
            self._index.close()
            self._index = Index.open(self._paths.index)
        return self._index.id_of_token(token)

    def _drop(self, reason: str) -> None:
        self._exporter.dropped(exporter.DropReason(reason))

    def _is_busy(self) -> bool:
        return self._dispatcher.in_flight + self._dispatcher.queued > 0

    def _analyze(self, crash_id: str) -> bool:
        return self._kernel.analyze(crash_id) or self._afterwards.analyze(crash_id)

    def _publish(self, crash: Crash) -> None:
        self._afterwards.captured(crash)
        if self._control is not None:
            document = to_json(crash)
            self._control.publish({key: document.get(key) for key in LIST_KEYS}, crash.owner_uid)

    def _from_indexer(self, ids: list[str]) -> None:
        self._call_soon(lambda: self._recover(ids))

    def _recover(self, ids: list[str]) -> None:
        """Take in what the handler and a daemon before this one left behind."""
        self._ingest.allow_import()
        self._kernel.allow()
        self._afterwards.begin()
        self._ingest.import_spool()
        others = set(ids).difference(self._dispatcher.ids())
        waiting = self._ingest.recover(sorted(others), "the daemon was killed during the capture")
        if waiting:
            self._look_soon()

    def _look_soon(self) -> None:
        if "unfinished" not in self._timers:
            self._timer("unfinished", HOUSEKEEPING_NS // 30, self._look_again)

    def _look_again(self) -> None:
        del self._timers["unfinished"]
        self._indexer.look_for_unfinished()

    # -- upkeep ------------------------------------------------------------------------------------

    def _housekeep(self) -> None:
        self._spool_watch.renew()
        self._admission.save()
        self._losses.save()
        self._ingest.import_spool()
        self._indexer.look_for_unfinished()
        self._afterwards.look_again()
        try:
            self._exporter.store_free(self._free_bytes())
        except OSError as e:
            log.error("cannot read %s: %s, ignoring", self._paths.crashes, reason_of(e))
        self._notifier.status(self._status_line())

    def _check_ownership(self) -> None:
        owned = registration.is_owned(self._paths)
        was = getattr(self, "_owned", owned)
        if was and not owned:
            log.warning(
                "kernel.core_pattern is no longer ours: another tool took it over, ignoring"
            )
        self._owned = owned
        self._exporter.core_pattern_owned(owned)

    def _free_bytes(self) -> int:
        filesystem = os.statvfs(self._paths.crashes)
        return filesystem.f_bavail * filesystem.f_frsize

    def _seed(self) -> None:
        try:
            totals, usage = self._index.totals(), self._index.usage()
            self._ingest.last_sequence = self._index.last_sequence()
        except IndexCorruptError as e:
            self._index.close()
            self._index = begin_anew(self._paths, e)
            totals, usage = self._index.totals(), self._index.usage()
        self._exporter.seed(totals.by_disposition, totals.by_signal, totals.last_ns)
        self._exporter.seed_units(self._index.unit_totals(exporter.UNITS_MAX))
        # A 0 between two scrapes would make all of them new ones.
        self._exporter.signatures(signatures.count(self._index))
        for kind, (count, size) in usage.items():
            self._exporter.store(kind, count, size)
        self._exporter.store_free(self._free_bytes())

    def _pipe_limit(self) -> int:
        return self._settings.capture.pipe_limit_for(process.memory_total_bytes())

    def _apply_settings(self, settings: config.Settings) -> None:
        apply_settings(settings, self._paths, self._dispatcher, self._ingest, self._admission)
        self._kernel.configure(settings)
        self._afterwards.configure(settings)
        self._settings = settings

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings, before = configfiles.load(self._paths), self._settings
            self._apply_settings(settings)
        except CrashdError as e:
            log.error("the new configuration is wrong, keeping the old one: %s", e)
        except OSError as e:
            log.error("the new configuration cannot be applied, keeping the old one: %s", e)
        else:
            if settings.capture.mode != before.capture.mode:
                log.warning("capture.mode takes effect at the next start, ignoring")
            self._metrics.reload(settings.http, before.http)
            if self._register and registration.is_owned(self._paths):
                take_core_pattern(self._paths, self._pipe_limit(), self._mode)
            log.info("configuration reloaded")
        self._check_ownership()
        self._notifier.ready(self._status_line())

    # -- what others ask
    # -----------------------------------------------------------------------------

    def _healthy(self) -> bool:
        return time.monotonic_ns() - self._turned_ns < HEALTHY_NS

    def _status_line(self) -> str:
        registered = "registered" if registration.is_owned(self._paths) else "NOT registered"
        return (
            f"{registered}, {self._crashes} crashes caught, {self._dispatcher.in_flight} in flight"
        )

    def _status(self) -> dict[str, Any]:
        """Answer `crashctl status`; called by the control server's threads."""
        pattern = registration.current_pattern()
        usage = self._exporter.store_usage()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "root": str(self._paths.root),
            "started_ns": self._started_ns,
            "ready": self._ready,
            "registered": registration.is_owned(self._paths),
            "core_pattern": pattern,
            "mode": self._mode.value,
            "workers": self._dispatcher.workers,
            "in_flight": self._dispatcher.in_flight,
            "queued": self._dispatcher.queued,
            "spool_backlog": self._ingest.spool_backlog,
            "crashes_total": self._crashes,
            "store": {
                "entries": sum(count for count, _ in usage.values()),
                "bytes": sum(size for _, size in usage.values()),
                "free_bytes": self._free_bytes(),
            },
            "metrics_address": self._metrics.addresses,
        }
