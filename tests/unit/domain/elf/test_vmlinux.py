"""Which kernel a vmlinux is."""

import struct
from typing import Literal

import pytest

from crashd.domain.elf.vmlinux import (
    ReadAt,
    debug_package,
    find_release,
    parse_vmlinux,
    vmlinux_places,
)
from crashd.errors import FormatError

BUILD_ID = bytes(range(20))
BANNER = b"\0Linux version 6.1.0-test (a@b) #1 SMP\n\0%s version %s (%s)\0"


def build(
    bits: Literal[32, 64] = 64,
    byteorder: Literal["little", "big"] = "little",
    sections: bytes = b"\0.debug_info\0",
    build_id: bytes = BUILD_ID,
) -> bytes:
    order = "<" if byteorder == "little" else ">"
    word, ehdr = ("Q", 64) if bits == 64 else ("I", 52)
    notes = struct.pack(f"{order}III", 6, 3, 0x101) + b"Linux\0\0\0" + b"abc\0"
    notes += struct.pack(f"{order}III", 4, len(build_id), 3) + b"GNU\0" + build_id
    phentsize, shentsize = (56, 64) if bits == 64 else (32, 40)
    notes_at = ehdr + 2 * phentsize
    banner_at = notes_at + len(notes)
    names_at = banner_at + len(BANNER)
    shoff = names_at + len(sections)
    ident = bytes([0x7F, *b"ELF", bits // 32, 1 if byteorder == "little" else 2]).ljust(16, b"\0")
    out = ident + struct.pack(
        f"{order}HHI{word * 3}IHHHHHH",
        *(2, 62, 1, 0, ehdr, shoff, 0, ehdr, phentsize, 2, shentsize, 2, 1),
    )
    for kind, at, size in ((1, banner_at, len(BANNER)), (4, notes_at, len(notes))):
        if bits == 64:
            out += struct.pack(f"{order}IIQQQQQQ", kind, 4, at, 0, 0, size, size, 4)
        else:
            out += struct.pack(f"{order}IIIIIIII", kind, at, 0, 0, size, size, 4, 4)
    out += notes + BANNER + sections
    section = f"{order}II{word * 4}II{word * 2}"
    out += struct.pack(section, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    return out + struct.pack(section, 0, 3, 0, 0, names_at, len(sections), 0, 0, 0, 0)


def reader(data: bytes) -> ReadAt:
    return lambda offset, size: data[offset : offset + size]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_vmlinux_of_every_layout_is_read(
    bits: Literal[32, 64], byteorder: Literal["little", "big"]
) -> None:
    data = build(bits, byteorder)
    found = parse_vmlinux(reader(data))
    assert found.build_id == BUILD_ID.hex()
    assert found.has_debug_info
    ((at, size),) = found.loaded
    assert find_release(data[at : at + size]) == "6.1.0-test"


def test_vmlinux_without_debug_information_or_build_id_is_told() -> None:
    found = parse_vmlinux(reader(build(sections=b"\0.text\0", build_id=b"")))
    assert not found.has_debug_info
    assert found.build_id is None


def test_absurdly_long_build_id_is_none() -> None:
    assert parse_vmlinux(reader(build(build_id=bytes(65)))).build_id is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x1f\x8b" * 40, b"MZ" * 40])
def test_what_is_no_elf_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="not an ELF"):
        parse_vmlinux(reader(data))


def test_core_and_absurd_class_are_refused() -> None:
    data = bytearray(build())
    data[16] = 4
    with pytest.raises(FormatError, match="not a program"):
        parse_vmlinux(reader(bytes(data)))
    data[4] = 9
    with pytest.raises(FormatError, match="absurd"):
        parse_vmlinux(reader(bytes(data)))


def test_vmlinux_cut_or_damaged_anywhere_raises_nothing_else() -> None:
    data = build()
    for size in range(len(data)):
        cut = data[:size]
        for damaged in (cut, cut + b"\xff" * 8 + data[size + 8 :]):
            try:
                parse_vmlinux(reader(damaged))
            except FormatError:
                continue


def test_find_release_without_banner_is_none() -> None:
    assert find_release(b"Linux version \n %s version %s (") is None


RELEASE = "6.1.0-56-cloud-amd64"
DEBUG_PLACES = (
    f"usr/lib/debug/boot/vmlinux-{RELEASE}",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux.debug",
    f"usr/lib/debug/usr/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/debug/usr/lib/modules/{RELEASE}/vmlinux.debug",
    f"lib/modules/{RELEASE}/build/vmlinux",
    "usr/lib/debug/.build-id/ab/cdef01.debug",
    f"srv/vmlinux/vmlinux-{RELEASE}",
    f"srv/vmlinux/{RELEASE}/vmlinux.debug",
    "srv/vmlinux/.build-id/ab/cdef01.debug",
    "srv/vmlinux/vmlinux",
)


@pytest.mark.parametrize("place", DEBUG_PLACES)
def test_vmlinux_is_looked_for_where_distributions_and_the_administrator_put_it(place: str) -> None:
    assert place in vmlinux_places(RELEASE, "abcdef01", ["/srv/vmlinux"])


@pytest.mark.parametrize(
    "release", ["", "..", "../../etc/x", "a/b", "x" * 70, "a b", "\n", "6.1\0"]
)
def test_release_that_leads_elsewhere_names_no_place(release: str) -> None:
    places = vmlinux_places(release, None, ["/srv"])
    assert places == ("srv/vmlinux",)


@pytest.mark.parametrize("build_id", ["", "ab", "../../..", "ABCD", "abc", "ab" * 65, "ab/cd"])
def test_build_id_that_is_none_names_no_place(build_id: str) -> None:
    assert vmlinux_places(None, build_id) == ()


@pytest.mark.parametrize(
    ("release", "version", "package"),
    [
        (
            RELEASE,
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)",
            f"linux-image-{RELEASE}-dbg",
        ),
        (RELEASE, None, f"linux-image-{RELEASE}-dbg"),
        ("6.12.57+deb13-amd64", "", "linux-image-6.12.57+deb13-amd64-dbg"),
        ("6.8.0-45-generic", "#45-Ubuntu SMP", "linux-image-6.8.0-45-generic-dbgsym"),
        ("6.8.0-1010-aws", None, "linux-image-6.8.0-1010-aws-dbgsym"),
        ("6.11.4-301.fc41.x86_64", None, "kernel-debuginfo-6.11.4-301.fc41.x86_64"),
        ("5.14.0-427.el9.x86_64", None, "kernel-debuginfo-5.14.0-427.el9.x86_64"),
        ("6.4.0-150600.23-default", None, "kernel-default-debuginfo"),
        ("6.1.0-test", "#1", None),
        (None, "Debian", None),
        ("$(reboot)", "Debian", None),
    ],
)
def test_package_is_the_distribution_s(
    release: str | None, version: str | None, package: str | None
) -> None:
    assert debug_package(release, version) == package


def only_debug(notes_kept: bool = True) -> bytes:
    """Make what `objcopy --only-keep-debug` leaves: its program headers lead nowhere."""
    data = bytearray(build(sections=b"\0.debug_info\0"))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    notes_at, size = struct.unpack_from("<8xQ16xQ", data, 64 + 56)
    struct.pack_into("<Q", data, 64 + 56 + 8, 0)  # p_offset
    if notes_kept:
        struct.pack_into("<IIQQQQ", data, shoff, 1, 7, 0, 0, notes_at, size)
    return bytes(data)


def test_build_id_of_a_debug_file_is_found_by_its_sections() -> None:
    assert parse_vmlinux(reader(only_debug())).build_id == BUILD_ID.hex()
    assert parse_vmlinux(reader(only_debug(notes_kept=False))).build_id is None


def test_debug_information_without_bytes_is_none() -> None:
    data = bytearray(build())
    shoff = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<I", data, shoff + 4, 8)  # SHT_NOBITS
    assert not parse_vmlinux(reader(bytes(data))).has_debug_info
