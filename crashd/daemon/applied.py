"""The configuration put into effect: what each part, and the kernel, is told at the start and at a
reload.
"""

import logging
import os

from crashd import registration
from crashd.configuration import keys as config
from crashd.daemon.capture.options import Options
from crashd.daemon.intake.admission import Admission
from crashd.daemon.intake.dispatch import Dispatcher
from crashd.daemon.intake.ingest import Ingest
from crashd.domain.crash.model import Mode
from crashd.edge.capture.process import memory_total_bytes
from crashd.errors import ConfigError, CrashdError
from crashd.store import spool
from crashd.store.paths import Paths

log = logging.getLogger("crashd.service")


def apply_settings(
    settings: config.Settings,
    paths: Paths,
    dispatcher: Dispatcher,
    ingest: Ingest,
    admission: Admission,
) -> None:
    """Tell all parts.

    Raises:
        OSError: the store's file system cannot be asked.

    """
    capture, filesystem = settings.capture, os.statvfs(paths.crashes)
    disk_bytes, cpus = filesystem.f_blocks * filesystem.f_frsize, len(os.sched_getaffinity(0))
    keep_free = settings.retention.process.keep_free.of(disk_bytes)
    options = Options(
        engine=capture.engine,
        max_core=capture.max_core_bytes,
        honour_rlimit=capture.rlimit == "honour",
        keep_free_bytes=keep_free,
        level=capture.compression_level,
        threads=capture.thread_count(cpus),
        deadline_ns=capture.deadline_ns,
        page_timeout_ns=capture.page_timeout_ns,
        environ=settings.privacy.environ,
        patterns=settings.privacy.patterns,
    )
    admission.configure(
        settings.limiter.rates(),
        capture.policy,
        capture.disposition,
        capture.buffer_bytes(memory_total_bytes()),
        capture.spill.of(disk_bytes),
    )
    dispatcher.options = options.to_json()
    dispatcher.snapshot_timeout_ns = capture.snapshot_timeout_ns
    dispatcher.capture_deadline_ns = capture.deadline_ns
    dispatcher.storers_max, dispatcher.threads = max(2, cpus), options.threads
    ingest.queue_max = capture.queue
    ingest.keep_free_bytes = keep_free
    dispatcher.set_workers(capture.worker_count(cpus))
    honour = options.honour_rlimit
    try:
        spool.write_limits(
            paths, max_core=options.max_core, keep_free=keep_free, honour_rlimit=honour
        )
    except OSError as e:
        log.error("the handler's limits cannot be written: %s, ignoring", e)
    logging.getLogger().setLevel(settings.log.level.upper())


def take_core_pattern(paths: Paths, pipe_limit: int, mode: Mode) -> None:
    """Register with the kernel for as long as this daemon runs, where the system lets us.

    Raises:
        ConfigError: the root makes the pattern too long.

    """
    try:
        done = registration.register(paths, pipe_limit, mode)
    except ConfigError:
        raise
    except CrashdError as e:
        hint = f" ({e.hint})" if e.hint else ""
        log.warning("not registered as core_pattern: %s%s, ignoring", e, hint)
        return
    if done.installed:
        log.info("handler installed as %s", paths.handler)
    if done.changed:
        log.info("kernel.core_pattern is %s", done.pattern)


def give_core_pattern_back(paths: Paths) -> None:
    """Give back what this daemon, or one before it that was killed, took."""
    if not paths.registered_marker.exists():
        return
    try:
        log.info("registration given back: %s", registration.unregister(paths))
    except CrashdError as e:
        log.error("kernel.core_pattern was not given back: %s", e)
