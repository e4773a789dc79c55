"""The rules of .eh_frame by which a caller's registers are found."""

from collections.abc import Callable
from struct import pack

import pytest

from crashd.domain.elf.cfi import Rules, evaluate, find_rules

AT = 0x8048000
CODE = 0x8049000
ESP, EBP, EIP = 4, 5, 8
COMMON = bytes((1, *b"zR\0", 1, 0x7C, 8, 1, 0x1B, 0x0C, ESP, 4, 0x80 | EIP, 1))
# push ebp; mov ebp, esp; ...; leave; ret
PROLOGUE = bytes((0x41, 0x0E, 8, 0x80 | EBP, 2, 0x42, 0x0D, EBP))
EPILOGUE = bytes((0x02, 0x40, 0x0A, 0xC0 | EBP, 0x0C, ESP, 4, 0x41, 0x0B))


def build(code: bytes, common: bytes = COMMON, size: int = 0x100) -> tuple[bytes, int]:
    """Build both entries; return them and the address of the second."""
    common = common.ljust(len(common) + -len(common) % 4, b"\0")
    first = pack("<II", 4 + len(common), 0) + common
    entry = AT + len(first)
    body = pack("<IiIB", len(first) + 4, CODE - (entry + 8), size, 0) + code
    return first + pack("<I", len(body)) + body, entry


def memory(words: dict[int, int]) -> Callable[[int], int | None]:
    return lambda address: words.get(address)


def rules(code: bytes, distance: int, common: bytes = COMMON) -> Rules:
    raw, entry = build(code, common)
    return find_rules(lambda at, size: raw[at - AT : at - AT + size], entry, CODE + distance, 32)


@pytest.mark.parametrize(
    ("distance", "cfa", "saved"),
    [
        (0, (ESP, 4), None),
        (1, (ESP, 8), ("offset", -8)),
        (2, (ESP, 8), ("offset", -8)),
        (3, (EBP, 8), ("offset", -8)),
        (0x42, (EBP, 8), ("offset", -8)),
        (0x43, (ESP, 4), None),
        (0x44, (EBP, 8), ("offset", -8)),
    ],
)
def test_rules_follow_the_function(
    distance: int, cfa: tuple[int, int], saved: tuple[str, int] | None
) -> None:
    found = rules(PROLOGUE + EPILOGUE, distance)
    assert found.cfa == cfa
    assert found.registers.get(EBP) == saved
    assert found.registers[EIP] == ("offset", -4)
    assert not found.is_signal


@pytest.mark.parametrize("start", [b"\x05", b"\x07", b"\x09", b"\x10", b"\x14", b"\x16"])
def test_register_that_no_processor_has_is_refused(start: bytes) -> None:
    """A kept state copies all registers: with 8000 of them one entry took 0.7 s."""
    assert 127 in rules(start + b"\x7f\x00", 0).registers
    with pytest.raises(ValueError, match="no processor has"):
        rules(start + b"\x80\x01\x00", 0)


def test_frame_of_a_signal_and_expressions() -> None:
    common = bytes((1, *b"zRS\0", 1, 0x7C, 8, 1, 0x1B))
    code = bytes((0x0F, 3, 0x74, 0x7C, 0x06, 0x10, EBP, 2, 0x75, 0x70, 0x16, EIP, 2, 0x74, 4))
    found = rules(code, 0, common)
    assert found.is_signal
    assert found.cfa == bytes((0x74, 0x7C, 0x06))
    assert found.registers == {EBP: ("at", b"\x75\x70"), EIP: ("is", b"\x74\x04")}
    word = memory({0x0FFC: 0x2000})
    assert evaluate(found.cfa, {ESP: 0x1000}, word, 32) == 0x2000
    assert evaluate(b"\x75\x70", {EBP: 8}, word, 32, 0x2000) == 0xFFFF_FFF8


def test_expression_of_a_linkage_table() -> None:
    plt = bytes((0x74, 4, 0x78, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x32, 0x24, 0x22))
    for eip, pushed in ((0x804900A, 0), (0x804900B, 4)):
        assert evaluate(plt, {ESP: 0x100, EIP: eip}, memory({}), 32) == 0x104 + pushed


def test_register_and_undefined() -> None:
    found = rules(bytes((0x09, EBP, 3, 0x07, EIP, 0x2E, 0x10)), 0)
    assert found.registers == {EBP: ("register", 3), EIP: ("undefined", 0)}


@pytest.mark.parametrize(
    ("expression", "known"),
    [(b"\x06", {}), (b"\x75\x00", {}), (b"\x22", {}), (b"\x31\x06", {}), (b"\x28\x01", {}),
     (b"\x31" * 65, {})],
)  # fmt: skip
def test_expression_that_cannot_be_computed_is_refused(
    expression: bytes, known: dict[int, int]
) -> None:
    with pytest.raises(ValueError, match="expression"):
        evaluate(expression, known, memory({}), 32)


@pytest.mark.parametrize(
    "common",
    [b"\x02zR\0\1\x7c\x08\1\x1b", b"\1zX\0\1\x7c\x08\1\x1b", b"\1zR\0\1\x7c\x08\1\x3b",
     b"\1zR\0" + b"\x80" * 11],
)  # fmt: skip
def test_unknown_forms_are_refused(common: bytes) -> None:
    with pytest.raises(ValueError, match="unwind information"):
        rules(PROLOGUE, 4, common)


def test_entry_cut_or_overwritten_anywhere_is_at_most_refused() -> None:
    raw, entry = build(PROLOGUE + EPILOGUE)
    refused = 0
    for at in range(len(raw)):
        for value in (0, 0x0B, 0x7F, 0xFF):
            for bad in (raw[:at], raw[:at] + bytes((value,)) + raw[at + 1 :]):
                try:
                    find_rules(lambda a, n, b=bad: b[a - AT : a - AT + n], entry, CODE + 99, 32)  # type: ignore[misc]
                except ValueError:
                    refused += 1
    assert refused > len(raw)


def test_states_are_bounded() -> None:
    with pytest.raises(ValueError, match="too many states"):
        rules(b"\x0a" * 65, 0)
    with pytest.raises(ValueError, match="not kept"):
        rules(b"\x0b", 0)
