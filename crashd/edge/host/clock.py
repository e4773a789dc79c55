"""Whether the host's clock can be believed."""

import ctypes
import struct
import time

_STA_UNSYNC = 0x40  # linux/timex.h
_TIMEX_BYTES = 512  # more than any architecture's struct timex


def read_synchronized() -> bool | None:
    """Return whether the kernel's clock is synchronised (adjtimex(2)); None if unknown."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: changes nothing
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(timex) < 0:
        return None
    # int modes, then offset, freq, maxerror, esterror as long, then int status
    width = struct.calcsize("l")
    (status,) = struct.unpack_from("=i", timex.raw, width * 5)
    return not status & _STA_UNSYNC


def believed_now_ns() -> int | None:
    """Return the time; None if the clock is not synchronised, because it may then be ahead."""
    return time.time_ns() if read_synchronized() else None
