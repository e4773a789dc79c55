import time
from dataclasses import replace
from datetime import UTC, datetime
from stat import S_IFBLK, S_IFDIR, S_IFIFO, S_IFLNK, S_IFSOCK

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.kdump.directory import (
    FAULTS_MAX,
    FILES_MAX,
    DumpFile,
    Maker,
    classify,
    is_never_touched,
    parse_directory_name,
    readme_is_unfinished,
)
from tests.builders.kdumpdir import directory, file

STAMP = b"202611222205"
STAMP_NS = int(datetime(2026, 11, 22, 22, 5, tzinfo=UTC).timestamp()) * 10**9
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("name", "maker", "host", "second"),
    [
        (STAMP, Maker.KDUMP_TOOLS, None, 0),
        (b"web-1.example-202611222205", Maker.KDUMP_TOOLS, "web-1.example", 0),
        (b"10.0.0.7-202611222205", Maker.KDUMP_TOOLS, "10.0.0.7", 0),
        (b"127.0.0.1-2026-11-22-22:05:09", Maker.KDUMP_UTILS, None, 9),
        (b"10.0.0.7-2026-11-22-22:05:09", Maker.KDUMP_UTILS, "10.0.0.7", 9),
        (b"fe80::1%eth0-2026-11-22-22:05:09", Maker.KDUMP_UTILS, "fe80::1%eth0", 9),
        (b"127.0.0.1-2026.11.22-22:05:09", Maker.KDUMP_UTILS, None, 9),
        (b"2026-11-22-22-05", Maker.SUSE, None, 0),
        (b"2026-11-22-22:05", Maker.SUSE, None, 0),
        (b"node7-2026-11-22-22-05", Maker.SUSE, "node7", 0),
    ],
)
def test_parse_directory_name_every_maker_is_told(
    name: bytes, maker: Maker, host: str | None, second: int
) -> None:
    found = parse_directory_name(name)
    assert found is not None
    assert (found[0], found[1], found[3]) == (maker, host, STAMP_NS + second * 10**9)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"kexec_cmd",
        b"kdump_lock",
        b"_usr_bin_x.0.crash",
        b"202613222205",  # month 13
        b"202611222260",
        b"20261122220",
        STAMP + b"\n",
        b"\n" + STAMP,
        b"-" + STAMP,
        b"../x-" + STAMP,
        b"a b-" + STAMP,
        b"\xff-" + STAMP,
        b"x" * 254 + b"-" + STAMP,
        "٢٠٢٦١١٢٢٢٢٠٥".encode(),
        b"2026-11-22-22:05:09",
        b"2026-11-22",
        b"127.0.0.1-2026-11.22-22:05:09",
    ],
)
def test_parse_directory_name_other_is_none(name: bytes) -> None:
    assert parse_directory_name(name) is None
    assert classify(directory(name), [file(b"dump." + STAMP)]) is None


@pytest.mark.parametrize(
    ("name", "files", "dump", "log", "unfinished"),
    [
        (STAMP, (b"dmesg.202611222205", b"dump.202611222205"), 1, 0, False),
        (STAMP, (b"dump.202611222205.gz",), 0, None, False),
        (STAMP, (b"vmcore.202611222205.lz4", b"dump-incomplete.lz4"), 0, None, False),
        (STAMP, (b"dmesg.202611222205", b"dump-incomplete"), 1, 0, True),
        (STAMP, (b"dmesg.202611222205",), None, 0, True),
        (STAMP, (), None, None, True),
        (STAMP, (b"dmesg.202611222205", b"kdump.202611222205"), 1, 0, False),
        (STAMP, (b"dump.202611222205.exe", b"dmesg.202611222205"), None, 1, True),
        (
            b"h-2026-11-22-22:05:09",
            (b"vmcore", b"vmcore-dmesg.txt", b"kexec-dmesg.log"),
            0,
            1,
            False,
        ),
        (b"h-2026-11-22-22:05:09", (b"vmcore.flat",), 0, None, False),
        (
            b"h-2026-11-22-22:05:09",
            (b"vmcore-incomplete", b"vmcore-dmesg-incomplete.txt"),
            0,
            1,
            True,
        ),
        (b"2026-11-22-22-05", (b"README.txt", b"dmesg.txt", b"vmcore"), 2, 1, False),
        (b"2026-11-22-22-05", (b"README.txt", b"dmesg"), None, 1, True),
    ],
)
def test_classify_each_makers_files_are_told_apart(
    name: bytes, files: tuple[bytes, ...], dump: int | None, log: int | None, unfinished: bool
) -> None:
    found = classify(directory(name), [file(n) for n in files])
    assert found is not None
    assert found.dump == (None if dump is None else files[dump])
    assert found.log == (None if log is None else files[log])
    assert found.unfinished == unfinished
    assert found.faults == ()
    assert found.size_bytes == 1000 * (len(files) - len(found.unknown))
    assert found.log_unfinished == (b"vmcore-dmesg-incomplete.txt" in files)
    assert found.readme == (b"README.txt" if b"README.txt" in files else None)


