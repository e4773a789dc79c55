"""The messages of the handshake on the kernel's coredump socket (Linux 6.17, `@@` in core_pattern).

    kernel ──coredump_req──▶ server
    kernel ◀──coredump_ack── server       KERNEL | WAIT: send the core; REJECT: drop it
    kernel ──4 bytes: mark──▶ server      0: accepted
    kernel ──core … end────▶ server       with WAIT the process is held until the server closes

Source: include/uapi/linux/coredump.h, fs/coredump.c (coredump_sock_request and after).
"""

import struct
from typing import Final, NamedTuple

from crashd.errors import FormatError

COREDUMP_KERNEL: Final = 1
COREDUMP_USERSPACE: Final = 2
COREDUMP_REJECT: Final = 4
COREDUMP_WAIT: Final = 8

REQUEST_MIN: Final = 16
REQUEST_MAX: Final = 4096
"""Bytes; later kernels send more than REQUEST_MIN, and the rest is skipped."""
MARK_SIZE: Final = 4
"""The header's comment says one byte, but the kernel sends an enum."""
_MARKS: Final = {1: "too small", 2: "too large", 3: "unknown bits", 4: "conflicting bits"}
_REQUEST = struct.Struct("=IIQ")
_ACK = struct.Struct("=IIQ")


class Request(NamedTuple):
    """The kernel's offer."""

    size: int
    """Bytes of the request itself."""
    mask: int


def parse_request(raw: bytes) -> Request:
    """Parse the first bytes of a request.

    Raises:
        FormatError: it is not a request, or the kernel lacks a capability that crashd needs.
    """
    if len(raw) < REQUEST_MIN:
        raise FormatError(f"coredump request of {len(raw)} bytes")
    size, size_ack, mask = _REQUEST.unpack_from(raw)
    if not REQUEST_MIN <= size <= REQUEST_MAX or size_ack < _ACK.size:
        raise FormatError(f"coredump request of {size} bytes for an ack of {size_ack}")
    wanted = COREDUMP_KERNEL | COREDUMP_REJECT | COREDUMP_WAIT
    if mask & wanted != wanted:
        raise FormatError(f"coredump request offers {mask:#x}, not all of {wanted:#x}")
    return Request(size, mask)


def build_ack(mask: int) -> bytes:
    """Build the answer."""
    return _ACK.pack(_ACK.size, 0, mask)


def check_mark(raw: bytes) -> None:
    """Check the kernel's reply to our answer.

    Raises:
        FormatError: the kernel rejects the answer, and sends no core.
    """
    if len(raw) != MARK_SIZE:
        raise FormatError(f"the kernel ended the coredump handshake after {len(raw)} bytes")
    mark = int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big")
    if mark:
        raise FormatError(f"the kernel refuses the ack: {_MARKS.get(mark, f'mark {mark}')}")
