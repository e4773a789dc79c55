"""The numbers of texts that repeat: hosts, signatures, versions, builds, sets of labels.

A number is given outside of the transaction that uses it, so that indexers do not wait for each
other; one that is not used then does no harm.
"""

from collections.abc import Iterable
from typing import Any

from crashd.edge.fleet.postgres import Connection, statement

CACHED_MAX = 200_000
"""Texts of one table that are remembered; beyond it, all are forgotten."""
_TABLES = {"host": "host", "signature": "signature", "version": "version", "build": "build"}


class Numbers:
    """The numbers that one connection has seen; 0 is the number of the empty text."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._known: dict[str, dict[str, int]] = {name: {"": 0} for name in (*_TABLES, "labelset")}

    def get(self, table: str, text: str) -> int:
        """Return a number that `learn` has made known."""
        return self._known[table][text]

    def learn(self, table: str, texts: Iterable[str]) -> None:
        """Make the numbers of texts known; new texts get new numbers."""
        known = self._known[table]
        if len(known) > CACHED_MAX:
            known = self._known[table] = {"": 0}
        missing = sorted({text for text in texts if text not in known})
        if not missing:
            return
        column = "labels" if table == "labelset" else _TABLES[table]
        kind = "jsonb" if table == "labelset" else "text"
        names = {"table": table, "column": column}
        values: list[Any] = [missing]
        find = (
            "SELECT number, w.t FROM unnest(%s::text[]) w(t)"
            f" JOIN {{table}} ON {{column}} = w.t::{kind}"
        )
        found = self._db.execute(statement(find, **names), values).fetchall()
        known |= {text: number for number, text in found}
        missing = [text for text in missing if text not in known]
        if missing:
            # a sequence counts also the conflicts: so only what is new is inserted
            add = (
                f"INSERT INTO {{table}} ({{column}}) SELECT w.t::{kind} FROM"
                " unnest(%s::text[]) w(t)"
                " ON CONFLICT DO NOTHING"
            )
            self._db.execute(statement(add, **names), [missing])
            found = self._db.execute(statement(find, **names), [missing]).fetchall()
            known |= {text: number for number, text in found}
