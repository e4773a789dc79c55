"""ELF headers of either class and byte order: golden bytes, cut anywhere, and written again."""

import struct
from typing import Any

import pytest

from crashd.domain.elf import headers
from crashd.domain.elf.headers import Bits, ByteOrder, Header, Layout, Shdr

LAYOUTS = [
    Layout(62, 64, "little"),
    Layout(22, 64, "big"),
    Layout(40, 32, "little"),
    Layout(20, 32, "big"),
]
HEADER: dict[str, Any] = {
    "type": 4,
    "flags": 0x1234,
    "ehsize": 52,
    "phoff": 0x100,
    "phentsize": 56,
    "phnum": 3,
    "shoff": 0x2000,
    "shentsize": 64,
    "shnum": 7,
    "shstrndx": 6,
}
PHDRS = [(1, 5, 0x1000, 0x400000, 0x10, 0x2000, 0x3000, 0x1000), (4, 0, 8, 7, 6, 5, 4, 3)]


def order_of(layout: Layout) -> str:
    return "<" if layout.byteorder == "little" else ">"


def build(layout: Layout) -> bytes:
    """Write a header field by field, as elf(5) has them."""
    ident = b"\x7fELF" + bytes((layout.bits // 32, 1 + (layout.byteorder == "big"), 1))
    word = "Q" if layout.bits == 64 else "I"
    h = HEADER
    return ident.ljust(16, b"\0") + struct.pack(
        f"{order_of(layout)}HHI{word}{word}{word}IHHHHHH",
        *(h["type"], layout.machine, 1, 0x401000, h["phoff"], h["shoff"], h["flags"], h["ehsize"]),
        *(h["phentsize"], h["phnum"], h["shentsize"], h["shnum"], h["shstrndx"]),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parse_header_of_each_layout_finds_each_field(layout: Layout) -> None:
    assert headers.parse_header(build(layout) + b"rest") == Header(layout=layout, **HEADER)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parse_header_cut_anywhere_is_none(layout: Layout) -> None:
    raw = build(layout)
    assert len(raw) == headers.HEADER_SIZE[layout.bits]
    assert all(headers.parse_header(raw[:size]) is None for size in range(len(raw)))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", [0, 3, 255])
def test_parse_header_of_another_file_is_none(at: int, value: int) -> None:
    raw = bytearray(build(LAYOUTS[0]))
    raw[at] = value
    assert headers.parse_header(bytes(raw)) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_build_header_moves_the_tables_and_keeps_the_rest(layout: Layout) -> None:
    raw = build(layout)
    found = headers.parse_header(headers.build_header(raw + b"rest", layout, 9))
    at = {"phoff": len(raw), "phnum": 9, "shoff": 0, "shnum": 0, "shstrndx": 0}
    assert found == Header(layout=layout, **{**HEADER, **at})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_phdrs_are_found_where_the_header_says_and_as_they_were_built(layout: Layout) -> None:
    table = headers.build_phdrs(layout, PHDRS)
    size = headers.PHDR_SIZE[layout.bits]
    assert len(table) == 2 * size
    header = headers.parse_header(build(layout))
    assert header is not None
    image = bytes(header.phoff) + table + b"rest"
    assert list(headers.find_phdrs(image, header, 2)) == PHDRS
    assert list(headers.find_phdrs(image, header, 1)) == PHDRS[:1]
    cut = range(header.phoff + 2 * size)
    found = [len(list(headers.find_phdrs(image[:end], header, 1 << 16))) for end in cut]
    assert found == [max(0, end - header.phoff) // size for end in cut]


def test_parse_phdrs_finds_the_flags_where_each_class_has_them() -> None:
    narrow = struct.pack("<8I", 1, 2, 3, 4, 5, 6, 7, 8)
    assert list(headers.parse_phdrs(narrow, LAYOUTS[2])) == [(1, 7, 2, 3, 4, 5, 6, 8)]
    wide = struct.pack("<2I6Q", 1, 2, 3, 4, 5, 6, 7, 8)
    assert list(headers.parse_phdrs(wide, LAYOUTS[0])) == [(1, 2, 3, 4, 5, 6, 7, 8)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shdrs_are_parsed_as_they_were_built(layout: Layout) -> None:
    shdr = Shdr(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    raw = headers.build_shdr(layout, shdr)
    assert len(raw) == headers.SHDR_SIZE[layout.bits]
    assert list(headers.parse_shdrs(raw + raw[:-1], layout)) == [shdr]


def note(name: bytes, kind: int, desc: bytes, *, align: int = 4) -> bytes:
    raw = struct.pack("<III", len(name), len(desc), kind) + name
    raw = raw.ljust(-(-len(raw) // align) * align, b"\0") + desc
    return raw.ljust(-(-len(raw) // align) * align, b"\0")


@pytest.mark.parametrize("align", [4, 8])
def test_find_build_id_takes_the_first_whole_one_of_gnu(align: int) -> None:
    layout = LAYOUTS[0]
    raw = note(b"Go\0", 3, b"go", align=align) + note(b"GNU\0", 1, b"abi!", align=align)
    wanted = raw + note(b"GNU\0", 3, b"\xab" * 20, align=align)
    assert headers.find_build_id(wanted, layout, align) == "ab" * 20
    assert headers.find_build_id(wanted[:-8], layout, align) is None
    assert headers.find_build_id(raw, layout, align) is None
    too_long = note(b"GNU\0", 3, b"\xab" * (headers.BUILD_ID_MAX + 1), align=align)
    assert headers.find_build_id(too_long, layout, align) is None


def test_split_notes_of_hostile_sizes_ends() -> None:
    raw = struct.pack("<III", 2**32 - 1, 2**32 - 1, 1) * 3
    assert [whole for *_, whole in headers.split_notes(raw, LAYOUTS[0])] == [False]


@pytest.mark.parametrize(("bits", "byteorder", "size"), [(64, "little", 8), (32, "big", 4)])
def test_layout_has_words_of_its_class(bits: Bits, byteorder: ByteOrder, size: int) -> None:
    raw = Layout(0, bits, byteorder).struct("L").pack(1)
    assert raw == (1).to_bytes(size, byteorder)
