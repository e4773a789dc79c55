"""The daemon's control socket, from crashctl's side: one question, one answer, or a stream.

The daemon is trusted as root is, yet what arrives is still bounded and parsed by domain/frames.py.
"""

import array
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashd.domain import frames
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
    """Asks the daemon; each question has a connection of its own."""

    def __init__(self, path: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout_seconds = timeout_seconds

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask, and give the answer.

        Raises:
            UnavailableError: no daemon answers, or it answers nonsense.
            CrashdError: the daemon's refusal, of the class that its exit status says.

        """
        with self._conversation(request) as connection:
            return _checked(self._receive(connection))

    def ask_for_descriptor(self, request: dict[str, Any]) -> int:
        """Ask for a descriptor; the caller owns it."""
        with self._conversation(request) as connection:
            fds: list[int] = []
            try:
                _checked(self._receive(connection, fds))
                if not fds:
                    raise UnavailableError(f"the daemon at {self._path} passed no descriptor")
                return fds.pop(0)
            finally:
                for fd in fds:
                    os.close(fd)

    @contextlib.contextmanager
    def stream(self, request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Ask for a stream of events; they end when the daemon does, by UnavailableError, or by a
        refusal.
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
                connection.sendall(frames.pack(request))
            except OSError as e:
                raise UnavailableError(
                    f"no crashd answers at {self._path}: {reason_of(e)}",
                    hint="systemctl start crashd; crashctl doctor tells more",
                ) from e
            yield connection

    def _receive(self, connection: socket.socket, fds: list[int] | None = None) -> dict[str, Any]:
        """Receive one message; descriptors that came with it are appended to `fds`."""
        try:
            header = _receive_exactly(connection, frames.HEADER_SIZE, fds)
            size = frames.parse_size(header, frames.ANSWER_MAX)
            return frames.parse(_receive_exactly(connection, size))
        except TimeoutError as e:
            raise UnavailableError(f"the daemon at {self._path} does not answer") from e
        except (OSError, FormatError) as e:
            raise UnavailableError(f"the daemon at {self._path}: {reason_of(e)}") from e


def _receive_exactly(connection: socket.socket, size: int, fds: list[int] | None = None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if fds is not None and not data:
            chunk = _receive_with_descriptors(connection, size, fds)
        else:
            chunk = connection.recv(min(size - len(data), 1 << 20))
        if not chunk:
            raise FormatError("it closed the connection")
        data += chunk
    return bytes(data)


def _receive_with_descriptors(connection: socket.socket, size: int, fds: list[int]) -> bytes:
    room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
    data, ancillary, _, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    return data


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Give an answer back, or raise the refusal that it is."""
    if answer.get("ok", True):
        return answer
    code, hint = answer.get("exit_code"), answer.get("hint")
    kind = _ERRORS.get(code, CrashdError) if isinstance(code, int) else CrashdError
    raise kind(str(answer.get("error")), hint=None if hint is None else str(hint))
