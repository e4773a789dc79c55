import hashlib

import pytest

from crashd.domain.elf.executables import (
    EXECUTABLES_MAX,
    Executable,
    find_executables,
    is_kept_name,
    kept_name,
    kept_name_of,
)
from tests.builders.elfcore import build_image

MAPS = b"""\
00400000-00401000 r--p 00000000 08:01 5          /usr/bin/prog
00401000-00402000 r-xp 00001000 08:01 5          /usr/bin/prog
7f0000000000-7f0000001000 r-xp 00000000 08:01 6  /usr/lib/liba.so (deleted)
7f0000002000-7f0000003000 rwxp 00000000 00:01 7  /memfd:a name (deleted)
7f0000004000-7f0000005000 r--p 00000000 08:01 8  /usr/share/data
7f0000006000-7f0000007000 rwxp 00000000 00:00 0
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0  [vdso]
7f0000008000-7f0000009000 r-xp 00003000 08:01 6  /usr/lib/liba.so (deleted)
"""


def test_find_executables_each_file_with_code_once_nameless_ones_first() -> None:
    assert find_executables(MAPS) == [
        Executable("7f0000000000-7f0000001000", b"/usr/lib/liba.so", True),
        Executable("7f0000002000-7f0000003000", b"/memfd:a name", True),
        Executable("401000-402000", b"/usr/bin/prog", False),
    ]


def test_find_executables_odd_and_many_lines() -> None:
    line = b"%x-%x r-xp 00000000 08:01 %d /lib/%d.so"
    many = b"\n".join(line % (n << 12, (n + 1) << 12, n, n) for n in range(1, 2000))
    assert len(find_executables(many)) == EXECUTABLES_MAX
    assert find_executables(b"../../x r-xp 0 08:01 1 /a\n401000-402000 r-xp") == []
    for cut in range(len(MAPS)):
        find_executables(MAPS[:cut])


def test_kept_name_is_of_hexadecimal_digits_alone() -> None:
    assert kept_name("ab" * 20, b"") == "file-" + "ab" * 20
    image = b"\x7fELF".ljust(4096, b"x")
    page = hashlib.sha256(image).hexdigest()[:40]
    assert kept_name(None, image + b"more") == f"file-page-{page}"
    assert kept_name(None, image[:-1]) is None


@pytest.mark.parametrize("build_id", ["../../etc", "ab/cd", "AB" * 20, "ab", "a" * 129, "é" * 20])
def test_kept_name_of_another_build_id_is_none(build_id: str) -> None:
    assert kept_name(build_id, b"") is None


def test_kept_name_of_a_file() -> None:
    assert kept_name_of(build_image(bytes(range(20)))) == "file-" + bytes(range(20)).hex()
    assert kept_name_of(b"#!/bin/sh\n".ljust(4096)) is None
    assert kept_name_of(b"") is None


def test_is_kept_name_other_files_of_an_entry_are_not() -> None:
    assert not any(map(is_kept_name, ("core.zst", "crash.json", "file-", "file-page-ab", "file-x")))
