"""Modules out of a core's head, and where their files may be."""

from struct import pack

import pytest

from crashd.domain.elf.elfcore import MappedFile, parse_head
from crashd.domain.elf.modules import (
    MODULES_MAX,
    Module,
    alternate_names,
    build_id_names,
    debug_file_names,
    file_roots,
    find_modules,
    name_files,
    path_parts,
    same_image,
)
from tests.builders.elfcore import (
    CoreFormat,
    CoreThread,
    build_core,
    build_image,
    build_notes,
)

IMAGE = build_image()
BUILD_ID = bytes(range(20)).hex()


def modules(files: list[tuple[int, int, int, bytes]], images: dict[int, bytes]) -> list[Module]:
    head = parse_head(build_core(notes=build_notes(CoreFormat(), files=files)))
    return find_modules(head, lambda at, size: images.get(at, b"")[:size])


def test_find_modules_joins_the_mappings_of_a_file() -> None:
    found = modules(
        [
            (0x1000, 0x2000, 0, b"/bin/prog"),
            (0x2000, 0x4000, 1, b"/bin/prog"),
            (0x9000, 0xA000, 0, b"/lib/lib.so (deleted)"),
            (0xA000, 0xB000, 1, b"/lib/lib.so (deleted)"),
            (0xF000, 0x10000, 0, b"/usr/share/data"),
        ],
        {0x1000: IMAGE, 0xF000: b"data"},
    )
    assert [(m.name, m.start, m.end, m.deleted) for m in found] == [
        (b"/bin/prog", 0x1000, 0x4000, False),
        (b"/lib/lib.so", 0x9000, 0xB000, True),
    ]
    assert found[0].build_id == BUILD_ID
    assert found[1].build_id is None
    assert len(found[0].files) == 2


def test_find_modules_the_same_file_twice_is_two_modules() -> None:
    found = modules(
        [
            (0x1000, 0x2000, 0, b"/lib/a.so"),
            (0x2000, 0x3000, 1, b"/lib/a.so"),
            (0x5000, 0x6000, 0, b"/lib/a.so"),
            (0x6000, 0x7000, 1, b"/lib/a.so"),
        ],
        {},
    )
    assert [(m.start, m.end) for m in found] == [(0x1000, 0x3000), (0x5000, 0x7000)]


def image_with_data_at(vaddr: int, offset: int) -> bytes:
    """An image whose second PT_LOAD begins on the first page of the file."""
    form = CoreFormat()
    note = form.note(3, bytes(range(20)), b"GNU\0")
    at = 64 + 3 * 56
    return (
        form.ehdr(3, kind=3)
        + form.phdr(1, 0, 0xE00, align=4096)
        + form.phdr(1, offset, 0x200, vaddr=vaddr, align=4096)
        + form.phdr(4, at, len(note), vaddr=at)
        + note
    )


@pytest.mark.parametrize("there", [0x1000, 0x2000])
def test_find_modules_the_first_page_mapped_twice_is_one_module(there: int) -> None:
    files = [
        (0x1000, 0x2000, 0, b"/bin/small"),
        (0x2000, 0x3000, 0, b"/bin/small"),
        (0x3000, 0x4000, 1, b"/bin/small"),
    ]
    found = modules(files, {there: image_with_data_at(0x1E00, 0xE00)})
    assert [(m.start, m.end, m.build_id) for m in found] == [(0x1000, 0x4000, BUILD_ID)]
    assert bool(found[0].image) == (there == 0x1000)  # the loader changed the second one


def test_find_modules_has_an_end() -> None:
    files = [(n << 13, (n << 13) + 4096, 0, b"/lib/%d" % n) for n in range(1, 2 * MODULES_MAX)]
    assert len(modules(files, {start: IMAGE for start, *_ in files})) == MODULES_MAX


def test_find_modules_of_too_many_has_those_on_the_stack() -> None:
    """libc is mapped above all that a program loads later."""
    count = 2 * MODULES_MAX
    files = [(n << 13, (n << 13) + 4096, 0, b"/lib/%d" % n) for n in range(1, count)]
    images = {start: IMAGE for start, *_ in files}
    stack, pc = 1 << 40, (count - 1 << 13) + 16
    images[stack] = pack("<4Q", 0, (count - 5 << 13) + 7, (count - 9 << 13) + 5000, 1 << 63)
    threads = [CoreThread(1, pc=pc, sp=stack)]
    notes = build_notes(
        CoreFormat(), threads=threads, files=files, auxv={3: (count - 7 << 13) + 64}
    )
    head = parse_head(build_core(notes=notes))
    found = find_modules(head, lambda at, size: images.get(at, b"")[:size])
    names = [module.name for module in found]
    assert len(found) == MODULES_MAX
    assert {b"/lib/%d" % (count - n) for n in (1, 5, 7)} <= set(names)
    assert b"/lib/%d" % (count - 9) not in names  # the address lies behind its end
    assert [m.start for m in found] == sorted(m.start for m in found)


MAPS = b"""\
00400000-00401000 r--p 00000000 00:2a 77                         /usr/bin/my prog
00401000-00402000 r-xp 00001000 00:2a 77                         /usr/bin/my prog
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f0000002000-7f0000003000 r--p 00000000 fd:00 9    /lib/od\\012d.so (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
odd line
7f0000004000-7f00000050"""


