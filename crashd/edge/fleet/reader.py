"""PostgreSQL for those who only read, such as `crashctl --fleet`; and what all its users share.

Writers have psycopg (postgres.py). Both connect with the same parameters, and what the server or
the library says becomes the same error of ours: one line, and an exit status.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from typing import Any, Final

from crashd.domain.text import printable
from crashd.edge.fleet.libpq import Link, ServerError, load, parse_dsn
from crashd.errors import (
    CrashdError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)

SCHEMA: Final = "crashd"
OLDEST: Final = 150000
"""server_version_num of PostgreSQL 15."""
CONNECT_SECONDS: Final = 10
_KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "tcp_user_timeout": "60000"}
_READ_ONLY = (
    " -c default_transaction_read_only=on -c datestyle=ISO -c client_min_messages=error"
    " -c extra_float_digits=1"
)
_TROUBLE = frozenset({"08", "28", "40", "53", "54", "55", "57", "58"})
"""Classes of SQLSTATE that are about the server and not about a statement: connection, rights to
connect, rollback, resources, limits, state, intervention, system."""


class Rows:
    """What a statement returned."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._rows)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row, if there is any."""
        return self._rows[0] if self._rows else None


class Reader:
    """One connection that changes nothing. Its statements are written as those of psycopg."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    def connect(cls, dsn: str, *, name: str, timeout_seconds: int) -> "Reader":
        """Connect; the caller closes the connection.

        Args:
            dsn: see `complete_parameters`.
            name: shown in pg_stat_activity.
            timeout_seconds: limit for each statement; 0 is none.

        Raises:
            UsageError: the DSN is malformed.
            UnavailableError: the server does not answer, or does not let the user in.
            UnsupportedError: the server is too old, or the library is not installed.

        """
        library = load()
        try:
            given = parse_dsn(library, dsn)
        except ValueError as e:
            raise malformed_dsn() from e
        parameters = complete_parameters(given, name, timeout_seconds, _READ_ONLY)
        try:
            link = Link(library, {**parameters, "client_encoding": "UTF8"})
        except ServerError as e:
            raise no_connection(str(e)) from e
        if link.server_version < OLDEST:
            link.close()
            raise too_old()
        return cls(link)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, sql: str | bytes, values: Sequence[Any] = ()) -> Rows:
        """Run one statement, whose placeholders are %s.

        Raises:
            CrashdError: as `fault` says.

        """
        first, *rest = (sql.decode() if isinstance(sql, bytes) else sql).split("%s")
        text = first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))
        given = [_encode(value) for value in values]
        try:
            types, rows = self._link.execute(text, [g[0] for g in given], [g[1] for g in given])
        except ServerError as e:
            raise fault(e.sqlstate, str(e)) from e
        readers = [_READERS.get(oid, _text) for oid in types]
        try:
            return Rows(
                [
                    tuple(
                        None if data is None else read(data)
                        for read, data in zip(readers, row, strict=True)
                    )
                    for row in rows
                ]
            )
        except (ValueError, RecursionError) as e:
            raise CrashdError("PostgreSQL has a value that cannot be read") from e

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Ask several questions about the same moment, as far as READ COMMITTED goes."""
        self.execute("BEGIN")
        try:
            yield
        except CrashdError:
            with contextlib.suppress(CrashdError):
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


def complete_parameters(
    given: dict[str, str], name: str, timeout_seconds: int, more: str = ""
) -> dict[str, str]:
    """Add to the parameters of a DSN what every connection has.

    A DSN is a connection string or URL of libpq, or "" for its environment (PGHOST, PGSERVICE …);
    it may name several servers.
    """
    options = f"-c search_path={SCHEMA} -c timezone=UTC -c jit=off"
    options += f" -c statement_timeout={timeout_seconds}s{more}"
    found = {**given, "options": f"{given.get('options') or ''} {options}".strip()}
    found.setdefault("connect_timeout", str(CONNECT_SECONDS))
    found.setdefault("application_name", name)
    # a server that disappears must not hold an indexer, and its locks, for hours
    return _KEEPALIVES | found


def malformed_dsn() -> UsageError:
    """Make the error; the library's text may repeat a password."""
    return UsageError(
        "the fleet's DSN is neither a PostgreSQL connection string nor a URL",
        hint="for example: host=db.example dbname=crashd user=me",
    )


