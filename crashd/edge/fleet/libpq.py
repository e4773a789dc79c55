"""libpq, the C library of PostgreSQL, by ctypes: what reading needs of it.

psycopg cannot be imported in parts: it loads asyncio and more, which takes longer than a listing
does. libpq's interface (libpq.so.5) has been the same since 2005, and each psycopg comes with it,
or needs the system's.

Calls that wait for a server run in another thread, where only the C library is: Ctrl-C is heard.
Source: https://www.postgresql.org/docs/current/libpq.html, libpq-fe.h.
"""

import ctypes
import os
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_uint, c_void_p
from typing import Any

from crashd.errors import UnsupportedError

_CONNECTION_OK = 0
_COMMAND_OK, _TUPLES_OK = 1, 2
_DIAG_SQLSTATE, _DIAG_MESSAGE = ord("C"), ord("M")
_BUNDLE = "psycopg_binary.libs"
"""Beside psycopg_binary: the libraries that its wheel brings."""
_CANCEL_SECONDS = 1.0
_CANCEL_BYTES = 256


class ServerError(Exception):
    """What the server or the library says is wrong; `sqlstate` is None if there is no server."""

    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class _Option(ctypes.Structure):
    """PQconninfoOption."""

    _fields_ = (
        ("keyword", c_char_p),
        ("envvar", c_char_p),
        ("compiled", c_char_p),
        ("val", c_char_p),
        ("label", c_char_p),
        ("dispchar", c_char_p),
        ("dispsize", c_int),
    )


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "PQconninfoParse": (POINTER(_Option), (c_char_p, POINTER(c_void_p))),
    "PQconninfoFree": (None, (POINTER(_Option),)),
    "PQfreemem": (None, (c_void_p,)),
    "PQconnectdbParams": (c_void_p, (POINTER(c_char_p), POINTER(c_char_p), c_int)),
    "PQstatus": (c_int, (c_void_p,)),
    "PQerrorMessage": (c_char_p, (c_void_p,)),
    "PQserverVersion": (c_int, (c_void_p,)),
    "PQfinish": (None, (c_void_p,)),
    "PQgetCancel": (c_void_p, (c_void_p,)),
    "PQfreeCancel": (None, (c_void_p,)),
    "PQcancel": (c_int, (c_void_p, c_char_p, c_int)),
    "PQexecParams": (
        c_void_p,
        (
            c_void_p,
            c_char_p,
            c_int,
            POINTER(c_uint),
            POINTER(c_char_p),
            POINTER(c_int),
            POINTER(c_int),
            c_int,
        ),
    ),
    "PQresultStatus": (c_int, (c_void_p,)),
    "PQresultErrorMessage": (c_char_p, (c_void_p,)),
    "PQresultErrorField": (c_char_p, (c_void_p, c_int)),
    "PQntuples": (c_int, (c_void_p,)),
    "PQnfields": (c_int, (c_void_p,)),
    "PQftype": (c_uint, (c_void_p, c_int)),
    "PQgetisnull": (c_int, (c_void_p, c_int, c_int)),
    "PQgetlength": (c_int, (c_void_p, c_int, c_int)),
    "PQgetvalue": (c_void_p, (c_void_p, c_int, c_int)),
    "PQclear": (None, (c_void_p,)),
}


def load() -> Any:
    """Load the library: psycopg's own, or the system's.

    Raises:
        UnsupportedError: there is neither.

    """
    library = None
    for name in (*_bundled(), "libpq.so.5"):
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    if library is None:
        raise UnsupportedError(
            "libpq, the client library of PostgreSQL, is not installed",
            hint="install python3-psycopg (or libpq5), or crashd[fleet-server]",
        )
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _bundled() -> list[str]:
    found = []
    for directory in sys.path:
        try:
            names = os.listdir(os.path.join(directory or ".", _BUNDLE))
        except OSError:
            continue
        found += [os.path.join(directory, _BUNDLE, n) for n in names if n.startswith("libpq-")]
    return found