def test_name_files_without_nt_file_takes_those_of_maps() -> None:
    assert [(f.start, f.end, f.offset_bytes, f.name) for f in name_files((), MAPS)] == [
        (0x400000, 0x401000, 0, b"/usr/bin/my prog"),
        (0x401000, 0x402000, 0x1000, b"/usr/bin/my prog"),
        (0x7F0000002000, 0x7F0000003000, 0, b"/lib/od\nd.so (deleted)"),
    ]


def test_name_files_of_an_overlay_have_the_users_path() -> None:
    layer = MappedFile(0x400000, 0x401000, 0, b"/run/extension/bin/prog")
    moved = MappedFile(0x401000, 0x409000, 0x1000, b"/another")
    other = MappedFile(0x900000, 0x901000, 0, b"/unknown")
    names = [f.name for f in name_files((layer, moved, other), MAPS)]
    assert names == [b"/usr/bin/my prog", b"/another", b"/unknown"]
    assert name_files((layer,), b"") == (layer,)
    assert name_files((layer,), b"\xff\0" * 100) == (layer,)


LINE = b"36 35 98:0 / %s rw - %s overlay rw,lowerdir=/l/1:/l/2,upperdir=/u,workdir=/w\n"


@pytest.mark.parametrize(
    ("mountinfo", "root", "roots"),
    [
        (None, b"/", [b"/"]),
        (None, b"/srv/chroot", [b"/srv/chroot", b"/"]),
        (None, b"relative", [b"/"]),
        (LINE % (b"/", b"overlay"), b"/", [b"/u", b"/l/1", b"/l/2", b"/"]),
        (LINE % (b"/data", b"overlay"), b"/", [b"/"]),
        (LINE % (b"/", b"ext4"), b"/", [b"/"]),
        (b"1 2 0:1 / / rw - overlay o rw,lowerdir=/a\\040b:/c\\:d", b"/", [b"/a b", b"/c:d", b"/"]),
        (b"1 2 0:1 / / rw - overlay o rw,lowerdir+=/a,lowerdir+=/b", b"/", [b"/a", b"/b", b"/"]),
        (b"1 2 0:1 / / rw - overlay o rw,lowerdir=l/A:../x,upperdir=", b"/", [b"/"]),
        (b"- - -\n\0\xff - overlay", b"/", [b"/"]),
        (b"1 2 0:1 / / rw - overlay", b"/", [b"/"]),
    ],
)
def test_file_roots_are_a_containers_layers(
    mountinfo: bytes | None, root: bytes, roots: list[bytes]
) -> None:
    assert file_roots(mountinfo, root) == roots


def test_file_roots_has_an_end() -> None:
    line = b"1 2 0:1 / / rw - overlay o lowerdir=" + b":".join([b"/x"] * 100_000)
    assert len(file_roots(line, b"/")) < 300


@pytest.mark.parametrize(
    ("link", "names"),
    [
        (None, []),
        (b"p.debug", [b"/opt/p.debug", b"/opt/.debug/p.debug", b"usr/lib/debug/opt/p.debug"]),
        (b"../../etc/shadow", []),
        (b"..", []),
        (b"", []),
    ],
)
def test_debug_file_names_are_gdbs_own(link: bytes | None, names: list[bytes]) -> None:
    assert debug_file_names(b"/opt/p", link) == names


@pytest.mark.parametrize(
    ("build_id", "names"),
    [(None, []), ("ab", []), ("abcdef", [b"usr/lib/debug/.build-id/ab/cdef"])],
)
def test_build_id_names_are_gdbs_own(build_id: str | None, names: list[bytes]) -> None:
    assert build_id_names(build_id) == names


@pytest.mark.parametrize(
    ("image", "start", "build_id", "same"),
    [
        (IMAGE, IMAGE, BUILD_ID, True),
        (IMAGE, build_image(b"other" * 4), BUILD_ID, False),
        (IMAGE, b"text", BUILD_ID, False),
        (IMAGE, IMAGE, None, True),
        (build_image(None), build_image(None, vaddr=4096), None, False),
        (b"", IMAGE, None, None),
        (b"", b"root:x:", None, False),
        (IMAGE[:-1], IMAGE, None, None),
    ],
)
def test_same_image_compares_what_there_is(
    image: bytes, start: bytes, build_id: str | None, same: bool | None
) -> None:
    assert same_image(image, start, build_id) is same


@pytest.mark.parametrize("path", [b"", b"/", b"/a/../b", b"..", b"/a\0b", b"///"])
def test_path_parts_refuses_what_is_not_plain(path: bytes) -> None:
    assert path_parts(path) is None


def test_path_parts_splits() -> None:
    assert path_parts(b"/usr//lib/./x") == [b"usr", b"lib", b".", b"x"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (b"../../../../.dwz/pkg-1.x86_64", b"usr/lib/debug/.dwz/pkg-1.x86_64"),
        (b"/usr/lib/debug/.dwz/x86_64-linux-gnu/pkg.debug",
         b"usr/lib/debug/.dwz/x86_64-linux-gnu/pkg.debug"),
        (b"plain", b"usr/lib/debug/.dwz/plain"),
        (b"/etc/shadow", b"usr/lib/debug/.dwz/shadow"),
    ],
)  # fmt: skip
def test_alternate_names_stay_in_their_directory(link: bytes, expected: bytes) -> None:
    assert alternate_names(link) == [expected]


@pytest.mark.parametrize("link", [b"", b"/", b"../.dwz/../../etc/shadow", b"x/..", b"..", b"a\0b"])
def test_alternate_names_odd_ones_are_none(link: bytes) -> None:
    assert alternate_names(link) == []
