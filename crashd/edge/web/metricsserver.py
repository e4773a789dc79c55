"""The server of /metrics, /-/healthy and /-/ready: one thread, which no client can block.

A guard, if set, makes the streams (TLS) and judges requests; a request that it refuses gets only
the refusal.
"""

import errno
import gzip
import os
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from crashd.domain.web.httphead import accepts_gzip, parse_request
from crashd.edge.web.webguard import Guard, Question, Stream, WantsRead, WantsWrite
from crashd.errors import UnavailableError, reason_of

CONNECTIONS_MAX = 32
REQUEST_MAX = 8192
"""Bytes of a request's head."""
DEADLINE_NS = 5 * 10**9
"""Time for a whole request and its judgement, and again for the whole answer, however slowly bytes
arrive.
"""
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="crashd", charset="UTF-8"'}


class Renders(Protocol):
    """What has metrics to serve."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its type for a request's Accept header."""


@dataclass(slots=True, eq=False)
class _Connection:
    """A client: its request is read and judged, its answer is written, and its end is awaited."""

    stream: Stream
    guard: Guard
    deadline_ns: int
    question: Question | None = None
    """Set while the gate judges; the socket is not read meanwhile."""
    asked: tuple[str, str, dict[str, str]] | None = None
    """Method, path and headers, once known."""
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))
    answered: bool = False


