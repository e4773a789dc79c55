"""Files that others may have made: read without harm, replaced whole or not at all."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from crashd.base import files
from crashd.base.files import NotRegularError, Space


def make_link(path: Path) -> None:
    path.with_name("target").write_bytes(b"theirs")
    path.symlink_to("target")


NOT_REGULAR: dict[str, tuple[Callable[[Path], object], int]] = {
    "FIFO": (os.mkfifo, errno.EINVAL),
    "directory": (os.mkdir, errno.EISDIR),
    "link": (make_link, errno.ELOOP),
    "dangling link": (lambda path: path.symlink_to("nowhere"), errno.ELOOP),
    "nothing": (lambda path: None, errno.ENOENT),
}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("what", NOT_REGULAR)
def test_open_regular_refuses_what_is_none_at_once_and_leaks_nothing(
    tmp_path: Path, what: str
) -> None:
    make, number = NOT_REGULAR[what]
    make(tmp_path / "x")
    before = open_fds()
    with pytest.raises(OSError) as caught:
        files.open_regular(tmp_path / "x")
    assert caught.value.errno == number
    assert isinstance(caught.value, NotRegularError) == (what in ("FIFO", "directory"))
    assert open_fds() == before


def test_open_regular_of_a_device_refuses_it() -> None:
    with pytest.raises(NotRegularError):
        files.open_regular("/dev/zero", follow=True)


def test_read_file_follows_a_link_only_where_asked(tmp_path: Path) -> None:
    make_link(tmp_path / "x")
    assert files.read_file(tmp_path / "x", 100, follow=True) == b"theirs"


def test_read_file_reads_no_more_than_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    assert files.read_file(tmp_path / "x", 4) == b"0123"
    assert files.read_file(tmp_path / "x", 10) == b"0123456789"
    assert files.read_file(tmp_path / "x", 1 << 40) == b"0123456789"


def test_read_file_takes_a_name_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"here")
    fd = os.open(tmp_path, files.DIRECTORY)
    try:
        assert files.read_file(b"x", 100, dir_fd=fd) == b"here"
    finally:
        os.close(fd)


def test_read_all_goes_on_where_a_read_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [b"ab", b"c", b"", b"never"]
    monkeypatch.setattr(os, "read", lambda fd, size: parts.pop(0)[:size])
    assert files.read_all(9, 100) == b"abc"


def test_read_at_goes_on_where_a_read_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def short(fd: int, size: int, offset: int) -> bytes:
        asked.append((size, offset))
        return b"0123456789"[offset : offset + min(size, 3)]

    monkeypatch.setattr(os, "pread", short)
    assert files.read_at(9, 20, 4) == b"456789"
    assert asked == [(20, 4), (17, 7), (14, 10)]


def test_write_all_goes_on_where_a_write_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    written = bytearray()

    def short(fd: int, data: memoryview) -> int:
        written.extend(data[:3])
        return len(data[:3])

    monkeypatch.setattr(os, "write", short)
    files.write_all(9, b"0123456789")
    assert written == b"0123456789"


@pytest.mark.parametrize("exclusive", [False, True])
def test_replace_file_replaces_a_link_and_not_what_it_leads_to(
    tmp_path: Path, exclusive: bool
) -> None:
    make_link(tmp_path / "x")
    staged = tmp_path / "x.new"
    files.replace_file(tmp_path / "x", b"ours", staged=staged, exclusive=exclusive)
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["target", "x"]
    status = (tmp_path / "x").lstat()
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


@pytest.mark.parametrize("exclusive", [False, True])
def test_replace_file_never_writes_through_a_link_at_its_staged_name(
    tmp_path: Path, exclusive: bool
) -> None:
    make_link(tmp_path / "x.new")
    with pytest.raises(OSError):
        files.replace_file(tmp_path / "x", b"ours", staged=tmp_path / "x.new", exclusive=exclusive)
    assert (tmp_path / "target").read_bytes() == b"theirs"


def test_replace_file_has_the_mode_that_is_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.replace_file(tmp_path / "x", b"", staged=tmp_path / "s", mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


@pytest.mark.parametrize("step", ["write", "fchmod", "fsync", "rename"])
def test_replace_file_that_the_disk_refuses_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "x").write_bytes(b"old")
    before = open_fds()

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, refuse)
        with pytest.raises(OSError, match="no space"):
            files.replace_file(tmp_path / "x", b"new", staged=tmp_path / "s", mode=0o644, sync=True)
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
    assert open_fds() == before


def test_replace_file_syncs_the_data_before_the_name_and_the_name_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "data")
        real_fsync(fd)

    def rename(*args: object, **more: object) -> None:
        steps.append("rename")
        real_rename(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    files.replace_file(
        tmp_path / "x", b"new", staged=tmp_path / "s", sync=True, sync_directory=True
    )
    assert steps == ["data", "rename", "directory"]


@pytest.mark.parametrize("where", [5, Path("/store")])
def test_read_space_tells_what_users_and_root_may_fill(
    monkeypatch: pytest.MonkeyPatch, where: int | Path
) -> None:
    answer = os.statvfs_result((8192, 4096, 1000, 200, 100, 9, 8, 7, 0, 255))
    asked: list[int | Path] = []

    def ask(place: int | Path) -> os.statvfs_result:
        asked.append(place)
        return answer

    monkeypatch.setattr(os, "fstatvfs" if isinstance(where, int) else "statvfs", ask)
    assert files.read_space(where) == Space(1000 * 4096, 100 * 4096, 200 * 4096, 9, 7)
    assert asked == [where]
