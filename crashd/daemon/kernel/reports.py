"""Kernel crashes that left no dump: recorded from a report, as far as no dump tells the same."""

import logging
import secrets
import time

from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.live import LiveReport
from crashd.domain.crash.match import Query
from crashd.domain.crash.model import BOOT_UNKNOWN, Crash, Kind, Mode
from crashd.domain.kdump.record import SAME_EVENT_NS, split_log, survived
from crashd.domain.kernellog.analyse import LogAnalysis, analyse
from crashd.domain.kernellog.pstore import PstoreLog, assemble
from crashd.edge.capture import process
from crashd.errors import CrashdError, reason_of
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.pstorefiles import read_parts

log = logging.getLogger("crashd.kdump")

_PSTORE = ("sys/fs/pstore", "var/lib/systemd/pstore")


class ReportBook:
    """Records what pstore and the running kernel's log report; each report once."""

    def __init__(self, paths: Paths, hostname: bytes, indexer: Indexer) -> None:
        self._paths = paths
        self._hostname = hostname
        self._indexer = indexer
        self._boot_id = process.boot_id()
        self._pstore_done: set[str] = set()

    def add_live(self, report: LiveReport) -> None:
        """Record a report of the running kernel, which survived it."""
        token = f"oops-{self._boot_id}-{report.sequence}"
        if self._is_known(token):
            return
        age_ns = max(0, time.monotonic_ns() - report.time_ns)
        self._record(
            survived(
                report.analysis,
                mode=Mode.KMSG,
                time_ns=time.time_ns() - age_ns,
                boot_id=self._boot_id,
                hostname=self._hostname,
                token=token,
                log=report.analysis.text.splitlines(),
                source="kmsg",
                random=secrets.randbits(40),
            )
        )

    def read_pstore(self) -> None:
        """Record the last words that the firmware kept, where there is no dump of the same crash.

        Raises:
            CrashdError: the index cannot be read.

        """
        parts = [part for name in _PSTORE for part in read_parts(self._paths.root / name)]
        for words in assemble(parts):
            if words.token in self._pstore_done:
                continue
            self._pstore_done.add(words.token)
            analysis = analyse(words.text)
            if analysis is None or self._is_known(words.token):
                continue
            twin = self._find_twin(analysis.signature, words.time_ns)
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

    def _is_known(self, token: str) -> bool:
        try:
            with Index.open(self._paths.index) as index:
                return index.id_of_token(token) is not None
        except CrashdError as e:
            log.error("%s, ignoring", e)
            return False

    def _find_twin(self, signature: str, time_ns: int) -> str | None:
        """Find the record of the same crash that was made of a dump."""
        around = Query(
            kind=Kind.KERNEL,
            signature=signature,
            since_ns=time_ns - SAME_EVENT_NS,
            until_ns=time_ns + SAME_EVENT_NS,
            limit=1,
        )
        with Index.open(self._paths.index) as index:
            return next((str(row["id"]) for row in index.select(around, None)), None)
