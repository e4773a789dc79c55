"""Messages on unix sockets: framed JSON on streams, descriptors beside a message, and the sender.

    stream    u32 little endian, then that many bytes of JSON: the control socket, and an analysis
              worker that systemd started
    packet    one message of SOCK_SEQPACKET, with descriptors (SCM_RIGHTS, unix(7)): the handler's
              hand-over, and the daemon's own workers, whose messages are JSON as well

The daemon, crashctl and the sandbox use it; it imports nothing of crashd but its errors. The
crash-time handler has its own few lines, because it imports nothing at all.
"""

import errno
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from crashd.errors import FormatError

HEADER_SIZE: Final = 4
REQUEST_MAX: Final = 64 << 10
"""Limit for a request on the control socket, in bytes."""
ANSWER_MAX: Final = 64 << 20
"""Limit for an answer on the control socket, in bytes."""
PACKET_MAX: Final = 1 << 16
"""Limit for a packet, in bytes."""
JOB_DESCRIPTORS_MAX: Final = 4
"""Limit for the descriptors in a packet between the daemon and its workers."""
_HEADER = struct.Struct("<I")
_UCRED = struct.Struct("iII")  # struct ucred, unix(7)
_CHUNK_BYTES = 1 << 20


class Peer(NamedTuple):
    """The process at the other end of a socket, as the kernel saw it when it connected."""

    pid: int
    uid: int
    gid: int


def read_peer(peer: socket.socket) -> Peer:
    """Return the process at the other end, from the kernel (SO_PEERCRED)."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(raw))


# -- streams: framed JSON --------------------------------------------------------------------------


def pack(document: object) -> bytes:
    """Build one message."""
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )
    return pack_size(len(raw)) + raw


def pack_size(size: int) -> bytes:
    """Build the length field of a message of this size."""
    return _HEADER.pack(size)


def parse_size(header: bytes, limit: int) -> int:
    """Parse the length field; the length may be at most `limit`.

    Raises:
        FormatError: the field is cut, zero, or over the limit.

    """
    if len(header) != HEADER_SIZE:
        raise FormatError("message ends within its length")
    (size,) = _HEADER.unpack(header)
    if not 0 < size <= limit:
        raise FormatError(f"message of {size} bytes, at most {limit} are taken")
    return int(size)


def parse(raw: bytes) -> dict[str, Any]:
    """Parse the JSON of one message.

    Raises:
        FormatError: it is not a JSON object.

    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise FormatError("message is not JSON") from e
    if not isinstance(document, dict):
        raise FormatError("message is not a JSON object")
    return document


def receive(peer: socket.socket, limit: int, deadline: float | None = None) -> bytes:
    """Receive one message of at most `limit` bytes, without its length; see `receive_exactly`.

    Raises:
        EOFError: the peer closed the connection.
        FormatError: the peer closed it within the message, or the length is wrong.
        TimeoutError: the message is late.

    """
    size = parse_size(receive_exactly(peer, HEADER_SIZE, deadline), limit)
    try:
        return receive_exactly(peer, size, deadline)
    except EOFError as e:
        raise FormatError("a message breaks off") from e


def receive_exactly(peer: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """Receive exactly this many bytes: the next byte may have descriptors with it.

    With a `deadline` (of time.monotonic()), bytes that have arrived count, however late we are.
    Without one, the socket's own timeout applies to each part.

    Raises:
        EOFError: the peer closed the connection before the first byte.
        FormatError: the peer closed it after the first byte.
        TimeoutError: the bytes are late.

    """
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            peer.settimeout(max(0.0, deadline - time.monotonic()))
        # descriptors are not asked for: the kernel closes those that are not received
        try:
            chunk = peer.recv(min(size - len(data), _CHUNK_BYTES))
        except BlockingIOError as e:
            raise TimeoutError from e
        if not chunk:
            if data:
                raise FormatError("a message breaks off")
            raise EOFError("the other side closed the connection")
        data += chunk
    return bytes(data)


# -- packets: descriptors beside a message ---------------------------------------------------------


@dataclass(slots=True)
class Packet:
    """One received message; the receiver owns the descriptors."""

    data: bytes
    """Empty at the end of the connection."""
    descriptors: list[int]
    lacks_descriptors: bool
    """More were sent than the receiver takes, or than this process may open."""

    def close(self) -> None:
        """Close the descriptors."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def send_packet(channel: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> int:
    """Send one message with its descriptors, which stay the caller's; return the bytes sent."""
    rights = struct.pack(f"{len(descriptors)}i", *descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
    return channel.sendmsg([data], ancillary)


def receive_packet(channel: socket.socket, size_max: int, descriptors_max: int) -> Packet:
    """Receive one message, or what a stream holds now, with its descriptors.

    Raises:
        OSError: the channel is broken, or the message is longer than `size_max` (EMSGSIZE).

    """
    # CLOEXEC from the start, because another thread may be starting a program.
    data, ancillary, flags, _ = channel.recvmsg(
        size_max, socket.CMSG_SPACE(descriptors_max * 4), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [
        fd
        for level, kind, raw in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in struct.iter_unpack("i", raw[: len(raw) - len(raw) % 4])
    ]
    packet = Packet(data, descriptors, bool(flags & socket.MSG_CTRUNC))
    if flags & socket.MSG_TRUNC:
        packet.close()
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return packet


def send_message(
    channel: socket.socket, document: dict[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send JSON as one packet with its descriptors, which stay the caller's."""
    send_packet(channel, json.dumps(document).encode(), descriptors)


def receive_message(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one packet of JSON; the caller owns the descriptors. None at the connection's end.

    Raises:
        OSError: the channel is broken, or the message is too large.

    """
    packet = receive_packet(channel, PACKET_MAX, JOB_DESCRIPTORS_MAX)
    return json.loads(packet.data) if packet.data else None, packet.descriptors