def no_connection(text: str) -> UnavailableError:
    """Make the error of a server that does not answer, or does not let the user in."""
    line = first_line(text).removeprefix("connection failed: ")  # psycopg's
    if "FATAL:" in line:
        hint = (
            "the server does not let this user in: check name, password, database and pg_hba.conf"
        )
    else:
        hint = (
            "the server is named by --fleet=DSN, --dsn or $CRASHD_FLEET; else PGHOST or PGSERVICE"
        )
    return UnavailableError(f"PostgreSQL: {line}", hint=hint)


def too_old() -> UnsupportedError:
    """Make the error of a server that is too old."""
    return UnsupportedError("PostgreSQL is older than version 15")


def fault(sqlstate: str | None, text: str) -> CrashdError:
    """Make of an error of PostgreSQL one of ours.

    PermissionDeniedError if the user lacks the right; UnavailableError if there is no connection
    any more, no schema, or it takes too long; CrashdError for anything else.
    """
    line = f"PostgreSQL: {first_line(text)}"
    match sqlstate:
        case "42501":  # insufficient_privilege
            hint = "grant the user the role crashd_read, or crashd_index to change anything"
            return PermissionDeniedError(line, hint=hint)
        case "25006":  # read_only_sql_transaction
            return UnavailableError(line, hint="is it a standby?")
        case "42P01" | "3F000" | "42883":  # undefined_table, invalid_schema_name, _function
            return UnavailableError(
                "the database holds no fleet index", hint="create it with crashd-fleet init"
            )
        case "57014":  # query_canceled
            hint = "ask for less: --since, --host, -n"
            return UnavailableError("PostgreSQL: the query took too long", hint=hint)
    if sqlstate is None or sqlstate[:2] in _TROUBLE:
        return UnavailableError(line)
    return CrashdError(line)


def first_line(text: str) -> str:
    """Return the first line of a message, printable."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0][:300]) if lines else "no connection"


# -- values, as texts -----------------------------------------------------------------------------

_UNKNOWN, _BOOL, _INT4, _INT8, _NUMERIC, _FLOAT8 = 0, 16, 23, 20, 1700, 701
_DATE, _TIMESTAMPTZ = 1082, 1184
_ARRAYS = {_UNKNOWN: _UNKNOWN, _INT4: 1007, _INT8: 1016, _DATE: 1182}
"""Numbers of pg_type.dat. The server itself finds out what a text is."""


def _encode(value: Any) -> tuple[int, bytes | None]:
    """Return the type and the text of a value."""
    match value:
        case None:
            return _UNKNOWN, None
        case bool():
            return _BOOL, b"t" if value else b"f"
        case int():
            oid = next((o for o, n in ((_INT4, 31), (_INT8, 63)) if -1 << n <= value < 1 << n), 0)
            return oid or _NUMERIC, b"%d" % value
        case float():
            return _FLOAT8, repr(value).encode()
        case datetime():
            return _TIMESTAMPTZ, value.isoformat().encode()
        case date():
            return _DATE, value.isoformat().encode()
        case str():
            if "\0" in value:
                raise UsageError("a text for PostgreSQL has a NUL character")
            return _UNKNOWN, value.encode("utf-8", "surrogateescape")
        case list():
            return _encode_array(value)
    raise TypeError(f"{type(value).__name__} is no value of a query")


def _encode_array(values: list[Any]) -> tuple[int, bytes]:
    given = [_encode(value) for value in values]
    oids = {oid for oid, _ in given}
    oid = _INT8 if _INT8 in oids else next(iter(oids), _UNKNOWN)
    quoted = (
        b'"' + (text or b"").replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        for _, text in given
    )
    return _ARRAYS[oid], b"{" + b",".join(quoted) + b"}"


def _text(data: bytes) -> str:
    return data.decode()


_READERS: dict[int, Callable[[bytes], Any]] = {
    _BOOL: lambda data: data == b"t",
    21: int,
    _INT4: int,
    _INT8: int,
    700: float,
    _FLOAT8: float,
    114: json.loads,
    3802: json.loads,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIMESTAMPTZ: lambda data: datetime.fromisoformat(data.decode()),
}
"""By the numbers of pg_type.dat."""
