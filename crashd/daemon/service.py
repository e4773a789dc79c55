"""The daemon itself: composes all parts, and does the work of its one loop.

The loop never waits for a disk's fsync, a process's memory or a client: workers do the captures,
the indexer's thread writes the index, and metrics and control have their own threads.
"""

import contextlib
import logging
import os
import signal
import socket
import time

from crashd import __version__
from crashd.base.files import read_space
from crashd.configuration import files as configfiles
from crashd.configuration import keys as config
from crashd.daemon.after.afterwards import Afterwards
from crashd.daemon.after.captures import Captures
from crashd.daemon.capture.options import Options
from crashd.daemon.control import ControlServer
from crashd.daemon.corepattern import CorePattern
from crashd.daemon.fleet.rules import rules_of
from crashd.daemon.fleet.shipping import Shipping
from crashd.daemon.health import Health
from crashd.daemon.indexer import Indexer
from crashd.daemon.intake.admission import Admission
from crashd.daemon.intake.dispatch import Dispatcher
from crashd.daemon.intake.ingest import Ingest
from crashd.daemon.intake.intake import Intake
from crashd.daemon.intake.pool import Nursery
from crashd.daemon.intake.spoolwatch import SpoolWatch
from crashd.daemon.kernel.losses import LossWatch
from crashd.daemon.kernel.side import KernelSide
from crashd.daemon.ledger import Ledger
from crashd.daemon.loop import Loop
from crashd.daemon.recovery import Finished, Recovery
from crashd.daemon.rootwork import RootWork
from crashd.daemon.status import DaemonStatus, free_bytes
from crashd.daemon.web.serving import MetricsFront
from crashd.edge.capture import handoff, process
from crashd.edge.host import sdaemon
from crashd.edge.host.kmsg import Kmsg
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, UnavailableError, reason_of
from crashd.store import spool
from crashd.store.entry import remove_staged
from crashd.store.handlerfile import memory_program
from crashd.store.paths import Paths
from crashd.store.users import Users

log = logging.getLogger("crashd.service")

