"""A query's WHERE in the fleet's index: what the words of MATCH mean there.

As in the local index, a word has several meanings; those that match nothing are left out, so that
one index, in the order of a listing, serves what remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from crashd.domain.crash.match import Alternative, Field, Term, is_pattern, parse_term
from crashd.domain.crash.model import SHORT_ID_LENGTH
from crashd.domain.crash.query import Query
from crashd.domain.fleet.hostid import HOST_PATTERN
from crashd.edge.fleet.reader import Reader
from crashd.errors import NotFoundError, UsageError
from crashd.fleet.texts import text as column_text

CANDIDATES_MAX = 5
HOSTS_MAX = 1000
_COLUMNS = frozenset(
    [
        "id",
        "kind",
        "state",
        "hostname",
        "pid",
        "uid",
        "gid",
        "signal",
        "comm",
        "exe",
        "unit",
        "user_unit",
        "slice",
        "container_id",
        "title",
        "pinned",
    ]
)
_TEXTS = frozenset(
    ["hostname", "comm", "exe", "unit", "user_unit", "slice", "container_id", "title"]
)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL, and the values of its placeholders."""

    sql: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """The hosts that are looked at: `--host` and `--label`."""

    hosts: tuple[str, ...] = ()
    """Each is a host's id, or its beginning, or a hostname, which may be a pattern."""
    labels: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.hosts or self.labels)


def scope_conditions(db: Reader, scope: Scope) -> list[Condition]:
    """Build the conditions of a scope.

    Raises:
        NotFoundError: there is no such host.

    """
    found = []
    if scope.hosts:
        numbers = [number for name in scope.hosts for number in _hosts(db, name)]
        found.append(_one_of("host", numbers))
    for name, value in scope.labels:
        rows = db.execute(
            "SELECT number FROM labelset WHERE labels ->> %s = %s", (name, value)
        ).fetchall()
        found.append(_one_of("labels", [row[0] for row in rows]))
    return found


def _hosts(db: Reader, name: str) -> list[int]:
    # a name that several hosts claim means all of them; an id is only one
    sql = "SELECT number FROM host WHERE host = %s OR hostname = %s LIMIT %s"
    rows = db.execute(sql, (name, column_text(name), HOSTS_MAX)).fetchall()
    if not rows and is_pattern(name):
        sql = "SELECT number FROM host WHERE hostname ~ %s LIMIT %s"
        rows = db.execute(sql, (regex(column_text(name)), HOSTS_MAX + 1)).fetchall()
        if len(rows) > HOSTS_MAX:
            raise UsageError(
                f"{name!r} fits more than {HOSTS_MAX} hosts", hint="hosts have labels, too: --label"
            )
    if not rows and len(name) >= 4 and HOST_PATTERN.fullmatch(name.ljust(32, "0")):
        sql = "SELECT number FROM host WHERE host >= %s AND host < %s LIMIT 2"
        rows = db.execute(sql, (name, name + "g")).fetchall()
        if len(rows) > 1:
            raise UsageError(
                f"{name!r} begins the ids of several hosts", hint="give more of the id"
            )
    if not rows:
        raise NotFoundError(f"no host {name} has crashes", hint="hosts are named by id or hostname")
    return [row[0] for row in rows]


def _one_of(column: str, numbers: Sequence[int]) -> Condition:
    if len(numbers) == 1:
        return Condition(f"c.{column} = %s", (numbers[0],))
    return Condition(f"c.{column} = ANY(%s)", (list(numbers),))


def conditions(db: Reader, query: Query, scope: Scope) -> list[Condition]:
    """Build all conditions of a query; all must hold.

    Raises:
        UsageError: a term names an unknown field, or begins the ids of several crashes.
        NotFoundError: there is no such host.

    """
    found = scope_conditions(db, scope)
    if query.kind is not None:
        found.append(Condition("c.kind = %s", (query.kind,)))
    if query.signature is not None:
        found.append(_number(db, "signature", query.signature))
    found += time_conditions(query.since_ns, query.until_ns)
    named: dict[str, list[Condition]] = {}
    for word in query.terms:
        name, any_of = _meanings(db, parse_term(word), found)
        named.setdefault(name, []).extend(any_of)
    return found + [_any(group) for group in named.values()]


def where(conditions: Sequence[Condition]) -> tuple[str, list[Any]]:
    """Join conditions."""
    sql = " AND ".join(f"({one.sql})" for one in conditions)
    return f"WHERE {sql}" if sql else "", [value for one in conditions for value in one.values]


def time_conditions(since_ns: int | None, until_ns: int | None) -> list[Condition]:
    """Build the conditions of a span of time; those on the day leave out partitions."""
    found = []
    for operator, time_ns, margin in ((">=", since_ns, -_DAY * 2), ("<=", until_ns, _DAY * 2)):
        if time_ns is not None:
            moment = moment_of(time_ns)
            try:
                day = (moment + margin).date()
            except OverflowError:
                day = moment.date()
            found.append(Condition(f"c.time {operator} %s AND c.day {operator} %s", (moment, day)))
    return found


