"""The socket on which the handler hands crashes over; the other end is corehandler.hand_over().

Each connection carries one message, fields and the descriptors [core, pidfd], and one byte back.
corehandler.py draws the rules of this exchange, and why neither side can take a core twice or not
at all.
"""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from crashd.base.messages import PACKET_MAX, Packet, read_peer, receive_packet
from crashd.corehandler import QUEUED, RECEIPT
from crashd.domain.crash.coremeta import parse_fields
from crashd.domain.crash.corepattern import SUN_PATH_MAX
from crashd.edge.capture.process import pidfd_pid
from crashd.errors import FormatError, UnavailableError, reason_of

_RIGHTS_MAX = 8
BACKLOG = 4096


def listen_unix(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """Bind and listen on a unix socket at `path` with permissions `mode`, non-blocking; the caller
    owns it.

    The caller holds the daemon's lock, so an existing socket is a dead daemon's.

    Raises:
        UnavailableError: the path is too long, or cannot be bound.

    """
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise UnavailableError(
            f"{path} is longer than the {SUN_PATH_MAX} bytes of a unix socket's path",
            hint="choose a shorter --root",
        )
    server = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o777 & ~mode)
    try:
        path.unlink(missing_ok=True)
        server.bind(str(path))
        server.listen(BACKLOG)
    except OSError as e:
        server.close()
        raise UnavailableError(f"cannot listen on {path}: {reason_of(e)}") from e
    finally:
        os.umask(before)
    return server


class Handoff:
    """One crash from the handler: its fields, and its descriptors, which this owns."""

    def __init__(self, fields: dict[str, bytes], core: int, pidfd: int | None) -> None:
        self.fields = fields
        self.core = core
        self.pidfd = pidfd

    def close(self) -> None:
        """Close the descriptors; this releases the crashed process."""
        for fd in (self.core, self.pidfd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.core, self.pidfd = -1, None


class Connection:
    """A handler that is waiting for its receipt; owns the socket."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._peer.fileno()

    def close(self) -> None:
        """Close the connection; if no receipt was sent, the handler spools."""
        self._peer.close()

    def detach(self) -> int:
        """Give up the descriptor: the caller owns it, and this object is closed."""
        return self._peer.detach()

    def receive(self) -> Handoff | None:
        """Receive the message; None when it has not arrived yet.

        Raises:
            FormatError: the peer is not root, or did not send a hand-over. All descriptors are
            closed.

        """
        uid = read_peer(self._peer).uid
        if uid not in (0, os.geteuid()):
            raise FormatError(f"hand-over by uid {uid}")
        try:
            packet = receive_packet(self._peer, PACKET_MAX, _RIGHTS_MAX)
        except BlockingIOError:
            return None
        except OSError as e:
            if e.errno == errno.EMSGSIZE:
                raise FormatError("hand-over message is too large") from e
            raise FormatError(f"hand-over broke off: {reason_of(e)}") from e
        try:
            return _handoff(packet)
        except FormatError:
            packet.close()
            raise

    def send_queued(self) -> None:
        """Make the handler wait for its receipt as long as this daemon lives."""
        with contextlib.suppress(OSError):  # it gave up; then sending the receipt fails as well
            self._peer.send(QUEUED, socket.MSG_NOSIGNAL)

    def send_receipt(self) -> bool:
        """Take the crash over; return False when the handler has given up and keeps it."""
        try:
            return self._peer.send(RECEIPT, socket.MSG_NOSIGNAL) == 1
        except OSError:
            return False


def _handoff(packet: Packet) -> Handoff:
    """Check a hand-over; the result owns the descriptors, or the caller on FormatError."""
    if packet.lacks_descriptors:
        raise FormatError("hand-over message is too large")
    if not packet.data:
        raise FormatError("hand-over broke off before its message")
    if len(packet.descriptors) not in (1, 2):
        raise FormatError(f"hand-over has {len(packet.descriptors)} descriptors, not 1 or 2")
    core, pidfd = packet.descriptors[0], (*packet.descriptors, None)[1]
    kind = os.fstat(core).st_mode
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        raise FormatError("hand-over of a core that is neither pipe nor file")
    fields = parse_fields(packet.data)
    if pidfd is not None and pidfd_pid(pidfd) is None:
        os.close(pidfd)  # already reaped, or not a pidfd: nothing in /proc can be trusted
        pidfd = None
    return Handoff(fields, core, pidfd)


def accept(server: socket.socket) -> Connection | None:
    """Accept the next handler; None when none is waiting.

    Raises:
        OSError: there is no descriptor or no memory left; `server` stays readable.

    """
    try:
        peer, _ = server.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    peer.setblocking(False)
    return Connection(peer)
