"""Crashes of the kernel itself, from wherever they are told of: dumps, pstore, the live log."""

import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from crashd.configuration import keys as config
from crashd.daemon.after.afterwards import analysis_settings
from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.dumpstate import DumpSettings, Listeners
from crashd.daemon.kernel.live import LiveOopses
from crashd.daemon.kernel.watch import DumpWatch
from crashd.domain.crash.losses import LogRecord
from crashd.domain.crash.match import Query
from crashd.domain.crash.model import BOOT_UNKNOWN, Crash, Kind, Mode
from crashd.domain.kdump.ready import assess, dump_paths
from crashd.domain.kdump.record import SAME_EVENT_NS, split_log, survived
from crashd.domain.kernellog.analyse import LogAnalysis, analyse
from crashd.domain.kernellog.pstore import PstoreLog, assemble
from crashd.edge.capture import process
from crashd.edge.host.kdumpfacts import read_facts
from crashd.edge.web.exporter import DropReason, Exporter
from crashd.errors import CrashdError, reason_of
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.pstorefiles import read_parts

log = logging.getLogger("crashd.kdump")

_PSTORE = ("sys/fs/pstore", "var/lib/systemd/pstore")


class KernelSide:
    """What the daemon's loop has to do with crashes of the kernel."""

    def __init__(self, paths: Paths, exporter: Exporter, indexer: Indexer) -> None:
        self._paths = paths
        self._exporter = exporter
        self._indexer = indexer
        self._hostname = os.fsencode(os.uname().nodename)
        self._boot_id = process.boot_id()
        self._pstore_done: set[str] = set()
        self._settings = config.Settings()
        self._live = LiveOopses(found=self._survived, flooded=self._flooded)
        self._dumps = DumpWatch(
            paths,
            self._hostname,
            Listeners(
                recorded=indexer.recorded,
                finished=indexer.finished,
                changed=indexer.changed,
                known=self._known,
                counted=exporter.kernel_dumps,
                deleted=self._deleted,
                analysed=exporter.analysed,
                resolve=self._resolve,
                scanned=self._scanned,
            ),
        )

    # -- the loop's ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that looks after dumps."""
        self._dumps.start()

    def allow(self) -> None:
        """Begin to record: the index knows all that is on disk."""
        self._dumps.allow()

    def configure(self, settings: config.Settings) -> None:
        """Take new settings."""
        self._settings = settings
        self._dumps.look()

    def stop(self) -> None:
        """End the thread."""
        self._dumps.stop()

    def analyze(self, crash_id: str) -> bool:
        """Have a dump's symbols looked for (again) before all others; False where it is not one
        that is here.
        """
        return self._dumps.analyze(crash_id)

    def heard(self, record: LogRecord) -> None:
        """Take a record of the running kernel's log."""
        if self._settings.kdump.live:
            self._live.add(record, time.monotonic_ns())

    @property
    def due_ns(self) -> int | None:
        """When `look` wants to be called (CLOCK_MONOTONIC)."""
        return self._live.due_ns

    @property
    def pending_from(self) -> int | None:
        """The record of the kernel's log that a report begins with that is not at its end."""
        return self._live.pending_from

    def look(self) -> None:
        """Record what the kernel reported and survived."""
        self._live.look(time.monotonic_ns())

    # -- what was found --------------------------------------------------------------------------

    def _survived(self, analysis: LogAnalysis, sequence: int, time_ns: int) -> None:
        token = f"oops-{self._boot_id}-{sequence}"
        if self._is_known(token):
            return
        age_ns = max(0, time.monotonic_ns() - time_ns)
        self._record(
            survived(
                analysis,
                mode=Mode.KMSG,
                time_ns=time.time_ns() - age_ns,
                boot_id=self._boot_id,
                hostname=self._hostname,
                token=token,
                log=analysis.text.splitlines(),
                source="kmsg",
                random=secrets.randbits(40),
            )
        )

    def _flooded(self) -> None:
        self._exporter.dropped(DropReason.KERNEL_FLOOD)

    def _from_pstore(self) -> None:
        """Record the last words that the firmware kept, of which no dump tells."""
        parts = [part for name in _PSTORE for part in read_parts(self._paths.root / name)]
        for words in assemble(parts):
            if words.token in self._pstore_done:
                continue
            self._pstore_done.add(words.token)
            analysis = analyse(words.text)
            if analysis is None or self._is_known(words.token):
                continue
            twin = self._twin(analysis.signature, words.time_ns)
            if twin is not None:
                log.info("pstore tells of crash %s, which has a dump", twin)
                continue
            self._record(self._of_pstore(words, analysis))

    def _of_pstore(self, words: PstoreLog, analysis: LogAnalysis) -> Crash:
        return survived(
            analysis,
            mode=Mode.PSTORE,
            time_ns=words.time_ns,
            boot_id=BOOT_UNKNOWN,
            hostname=self._hostname,
            token=words.token,
            log=split_log(words.text),
            source=f"pstore ({words.backend}, {words.parts} parts)",
            random=secrets.randbits(40),
        )

    def _record(self, crash: Crash) -> None:
        try:
            with entries.create(self._paths, crash) as entry:
                entry.write(crash, sync=True)
        except OSError as e:
            log.error("a kernel crash cannot be recorded: %s, ignoring", reason_of(e))
            return
        self._indexer.recorded(crash)
        self._indexer.finished(crash.id)

    # -- what is known ---------------------------------------------------------------------------

    def _known(self) -> Sequence[Mapping[str, Any]]:
        with Index.open(self._paths.index) as index:
            return index.select(Query(kind=Kind.KERNEL, limit=None), None)

    def _is_known(self, token: str) -> bool:
        try:
            with Index.open(self._paths.index) as index:
                return index.id_of_token(token) is not None
        except CrashdError as e:
            log.error("%s, ignoring", e)
            return False

    def _twin(self, signature: str, time_ns: int) -> str | None:
        """Find the record of the same crash that a dump told of."""
        around = Query(
            kind=Kind.KERNEL,
            signature=signature,
            since_ns=time_ns - SAME_EVENT_NS,
            until_ns=time_ns + SAME_EVENT_NS,
            limit=1,
        )
        with Index.open(self._paths.index) as index:
            return next((str(row["id"]) for row in index.select(around, None)), None)

    # -- settings and metrics --------------------------------------------------------------------

    def _resolve(self) -> DumpSettings:
        facts, settings = read_facts(self._paths.root), self._settings
        wanted = settings.kdump.paths
        named = dump_paths(facts) if isinstance(wanted, str) else wanted
        analysis = analysis_settings(settings, self._paths)
        kernel, count = settings.retention.kernel, facts.tool_count
        return DumpSettings(
            paths=tuple(self._paths.root / path.lstrip("/") for path in named),
            rescan_ns=settings.kdump.rescan_ns,
            analysis=analysis.options if analysis.enabled else None,
            vmlinux_dirs=(*settings.kdump.vmlinux_dirs, *settings.analysis.build_id_dirs),
            policy=lambda total: kernel.policy(total, count),
        )

    def _deleted(self, reason: str, freed: int) -> None:
        self._exporter.deleted(Kind.KERNEL, reason, freed)

    def _scanned(self) -> None:
        """Do what wants doing about once a minute, in the dumps' thread."""
        readiness = assess(read_facts(self._paths.root))
        self._exporter.kdump_ready(readiness.ready, readiness.crashkernel_bytes)
        self._from_pstore()
