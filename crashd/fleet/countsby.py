"""Counts by build, host, version or label, over tallies or over the crashes themselves.

All crashes are counted first, and then the hosts and signatures of those few keys that are shown:
by hashing, because count(DISTINCT) sorts every row.
"""

from collections.abc import Sequence
from typing import Any

from crashd.edge.fleet.reader import Reader

_Row = tuple[Any, ...]
"""A key, its crashes, the first and the last of them, its hosts and signatures."""


def count_by(
    db: Reader, source: str, values: Sequence[Any], by: str, limit: int | None
) -> list[tuple[_Row, dict[str, str]]]:
    """Count the rows of a table, those with the most crashes first.

    Args:
        source: SQL of a table of `host`, `signature`, `version`, `build`, `labels`, `crashes`,
            `first` and `last`.
        values: what stands for its placeholders.
        by: `build`, `host`, `version` or `label:NAME`.
        limit: how many rows at most.

    Returns:
        Rows, each with what it is called: `name`, and for a host `hostname`.
    """
    if by.startswith("label:"):
        source = f"SELECT c.labels AS key, c.* FROM ({source}) c"
        rows = _count_by_label(db, source, values, limit, by.removeprefix("label:"))
        return [(row, {"name": row[0]}) for row in rows]
    rows = _count_by_key(db, f"SELECT c.{by} AS key, c.* FROM ({source}) c", values, limit)
    names = _names(db, by, [row[0] for row in rows])
    return [(row, names.get(row[0], {"name": ""})) for row in rows]


def _count_by_key(db: Reader, source: str, values: Sequence[Any], limit: int | None) -> list[_Row]:
    found = db.execute(
        f"SELECT key, sum(crashes)::bigint, min(first), max(last) FROM ({source}) c GROUP BY 1"
        " HAVING sum(crashes) > 0 ORDER BY 2 DESC, 4 DESC LIMIT %s",
        [*values, limit],
    ).fetchall()
    rows = db.execute(
        "SELECT key, count(host), count(signature) FROM"
        f" ({_pairs(source, ' AND key = ANY(%s)')}) p GROUP BY 1",
        [*values, [row[0] for row in found]],
    ).fetchall()
    return _widened(found, rows)


def _count_by_label(
    db: Reader, source: str, values: Sequence[Any], limit: int | None, label: str
) -> list[_Row]:
    """The `key` is a set of labels: few sets have their texts looked at, and not each row."""
    named = "SELECT coalesce(l.labels ->> %s, '') AS name, r.* FROM ({}) r"
    named += " LEFT JOIN labelset l ON l.number = r.key"
    sums = "SELECT key, sum(crashes) AS crashes, min(first) AS first, max(last) AS last"
    sums = named.format(f"{sums} FROM ({source}) c GROUP BY 1")
    found = db.execute(
        f"SELECT name, sum(crashes)::bigint, min(first), max(last) FROM ({sums}) s GROUP BY 1"
        " HAVING sum(crashes) > 0 ORDER BY 2 DESC, 4 DESC LIMIT %s",
        [label, *values, limit],
    ).fetchall()
    rows = db.execute(
        "SELECT name, count(DISTINCT host), count(DISTINCT signature) FROM"
        f" ({named.format(_pairs(source))}) p WHERE name = ANY(%s) GROUP BY 1",
        [label, *values, [row[0] for row in found]],
    ).fetchall()
    return _widened(found, rows)


def _pairs(source: str, more: str = "") -> str:
    """Build a table of which hosts and which signatures there are for each `key`."""
    return (
        f"SELECT key, host, nullif(signature, 0) AS signature FROM ({source}) c WHERE crashes > 0"
        f"{more} GROUP BY GROUPING SETS ((key, host), (key, signature))"
    )


def _widened(found: Sequence[_Row], rows: Sequence[_Row]) -> list[_Row]:
    """Add to counted keys how many hosts and signatures each has."""
    widths = {key: width for key, *width in rows}
    return [(*row, *widths.get(row[0], (0, 0))) for row in found]


def _names(db: Reader, by: str, numbers: Sequence[int]) -> dict[int, dict[str, str]]:
    """Say what builds, hosts or versions have these numbers."""
    keys = ("name", "hostname")
    columns = f"{by}, hostname" if by == "host" else by
    sql = f"SELECT number, {columns} FROM {by} WHERE number = ANY(%s)"
    rows = db.execute(sql, (list(numbers),)).fetchall()
    return {number: dict(zip(keys, texts, strict=False)) for number, *texts in rows}
