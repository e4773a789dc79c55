"""What a debugger is given: laid out from names that a core chose."""

import os
from pathlib import Path

import pytest

from crashd.cli.open.crashfiles import CrashFiles
from crashd.cli.open.debugroot import lay_out
from crashd.domain.crash.access import Credentials
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox.modulefiles import ModuleFile

READER = Credentials(61001, 61001)


def opened(name: bytes, path: Path) -> ModuleFile:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return ModuleFile(Module(name, 0, 1, "abcdef", b"", deleted=False), fd, None, None)


@pytest.fixture
def place(short_tmp: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root: copies are given to another user")
    short_tmp.chmod(0o755)
    (short_tmp / "out").mkdir()
    for name, mode in (("open", 0o755), ("closed", 0o700)):
        (short_tmp / name).write_text(name)
        (short_tmp / name).chmod(mode)
    return short_tmp


def test_lay_out_links_what_the_reader_can_open_and_copies_the_rest(place: Path) -> None:
    files = [opened(b"/bin/p", place / "open"), opened(b"/lib/s.so", place / "closed")]
    given = lay_out(CrashFiles(files, b"/bin/p", frozenset({b"/lib/data"})), place / "out", READER)
    assert given.exe == given.root / "bin/p"
    assert given.exe.readlink() == place / "open"
    copy = (given.root / "lib/s.so").lstat()
    assert (copy.st_mode & 0o7777, copy.st_uid, copy.st_gid) == (0o600, 61001, 61001)
    assert (given.libraries / "s.so").read_text() == "closed"
    assert (given.root / "lib/data").read_bytes() == b""
    assert (given.root / "lib").stat().st_mode & 0o7777 == 0o755


def test_lay_out_what_others_can_replace_is_copied(place: Path) -> None:
    os.chown(place / "open", 61002, 61002)
    files = [opened(b"/bin/p", place / "open")]
    given = lay_out(CrashFiles(files, b"/bin/p", frozenset()), place / "out", READER)
    assert not (given.root / "bin/p").is_symlink()


def test_lay_out_names_that_contradict_each_other_are_left_out(place: Path) -> None:
    names = [b"/a", b"/a/b", b"/a", b"/../x", b"/" + b"n" * 300, b"/d/same", b"/e/same"]
    files = [opened(name, place / "open") for name in names]
    data = frozenset({b"/a", b"/a/c", b"..", b"/x\0", b"/" + b"n" * 300, b"/" + b"d/" * 2500})
    given = lay_out(CrashFiles(files, b"/none", data), place / "out", READER)
    assert given.exe is None
    assert {path.name for path in given.root.iterdir()} >= {"a", "d", "e"}
    assert {path.name for path in given.libraries.iterdir()} == {"a"}
    assert not (place / "out/x").exists()
    assert (place / "open").read_text() == "open"
