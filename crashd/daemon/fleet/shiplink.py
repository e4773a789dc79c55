"""The daemon's end of its connection to crashd-ship."""

import fcntl
import os
import select
import socket
from pathlib import Path

from crashd.base import messages
from crashd.domain.fleet.orders import Answer, Order, build_order, parse_answer
from crashd.errors import FormatError, UnavailableError, reason_of

SEND_SECONDS = 10.0
_F_ADD_SEALS = 1033  # linux/fcntl.h
_SEALED = 0x0002 | 0x0004  # F_SEAL_SHRINK, F_SEAL_GROW


class ShipLink:
    """One connection; owns its socket. For one thread."""

    def __init__(self, path: Path) -> None:
        """Connect; systemd starts crashd-ship by that.

        Raises:
            UnavailableError: nobody listens.

        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(SEND_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError as e:
            self._socket.close()
            raise UnavailableError(f"crashd-ship does not listen on {path}: {reason_of(e)}") from e

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def send(self, order: Order, fd: int | None = None) -> None:
        """Send an order, with the descriptor of its file, which stays the caller's.

        Raises:
            UnavailableError: crashd-ship is gone, or does not read.

        """
        try:
            descriptors = () if fd is None else (fd,)
            messages.send_message(self._socket, build_order(order), descriptors)
        except OSError as e:
            raise UnavailableError(f"crashd-ship takes no orders: {reason_of(e)}") from e

    def receive(self) -> Answer | None:
        """Return an answer that is there; None without one.

        Raises:
            UnavailableError: crashd-ship is gone, or says what makes no sense.

        """
        try:
            if not select.select([self._socket], [], [], 0)[0]:
                return None
            packet = messages.receive_packet(self._socket, messages.PACKET_MAX, 0)
            if not packet.data:
                raise UnavailableError("crashd-ship ended")
            return parse_answer(messages.parse(packet.data))
        except (OSError, FormatError) as e:
            raise UnavailableError(f"crashd-ship: {reason_of(e)}") from e

    def close(self) -> None:
        """Close the connection: crashd-ship gives up what it was sending."""
        self._socket.close()


def content_file(data: bytes) -> int:
    """Return a file in memory with this content; the caller owns the descriptor."""
    fd = os.memfd_create("ship", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def bounded_file(size: int) -> int:
    """Return a file in memory that another process can fill to this size and no further; the
    caller owns the descriptor.
    """
    fd = os.memfd_create("fetched", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALED)
    except BaseException:
        os.close(fd)
        raise
    return fd
