"""The sockets that receive crashes: from the handler, and from the kernel itself."""

import logging
import socket
from collections.abc import Callable, Mapping

from crashd.daemon.intake.ingest import Ingest
from crashd.daemon.loop import Loop
from crashd.domain.crash.model import DropReason, Mode
from crashd.edge.capture import handoff, kernelsock
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, reason_of
from crashd.registration import choose_mode
from crashd.store.paths import Paths

log = logging.getLogger("crashd.intake")

AGAIN_NS = 10**9
"""How long a listening socket is left alone when there is no free descriptor for a connection."""


class Intake:
    """Owns both sockets, and each handler's connection until its message has arrived."""

    def __init__(
        self,
        paths: Paths,
        ingest: Ingest,
        loop: Loop,
        exporter: Exporter,
    ) -> None:
        self._paths = paths
        self._ingest = ingest
        self._loop = loop
        self._exporter = exporter
        self._handoff: socket.socket | None = None
        self._kernel: socket.socket | None = None
        self._own: list[socket.socket] = []
        self._paused = False
        self._waiting: dict[int, handoff.Connection] = {}

    def open(self, configured: str, given: Mapping[str, socket.socket]) -> Mode:
        """Listen on the sockets that systemd does not pass; return the mode for the kernel.

        Raises:
            UnavailableError: a socket cannot be bound.

        """
        self._handoff = given.get("handoff")
        if self._handoff is None:
            self._handoff = handoff.listen_unix(
                self._paths.handoff_socket, socket.SOCK_SEQPACKET, 0o600
            )
            self._own.append(self._handoff)
        self._watch(self._handoff, self.accept)
        kernel = given.get("kernel")
        mode = choose_mode(configured, passed=kernel is not None)
        if configured == "socket" and mode is Mode.PIPE:
            log.error("this kernel has no coredump socket (Linux 6.17), using the pipe")
        if mode is Mode.SOCKET and kernel is None:
            kernel = handoff.listen_unix(self._paths.kernel_socket, socket.SOCK_STREAM, 0o600)
            self._own.append(kernel)
        # systemd's socket is served in either mode, because a process that waits there is held
        if kernel is not None:
            self._kernel = kernel
            self._watch(kernel, self.accept_from_kernel)
        return mode

    def close(self) -> None:
        """Close both sockets and all connections; remove the socket files that we created."""
        for server, path in (
            (self._handoff, self._paths.handoff_socket),
            (self._kernel, self._paths.kernel_socket),
        ):
            if server is None:
                continue
            self._loop.unwatch(server)
            server.close()
            if server in self._own:
                path.unlink(missing_ok=True)
        for connection in self._waiting.values():
            connection.close()

    def _watch(self, server: socket.socket, act: Callable[[], None]) -> None:
        server.setblocking(False)
        self._loop.watch(server, act)

    # -- from the handler --------------------------------------------------------------------------

    def accept(self) -> None:
        """Take all crashes that handlers wait to hand over."""
        server = self._handoff
        if server is None:
            return
        try:
            while (connection := handoff.accept(server)) is not None:
                self._receive(connection)
        except OSError as e:  # a handler that waits longer than RECEIPT_SECONDS spools
            log.error("cannot accept hand-overs: %s, trying again", reason_of(e))
            self._loop.unwatch(server)
            self._loop.timer("accept", AGAIN_NS, lambda: self._accept_again(server))

    def _accept_again(self, server: socket.socket) -> None:
        self._loop.timer("accept", 0, self.accept)
        self._watch(server, self.accept)

    def _receive(self, connection: handoff.Connection) -> None:
        """Take a handler's message, now or once it arrives: it is sent right after the connect."""
        try:
            message = connection.receive()
        except CrashdError as e:
            self._exporter.dropped(DropReason.MALFORMED_HANDOFF)
            log.warning("hand-over refused: %s, ignoring", e)
            self._forget(connection)
            return
        if message is None:
            if connection.fileno() not in self._waiting:
                self._waiting[connection.fileno()] = connection
                self._loop.watch(connection, lambda: self._receive(connection))
            return
        self._forget(connection, close=False)
        self._ingest.take(connection, message)

    def _forget(self, connection: handoff.Connection, *, close: bool = True) -> None:
        if self._waiting.pop(connection.fileno(), None) is not None:
            self._loop.unwatch(connection)
        if close:
            connection.close()

    # -- from the kernel ---------------------------------------------------------------------------

    def accept_from_kernel(self) -> None:
        """Take as many crashes from the kernel as there is room for; the others wait, held."""
        server = self._kernel
        if server is None:
            return
        try:
            while not self._ingest.is_full:
                connection = kernelsock.accept(server)
                if connection is None:
                    return
                self._ingest.take_from_kernel(connection)
        except CrashdError as e:
            self._exporter.dropped(DropReason.MALFORMED_HANDOFF)
            log.warning("%s, ignoring", e)
            return
        except OSError as e:
            log.error("cannot accept crashes from the kernel: %s, trying again", reason_of(e))
        self._loop.unwatch(server)
        self._paused = True
        self._loop.timer("kernel", AGAIN_NS, self.resume)

    def resume(self) -> None:
        """Listen to the kernel again if listening was paused and there is room now."""
        if self._paused and self._kernel is not None and not self._ingest.is_full:
            self._paused = False
            self._loop.timer("kernel", 0, self.resume)
            self._watch(self._kernel, self.accept_from_kernel)
