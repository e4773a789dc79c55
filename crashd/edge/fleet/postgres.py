"""PostgreSQL. Only importer of psycopg.

All tables are in the schema `crashd`. What the server or the library says becomes one of our
errors: one line, and an exit status.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from crashd.domain.text import printable
from crashd.errors import (
    CrashdError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)

__all__ = ["DATA_ERRORS", "Connection", "connect", "encoded", "guard", "statement"]

Connection = psycopg.Connection[tuple[Any, ...]]
SCHEMA = "crashd"
OLDEST = 150000
"""server_version_num of PostgreSQL 15."""
CONNECT_SECONDS = 10
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
DATA_ERRORS = (
    errors.DataError,
    errors.IntegrityError,
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,  # JSON that is nested beyond max_stack_depth
)
"""The server refuses these values; others may be accepted."""
_INIT = "create it with crashd-fleet init"


def connect(
    dsn: str, *, name: str, read_only: bool = False, timeout_seconds: int = 0
) -> Connection:
    """Connect in autocommit mode; the caller closes the connection.

    Args:
        dsn: a connection string or URL of libpq, or "" for its environment (PGHOST, PGSERVICE …);
            it may name several servers.
        name: shown in pg_stat_activity.
        read_only: refuse to change anything.
        timeout_seconds: limit for each statement; 0 is none.

    Raises:
        UsageError: the DSN is malformed.
        UnavailableError: the server does not answer, or does not let the user in.
        UnsupportedError: the server is too old.

    """
    options = f"-c search_path={SCHEMA} -c timezone=UTC -c jit=off"
    options += f" -c statement_timeout={timeout_seconds}s"
    if read_only:
        options += " -c default_transaction_read_only=on"
    parameters = _parameters(dsn, name, options)
    if not read_only:
        # of several servers the one that takes writes, wherever a failover has moved it
        parameters.setdefault("target_session_attrs", "read-write")
    try:
        connection = psycopg.connect(**parameters, autocommit=True)
    except psycopg.Error as e:
        raise UnavailableError(f"PostgreSQL: {_first_line(e)}", hint="see --fleet=DSN") from e
    if connection.info.server_version < OLDEST:
        connection.close()
        raise UnsupportedError("PostgreSQL is older than version 15")
    connection.prepare_threshold = 3
    if not read_only:
        # several times as fast as pglz; a server may have been built without it
        with contextlib.suppress(psycopg.Error):
            connection.execute("SET default_toast_compression = lz4")
    return connection


def _parameters(dsn: str, name: str, options: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(psycopg.conninfo.conninfo_to_dict(dsn))
    except psycopg.Error as e:
        # the text of the error may repeat a password
        raise UsageError(
            "the fleet's DSN is neither a PostgreSQL connection string nor a URL",
            hint="for example: host=db.example dbname=crashd user=me",
        ) from e
    found["options"] = f"{found.get('options') or ''} {options}".strip()
    found.setdefault("connect_timeout", CONNECT_SECONDS)
    found.setdefault("application_name", name)
    # a server that disappears must not hold an indexer, and its locks, for hours
    for key, value in _KEEPALIVES.items():
        found.setdefault(key, value)
    return found


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Turn errors of PostgreSQL into ours.

    Raises:
        PermissionDeniedError: the user lacks the right.
        UnavailableError: there is no connection any more, no schema, or it takes too long.
        CrashdError: anything else.

    """
    try:
        yield
    except errors.InsufficientPrivilege as e:
        hint = "grant the user the role crashd_read, or crashd_index to change anything"
        raise PermissionDeniedError(f"PostgreSQL: {_first_line(e)}", hint=hint) from e
    except errors.ReadOnlySqlTransaction as e:
        raise UnavailableError(f"PostgreSQL: {_first_line(e)}", hint="is it a standby?") from e
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedFunction) as e:
        raise UnavailableError("the database holds no fleet index", hint=_INIT) from e
    except errors.QueryCanceled as e:
        raise UnavailableError(
            "PostgreSQL: the query took too long", hint="ask for less: --since, --host, -n"
        ) from e
    except (psycopg.OperationalError, psycopg.InterfaceError) as e:
        raise UnavailableError(f"PostgreSQL: {_first_line(e)}") from e
    except psycopg.Error as e:
        raise CrashdError(f"PostgreSQL: {_first_line(e)}") from e


def encoded(json: bytes) -> Jsonb:
    """Wrap JSON that is encoded already as a value of jsonb."""
    return Jsonb(json, dumps=_as_it_is)


def _as_it_is(json: Any) -> str:
    return str(json, "utf-8")  # psycopg before 3.2 takes no bytes


def statement(text: str, **names: str) -> sql.Composed:
    """Build a statement from a text of ours, with names of columns or tables in its {}."""
    parts = {key: sql.Identifier(value) for key, value in names.items()}
    return sql.SQL(text).format(**parts)


def _first_line(error: psycopg.Error) -> str:
    text: str = error.diag.message_primary or str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0][:300]) if lines else type(error).__name__
