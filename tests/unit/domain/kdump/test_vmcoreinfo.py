"""VMCOREINFO in the memory of a dump that has no such note."""

import struct
from typing import Literal

import pytest

from crashd.domain.kdump.vmcoreinfo import (
    FOUND_MAX,
    ReadAt,
    add_note,
    build_id_in,
    find_vmcoreinfo,
    has_note,
    parse_elf_dump,
    release_in,
)

PAGE = 4096
INFO = b"OSRELEASE=6.1.0-test\nBUILD-ID=00112233\nPAGESIZE=4096\nNUMBER(phys_base)=-1\n"
Bits = Literal[32, 64]
Order = Literal["little", "big"]


def build(pages: list[bytes], bits: Bits = 64, byteorder: Order = "little", at: int = 0) -> bytes:
    """Build an ELF dump of one run of memory, as QEMU writes it."""
    order, word = "<" if byteorder == "little" else ">", "Q" if bits == 64 else "I"
    ehdr, phentsize = (64, 56) if bits == 64 else (52, 32)
    memory = b"".join(page.ljust(PAGE, b"\0") for page in pages)
    ident = bytes([0x7F, *b"ELF", bits // 32, 1 if byteorder == "little" else 2]).ljust(16, b"\0")
    out = ident + struct.pack(
        f"{order}HHI{word * 3}IHHHHHH", 4, 62, 1, 0, ehdr, 0, 0, ehdr, phentsize, 2, 0, 0, 0
    )
    note = struct.pack(f"{order}III", 5, 4, 1) + b"CORE\0\0\0\0" + b"regs"
    note_at = ehdr + 2 * phentsize
    if bits == 64:
        out += struct.pack(f"{order}IIQQQQQQ", 4, 0, note_at, 0, 0, len(note), len(note), 4)
        out += struct.pack(f"{order}IIQQQQQQ", 1, 7, PAGE, 0, at, len(memory), len(memory), 0)
    else:
        out += struct.pack(f"{order}IIIIIIII", 4, note_at, 0, 0, len(note), len(note), 0, 4)
        out += struct.pack(f"{order}IIIIIIII", 1, PAGE, 0, at, len(memory), len(memory), 7, 0)
    return (out + note).ljust(PAGE, b"\0") + memory


def reader(data: bytes) -> ReadAt:
    return lambda offset, size: data[offset : offset + size]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_page_is_found_and_the_copy_has_it_as_a_note(bits: Bits, byteorder: Order) -> None:
    data = build([b"x" * PAGE, INFO], bits, byteorder, at=0x100000)
    dump = parse_elf_dump(reader(data))
    assert dump is not None and not has_note(reader(data), dump)
    assert find_vmcoreinfo(reader(data), dump) == (INFO,)
    head, tail = add_note(dump, len(data), INFO)
    copy = head + data[len(head) :] + tail
    again = parse_elf_dump(reader(copy))
    assert again is not None
    assert again.count == 3
    assert again.loads == dump.loads
    assert has_note(reader(copy), again)
    offset, size = again.notes[0]
    note = copy[offset : offset + size]
    assert note[12:24] == b"VMCOREINFO\0\0" and note[24:].startswith(INFO)
    assert copy[PAGE : len(data)] == data[PAGE:]


def test_text_of_the_release_and_build_id() -> None:
    assert (release_in(INFO), build_id_in(INFO)) == ("6.1.0-test", "00112233")
    assert build_id_in(b"OSRELEASE=5.4\nPAGESIZE=4096\n") is None


@pytest.mark.parametrize(
    "page",
    [
        b" " + INFO,  # not at a page's start
        b"OSRELEASE=6.1.0-test",
        b"OSRELEASE=%s\n\0" + INFO,
        INFO[:-1] + b"\x80\n",
        b"OSRELEASE=" + b"a" * 66 + b"\nPAGESIZE=4096\n",
        b"",
    ],
)
def test_what_only_resembles_it_is_passed_over(page: bytes) -> None:
    data = build([page, INFO])
    dump = parse_elf_dump(reader(data))
    assert dump is not None
    assert find_vmcoreinfo(reader(data), dump) == (INFO,)


def test_pages_that_processes_made_are_all_found_but_not_without_end() -> None:
    fakes = [INFO.replace(b"test", b"%d" % n) for n in range(2 * FOUND_MAX)]
    data = build([*fakes[:3], INFO, INFO])
    dump = parse_elf_dump(reader(data))
    assert dump is not None
    assert find_vmcoreinfo(reader(data), dump) == (*fakes[:3], INFO)
    data = build(fakes)
    assert len(find_vmcoreinfo(reader(data), dump)) <= FOUND_MAX


def test_address_decides_what_is_a_page_not_the_place_in_the_file() -> None:
    data = build([b"y" * 16 + INFO], at=0x1000 - 16)
    dump = parse_elf_dump(reader(data))
    assert dump is not None
    assert find_vmcoreinfo(reader(data), dump) == (INFO,)


@pytest.mark.parametrize("data", [b"", b"KDUMP   " * 100, b"\x7fELF" + bytes(60), build([])[:70]])
def test_other_files_are_none(data: bytes) -> None:
    dump = parse_elf_dump(reader(data))
    assert dump is None or find_vmcoreinfo(reader(data), dump) == ()


def test_absurd_sizes_end_where_the_file_does() -> None:
    data = bytearray(build([INFO]))
    struct.pack_into("<Q", data, 64 + 56 + 32, 1 << 61)  # p_filesz
    dump = parse_elf_dump(reader(bytes(data)))
    assert dump is not None
    assert find_vmcoreinfo(reader(bytes(data)), dump) == (INFO,)
