"""Entries on disk: whole or recognisably not."""

import contextlib
import errno
import os
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.base import files
from crashd.domain.crash.boundedrecord import LEAST_BYTES, METADATA_BYTES, RECORD_BYTES
from crashd.domain.crash.model import Crash, Kind, State
from crashd.errors import FormatError, NotFoundError, UnavailableError
from crashd.store import entry as entries
from crashd.store import statefile
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash

CRASH_ID = "20261123t050209-0123abcd-42-k0000001"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    entries.prepare(found)
    return found


def a_crash(crash_id: str = CRASH_ID) -> Crash:
    return Crash(
        crash_id, Kind.PROCESS, State.CAPTURING, 1_795_412_639 * 10**9, "0123abcd" * 4, pid=42
    )


def test_prepare_makes_private_directories(paths: Paths) -> None:
    for directory in (paths.state_dir, paths.crashes, paths.spool):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_prepare_closes_what_is_open_to_others(paths: Paths) -> None:
    for directory in (paths.state_dir, paths.crashes, paths.spool):
        directory.chmod(0o777)
    entries.prepare(paths)
    for directory in (paths.state_dir, paths.crashes, paths.spool):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_create_then_read_is_the_same(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry:
        assert entry.read() == a_crash()
        assert entry.file_names() == ["crash.json"]
        assert os.stat("crash.json", dir_fd=entry.fd).st_mode & 0o777 == 0o600


def test_create_same_id_twice_is_refused(paths: Paths) -> None:
    entries.create(paths, a_crash()).close()
    with pytest.raises(FileExistsError):
        entries.create(paths, a_crash())


def test_create_that_is_killed_leaves_no_entry_and_is_cleaned_up(paths: Paths) -> None:
    """Once an entry without a record stayed, which then counted as a second, nameless crash."""
    with entries.create(paths, a_crash()):
        pass
    entry = paths.crashes / CRASH_ID
    entry.rename(paths.crashes / f".new-{CRASH_ID}")
    (paths.crashes / f".new-{CRASH_ID}" / "crash.json").rename(
        paths.crashes / f".new-{CRASH_ID}" / "crash.json.new"
    )
    (paths.crashes / ".new-other").mkdir()
    assert entries.entry_ids(paths) == []
    assert entries.foreign_names(paths) == [".new-other"]
    assert entries.remove_staged(paths) == [CRASH_ID]
    assert [path.name for path in paths.crashes.iterdir()] == [".new-other"]


def test_create_has_its_record_before_its_name(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    rename = os.rename

    def watch(source: str, target: str, **where: int) -> None:
        seen.append(entries.entry_ids(paths))
        rename(source, target, **where)

    monkeypatch.setattr(os, "rename", watch)
    with entries.create(paths, a_crash()):
        assert seen == [[], []], "its record's name comes first, then its own"
        assert entries.entry_ids(paths) == [CRASH_ID]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_create_without_descriptors_leaves_nothing_behind(paths: Paths, room: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            entries.create(paths, a_crash())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(paths.crashes.iterdir()) == []


def test_create_holds_the_lock_until_closed(paths: Paths) -> None:
    with entries.create(paths, a_crash()):
        with entries.open_entry(paths, CRASH_ID) as other:
            assert not other.try_lock()
        with pytest.raises(UnavailableError, match="still being captured"):
            entries.remove(paths, CRASH_ID)
    with entries.open_entry(paths, CRASH_ID) as other:
        assert other.try_lock()


def test_write_replaces_the_record_whole(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry:
        entry.write(replace(a_crash(), state=State.LOST), sync=True)
        assert entry.read().state is State.LOST
        assert entry.file_names() == ["crash.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 99}',
        b"\xff\xfe",
        b'{"schema": 1, "id": "../x"}',
        b"nan",
    ],
)
def test_read_sidecar_of_nonsense_is_a_format_error(paths: Paths, content: bytes) -> None:
    with entries.create(paths, a_crash()) as entry:
        (paths.crashes / CRASH_ID / "crash.json").write_bytes(content)
        with pytest.raises(FormatError):
            entry.read()


def test_read_cut_at_any_length_is_a_format_error(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry:
        record = paths.crashes / CRASH_ID / "crash.json"
        whole = record.read_bytes()
        for length in range(len(whole)):
            record.write_bytes(whole[:length])
            with pytest.raises(FormatError):
                entry.read()


def test_read_another_entrys_sidecar_is_refused(paths: Paths) -> None:
    other = CRASH_ID[:-1] + "2"
    entries.create(paths, a_crash()).close()
    with entries.create(paths, a_crash(other)) as entry:
        (paths.crashes / other / "crash.json").write_bytes(
            (paths.crashes / CRASH_ID / "crash.json").read_bytes()
        )
        with pytest.raises(FormatError, match="is that of"):
            entry.read()


@pytest.mark.parametrize("make", ["symlink", "fifo", "directory"])
def test_read_planted_sidecar_is_not_followed(paths: Paths, make: str, tmp_path: Path) -> None:
    with entries.create(paths, a_crash()) as entry:
        record = paths.crashes / CRASH_ID / "crash.json"
        secret = tmp_path / "secret"
        secret.write_bytes(record.read_bytes())
        record.unlink()
        if make == "symlink":
            record.symlink_to(secret)
        elif make == "fifo":
            os.mkfifo(record)
        else:
            record.mkdir()
        with pytest.raises(FormatError):
            entry.read()


@pytest.mark.parametrize(
    "name", ["../../etc", "..", "", "a", CRASH_ID + "\n", CRASH_ID + "/..", "x\0y"]
)
def test_open_entry_by_what_is_no_id_is_not_found(paths: Paths, name: str) -> None:
    with pytest.raises(NotFoundError):
        entries.open_entry(paths, name)


def test_open_entry_through_a_symlink_is_not_found(paths: Paths, tmp_path: Path) -> None:
    (paths.crashes / CRASH_ID).symlink_to(tmp_path)
    with pytest.raises((NotFoundError, UnavailableError)):
        entries.open_entry(paths, CRASH_ID)


def test_names_ids_and_foreign_ones_are_told_apart(paths: Paths) -> None:
    entries.create(paths, a_crash()).close()
    (paths.crashes / "lost+found").mkdir()
    (paths.crashes / "x.core").touch()
    assert entries.entry_ids(paths) == [CRASH_ID]
    assert entries.foreign_names(paths) == ["lost+found", "x.core"]


def test_remove_frees_everything(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry:
        fd = entry.create_core()
        os.write(fd, b"x" * 100_000)
        os.close(fd)
        entry.commit_core()
        assert entry.stored_bytes() == 100_000
    assert entries.remove(paths, CRASH_ID) >= 100_000
    assert not (paths.crashes / CRASH_ID).exists()
    with pytest.raises(NotFoundError):
        entries.remove(paths, CRASH_ID)


def test_open_core_without_one_is_not_found(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry, pytest.raises(NotFoundError, match="no core"):
        entry.open_core()


@pytest.mark.parametrize("what", ["record", "file", "state"])
def test_write_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    paths = Paths(tmp_path)
    entries.prepare(paths)
    crash = build_crash()
    with entries.create(paths, crash) as entry:
        before = entry.file_names()

        def refuse(fd: int, data: bytes) -> None:
            os.write(fd, data[:10])
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(files, "write_all", refuse)
        with pytest.raises(OSError, match="no space"):
            if what == "record":
                entry.write(crash, sync=False)
            elif what == "file":
                entry.write_file("analysis.json", b"{}" * 100)
            else:
                statefile.write_state(paths.limiter_state, ["state"] * 10)
        assert entry.file_names() == before
    assert sorted(os.listdir(paths.state_dir)) == ["crashes", "spool"]


def test_changes_at_once_are_both_there(paths: Paths) -> None:
    entries.create(paths, a_crash()).close()

    def add(word: str) -> None:
        for _ in range(100):
            entries.change(
                paths, CRASH_ID, lambda crash: replace(crash, warnings=(*crash.warnings, word))
            )

    threads = [threading.Thread(target=add, args=[word]) for word in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with entries.open_entry(paths, CRASH_ID) as entry:
        warnings = entry.read().warnings
    assert (warnings.count("a"), warnings.count("b")) == (100, 100)


def test_change_of_what_is_being_written_is_refused(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "LOCK_SECONDS", 0.02)
    with (
        entries.create(paths, a_crash()),
        pytest.raises(UnavailableError, match="is still being captured"),
    ):
        entries.change(paths, CRASH_ID, lambda crash: crash)


def test_create_waits_for_who_looks_at_it_already(paths: Paths) -> None:
    """`verify` may have come across the directory, and have its lock, before its maker."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            with contextlib.suppress(NotFoundError), entries.open_entry(paths, CRASH_ID) as entry:
                entry.try_lock()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(300):
            with (
                entries.create(paths, a_crash()),
                entries.open_entry(paths, CRASH_ID) as other,
            ):
                assert not other.try_lock()
            entries.remove(paths, CRASH_ID)
    finally:
        stop.set()
        looking.join()


def test_record_has_no_more_room_than_is_to_spare(paths: Paths) -> None:
    with entries.create(paths, a_crash()) as entry:
        disk = os.fstatvfs(entry.fd)
        free = disk.f_bavail * disk.f_frsize
        assert entry.spare_bytes(0) == RECORD_BYTES
        assert entry.spare_bytes(2 * free) == LEAST_BYTES
        assert LEAST_BYTES < entry.spare_bytes(free - 16 * METADATA_BYTES) < RECORD_BYTES


def test_write_returns_the_record_as_it_is_read(paths: Paths) -> None:
    crash = replace(a_crash(), maps=b"\xff" * (1 << 20))
    with entries.create(paths, a_crash()) as entry:
        written = entry.write(crash, sync=False, max_bytes=METADATA_BYTES)
        assert entry.read() == written != crash
        assert os.stat(entries.RECORD, dir_fd=entry.fd).st_size <= METADATA_BYTES
