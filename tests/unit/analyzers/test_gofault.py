"""The fault that Go's runtime keeps in the goroutine's structure."""

from struct import pack
from typing import Any

import pytest

from crashd.analyzers.gofault import find_fault, find_null_calls, thrower
from crashd.domain.elf.elfnotes import SigInfo

PC = 0x4A6010


def goroutine(signal: int, code: int, address: int, pc: int = PC) -> bytes:
    return bytes(64) + pack("<II3QQQQ", signal, 0, 0, 0, 0, code, address, pc) + bytes(64)


def frames(*names: str) -> list[dict[str, Any]]:
    return [{"function": name} for name in names]


@pytest.mark.parametrize(
    ("signal", "code", "address", "found"),
    [
        (11, 1, 0x123456000, SigInfo(11, 1, 0, 0x123456000, None, None)),
        (11, 0x80, 0, SigInfo(11, 0x80, 0, None, None, None)),
        (8, 1, PC, SigInfo(8, 1, 0, PC, None, None)),
        (6, 1, 0, None),
        (11, 0, 0, None),
        (11, 1 << 40, 0, None),
    ],
)
def test_find_fault(signal: int, code: int, address: int, found: SigInfo | None) -> None:
    memory = pack("<Q", PC) + goroutine(signal, code, address)
    assert find_fault(memory, PC) == found
    assert find_fault(memory, PC + 8) is None
    assert find_fault(b"\0" + memory, PC) is None
    assert all(find_fault(memory[:size], PC) is None for size in range(len(memory) - 64))


def test_find_null_calls_is_where_nothing_but_the_code_is_set() -> None:
    memory = goroutine(11, 1, 0, 0)
    assert list(find_null_calls(memory)) == [64]
    assert list(find_null_calls(memory + memory)) == [64, 64 + len(memory)]
    assert list(find_null_calls(b"\0" + memory)) == []
    for other in (goroutine(11, 1, 0), goroutine(11, 1, 8, 0), goroutine(7, 1, 0, 0)):
        assert list(find_null_calls(other)) == []


def test_thrower_is_where_the_runtime_threw_for_a_fault() -> None:
    assert thrower(frames("runtime.raise", "runtime.throw", "runtime.sigpanic", "f", "main")) == 3
    assert thrower(frames("runtime.gopanic", "runtime.panicmem", "runtime.sigpanic", "f")) is None
    assert thrower(frames("runtime.throw", "runtime.sigpanic")) is None
    assert thrower(frames("runtime.throw", "main")) is None
    assert thrower([]) is None
