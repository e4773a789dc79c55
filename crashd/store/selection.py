"""A query's WHERE: what the words mean in this index, and which condition leads the search.

SQLite without ANALYZE cannot know that a pid is rarer than a kind, and sorts everything that an OR
of two columns finds. So each condition is counted in its index, up to COMMON. One that matches
nothing drops out, the rarest leads, and a unary `+` keeps the others from using their indexes
(SQLite, "The Query Planner", "Disqualifying WHERE Clause Terms Using Unary +"). The cost is then
that of the rarest condition, however many crashes there are.
"""

from __future__ import annotations

import time

from crashd.domain.crash.keys import SHORT_ID_LENGTH
from crashd.domain.crash.match import Alternative, Field, Term, parse_term
from crashd.domain.crash.query import Query
from crashd.errors import UsageError
from crashd.records import NamedTuple
from crashd.store.schema import LISTED

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    import re
    import sqlite3
    from collections.abc import Callable, Iterable
    from typing import Any

    from crashd.domain.crash.viewer import Viewer

    Group = tuple["Condition", ...]
    """Conditions, any one of which suffices."""

CANDIDATES_MAX = 5
COMMON = 1000
"""From this number of rows on, the exact number does not matter."""
GLOB_SECONDS = 3.0
"""The most that the patterns of one query may take."""

BLOBS = frozenset({"hostname", "comm", "exe", "cmdline", "cwd", "root"})
_INDEXED = frozenset({*LISTED, "id", "short"})


class Condition(NamedTuple):
    """One comparison of a column: with a value, or with a range that ends before `end`."""

    column: str
    value: str | bytes | int
    end: str | None = None
    is_glob: bool = False

    @property
    def is_indexed(self) -> bool:
        """Whether an index of the column finds the rows."""
        return self.column in _INDEXED and not self.is_glob

    def sql(self, plus: str = "") -> str:
        """Build the SQL; with `plus`, no index serves it."""
        if self.is_glob:
            return f"glob_matches({self.column}, ?)"
        if self.end is None:
            return f"{plus}{self.column} = ?"
        return f"({plus}{self.column} >= ? AND {plus}{self.column} < ?)"

    @property
    def values(self) -> list[Any]:
        """The values of the question marks."""
        return [self.value] if self.end is None else [self.value, self.end]