class MetricsServer:
    """Serves metrics and health on a listening socket, which it owns, in its own thread.

    One thread serves all clients: a slow client costs some kilobytes until its deadline, but no
    thread. If CONNECTIONS_MAX are open, a new client replaces the oldest one that is not being
    answered, so that idle connections cannot keep Prometheus out.
    """

    def __init__(
        self,
        sock: socket.socket,
        exporter: Renders,
        health: Callable[[], bool],
        ready: Callable[[], bool],
        guard: Guard | None = None,
    ) -> None:
        """Take over `sock`. `health` and `ready` run in the thread; they are fast, never raise."""
        self.socket = sock
        sock.setblocking(False)
        self.guard = Guard() if guard is None else guard
        """May be replaced at any time, by any thread; open connections keep the old one."""
        self._exporter = exporter
        self._checks = {"/-/healthy": health, "/-/ready": ready}
        self._connections: dict[int, _Connection] = {}
        self._judged: deque[Question] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the socket; may be called twice, or without `start`."""
        if self._wake_fd < 0:
            return
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._selector.close()
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1
        self.socket.close()

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._selector.register(self.socket, selectors.EVENT_READ)
        while True:
            due_ns = min((c.deadline_ns for c in self._connections.values()), default=None)
            wait = None if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            ready = self._selector.select(wait)
            heard_ns = time.monotonic_ns()
            for key, _ in ready:
                connection = self._connections.get(key.fd)
                if key.fd == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                elif key.data is None:
                    self._accept()
                elif connection is not None and connection is key.data:
                    self._serve(connection)  # else just closed for a new client
            if self._stopping:
                return
            self._go_on()
            # as of select(): requests that came while an answer was rendered are not read yet
            for late in [c for c in self._connections.values() if c.deadline_ns <= heard_ns]:
                self._close(late)

    def _accept(self) -> None:
        try:
            peer, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # Perhaps no descriptors are left: the socket stays readable, and the loop must not
            # spin.
            time.sleep(0.1)
            return
        peer.setblocking(False)
        guard = self.guard
        try:
            stream = guard.wrap(peer)
        except OSError:  # the client is already gone
            peer.close()
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            by_age = list(self._connections.values())
            self._close(next((c for c in by_age if not c.answer), by_age[0]))
        connection = _Connection(stream, guard, time.monotonic_ns() + DEADLINE_NS)
        self._connections[stream.socket.fileno()] = connection
        self._selector.register(stream.socket, selectors.EVENT_READ, connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.stream.socket.fileno()]
        if connection.question is None:
            self._selector.unregister(connection.stream.socket)
        else:
            connection.question.cancelled = True
        connection.stream.socket.close()

    def _serve(self, connection: _Connection) -> None:
        stream, events = connection.stream, selectors.EVENT_READ
        try:
            if connection.answer or self._read(connection):
                events = selectors.EVENT_WRITE
                connection.answer = connection.answer[stream.send(connection.answer) :]
                if not connection.answer:
                    # close() with unread input would reset the connection, and lose the answer.
                    stream.shutdown()
                    events = selectors.EVENT_READ
        except WantsRead:
            events = selectors.EVENT_READ
        except WantsWrite:
            events = selectors.EVENT_WRITE
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
        if connection.question is None and stream.socket.fileno() >= 0:
            self._selector.modify(stream.socket, events, connection)

    def _read(self, connection: _Connection) -> bool:
        """Read what has arrived; return whether an answer is ready."""
        data = connection.stream.recv(REQUEST_MAX + 1)
        if not data:
            self._close(connection)
            return False
        if connection.answered:
            return False
        connection.request += data
        head, end, _ = connection.request[: REQUEST_MAX + 1].partition(b"\r\n\r\n")
        if end:
            return self._take_request(connection, bytes(head))
        if len(connection.request) <= REQUEST_MAX:
            return False
        self._tell(connection, 431, b"request is too large\n")
        return True

    def _take_request(self, connection: _Connection, head: bytes) -> bool:
        """Answer a request, or have it judged first; return whether an answer is ready."""
        refusal, gate = connection.stream.refusal, connection.guard.gate
        try:
            asked = parse_request(head)
        except ValueError:
            asked = None
        if refusal is not None or asked is None:
            self._tell(connection, 400, (refusal or "not understood\n").encode())
            return True
        connection.asked = asked
        credentials = asked[2].get("authorization", "")
        let_in = True if gate is None else gate.verdict(credentials)
        if gate is None or let_in is not None:
            self._answer(connection, asked, bool(let_in))
            return True
        connection.question = Question(credentials, self._is_judged)
        if gate.ask(connection.question):
            self._selector.unregister(connection.stream.socket)
            return False
        connection.question = None
        self._tell(connection, 503, b"too many clients are waiting\n", more={"Retry-After": "1"})
        return True

    def _is_judged(self, question: Question) -> None:
        """Note a verdict; the gate's thread calls this."""
        self._judged.append(question)
        self._wake()

    def _go_on(self) -> None:
        """Answer the requests that the gate has judged."""
        while self._judged:
            question = self._judged.popleft()
            for connection in self._connections.values():
                if connection.question is question and connection.asked is not None:
                    connection.question = None
                    self._selector.register(
                        connection.stream.socket, selectors.EVENT_WRITE, connection
                    )
                    self._answer(connection, connection.asked, question.let_in)

    def _answer(
        self, connection: _Connection, asked: tuple[str, str, dict[str, str]], let_in: bool
    ) -> None:
        """Answer a judged request: a refusal, the metrics, or a health check."""
        method, path, headers = asked
        only_head = method == "HEAD"
        check = self._checks.get(path)
        if not let_in:
            self._tell(connection, 401, b"who are you?\n", only_head, _CHALLENGE)
        elif method not in ("GET", "HEAD"):
            self._tell(connection, 405, b"only GET and HEAD\n", more={"Allow": "GET, HEAD"})
        elif path == "/metrics":
            body, content_type = self._exporter.render(headers.get("accept", ""))
            more = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
            if accepts_gzip(headers.get("accept-encoding", "")):
                body = gzip.compress(body, 5, mtime=0)
                more["Content-Encoding"] = "gzip"
            self._tell(connection, 200, body, only_head, more)
        elif check is None:
            self._tell(connection, 404, b"try /metrics, /-/healthy or /-/ready\n", only_head)
        else:
            what, well = path.removeprefix("/-/").encode(), check()
            word = b"" if well else b"not "
            self._tell(connection, 200 if well else 503, word + what + b"\n", only_head)

    def _tell(
        self,
        connection: _Connection,
        status: int,
        body: bytes,
        only_head: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> None:
        headers = {**connection.guard.headers, **(more or {})}
        connection.answer = memoryview(_build_answer(status, body, only_head, headers))
        connection.answered = True
        connection.deadline_ns = time.monotonic_ns() + DEADLINE_NS


def _build_answer(status: int, body: bytes, only_head: bool, more: Mapping[str, str]) -> bytes:
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
    errno.EADDRINUSE: 'another program uses the port: set [http] listen to another, or to "off"',
    errno.EACCES: "ports below 1024 are privileged: set [http] listen to a higher one",
    errno.EADDRNOTAVAIL: "this host does not have the address: see [http] listen",
}
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F.:]*:[0-9a-fA-F.:]*)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})")
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(address: str) -> list[socket.socket]:
    """Listen on `HOST:PORT` or `[IPV6]:PORT`; return one socket for each address of HOST.

    The caller owns them. An address that this host lacks is skipped if there is another, as for
    `localhost` without IPv6.

    Raises:
        UnavailableError: the address is invalid, or cannot be resolved or listened on.
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
        why = reason_of(e).partition(" (while")[0]  # create_server() repeats the address
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
