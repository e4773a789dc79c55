"""DirectoryWatch with the kernel's own inotify."""

import fcntl
import logging
import os
import resource
import selectors
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.edge.host.inotify import DirectoryWatch
from crashd.errors import UnavailableError


class Watched:
    """A watch and what it told."""

    def __init__(self, path: Path) -> None:
        self.names: list[str] = []
        self.overflows = 0
        self.watch = DirectoryWatch(path, self.names.append, self.overflowed)

    def overflowed(self) -> None:
        self.overflows += 1

    def take(self) -> list[str]:
        """Read as a daemon's loop does, until nothing is there."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.watch, selectors.EVENT_READ)
            while selector.select(0):
                self.watch.read()
        names, self.names[:] = list(self.names), []
        return names


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir()
    return path


@pytest.fixture
def watched(directory: Path) -> Iterator[Watched]:
    one = Watched(directory)
    yield one
    one.watch.close()


def test_read_nothing_there_does_not_block(watched: Watched) -> None:
    watched.watch.read()
    assert watched.names == []
    assert watched.watch.alive


def test_read_tells_created_written_moved_and_made(
    watched: Watched, directory: Path, tmp_path: Path
) -> None:
    (directory / "written").write_bytes(b"x")
    assert watched.take() == ["written"]
    (tmp_path / "outside").touch()
    os.rename(tmp_path / "outside", directory / "moved")
    assert watched.take() == ["moved"]
    (directory / "made").mkdir()
    assert watched.take() == ["made"]


def test_read_file_in_the_making_is_told_again_when_closed(
    watched: Watched, directory: Path
) -> None:
    with (directory / "slow").open("wb") as file:
        assert watched.take() == ["slow"]
        file.write(b"x")
    assert watched.take() == ["slow"]


def test_read_what_is_no_news_is_not_told(watched: Watched, directory: Path) -> None:
    (directory / "one").touch()
    watched.take()
    (directory / "one").read_bytes()
    os.chmod(directory / "one", 0o600)
    os.chmod(directory, 0o700)
    os.unlink(directory / "one")
    assert watched.take() == []
    assert watched.watch.alive


@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"new\nline", b"\xc3\xa9", 255 * b"x", b" "])
def test_read_any_name_is_told_and_keeps_no_other_from_it(
    watched: Watched, directory: Path, name: bytes
) -> None:
    (directory / "before").touch()
    with open(os.path.join(os.fsencode(directory), name), "wb"):
        pass
    (directory / "after").touch()
    assert watched.take() == ["before", os.fsdecode(name), "after"]


def test_read_many_names_come_in_several_reads(watched: Watched, directory: Path) -> None:
    expected = [f"{number:0>200}" for number in range(1000)]
    for name in expected:
        (directory / name).touch()
    watched.watch.read()
    assert 0 < len(watched.names) < 1000
    rest = watched.take()
    assert sorted(set(rest)) == expected


def test_read_overflow_is_told(watched: Watched, directory: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}")
    # two names in turns: the kernel drops an event that equals the one before it
    names = [directory / "a", directory / "b"]
    for number in range(limit // 2 + 1):
        os.close(os.open(names[number % 2], os.O_WRONLY | os.O_CREAT))
        os.unlink(names[number % 2])
    assert set(watched.take()) == {"a", "b"}
    assert watched.overflows == 1
    assert watched.watch.alive
    (directory / "later").touch()
    assert watched.take() == ["later"]


def test_alive_directory_deleted_is_false(watched: Watched, directory: Path) -> None:
    directory.rmdir()
    assert watched.take() == []
    assert not watched.watch.alive
    assert not watched.watch.is_current()


def test_alive_directory_moved_is_false(watched: Watched, directory: Path, tmp_path: Path) -> None:
    directory.rename(tmp_path / "elsewhere")
    directory.mkdir()
    assert not watched.watch.is_current()  # also before the event is read
    watched.take()
    assert not watched.watch.alive


def test_alive_last_names_are_told_all_the_same(watched: Watched, directory: Path) -> None:
    (directory / "last").touch()
    os.unlink(directory / "last")
    directory.rmdir()
    assert watched.take() == ["last"]
    assert not watched.watch.alive


def test_is_current_same_directory_is_true(watched: Watched, directory: Path) -> None:
    assert watched.watch.is_current()
    (directory / "x").touch()
    assert watched.watch.is_current()


def test_descriptor_is_not_inherited_and_does_not_block(watched: Watched) -> None:
    fd = watched.watch.fileno()
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def test_close_twice_closes_once(directory: Path) -> None:
    watch = Watched(directory).watch
    fd = watch.fileno()
    watch.close()
    assert watch.fileno() == -1
    other = os.open(directory, os.O_RDONLY)
    assert other == fd  # the number is free again, and given anew
    watch.close()
    os.fstat(other)
    os.close(other)


@pytest.mark.parametrize(
    ("make", "why"), [(False, "No such file or directory"), (True, "Not a directory")]
)
def test_watch_what_is_no_directory_is_unavailable(tmp_path: Path, make: bool, why: str) -> None:
    path = tmp_path / "x\n"
    if make:
        path.touch()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnavailableError) as error:
        Watched(path)
    assert str(error.value) == f"cannot watch {tmp_path}/x\\x0a: {why}"
    assert os.listdir("/proc/self/fd") == before


def test_watch_path_not_utf8_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "\udcff"
    path.mkdir()
    with pytest.raises(UnavailableError, match=r"cannot watch .*\\xff: "):
        Watched(path)


def test_watch_too_many_files_names_the_limits(directory: Path) -> None:
    """By the process's own limit: fs.inotify.max_user_instances is shared, the error the same."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        with pytest.raises(UnavailableError, match="Too many open files") as error:
            Watched(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "max_user_instances" in (error.value.hint or "")


def test_watch_says_nothing_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnavailableError):
        Watched(tmp_path / "none")
    logging.getLogger("pyinotify").critical("noise")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