class Selector:
    """Builds the WHERE of queries in one index for one viewer; must not be kept."""

    def __init__(self, db: sqlite3.Connection, viewer: Viewer | None) -> None:
        self._db = db
        self._mine: list[Group] = _owned_by(viewer)
        self._has_glob = False

    def where(self, query: Query) -> tuple[str, list[Any]]:
        """Build the WHERE of a query, and the values of its question marks.

        Raises:
            UsageError: a term names an unknown field, or begins the ids of several
            crashes.

        """
        groups = list(self._mine)
        if query.kind is not None:
            groups.append(_compare("kind", query.kind))
        if query.signature is not None:
            groups.append(_compare("signature", query.signature))
        named: dict[str, Group] = {}
        for text in query.terms:
            name, group = self._meanings(parse_term(text))
            named[name] = named.get(name, ()) + group
        return self._join([*groups, *named.values()], query.since_ns, query.until_ns)

    def _join(
        self, groups: Iterable[Group], since_ns: int | None = None, until_ns: int | None = None
    ) -> tuple[str, list[Any]]:
        counted = [self._count(group) for group in groups]
        if not all(group for _, group in counted):
            return "WHERE 0", []
        leader = min(counted, key=lambda item: item[0], default=(COMMON, ()))
        indexed = bool(leader[1]) and all(c.is_indexed for c in leader[1])
        leads = indexed and (leader[0] < COMMON or len(leader[1]) == 1)
        clauses: list[str] = []
        values: list[Any] = []
        for item in counted:
            plus = "" if leads and item is leader else "+"
            clauses.append("(" + " OR ".join(c.sql(plus) for c in item[1]) + ")")
            values += [value for c in item[1] for value in c.values]
        # the leading index can use the time only if the time is its second column
        listed = len(leader[1]) == 1 and leader[1][0].column in LISTED
        plus = "+" if leads and not listed else ""
        for operator, time_ns in ((">=", since_ns), ("<=", until_ns)):
            if time_ns is not None:
                clauses.append(f"{plus}time_ns {operator} ?")
                values.append(time_ns)
        return ("WHERE " + " AND ".join(clauses) if clauses else ""), values

    def _count(self, group: Group) -> tuple[int, Group]:
        """Count what a group matches, up to COMMON; leave out conditions that match nothing."""
        total, met = 0, []
        for condition in dict.fromkeys(group):
            found = COMMON + 1
            if condition.is_indexed:
                limited = f"SELECT 1 FROM crash WHERE {condition.sql()} LIMIT {COMMON}"
                sql = f"SELECT count(*) FROM ({limited})"
                (found,) = self._db.execute(sql, condition.values).fetchone()
            if found:
                met.append(condition)
                total += found
        return total, tuple(met)

    def _meanings(self, term: Term) -> tuple[str, Group]:
        """Return the group's name and the conditions of one MATCH term."""
        if not term.explicit and len(term.text) == SHORT_ID_LENGTH:
            short = _compare("short", term.text)
            if self._ids(short):
                return Field.ID_PREFIX, short
        if any(alternative.is_glob for alternative in term.alternatives):
            self._add_glob_matches()
        prefix: Group = ()
        others: Group = ()
        for alternative in term.alternatives:
            if alternative.field == Field.ID_PREFIX:
                prefix = _conditions(alternative)
            else:
                others += _conditions(alternative)
        ids = self._ids(prefix)
        if len(ids) > 1:
            if self._ids(others):
                return term.group, others  # a word with another meaning is not an id prefix
            shown = ", ".join(ids[:CANDIDATES_MAX]) + (" …" if len(ids) > CANDIDATES_MAX else "")
            raise UsageError(
                f"{term.text!r} is ambiguous: it begins {shown}", hint="give more of the id"
            )
        return term.group, prefix + others

    def _add_glob_matches(self) -> None:
        """Give this connection the function of `Condition.sql`.

        Not SQLite's GLOB, whose time grows with a power of the number of asterisks: the pattern
        and the values may both be a user's choice.
        """
        if not self._has_glob:
            self._db.create_function("glob_matches", 2, _glob_matcher(), deterministic=True)
            self._has_glob = True

    def _ids(self, group: Group) -> list[str]:
        """Return the ids of the first few matching rows that the viewer may see."""
        where, values = self._join([*self._mine, group])
        rows = self._db.execute(f"SELECT id FROM crash {where} LIMIT {CANDIDATES_MAX + 1}", values)
        return sorted(row[0] for row in rows)


def _owned_by(viewer: Viewer | None) -> list[Group]:
    """Build `Viewer.owns` as conditions that must all hold; None is root, who sees everything."""
    if viewer is None:
        return []
    return [(Condition("owner_uid", viewer.uid),), (Condition("gid", viewer.gid),)]


def _conditions(alternative: Alternative) -> Group:
    field, value = alternative.field, alternative.value
    if field == Field.ID_PREFIX:
        # a range, which an index serves; LIKE would scan the table
        end = f"{value}\x7f"
        return Condition("id", value, end), Condition("short", value, end)
    columns = ("unit", "user_unit") if field == Field.UNIT else (field,)
    if alternative.is_glob:
        return tuple(Condition(column, value, is_glob=True) for column in columns)
    return tuple(condition for column in columns for condition in _compare(column, value))


def _glob_matcher() -> Callable[[str | bytes | None, str], bool]:
    """Build a function that compares a value with a pattern, for GLOB_SECONDS of queries."""
    import re  # few queries have patterns
    from fnmatch import translate

    known: dict[str, re.Pattern[str]] = {}
    deadline = time.monotonic() + GLOB_SECONDS

    def matches(value: str | bytes | None, pattern: str) -> bool:
        if value is None:
            return False
        if time.monotonic() > deadline:
            raise UsageError("pattern took too long")  # SQLite only passes on that it failed
        text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
        if pattern not in known:
            known[pattern] = re.compile(translate(pattern))
        return known[pattern].match(text) is not None

    return matches


def _compare(column: str, value: str | int) -> Group:
    """Compare a column with a value in the column's form; a value that it cannot hold matches
    nothing.
    """
    if isinstance(value, int):
        return (Condition(column, value),)
    try:
        if column in BLOBS:
            return (Condition(column, value.encode("utf-8", "surrogateescape")),)
        value.encode()
    except UnicodeEncodeError:
        return ()
    return (Condition(column, value),)