def test_classify_sonic_is_told_by_its_prefix() -> None:
    found = classify(directory(STAMP), [file(b"kdump." + STAMP), file(b"dmesg." + STAMP)])
    assert found is not None
    assert (found.maker, found.dump) == (Maker.SONIC, b"kdump." + STAMP)


def test_classify_two_panics_in_one_minute_are_noticed() -> None:
    names = (b"dmesg." + STAMP, b"dump." + STAMP, b"dump-incomplete")
    found = classify(directory(STAMP), [file(n) for n in names])
    assert found is not None
    assert (found.dump, found.shared, found.unfinished) == (names[1], True, False)


def test_classify_several_dumps_the_newest_is_it() -> None:
    files = [file(b"vmcore1", mtime_ns=5), file(b"vmcore2", mtime_ns=9), file(b"vmcore3")]
    found = classify(directory(b"2026-11-22-22-05", mtime_ns=3), files)
    assert found is not None
    assert (found.dump, found.changed_ns) == (b"vmcore2", 9)
    assert found.parts == (b"vmcore1", b"vmcore2", b"vmcore3")


def test_classify_only_foreign_files_is_no_dump() -> None:
    assert classify(directory(STAMP), [file(b"holiday.jpg")]) is None


def test_classify_foreign_file_beside_a_dump_is_told() -> None:
    found = classify(directory(STAMP), [file(b"dump." + STAMP), file(b"notes\n")])
    assert found is not None
    assert (found.unknown, found.faults, found.size_bytes) == ((b"notes\n",), (), 1000)


@pytest.mark.parametrize(
    ("mode", "dir_mode", "readable"),
    [(0o644, 0o755, True), (0o600, 0o755, False), (0o644, 0o700, False), (0o640, 0o755, False)],
)
def test_classify_world_readable_needs_both_modes(mode: int, dir_mode: int, readable: bool) -> None:
    found = classify(directory(STAMP, dir_mode), [file(b"dump." + STAMP, mode=mode)])
    assert found is not None
    assert (found.world_readable, found.log_world_readable) == (readable, False)
    found = classify(directory(STAMP, dir_mode), [DUMP, file(b"dmesg." + STAMP, mode=mode)])
    assert found is not None
    assert (found.world_readable, found.log_world_readable) == (False, readable)


DUMP = file(b"dump." + STAMP)


@pytest.mark.parametrize(
    ("top", "entry", "fault"),
    [
        (directory(STAMP, uid=65534), DUMP, "202611222205 belongs to uid 65534"),
        (directory(STAMP, 0o777), DUMP, "202611222205 is writable by others"),
        (directory(STAMP, 0o775), DUMP, "202611222205 is writable by others"),
        (DumpFile(STAMP, S_IFLNK | 0o777), DUMP, "202611222205 is a symbolic link"),
        (file(STAMP), DUMP, "202611222205 is a file"),
        (directory(STAMP), replace(DUMP, uid=1), "dump.202611222205 belongs to uid 1"),
        (directory(STAMP), replace(DUMP, nlink=2), "dump.202611222205 has 2 hard links"),
        (directory(STAMP), file(DUMP.name, mode=0o666), "dump.202611222205 is writable by others"),
        (
            directory(STAMP),
            DumpFile(DUMP.name, S_IFLNK | 0o777),
            "dump.202611222205 is a symbolic link",
        ),
        (directory(STAMP), DumpFile(DUMP.name, S_IFIFO | 0o600), "dump.202611222205 is a FIFO"),
        (
            directory(STAMP),
            DumpFile(DUMP.name, S_IFBLK | 0o600),
            "dump.202611222205 is a block device",
        ),
        (directory(STAMP), DumpFile(DUMP.name, S_IFSOCK | 0o600), "dump.202611222205 is a socket"),
        (
            directory(STAMP),
            DumpFile(DUMP.name, S_IFDIR | 0o700),
            "dump.202611222205 is a directory",
        ),
    ],
)
def test_classify_planted_is_a_fault(top: DumpFile, entry: DumpFile, fault: str) -> None:
    found = classify(top, [entry])
    assert found is not None
    assert found.faults == (fault,)
    if entry.mode & 0o170000 != DUMP.mode & 0o170000:
        assert found.dump is None  # never to be opened


