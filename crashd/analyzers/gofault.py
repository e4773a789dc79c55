"""The fault for which Go's runtime gave up, from the structure of the goroutine. Pure.

Go's handler returns into runtime.sigpanic, as if the faulting function had called it, and another
signal then overwrites the handler's frame. But the goroutine's structure keeps signal, code and
address with the faulting pc.

Source: sig, writebuf, sigcode0, sigcode1 and sigpc of struct g (Go's runtime/runtime2.go, 1.9 to
1.25).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from struct import Struct
from typing import Any

from crashd.domain.elf.elfnotes import SigInfo
from crashd.domain.signals import SIGBUS, SIGFPE, SIGSEGV

_MEMBERS = Struct("<II5Q")
"""sig, padding, the three words of writebuf, sigcode0, sigcode1; sigpc follows."""
_NULL_CALL = re.compile(rb"\x0b\0{7}.{24}\x01\0{7}\0{16}", re.DOTALL)
"""SIGSEGV of an address that is not mapped, with address and sigpc 0."""
_SIGNALS = frozenset({SIGBUS, SIGFPE, SIGSEGV})
_SI_KERNEL = 0x80


def thrower(frames: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the frame in which the fault was; None if Go's runtime did not throw for
    one, or made a panic of it.
    """
    for index in range(1, len(frames) - 1):
        if frames[index]["function"] == "runtime.sigpanic":
            is_thrown = frames[index - 1]["function"] == "runtime.throw"
            return index + 1 if is_thrown else None
    return None


def find_fault(memory: bytes, pc: int) -> SigInfo | None:
    """Find the fault at `pc` in memory of a program of 64 bits that begins at a multiple of 8."""
    wanted = pc.to_bytes(8, "little")
    at = memory.find(wanted, _MEMBERS.size)
    while at >= 0:
        if at % 8 == 0 and (found := _read(memory, at - _MEMBERS.size)) is not None:
            return found
        at = memory.find(wanted, at + 1)
    return None


def find_null_calls(memory: bytes) -> Iterator[int]:
    """Yield where the fault of a call through NULL is kept, in memory that begins at a multiple of
    8. The runtime then shows the caller in place of the faulting function, but keeps sigpc.
    """
    for match in _NULL_CALL.finditer(memory):
        if match.start() % 8 == 0:
            yield match.start()


def _read(memory: bytes, at: int) -> SigInfo | None:
    signal, _, _, _, _, code, address = _MEMBERS.unpack_from(memory, at)
    if signal not in _SIGNALS or not 1 <= code <= _SI_KERNEL:
        return None
    return SigInfo(signal, code, 0, None if code == _SI_KERNEL else address, None, None)