HOUSEKEEPING_NS = 60 * 10**9
OWNERSHIP_NS = 30 * 10**9
STOP_NS = 60 * 10**9
"""How long a graceful stop waits for captures; systemd's own TimeoutStopSec is 90 s."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Service:
    """The running daemon: composes all parts, starts and stops them, and turns in the loop."""

    def __init__(
        self, paths: Paths, settings: config.Settings, nursery: Nursery, *, register: bool
    ) -> None:
        self._paths = paths
        self._settings = settings
        self._stop_ns: int | None = None
        self._notifier = sdaemon.Notifier(os.environ)
        self._loop = Loop()
        self._health = Health(self._loop)
        self._exporter = Exporter(__version__)
        self._exporter.add_process()
        self._core_pattern = CorePattern(paths, self._exporter, register=register)
        self._indexer = Indexer(paths, self._exporter)
        self._ledger = Ledger(paths, self._indexer)
        self._captures = Captures()
        users = Users()
        self._afterwards = Afterwards(paths, self._indexer, self._exporter, self._captures, users)
        retention = self._afterwards.retention
        self._admission = Admission(paths, self._exporter, retention, users)
        self._dispatcher = Dispatcher(nursery, self._loop, self._admission, self._exporter)
        self._ingest = Ingest(
            paths, self._dispatcher, self._ledger, self._exporter, self._admission, users
        )
        self._intake = Intake(paths, self._ingest, self._loop, self._exporter)
        self._spool_watch = SpoolWatch(paths, self._loop, self._ingest)
        self._kernel = KernelSide(paths, self._exporter, self._indexer)
        self._losses = LossWatch(paths, process.boot_id(), self._kernel, self._afterwards.faults)
        self._shipping = Shipping(paths, self._exporter, process.boot_id(), self._captures)
        known = (self._indexer, self._dispatcher, self._ingest, self._kernel, self._afterwards)
        self._recovery = Recovery(self._loop, *known)
        self._metrics = MetricsFront(self._exporter, self._health)
        self._status = DaemonStatus(
            paths,
            self._health,
            self._core_pattern,
            self._dispatcher,
            self._ingest,
            self._exporter,
            self._metrics,
            self._afterwards,
            self._shipping,
        )
        self._control: ControlServer | None = None

    # -- life ------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        self._remove_staged()
        self._ledger.seed(self._exporter)
        self._ingest.last_sequence = self._ledger.last_sequence()
        self._exporter.store_free(free_bytes(self._paths))
        self._exporter.spooled(*spool.backlog(self._paths))
        self._apply(self._settings)
        self._exporter.reloaded(True)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._close)
            cleanup.enter_context(self._loop.catching(_SIGNALS))
            self._open()
            cleanup.callback(self._core_pattern.give_back)
            self._core_pattern.take(self._pipe_limit(), self._status.mode)
            self._core_pattern.check()
            self._indexer.reconcile()  # then every token is known, and the spool is imported
            self._health.ready = True
            self._notifier.ready(self._status.line)
            log.info("crashd %s is ready, store %s", __version__, self._paths.crashes)
            self._loop.run(self)
        log.info("crashd has stopped")
        return int(self._dispatcher.helpless)

    def _remove_staged(self) -> None:
        try:
            for crash_id in remove_staged(self._paths):
                log.info("crash %s was not on record yet when crashd was killed", crash_id)
        except (CrashdError, OSError) as e:
            log.error("cannot clean up %s: %s, ignoring", self._paths.crashes, reason_of(e))

    def _open(self) -> None:
        """Open all sockets, using those that systemd passed, and start the threads and timers."""
        devices: dict[str, int] = {}
        given = sdaemon.listen_fds(os.environ, devices)
        control = given.get("control") or handoff.listen_unix(
            self._paths.control_socket, socket.SOCK_STREAM, 0o666
        )
        self._control = ControlServer(
            control,
            self._paths,
            self._status,
            RootWork(self._kernel, self._afterwards),
            self._exporter,
        )
        audience = Finished(self._loop, self._afterwards, self._control, self._recovery)
        self._indexer.start(audience)
        self._status.mode = self._intake.open(self._settings.capture.mode, given)
        self._control.start()
        self._metrics.open(self._settings.http, given.get("metrics"))
        kernel_log = self._losses.open(devices.get("kmsg"))
        if kernel_log is not None:
            self._loop.watch(kernel_log, lambda: self._read_kernel_log(kernel_log))
        self._spool_watch.renew()
        self._kernel.start()
        self._shipping.start()
        self._loop.timer("housekeeping", HOUSEKEEPING_NS, self._housekeep)
        self._loop.timer("ownership", OWNERSHIP_NS, self._core_pattern.check)
        watchdog_ns = self._notifier.watchdog_interval_ns or 0
        self._loop.timer("watchdog", watchdog_ns, self._notifier.watchdog)

    def _close(self) -> None:
        """Stop all parts, in the order that loses nothing."""
        self._health.ready = False
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
        self._shipping.stop()
        self._indexer.stop()
        self._ledger.close()
        self._loop.close()

    # -- in the loop -------------------------------------------------------------------------------

    def tick(self, heard_ns: int) -> None:
        """Do the work of each turn of the loop."""
        self._dispatcher.tick(heard_ns)
        if self._ingest.look():
            self._recovery.look_soon()
        self._intake.resume()
        self._kernel.look()
        self._captures.under_way = self._dispatcher.in_flight + self._dispatcher.queued
        self._exporter.in_flight(self._captures.under_way)
        self._exporter.stages(self._dispatcher.holders, self._dispatcher.storers)
        self._exporter.analysis_waiting(self._afterwards.analyses_waiting or 0)

    def wait_ns(self) -> int | None:
        """Return in how long `tick` must run; None if nothing is under way."""
        now_ns = time.monotonic_ns()
        due = [d - now_ns for d in (self._stop_ns, self._kernel.due_ns) if d is not None]
        jobs_ns = self._dispatcher.wait_ns()
        return min(due if jobs_ns is None else [*due, jobs_ns], default=None)

    def is_over(self) -> bool:
        """Return whether the daemon must end now."""
        if self._dispatcher.helpless:
            log.error("cannot fork workers; exiting to be restarted")
            return True
        if self._stop_ns is None:
            return False
        idle = self._dispatcher.in_flight + self._dispatcher.queued == 0
        return idle or time.monotonic_ns() >= self._stop_ns

    def act_on_signal(self, number: signal.Signals) -> None:
        """Reload on SIGHUP; stop on any other signal, and at once on a second one."""
        if number == signal.SIGHUP:
            self._reload()
        elif self._stop_ns is None:
            log.info("stopping on %s", number.name)
            self._stop_ns = time.monotonic_ns() + STOP_NS
            self._health.ready = False
            # The kernel must know first: from now on the previous handler takes crashes, or they
            # are spooled.
            self._core_pattern.give_back()
            self._ingest.stop_import()
            self._intake.accept()
            self._notifier.stopping()
        else:
            self._stop_ns = 0

    def _read_kernel_log(self, kernel_log: Kmsg) -> None:
        try:
            for lost in self._losses.read():
                self._ingest.add_lost(lost.loss, lost.time_ns, lost.token)
        except UnavailableError as e:
            log.warning("%s, ignoring it", e)
            self._loop.unwatch(kernel_log)

    def _housekeep(self) -> None:
        self._spool_watch.renew()
        self._admission.save()
        self._losses.save()
        self._ingest.import_spool()
        self._exporter.spooled(*spool.backlog(self._paths))
        self._indexer.look_for_unfinished()
        self._afterwards.look_again()
        try:
            self._exporter.store_free(free_bytes(self._paths))
        except OSError as e:
            log.error("cannot read %s: %s, ignoring", self._paths.crashes, reason_of(e))
        self._notifier.status(self._status.line)

    # -- settings ----------------------------------------------------------------------------------

    def _pipe_limit(self) -> int:
        return self._settings.capture.pipe_limit_for(process.memory_total_bytes())

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings, before = configfiles.load(self._paths), self._settings
            self._apply(settings)
        except CrashdError as e:
            self._exporter.reloaded(False)
            log.error("the new configuration is wrong, keeping the old one: %s", e)
        except OSError as e:
            self._exporter.reloaded(False)
            log.error("the new configuration cannot be applied, keeping the old one: %s", e)
        else:
            self._exporter.reloaded(True)
            if settings.capture.mode != before.capture.mode:
                log.warning("capture.mode takes effect at the next start, ignoring")
            self._metrics.reload(settings.http, before.http)
            self._core_pattern.take_again(self._pipe_limit(), self._status.mode)
            log.info("configuration reloaded")
        self._core_pattern.check()
        self._notifier.ready(self._status.line)

    def _apply(self, settings: config.Settings) -> None:
        """Give all parts their settings.

        Raises:
            OSError: the space of the store's file system cannot be read.

        """
        capture, space = settings.capture, read_space(self._paths.crashes)
        keep_free = settings.retention.process.keep_free
        keep_free_bytes = keep_free.of(space.total_bytes)
        cpus = len(os.sched_getaffinity(0))
        options = _options(settings, space.total_bytes, keep_free_bytes, cpus)
        self._admission.configure(
            settings.limiter.rates(),
            capture.policy,
            capture.disposition,
            capture.buffer_bytes(process.memory_total_bytes()),
            capture.spill.of(space.total_bytes),
        )
        self._dispatcher.options = options.to_json()
        self._dispatcher.snapshot_timeout_ns = capture.snapshot_timeout_ns
        self._dispatcher.capture_deadline_ns = capture.deadline_ns
        self._dispatcher.storers_max, self._dispatcher.threads = max(2, cpus), options.threads
        self._ingest.queue_max = capture.queue
        self._ingest.keep_free_bytes = keep_free_bytes
        self._dispatcher.set_workers(capture.worker_count(cpus))
        self._write_limits(options)
        self._exporter.configured(_limits(settings, options, space.total_bytes))
        logging.getLogger().setLevel(settings.log.level.upper())
        self._kernel.configure(settings)
        self._afterwards.configure(settings)
        self._shipping.configure(rules_of(settings))
        self._settings = settings

    def _write_limits(self, options: Options) -> None:
        """Write the limits for the handler, which follows them while no daemon runs."""
        try:
            spool.write_limits(
                self._paths,
                max_core=options.max_core,
                keep_free=options.keep_free_bytes,
                honour_rlimit=options.honour_rlimit,
                program=memory_program(),
            )
        except OSError as e:
            log.error("the handler's limits cannot be written: %s, ignoring", e)


def _limits(settings: config.Settings, options: Options, total_bytes: int) -> dict[str, int | None]:
    """Return the limits in force, in bytes, for the metrics."""
    capture, max_use = settings.capture, settings.process_policy.max_use
    return {
        "max_use": None if max_use is None else max_use.of(total_bytes),
        "keep_free": options.keep_free_bytes,
        "buffer": capture.buffer_bytes(process.memory_total_bytes()),
        "spill": capture.spill.of(total_bytes),
        "max_core": options.max_core,
    }


def _options(
    settings: config.Settings, total_bytes: int, keep_free_bytes: int, cpus: int
) -> Options:
    """Build the options of a capture, which are sent to the workers."""
    capture = settings.capture
    return Options(
        engine=capture.engine,
        max_core=capture.max_core_bytes,
        honour_rlimit=capture.rlimit == "honour",
        keep_free_bytes=keep_free_bytes,
        level=capture.compression_level,
        threads=capture.thread_count(cpus),
        deadline_ns=capture.deadline_ns,
        page_timeout_ns=capture.page_timeout_ns,
        environ=settings.privacy.environ,
        patterns=settings.privacy.patterns,
        keep_files_bytes=settings.process_policy.files_bytes(total_bytes),
    )