def test_classify_other_uid_can_be_trusted() -> None:
    top, dump = directory(STAMP, uid=1000), replace(DUMP, uid=1000)
    found = classify(top, [dump], trusted_uids=frozenset({0, 1000}))
    assert found is not None
    assert found.faults == ()


def test_classify_100000_files_is_a_fault() -> None:
    found = classify(directory(STAMP), [file(b"%d" % i) for i in range(100_000)])
    assert found is not None
    assert found.faults == (f"100000 files, no dump has more than {FILES_MAX}",)
    assert len(found.unknown) == FILES_MAX


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"kexec_cmd", True),
        (b"kdump_lock", True),
        (b"kernel_link", True),
        (b"_usr_bin_x\n.0.crash", True),
        (b"lost+found", True),
        (b"kexec_cmd2", False),
        (STAMP, False),
    ],
)
def test_is_never_touched_knows_the_makers_own(name: bytes, expected: bool) -> None:
    assert is_never_touched(name) is expected


def test_readme_is_unfinished_tells_suse_dumps_apart() -> None:
    begun = b"This file will be overwritten when the dump is finished.\nIf you see this text the "
    assert readme_is_unfinished(begun + b"crash dump is likely incomplete.\n\nDump time: x")
    assert not readme_is_unfinished(b"Kernel crashdump\n----\nvmcore status: saved successfully")


NAMES = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.sampled_from([b"dump." + STAMP, b"dmesg." + STAMP, b"dump-incomplete", b"vmcore", b"dmesg"]),
)
ENTRIES = st.builds(
    DumpFile, NAMES, st.integers(0, 0o177777), st.integers(0, 2), st.integers(0, 3), st.integers(0)
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=30), st.sampled_from([STAMP, b"2026-11-22-22-05"])),
    st.integers(0, 0o177777),
    st.lists(ENTRIES, max_size=6),
)
def test_classify_hostile_entries_raise_nothing(
    name: bytes, mode: int, files: list[DumpFile]
) -> None:
    found = classify(DumpFile(name, mode), files)
    if found is None:
        return
    regular = {f.name for f in files if f.mode & 0o170000 == 0o100000}
    assert {found.dump, found.log} - {None} <= regular
    assert len(found.faults) <= FAULTS_MAX
    assert all(fault.isprintable() for fault in found.faults)


@pytest.mark.parametrize(
    ("zone", "written", "stamp_ns"),
    [
        ("UTC", STAMP_NS, STAMP_NS),
        ("CET-1", STAMP_NS - HOUR_NS + 60 * 10**9, STAMP_NS - HOUR_NS),
        ("EST5", STAMP_NS + 5 * HOUR_NS, STAMP_NS + 5 * HOUR_NS),
        ("CET-1", STAMP_NS + 60 * 10**9, STAMP_NS),  # the capture kernel had no zone
        ("CET-1", STAMP_NS + 400 * HOUR_NS, STAMP_NS - HOUR_NS),  # copied since
    ],
)
def test_classify_stamp_is_local_unless_the_files_say_else(
    zone: str, written: int, stamp_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        named = file(b"dmesg.202611222205", mtime_ns=written)
        told = classify(directory(b"202611222205", mtime_ns=written), [named])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told is not None
    assert told.stamp_ns == stamp_ns
