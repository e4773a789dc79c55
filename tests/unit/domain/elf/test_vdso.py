"""The image is built like the kernel's: a dynamic section, symbols with two names each, a hash."""

from struct import pack

from crashd.domain.elf.headers import PT_DYNAMIC, PT_LOAD
from crashd.domain.elf.vdso import VdsoFunction, name_at, parse_vdso
from tests.builders.elfcore import CoreFormat

STRINGS = b"\0clock_gettime\0__vdso_clock_gettime\0__vdso_time\0data\0"


def symbol(name: bytes, info: int, value: int, size: int) -> bytes:
    return pack("<IBBHQQ", STRINGS.index(b"\0" + name + b"\0") + 1, info, 0, 1, value, size)


def build(base: int = 0) -> bytes:
    form = CoreFormat()
    symbols = bytes(24) + b"".join(
        (
            symbol(b"clock_gettime", 0x22, base + 0x800, 100),
            symbol(b"__vdso_clock_gettime", 0x12, base + 0x800, 100),
            symbol(b"data", 0x11, base + 0x900, 8),
            symbol(b"__vdso_time", 0x12, base + 0x880, 16),
        )
    )
    table, strings, hashes, dynamic = 0x200, 0x300, 0x380, 0x400
    tags = pack("<8Q", 6, base + table, 5, base + strings, 4, base + hashes, 0, 0)
    head = form.ehdr(2, kind=3)
    head += form.phdr(PT_LOAD, 0, 0x1000, vaddr=base, align=4096)
    head += form.phdr(PT_DYNAMIC, dynamic, len(tags), vaddr=base + dynamic)
    image = bytearray(head.ljust(0x1000, b"\0"))
    for at, part in (
        (table, symbols),
        (strings, STRINGS),
        (hashes, pack("<II", 1, len(symbols) // 24)),
        (dynamic, tags),
    ):
        image[at : at + len(part)] = part
    return bytes(image)


def test_parse_vdso_each_function_has_its_own_name() -> None:
    expected = [
        VdsoFunction(0x800, 100, "__vdso_clock_gettime"),
        VdsoFunction(0x880, 16, "__vdso_time"),
    ]
    assert parse_vdso(build()) == expected
    assert parse_vdso(build(0xFFFF0000)) == expected, "an older kernel's base"


def test_parse_vdso_cut_or_changed_raises_nothing() -> None:
    whole = build()
    for size in range(len(whole)):
        parse_vdso(whole[:size])
    for at in range(0x480):
        for value in (0, 0xFF):
            parse_vdso(whole[:at] + bytes([value]) + whole[at + 1 :])


def test_name_at_only_inside_of_a_function() -> None:
    functions = parse_vdso(build())
    found = name_at(functions, 0x863)
    assert found is not None
    assert found.name == "__vdso_clock_gettime"
    assert name_at(functions, 0x864) is None
    assert name_at(functions, 0) is None
