"""PostgreSQL for those who write. Only importer of psycopg; those who only read have reader.py.

All tables are in the schema `crashd`. What the server or the library says becomes one of our
errors: one line, and an exit status.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
from psycopg import errors, sql

from crashd.edge.fleet.reader import (
    OLDEST,
    complete_parameters,
    fault,
    malformed_dsn,
    no_connection,
    too_old,
)

__all__ = ["DATA_ERRORS", "Connection", "array", "connect", "guard", "statement"]

Connection = psycopg.Connection[tuple[Any, ...]]
DATA_ERRORS = (
    errors.DataError,
    errors.IntegrityError,
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,  # JSON that is nested beyond max_stack_depth
)
"""The server refuses these values; others may be accepted."""


def connect(dsn: str, *, name: str, timeout_seconds: int = 0) -> Connection:
    """Connect in autocommit mode; the caller closes the connection.

    Args:
        dsn: see `complete_parameters`.
        name: shown in pg_stat_activity.
        timeout_seconds: limit for each statement; 0 is none.

    Raises:
        UsageError: the DSN is malformed.
        UnavailableError: the server does not answer, or does not let the user in.
        UnsupportedError: the server is too old.

    """
    try:
        given = {key: str(value) for key, value in psycopg.conninfo.conninfo_to_dict(dsn).items()}
    except psycopg.Error as e:
        raise malformed_dsn() from e
    parameters: dict[str, Any] = dict(complete_parameters(given, name, timeout_seconds))
    # of several servers the one that takes writes, wherever a failover has moved it
    parameters.setdefault("target_session_attrs", "read-write")
    try:
        connection = psycopg.connect(**parameters, autocommit=True)
    except psycopg.Error as e:
        raise no_connection(_text(e)) from e
    if connection.info.server_version < OLDEST:
        connection.close()
        raise too_old()
    connection.prepare_threshold = 3
    # several times as fast as pglz; a server may have been built without it
    with contextlib.suppress(psycopg.Error):
        connection.execute("SET default_toast_compression = lz4")
    return connection


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Turn errors of PostgreSQL into ours, as `reader.fault` says."""
    try:
        yield
    except psycopg.Error as e:
        raise fault(e.sqlstate, _text(e)) from e


def array(values: Iterable[object]) -> str:
    """Build the text of an array of numbers, times or ids, none of which needs quotes.

    psycopg's own takes a microsecond for each element, which is as much as the server.
    """
    return "{" + ",".join(map(str, values)) + "}"


def statement(text: str, **names: str) -> sql.Composed:
    """Build a statement from a text of ours, with names of columns or tables in its {}."""
    parts = {key: sql.Identifier(value) for key, value in names.items()}
    return sql.SQL(text).format(**parts)


def _text(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip() or type(error).__name__
