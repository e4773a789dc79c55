from struct import pack
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.elf.gopclntab import GoFunction, GoTable

TEXT, TABLE = 0x401000, 0x4B9EC0
GO_1_16, GO_1_18, GO_1_20 = 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
FUNCTIONS = [("main.walk", 0x100, 7), ("main.(*Node).next", 0x180, 20), ("main.main", 0x1C0, 31)]
END = 0x200


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def values(*steps: tuple[int, int]) -> bytes:
    """Encode differences of value and of program counter, and the table's end."""
    zigzag = [((value << 1) ^ (value >> 63), length) for value, length in steps]
    return b"".join(varint(value) + varint(length) for value, length in zigzag) + b"\0"


def build(
    magic: int, order: Literal["little", "big"] = "little", pointer: int = 8, text: int = TEXT
) -> bytes:
    """Build a table as Go's linker does; each function's second half is a line further down."""
    mark = "<" if order == "little" else ">"
    word = "Q" if pointer == 8 else "I"
    relative = magic != GO_1_16
    entry = "I" if relative else word
    base = 0 if relative else TEXT
    names = b"".join(name.encode() + b"\0" for name, _, _ in FUNCTIONS)
    units = pack(mark + "I", 1)
    files = b"\0/src/list.go\0"
    table, described = b"\0", b""
    pairs: list[tuple[int, int]] = []
    at_name = 0
    first = (2 * len(FUNCTIONS) + 1) * (4 if entry == "I" else pointer)
    for index, (name, start, line) in enumerate(FUNCTIONS):
        end = FUNCTIONS[index + 1][1] if index + 1 < len(FUNCTIONS) else END
        half = (end - start) // 2
        file_at = len(table)
        table += values((1, end - start))
        line_at = len(table)
        table += values((line + 1, half), (1, half))
        pairs.append((base + start, first + len(described)))
        described += pack(mark + entry, base + start)
        described += pack(mark + "8I", at_name, 0, 0, 0, file_at, line_at, 0, 0)
        at_name += len(name) + 1
    functions = b"".join(pack(mark + 2 * entry, *pair) for pair in pairs)
    functions += pack(mark + entry, base + END) + described
    head = 8 + pointer * (8 if relative else 7)
    offsets, place = [], head
    parts = [names, units, files, table, functions]
    for part in parts:
        offsets.append(place)
        place += len(part)
    words = [len(FUNCTIONS), 1, *([text] if relative else []), *offsets]
    top = (
        magic.to_bytes(4, order)
        + bytes([0, 0, 1, pointer])
        + pack(f"{mark}{len(words)}{word}", *words)
    )
    return top + b"".join(parts)


def table(raw: bytes, text: int = TEXT) -> GoTable:
    return GoTable(lambda at, size: raw[at - TABLE : at - TABLE + size], TABLE, text)


@pytest.mark.parametrize("magic", [GO_1_16, GO_1_18, GO_1_20])
@pytest.mark.parametrize(("order", "pointer"), [("little", 8), ("big", 8), ("little", 4)])
def test_function_of_every_version_and_machine(
    magic: int, order: Literal["little", "big"], pointer: int
) -> None:
    found = table(build(magic, order, pointer))
    for name, start, line in FUNCTIONS:
        entry = TEXT + start
        assert found.function(entry) == GoFunction(name, entry, "/src/list.go", line)
        assert found.function(entry + 0x3F if name != "main.walk" else entry + 0x7F) == GoFunction(
            name, entry, "/src/list.go", line + 1
        )


def test_function_outside_the_table_is_none() -> None:
    found = table(build(GO_1_20))
    assert found.function(TEXT + 0xFF) is None
    assert found.function(TEXT + END) is None
    assert found.function(0) is None


def test_function_of_a_program_that_was_not_relocated_uses_the_text_given() -> None:
    found = table(build(GO_1_20, text=0), text=TEXT)
    assert found.function(TEXT + 0x180) == GoFunction(
        "main.(*Node).next", TEXT + 0x180, "/src/list.go", 20
    )


@pytest.mark.parametrize(
    "raw", [b"", b"\x7fELF\0\0\0\0", b"\xf1\xff\xff\xff\0\1\1\x08", bytes(200)]
)
def test_table_of_no_known_form_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="table"):
        table(raw)


def test_table_cut_at_every_length_gives_a_true_name_or_none() -> None:
    raw = build(GO_1_18)
    for size in range(len(raw)):
        try:
            found = table(raw[:size])
        except ValueError:
            continue
        for name, start, _ in FUNCTIONS:
            answer = found.function(TEXT + start)
            assert answer is None or answer.name == name


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 1 << 64))
def test_table_with_any_bytes_in_it_does_not_raise(noise: bytes, at: int, pc: int) -> None:
    raw = build(GO_1_20)
    hostile = raw[:8] + (raw[8:at] + noise + raw[at + len(noise) :] if at > 8 else noise)
    try:
        found = table(hostile)
    except ValueError:
        return
    for address in (pc, TEXT + 0x180):
        found.function(address)
