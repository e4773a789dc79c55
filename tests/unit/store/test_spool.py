"""The spool as the daemon reads it; the handler's side is in tests/integration/test_handler.py."""

import os
from pathlib import Path

import pytest

from crashd.corehandler import pack
from crashd.errors import FormatError
from crashd.store import spool
from crashd.store.entry import prepare
from crashd.store.paths import Paths

NOW_NS = 1_800_000_000 * 10**9


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    prepare(found)
    return found


def put(paths: Paths, name: str, **files: bytes) -> str:
    directory = paths.spool / name
    directory.mkdir()
    for key, raw in files.items():
        (directory / key.replace("proc_", "proc.")).write_bytes(raw)
    return name


def name_of(pid: int, age_seconds: int = 1, tail: str = "") -> str:
    return f"{NOW_NS - age_seconds * 10**9}-{pid}-0123abcd{tail}"


def test_ready_names_finished_oldest_first_and_foreign_ones_ignored(paths: Paths) -> None:
    young, old = put(paths, name_of(1, 5)), put(paths, name_of(1, 50))
    for foreign in ("limits", "x", name_of(1, 9, ".bad"), "../etc"):
        (paths.spool / foreign.replace("/", "_")).mkdir()
    assert spool.ready_names(paths, NOW_NS) == [old, young]


def test_sec_81_ready_names_let_users_take_turns(paths: Paths) -> None:
    flood = [put(paths, name_of(pid, 90 - pid, "-1000")) for pid in range(1, 5)]
    other = [put(paths, name_of(pid, 50 - pid, "-1001")) for pid in range(1, 3)]
    unknown = put(paths, name_of(9, 1))
    turns = [flood[0], other[0], unknown, flood[1], other[1], *flood[2:]]
    assert spool.ready_names(paths, NOW_NS) == turns


def test_ready_names_unfinished_only_once_its_handler_is_gone(paths: Paths) -> None:
    put(paths, name_of(os.getpid(), tail=".tmp"))
    dead = put(paths, name_of(2**22 - 1, tail=".tmp"))
    stale = put(paths, name_of(os.getpid(), 100_000, tail=".tmp"))
    assert spool.ready_names(paths, NOW_NS) == [stale, dead]


def test_ready_names_from_the_future_are_not_waited_for(paths: Paths) -> None:
    future = put(paths, name_of(os.getpid(), -5000, tail=".tmp"))
    assert spool.ready_names(paths, NOW_NS) == [future]


def test_fields_and_snapshot_come_back(paths: Paths) -> None:
    name = put(
        paths, name_of(1), meta=pack({"token": b"a-b", "s": b"11"}), proc_status=b"Name:\tx\n"
    )
    with spool.SpoolEntry.open(paths, name) as entry:
        assert entry.fields() == {"token": b"a-b", "s": b"11"}
        assert entry.snapshot() == {"status": b"Name:\tx\n"}
        assert entry.open_core() is None
        assert entry.ending() == "the handler died while spooling"
    assert spool.tokens(paths) == {"a-b"}


@pytest.mark.parametrize(
    ("done", "ending", "engine"),
    [
        (pack({"received": b"5", "reason": b""}), None, "stream"),
        (
            pack({"received": b"5", "reason": b"size limit", "engine": b"stream"}),
            "size limit",
            "stream",
        ),
        (pack({"received": b"5", "reason": b"", "engine": b"memory"}), None, "memory"),
        (pack({"received": b"5", "reason": b"", "engine": b"none"}), None, "stream"),
        (b"garbage", "the handler died while spooling", "stream"),
    ],
)
def test_done_says_how_the_copy_went(
    paths: Paths, done: bytes, ending: str | None, engine: str
) -> None:
    with spool.SpoolEntry.open(paths, put(paths, name_of(1), done=done)) as entry:
        assert (entry.ending(), entry.engine().value) == (ending, engine)


@pytest.mark.parametrize("meta", [None, b"", b"\xff\0", b"token=a\0token=b\0"])
def test_fields_of_nonsense_is_a_format_error(paths: Paths, meta: bytes | None) -> None:
    files = {} if meta is None else {"meta": meta}
    with (
        spool.SpoolEntry.open(paths, put(paths, name_of(1), **files)) as entry,
        pytest.raises(FormatError),
    ):
        entry.fields()


def test_set_aside_keeps_it_and_never_reads_it_again(paths: Paths) -> None:
    name = put(paths, name_of(1), meta=b"junk")
    spool.set_aside(paths, name)
    assert spool.ready_names(paths, NOW_NS) == []
    assert (paths.spool / f"{name}.bad" / "meta").read_bytes() == b"junk"


def test_set_aside_keeps_the_newest_only(paths: Paths) -> None:
    names = [put(paths, name_of(1, age)) for age in range(spool.ASIDE_MAX + 2, 0, -1)]
    gone = [spool.set_aside(paths, name) for name in names]
    assert [found for one in gone for found in one] == [f"{name}.bad" for name in names[:2]]
    assert sorted(os.listdir(paths.spool)) == [f"{name}.bad" for name in names[2:]]


def test_write_limits_is_what_the_handler_parses(paths: Paths) -> None:
    spool.write_limits(paths, max_core=None, keep_free=7, honour_rlimit=False)
    limits = {b"max_core": b"%d" % (1 << 62), b"keep_free": b"7", b"honour_rlimit": b"0"}
    assert read_limits(paths) == limits
    program = Path("/opt/crashd/bin/python3")
    spool.write_limits(paths, max_core=None, keep_free=7, honour_rlimit=False, program=program)
    assert read_limits(paths) == {**limits, b"program": b"/opt/crashd/bin/python3"}


def read_limits(paths: Paths) -> dict[bytes, bytes]:
    raw = (paths.spool / "limits").read_bytes()
    return dict(item.split(b"=") for item in raw.rstrip(b"\0").split(b"\0"))
