"""The crashes known to the daemon's loop: the index, which it only reads, and its only writer."""

from crashd.daemon.indexer import Indexer, open_index, replace_index
from crashd.domain.crash.model import Crash
from crashd.edge.web.exporter import Exporter
from crashd.errors import IndexCorruptError
from crashd.store import signatures
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.schema import PAST_UNITS_MAX


class Ledger:
    """Looks crashes up for the loop, and passes new ones to the indexer."""

    def __init__(self, paths: Paths, indexer: Indexer) -> None:
        self._paths = paths
        self._indexer = indexer
        self._index = open_index(paths)

    def recorded(self, crash: Crash) -> None:
        """Note a crash whose first record is on disk."""
        self._indexer.recorded(crash)

    def finished(self, crash_id: str) -> None:
        """Note that a crash's entry is final."""
        self._indexer.finished(crash_id)

    def id_of_token(self, token: str) -> str | None:
        """Return the id of the crash with this handler's token; None if it is unknown."""
        if not self._index.is_current():  # it was damaged, and is rebuilt
            self._index.close()
            self._index = Index.open(self._paths.index)
        return self._index.id_of_token(token)

    def last_sequence(self) -> int:
        """Return the number of the newest crash; 0 if the index is damaged and being rebuilt."""
        try:
            return self._index.last_sequence()
        except IndexCorruptError as e:
            self._replace(e)
            return 0

    def seed(self, exporter: Exporter) -> None:
        """Set the metrics to the counts of earlier daemons."""
        try:
            totals, usage = self._index.totals(), self._index.usage()
        except IndexCorruptError as e:
            self._replace(e)
            totals, usage = self._index.totals(), self._index.usage()
        exporter.seed(totals.by_disposition, totals.by_signal, totals.last_ns)
        exporter.seed_units(self._index.unit_totals(PAST_UNITS_MAX))
        # A 0 between two scrapes would make all signatures look new.
        exporter.signatures(signatures.count(self._index))
        for kind, (count, size) in usage.items():
            exporter.store(kind, count, size)

    def _replace(self, error: IndexCorruptError) -> None:
        self._index.close()
        self._index = replace_index(self._paths, error)

    def close(self) -> None:
        """Close the index."""
        self._index.close()
