"""The server of /metrics, /-/healthy and /-/ready: one thread, and no client can hold it up."""

import contextlib
import errno
import gzip
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from crashd.domain.httphead import accepts_gzip, parse_request
from crashd.edge.exporter import Exporter
from crashd.errors import UnavailableError

CONNECTIONS_MAX = 32
REQUEST_MAX = 8192
"""Bytes of a request's head."""
DEADLINE_NS = 5 * 10**9
"""For a whole request, and again for its whole answer, however fast the bytes trickle."""


@dataclass(slots=True, eq=False)
class _Connection:
    """A client: its request is read, then its answer is written, then its end is waited for."""

    peer: socket.socket
    deadline_ns: int
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))
    answered: bool = False


class MetricsServer:
    """Serves metrics and health on a listening socket, which it owns, in one thread of its own.

    One for all: a slow client costs some kilobytes until its deadline, not a thread. When
    CONNECTIONS_MAX are open, a newcomer takes the place of the oldest that has nothing to get: who
    holds connections without a request cannot keep Prometheus out.
    """

    def __init__(
        self,
        sock: socket.socket,
        exporter: Exporter,
        health: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        """Take `sock`. `health` and `ready`, called by its thread, are quick and never raise."""
        self.socket = sock
        sock.setblocking(False)
        self._exporter = exporter
        self._checks = {"/-/healthy": health, "/-/ready": ready}
        self._connections: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and close the socket; may be called twice, or without `start`."""
        if self._stop_fd < 0:
            return
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._selector.close()
        os.close(self._stop_fd)
        self._stop_fd = -1
        self.socket.close()

    def _run(self) -> None:
        self._selector.register(self._stop_fd, selectors.EVENT_READ)
        self._selector.register(self.socket, selectors.EVENT_READ)
        while True:
            due_ns = min((c.deadline_ns for c in self._connections.values()), default=None)
            wait = None if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            for key, _ in self._selector.select(wait):
                if key.fd == self._stop_fd:
                    return
                connection = self._connections.get(key.fd)
                if key.data is None:
                    self._accept()
                elif connection is not None and connection is key.data:
                    self._serve(connection)  # else closed for a newcomer just now
            now_ns = time.monotonic_ns()
            for late in [c for c in self._connections.values() if c.deadline_ns <= now_ns]:
                self._close(late)

    def _accept(self) -> None:
        try:
            peer, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptors left, perhaps: the socket stays readable, and this must not spin.
            time.sleep(0.1)
            return
        peer.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            by_age = list(self._connections.values())
            self._close(next((c for c in by_age if not c.answer), by_age[0]))
        connection = _Connection(peer, time.monotonic_ns() + DEADLINE_NS)
        self._connections[peer.fileno()] = connection
        self._selector.register(peer, selectors.EVENT_READ, connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.peer.fileno()]
        self._selector.unregister(connection.peer)
        connection.peer.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            if not connection.answer and not self._read(connection):
                return
            with contextlib.suppress(BlockingIOError):
                connection.answer = connection.answer[connection.peer.send(connection.answer) :]
            events = selectors.EVENT_WRITE
            if not connection.answer:
                # Closed while something unread waits, TCP would reset, and the answer be lost.
                connection.peer.shutdown(socket.SHUT_WR)
                events = selectors.EVENT_READ
            self._selector.modify(connection.peer, events, connection)
        except BlockingIOError:
            return  # nothing to be read
        except OSError:
            self._close(connection)

    def _read(self, connection: _Connection) -> bool:
        """Take what has come; True when there is an answer to be sent."""
        data = connection.peer.recv(REQUEST_MAX)
        if not data:
            self._close(connection)
            return False
        if connection.answered:
            return False
        connection.request += data
        head, end, _ = connection.request[: REQUEST_MAX + 1].partition(b"\r\n\r\n")
        if end:
            answer = self._answer(bytes(head))
        elif len(connection.request) > REQUEST_MAX:
            answer = _build_answer(431, b"request is too large\n")
        else:
            return False
        connection.answered = True
        connection.answer = memoryview(answer)
        connection.deadline_ns = time.monotonic_ns() + DEADLINE_NS
        return True

    def _answer(self, head: bytes) -> bytes:
        try:
            method, path, headers = parse_request(head)
        except ValueError:
            return _build_answer(400, b"not understood\n")
        if method not in ("GET", "HEAD"):
            return _build_answer(405, b"only GET and HEAD\n", Allow="GET, HEAD")
        only_head = method == "HEAD"
        if path == "/metrics":
            body, content_type = self._exporter.render(headers.get("accept", ""))
            more = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
            if accepts_gzip(headers.get("accept-encoding", "")):
                body = gzip.compress(body, 5, mtime=0)
                more["Content-Encoding"] = "gzip"
            return _build_answer(200, body, only_head, **more)
        check = self._checks.get(path)
        if check is None:
            return _build_answer(404, b"try /metrics, /-/healthy or /-/ready\n", only_head)
        what = path.removeprefix("/-/").encode()
        if check():
            return _build_answer(200, what + b"\n", only_head)
        return _build_answer(503, b"not " + what + b"\n", only_head)


def _build_answer(status: int, body: bytes, only_head: bool = False, **more: str) -> bytes:
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Date": formatdate(usegmt=True),
        "Content-Length": str(len(body)),
        "Connection": "close",
        **more,
    }
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + (b"" if only_head else body)


# -- listening -------------------------------------------------------------------------------------

_HINTS = {
    errno.EADDRINUSE: 'another program has the port: set [http] listen to another, or to "off"',
    errno.EACCES: "ports below 1024 are privileged: set [http] listen to a higher one",
    errno.EADDRNOTAVAIL: "no interface of this host has the address: see [http] listen",
}
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F.:]*:[0-9a-fA-F.:]*)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})")
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(address: str) -> list[socket.socket]:
    """Listen on `HOST:PORT` or `[IPV6]:PORT`: one socket for each address of HOST, the caller's.

    One that this host lacks does not count beside another: `localhost` where IPv6 is off.

    Raises:
        UnavailableError: the address is none, or cannot be resolved or listened on.

    """
    servers: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, where in _resolve(address):
            try:
                # With SO_REUSEADDR, IPV6_V6ONLY and CLOEXEC.
                servers.append(socket.create_server(where, family=family, backlog=128))
            except OSError as e:
                if e.errno not in _NOT_HERE:
                    raise
                missing = e
        if missing is not None and not servers:
            raise missing
    except OSError as e:
        for server in servers:
            server.close()
        hint = _HINTS.get(e.errno or 0, "see [http] listen in crashd.toml")
        why = str(e.strerror).partition(" (while")[0]  # create_server() has the address once more
        raise UnavailableError(f"cannot listen on {address!r}: {why}", hint=hint) from e
    return servers


def _resolve(address: str) -> Iterable[tuple[int, tuple[str, int]]]:
    match = _ADDRESS.fullmatch(address)
    if not match or int(match[3]) > 65535 or not all(0 < len(x) < 64 for x in address.split(".")):
        raise OSError(errno.EINVAL, "it is neither HOST:PORT nor [IPV6]:PORT")
    found = socket.getaddrinfo(match[1] or match[2], int(match[3]), type=socket.SOCK_STREAM)
    return dict.fromkeys(
        (int(family), (str(where[0]), int(match[3]))) for family, *_, where in found
    )
