"""What the daemon's loop knows of crashes: the index, which it only reads, and its only writer."""

from crashd.daemon.indexer import Indexer, open_index, replace_index
from crashd.domain.crash.model import Crash
from crashd.edge.web.exporter import UNITS_MAX, Exporter
from crashd.errors import IndexCorruptError
from crashd.store import signatures
from crashd.store.index import Index
from crashd.store.paths import Paths


class Ledger:
    """All crashes there are, for the loop; new ones are handed on to the indexer."""

    def __init__(self, paths: Paths, indexer: Indexer) -> None:
        self._paths = paths
        self._indexer = indexer
        self._index = open_index(paths)

    def recorded(self, crash: Crash) -> None:
        """Take a crash that is on record."""
        self._indexer.recorded(crash)

    def finished(self, crash_id: str) -> None:
        """Note that a crash's entry is final."""
        self._indexer.finished(crash_id)

    def id_of_token(self, token: str) -> str | None:
        """Return the crash that a handler gave this token; None where it is not known."""
        if not self._index.is_current():  # it was damaged, and is made again
            self._index.close()
            self._index = Index.open(self._paths.index)
        return self._index.id_of_token(token)

    def last_sequence(self) -> int:
        """Return the number of the newest crash; 0 where the index is damaged, and rebuilt."""
        try:
            return self._index.last_sequence()
        except IndexCorruptError as e:
            self._replace(e)
            return 0

    def seed(self, exporter: Exporter) -> None:
        """Give the metrics what daemons before this one counted."""
        try:
            totals, usage = self._index.totals(), self._index.usage()
        except IndexCorruptError as e:
            self._replace(e)
            totals, usage = self._index.totals(), self._index.usage()
        exporter.seed(totals.by_disposition, totals.by_signal, totals.last_ns)
        exporter.seed_units(self._index.unit_totals(UNITS_MAX))
        # A 0 between two scrapes would make all of them new ones.
        exporter.signatures(signatures.count(self._index))
        for kind, (count, size) in usage.items():
            exporter.store(kind, count, size)

    def _replace(self, error: IndexCorruptError) -> None:
        self._index.close()
        self._index = replace_index(self._paths, error)

    def close(self) -> None:
        """Close the index."""
        self._index.close()
