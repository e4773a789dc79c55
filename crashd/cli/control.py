"""crashctl's side of the daemon's control socket: one request, then one answer or a stream.

crashctl trusts the daemon as it trusts root. Even so, base/messages.py bounds and parses every
message.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashd.base import messages
from crashd.base.files import read_space
from crashd.domain.units import format_size
from crashd.errors import (
    CrashdError,
    FormatError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UsageError,
    reason_of,
)

TIMEOUT_SECONDS = 30.0
_ERRORS: dict[int, type[CrashdError]] = {
    kind.exit_code: kind
    for kind in (NotFoundError, UsageError, PermissionDeniedError, UnavailableError)
}


class ControlClient:
    """Sends requests to the daemon, each over its own connection."""

    def __init__(self, path: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            UnavailableError: no daemon answers, or the answer is malformed.
            CrashdError: the daemon refuses; the class follows from the exit status it sends.
        """
        with self._conversation(request) as connection:
            return _checked(self._receive(connection))

    def fetch(self, request: dict[str, Any]) -> int:
        """Request a file; return the descriptor of an unnamed copy, which the caller owns.

        Raises:
            UnavailableError: no daemon answers, it stops halfway, or there is no space for a copy.
            CrashdError: the daemon refuses.
        """
        with self._conversation(request) as connection:
            size = _checked(self._receive(connection)).get("size_bytes")
            if type(size) is not int or size < 0:
                raise UnavailableError(f"the daemon at {self._path} sent no file")
            try:
                return _copy(connection, size)
            except TimeoutError as e:
                raise UnavailableError(f"the daemon at {self._path} does not answer") from e

    @contextlib.contextmanager
    def stream(self, request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Request a stream of events.

        It ends with UnavailableError when the daemon ends, or with the daemon's refusal.
        """
        with self._conversation(request) as connection:
            _checked(self._receive(connection))
            connection.settimeout(None)
            yield self._events(connection)

    def _events(self, connection: socket.socket) -> Iterator[dict[str, Any]]:
        while True:
            yield _checked(self._receive(connection))

    @contextlib.contextmanager
    def _conversation(self, request: dict[str, Any]) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(self._timeout_seconds)
            try:
                connection.connect(os.fspath(self._path))
                connection.sendall(messages.pack(request))
            except OSError as e:
                raise UnavailableError(
                    f"no crashd answers at {self._path}: {reason_of(e)}",
                    hint="systemctl start crashd; crashctl doctor shows more",
                ) from e
            yield connection

    def _receive(self, connection: socket.socket) -> dict[str, Any]:
        """Receive one message."""
        try:
            return messages.parse(messages.receive(connection, messages.ANSWER_MAX))
        except TimeoutError as e:
            raise UnavailableError(f"the daemon at {self._path} does not answer") from e
        except (OSError, EOFError, FormatError) as e:
            raise UnavailableError(f"the daemon at {self._path}: {reason_of(e)}") from e


def _copy(connection: socket.socket, size: int) -> int:
    """Copy what arrives to a private, unnamed file; return its descriptor, at offset 0."""
    import tempfile  # for a core only; it takes as long to load as all else here

    directory = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        if read_space(Path(directory)).free_bytes < size:
            raise UnavailableError(
                f"{directory} has no room for a core of {format_size(size)}",
                hint="set TMPDIR to a directory with enough room",
            )
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            left = size
            while left:
                chunk = connection.recv(min(left, 1 << 20))
                if not chunk:
                    raise UnavailableError(
                        f"the core ended after {size - left} of {size} bytes",
                        hint="crashd deleted it to free space, or crashctl read it too slowly",
                    )
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                left -= len(chunk)
            file.seek(0)
            return os.dup(file.fileno())
    except TimeoutError:
        raise
    except OSError as e:
        raise UnavailableError(f"cannot copy a core to {directory}: {reason_of(e)}") from e


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer; raise the error if it is a refusal."""
    if answer.get("ok", True):
        return answer
    code, hint = answer.get("exit_code"), answer.get("hint")
    kind = _ERRORS.get(code, CrashdError) if isinstance(code, int) else CrashdError
    raise kind(str(answer.get("error")), hint=None if hint is None else str(hint))