def parse_dsn(library: Any, dsn: str) -> dict[str, str]:
    """Return the parameters in a connection string or URL.

    Raises:
        ValueError: it is neither; the message holds nothing of it, as it may have a password.

    """
    message = c_void_p()
    options = library.PQconninfoParse(_encoded(dsn), ctypes.byref(message))
    if not options:
        library.PQfreemem(message)
        raise ValueError("neither a connection string nor a URL")
    found, number = {}, 0
    while options[number].keyword is not None:
        if options[number].val is not None:
            found[options[number].keyword.decode()] = os.fsdecode(options[number].val)
        number += 1
    library.PQconninfoFree(options)
    return found


def _encoded(text: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:  # a C string would end there
        raise ValueError("a text with a NUL character")
    return data


class Link:
    """One connection; `close` ends it."""

    def __init__(self, library: Any, parameters: Mapping[str, str]) -> None:
        """Connect.

        Raises:
            ServerError: the server does not answer, or does not let the user in.
            ValueError: a parameter has a NUL character.

        """
        count = len(parameters) + 1
        keys = (c_char_p * count)(*(key.encode() for key in parameters), None)
        texts = (c_char_p * count)(*map(_encoded, parameters.values()), None)
        self._library = library
        self._pointer, self._cancel = None, None
        self._pointer = self._apart(library.PQconnectdbParams, keys, texts, 0)
        if library.PQstatus(self._pointer) != _CONNECTION_OK:
            text = _text(library.PQerrorMessage(self._pointer))
            self.close()
            raise ServerError(text)
        self._cancel = library.PQgetCancel(self._pointer)

    @property
    def server_version(self) -> int:
        """Return the server's version, such as 150018."""
        return int(self._library.PQserverVersion(self._pointer))

    def execute(
        self, sql: str, types: Sequence[int], values: Sequence[bytes | None]
    ) -> tuple[list[int], list[list[bytes | None]]]:
        """Run one statement; values are texts; return the types of the columns, and the rows.

        Raises:
            ServerError: the server refuses, or the connection is gone.

        """
        if self._pointer is None:
            raise ServerError("the connection is closed")
        count = len(values)
        result = self._apart(
            self._library.PQexecParams,
            self._pointer,
            sql.encode(),
            count,
            (c_uint * count)(*types),
            (c_char_p * count)(*values),
            None,
            None,
            0,
        )
        try:
            return self._read(result)
        finally:
            self._library.PQclear(result)

    def _read(self, result: int | None) -> tuple[list[int], list[list[bytes | None]]]:
        library = self._library
        if library.PQresultStatus(result) not in (_COMMAND_OK, _TUPLES_OK):
            state = library.PQresultErrorField(result, _DIAG_SQLSTATE)
            text = library.PQresultErrorField(result, _DIAG_MESSAGE)
            text = text or library.PQresultErrorMessage(result)
            text = text or library.PQerrorMessage(self._pointer)
            raise ServerError(_text(text), None if state is None else _text(state))
        columns = range(library.PQnfields(result))
        value, length, is_null = library.PQgetvalue, library.PQgetlength, library.PQgetisnull
        rows = [
            [
                None
                if is_null(result, row, column)
                else ctypes.string_at(value(result, row, column), length(result, row, column))
                for column in columns
            ]
            for row in range(library.PQntuples(result))
        ]
        return [library.PQftype(result, column) for column in columns], rows

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        if self._pointer is not None:
            self._library.PQfreeCancel(self._cancel)
            self._library.PQfinish(self._pointer)
            self._pointer = None

    def _apart(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the library in another thread; if that is interrupted, cancel what runs."""
        results, running = [], allocate_lock()

        def run() -> None:
            try:
                results.append(call(*arguments))
            finally:
                running.release()

        running.acquire()
        start_new_thread(run, ())
        try:
            running.acquire()
        except BaseException:
            self._cancel_running()
            running.acquire(timeout=_CANCEL_SECONDS)
            self._pointer = None  # the thread may still use it; it ends with the process
            raise
        return results[0]

    def _cancel_running(self) -> None:
        """Ask the server to end a statement; not waited for, because it may not answer."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            buffer = ctypes.create_string_buffer(_CANCEL_BYTES)
            start_new_thread(self._library.PQcancel, (cancel, buffer, _CANCEL_BYTES))


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