def moment_of(time_ns: int) -> datetime:
    """Convert ns since the epoch; a time that no calendar has becomes the nearest that it has."""
    low = int(datetime(1, 1, 3, tzinfo=UTC).timestamp()) * 10**6
    high = int(datetime(9999, 12, 29, tzinfo=UTC).timestamp()) * 10**6
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=min(max(time_ns // 1000, low), high)
    )


def _any(group: Sequence[Condition]) -> Condition:
    if not group:
        return Condition("false")
    return Condition(
        " OR ".join(f"({one.sql})" for one in group),
        tuple(value for one in group for value in one.values),
    )


def _number(db: Reader, table: str, text: str) -> Condition:
    """Compare a text that has a number."""
    clean = column_text(text)
    row = db.execute(f"SELECT number FROM {table} WHERE {table} = %s", (clean,)).fetchone()
    return Condition("false") if row is None else Condition(f"c.{table} = %s", (row[0],))


def _meanings(db: Reader, term: Term, others: Sequence[Condition]) -> tuple[str, list[Condition]]:
    """Return the group's name and the conditions of one MATCH, without those that match nothing."""
    if not term.explicit and len(term.text) == SHORT_ID_LENGTH:
        short = Condition("c.short = %s", (column_text(term.text),))
        if _ids(db, [*others, short]):
            return Field.ID_PREFIX, [short]
    prefix, rest = [], []
    for alternative in term.alternatives:
        if alternative.field == Field.ID_PREFIX:
            prefix = _id_prefix(str(alternative.value))
        else:
            rest += _compare(db, alternative)
    if not term.explicit:
        rest = [one for one in rest if _matches(db, one)]
    if not prefix:
        return term.group, rest
    ids = _ids(db, [*others, _any(prefix)])
    if len(ids) > 1 and not rest:
        shown = ", ".join(ids[:CANDIDATES_MAX]) + (" …" if len(ids) > CANDIDATES_MAX else "")
        raise UsageError(
            f"{term.text!r} is ambiguous: it begins {shown}", hint="give more of the id"
        )
    return term.group, rest if len(ids) != 1 else [*prefix, *rest]


def _id_prefix(text: str) -> list[Condition]:
    end = f"{text}~"
    found = [Condition("c.short >= %s AND c.short < %s", (text, end))]
    if text[:1].isdigit():
        found.append(Condition("c.id >= %s AND c.id < %s", (text, end)))
    return found


def _ids(db: Reader, conditions: Sequence[Condition]) -> list[str]:
    sql, values = where(conditions)
    rows = db.execute(
        f"SELECT DISTINCT id FROM (SELECT id FROM crash c {sql} LIMIT %s) f ORDER BY 1",
        [*values, CANDIDATES_MAX + 1],
    ).fetchall()
    return [row[0] for row in rows]


def _matches(db: Reader, condition: Condition) -> bool:
    sql, values = where([condition])
    row = db.execute(f"SELECT EXISTS (SELECT FROM crash c {sql})", values).fetchone()
    return bool(row and row[0])


def regex(pattern: str) -> str:
    """Translate a pattern of glob(7), in which `*` also matches `/`, to PostgreSQL's regex."""
    found, rest = [], pattern
    while rest:
        character, rest = rest[0], rest[1:]
        # "]" is one of the set's characters where it is the first, also after "!"
        end = rest.find("]", 1 + (rest[:1] in ("!", "^"))) if character == "[" else -1
        if character == "*":
            found.append(".*")
        elif character == "?":
            found.append(".")
        elif end > 0:
            inside, rest = rest[:end], rest[end + 1 :]
            negated = inside[:1] in ("!", "^")
            inside = inside[negated:].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
            found.append(f"[{'^' if negated else ''}{inside}]")
        else:
            found.append(
                character if character.isalnum() or character in "_-/ " else f"\\{character}"
            )
    return "^(?:" + "".join(found) + ")$"


def _compare(db: Reader, alternative: Alternative) -> list[Condition]:
    field, value = alternative.field, alternative.value
    if field == Field.UNIT:
        operator, unit = "=", column_text(str(value))
        if alternative.is_glob:
            operator, unit = "~", regex(str(value))
        return [Condition(f"c.{name} {operator} %s", (unit,)) for name in ("unit", "user_unit")]
    if field == "signature":
        return [_number(db, "signature", str(value))]
    if field == "build_id":
        return [_number(db, "build", str(value))]
    if alternative.is_glob:
        column, values = (f"c.{field}", ()) if field in _TEXTS else ("c.doc ->> %s", (field,))
        return [Condition(f"{column} ~ %s", (*values, regex(str(value))))]
    if field in _COLUMNS:
        if field == "pinned":
            return [Condition("c.pinned = %s", (bool(value),))]
        if field in _TEXTS:
            value = column_text(str(value))
        return [Condition(f"c.{field} = %s", (value,))]
    return [Condition("c.doc ->> %s = %s", (field, column_text(str(value))))]
