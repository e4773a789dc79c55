"""The listening end of the kernel's coredump socket: the check of the peer, and the handshake.

There are two checks, because each alone could be passed (KERNEL.md A5): the socket is 0600, and the
peer's pidfd says that it is in its coredump (PIDFD_COREDUMPED), which the kernel sets before it
connects.
"""

import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from crashd.domain.crash.coredumpsock import (
    COREDUMP_KERNEL,
    COREDUMP_REJECT,
    COREDUMP_WAIT,
    MARK_SIZE,
    REQUEST_MIN,
    build_ack,
    check_mark,
    parse_request,
)
from crashd.edge.capture.process import PidfdInfo, pidfd_info, read_namespaces
from crashd.errors import FormatError, reason_of

SO_PEERPIDFD = 77  # asm-generic/socket.h, 6.5
PIDFD_COREDUMPED = 1  # linux/pidfd.h, 6.16
_UNIX_SOCKETS = Path("/proc/net/unix")
_ACCEPTCON = 1 << 16  # __SO_ACCEPTCON, linux/net.h
_CORE_MODES = Path("/proc/sys/kernel/core_modes")
_ELF = b"\x7fELF"
HANDSHAKE_SECONDS = 5
"""The kernel answers at once; any other peer deserves no more."""


class KernelConnection:
    """A crash that the kernel offers; owns the socket and the pidfd until `detach`."""

    def __init__(self, peer: socket.socket, pidfd: int, info: PidfdInfo) -> None:
        self._peer = peer
        self._pidfd = pidfd
        self.info = info

    def namespaces(self) -> Mapping[str, bytes]:
        """Read the process's namespaces; empty when it is gone. Does not block."""
        return read_namespaces(self._pidfd)

    def detach(self) -> tuple[int, int]:
        """Return the socket and the pidfd, which the caller then owns."""
        pidfd, self._pidfd = self._pidfd, -1
        return self._peer.detach(), pidfd

    def close(self) -> None:
        """Release the crashed process."""
        self._peer.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def accept(server: socket.socket) -> KernelConnection | None:
    """Accept the next crash; None when none is waiting.

    Raises:
        FormatError: the peer is not the kernel; its connection is closed.
        OSError: there is no descriptor or no memory left; `server` stays readable.

    """
    try:
        peer, _ = server.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    pidfd = -1
    try:
        try:
            raw = peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        except OSError as e:
            raise FormatError(f"coredump socket: peer without a pidfd: {reason_of(e)}") from e
        (pidfd,) = struct.unpack("=i", raw)
        os.set_inheritable(pidfd, False)
        info = pidfd_info(pidfd)
        mask = info.coredump_mask if info is not None else None
        if info is None or mask is None or not mask & PIDFD_COREDUMPED:
            raise FormatError("coredump socket: the peer is no process in its coredump")
        peer.setblocking(True)
        return KernelConnection(peer, pidfd, info)
    except BaseException:
        peer.close()
        if pidfd >= 0:
            os.close(pidfd)
        raise


def shake_hands(fd: int, *, reject: bool) -> None:
    """Have the kernel send its core on `fd`, or drop it; the descriptor stays the caller's.

    Raises:
        FormatError: the handshake failed.

    """
    with socket.socket(fileno=os.dup(fd)) as peer:
        peer.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", HANDSHAKE_SECONDS, 0)
        )
        try:
            if peer.recv(4, socket.MSG_PEEK) == _ELF:
                return  # a worker that died had shaken hands: the core itself arrives already
            request = parse_request(peer.recv(REQUEST_MIN, socket.MSG_WAITALL))
            if request.size > REQUEST_MIN:
                peer.recv(request.size - REQUEST_MIN, socket.MSG_WAITALL)
            mask = COREDUMP_REJECT if reject else COREDUMP_KERNEL | COREDUMP_WAIT
            peer.send(build_ack(mask), socket.MSG_NOSIGNAL)
            check_mark(peer.recv(MARK_SIZE, socket.MSG_WAITALL))
        except OSError as e:
            raise FormatError(f"the coredump handshake broke off: {reason_of(e)}") from e
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 0, 0))


def is_listened_on(path: Path) -> bool:
    """Return whether a process of our network namespace listens on a unix socket (proc_net(5))."""
    try:
        lines = _UNIX_SOCKETS.read_bytes().splitlines()
    except OSError:
        return False
    fields = [line.split(maxsplit=7) for line in lines[1:]]
    return any(
        len(field) == 8 and field[7] == os.fsencode(path) and int(field[3], 16) & _ACCEPTCON
        for field in fields
    )


def kernel_has_socket() -> bool:
    """Return whether this kernel can hand cores to a socket (kernel.core_modes, 6.17)."""
    try:
        return "socket" in _CORE_MODES.read_text().split()
    except OSError:
        return False
