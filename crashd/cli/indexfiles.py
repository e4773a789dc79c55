"""`--file`: crashes as indexes know them, of this host or copied from others."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crashd.domain.crash.query import Query
from crashd.errors import IndexCorruptError, NotFoundError, UnavailableError
from crashd.store import signatures
from crashd.store.indexread import IndexReader

_OF_FILE = "--file is for index.sqlite of crashd, or copies of it; coredumpctl reads journal files"


class IndexFiles:
    """A source (source.py) of several indexes without their stores."""

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise UnavailableError("--file: no such file")
        self._indexes: list[IndexReader] = []
        with contextlib.ExitStack() as opened:
            for path in paths:
                try:
                    index = IndexReader.open_readonly(path)
                except IndexCorruptError as e:
                    raise IndexCorruptError(str(e), hint=_OF_FILE) from e
                opened.callback(index.close)
                self._indexes.append(index)
            self._opened = opened.pop_all()

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Return the crashes that match, newest first."""
        found = [row for index in self._indexes for row in index.select(query, None)]
        found.sort(key=lambda row: (row["time"], row["id"]), reverse=True)
        return found[: query.limit]

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, most frequent first."""
        merged: dict[str, dict[str, Any]] = {}
        for index in self._indexes:
            for row in signatures.top(index, query._replace(limit=None), None):
                known = merged.setdefault(row["signature"], {**row, "count": 0})
                count = known["count"] + row["count"]
                first = min(known["first"], row["first"])
                merged[row["signature"]] = {
                    **max(known, row, key=lambda one: str(one["last"])),
                    "count": count,
                    "first": first,
                }
        found = sorted(merged.values(), key=lambda row: (row["count"], row["last"]), reverse=True)
        return found[: query.limit]

    def info(self, crash_id: str) -> dict[str, Any]:
        """Return what an index knows about one crash."""
        for index in self._indexes:
            row = index.get(crash_id)
            if row is not None:
                return {**row, "warnings": ["only the index was read: the record is elsewhere"]}
        raise NotFoundError(f"no crash {crash_id}")

    def open_core(self, crash_id: str) -> int:
        """Refuse: an index has no cores."""
        raise NotFoundError(f"crash {crash_id}: an index has no cores")

    def close(self) -> None:
        """Close the indexes."""
        self._opened.close()
