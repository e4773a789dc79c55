from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.model import Crash, Disposition, State
from crashd.errors import FormatError
from crashd.store.entry import (
    CORE,
    RECORD,
    RECORD_MAX,
    RECORD_STAGED,
    create,
    open_entry,
    prepare,
)
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.restoring import restore_record
from tests.builders.crashes import build_crash

CRASH = replace(build_crash(1), state=State.CAPTURING)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    prepare(paths)
    return paths


@pytest.fixture
def index(paths: Paths) -> Iterator[Index]:
    with Index.open(paths.index) as index:
        yield index


def record_of(paths: Paths, crash_id: str = CRASH.id) -> Crash:
    with open_entry(paths, crash_id) as entry:
        return entry.read()


def make(paths: Paths, record: bytes | None, staged: bytes | None = None) -> None:
    create(paths, CRASH).close()
    for name, data in ((RECORD, record), (RECORD_STAGED, staged)):
        path = paths.crashes / CRASH.id / name
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)


@pytest.mark.parametrize("record", [b"", None, b"{damaged", b" " * (RECORD_MAX + 1)])
def test_restore_of_what_is_in_the_index_has_what_is_listed(
    paths: Paths, index: Index, record: bytes | None
) -> None:
    index.put([CRASH])
    make(paths, record)
    assert restore_record(paths, index, CRASH.id)
    restored = record_of(paths)
    assert Index.row_of(restored)[1:-2] == Index.row_of(CRASH)[1:-2]
    assert restored.state is State.CAPTURING
    assert restored.capture.disposition in Disposition
    assert not restore_record(paths, index, CRASH.id), "it is there now"


def test_restore_of_a_row_without_entry_makes_it(paths: Paths, index: Index) -> None:
    index.put([CRASH])
    assert restore_record(paths, index, CRASH.id)
    assert record_of(paths).time_ns == CRASH.time_ns


def test_restore_takes_the_record_that_was_about_to_be(paths: Paths, index: Index) -> None:
    index.put([CRASH])
    make(paths, b"")
    finished = replace(CRASH, state=State.COMPLETE, warnings=("the last word",))
    with open_entry(paths, CRASH.id) as entry:
        entry.write(finished, sync=False)
    path = paths.crashes / CRASH.id
    (path / RECORD).rename(path / RECORD_STAGED)
    (path / RECORD).write_bytes(b"")
    assert restore_record(paths, index, CRASH.id)
    assert record_of(paths).warnings == ("the last word",)
    assert not (path / RECORD_STAGED).exists()


@pytest.mark.parametrize("staged", [None, b"", b"{", b"[]", b'{"schema": 1, "id": "x"}'])
def test_restore_of_what_nobody_knows_has_what_its_id_tells(
    paths: Paths, index: Index, staged: bytes | None
) -> None:
    make(paths, None, staged)
    assert restore_record(paths, index, CRASH.id)
    restored = record_of(paths)
    assert restored.pid == CRASH.pid
    assert restored.time_ns == CRASH.time_ns // 10**9 * 10**9
    assert restored.boot_id[:8] == CRASH.boot_id[:8]
    assert restored.state is State.CAPTURING


def test_restore_leaves_what_was_about_to_be_deleted(paths: Paths, index: Index) -> None:
    make(paths, None)
    (paths.crashes / CRASH.id / CORE).write_bytes(b"core")
    assert not restore_record(paths, index, CRASH.id)


def test_restore_leaves_what_is_there_and_what_is_being_written(paths: Paths, index: Index) -> None:
    index.put([CRASH])
    newer = b'{"schema":1000}'
    make(paths, newer)
    assert not restore_record(paths, index, CRASH.id), "a newer crashd reads it"
    make_anew = paths.crashes / CRASH.id / RECORD
    make_anew.write_bytes(b"")
    with open_entry(paths, CRASH.id) as writer:
        assert writer.try_lock()
        assert not restore_record(paths, index, CRASH.id)
    assert make_anew.read_bytes() == b""


def test_restore_of_an_id_that_is_no_time_is_refused(paths: Paths, index: Index) -> None:
    crash_id = "99999999t999999-0123abcd-42-k0000001"
    (paths.crashes / crash_id).mkdir(0o700)
    with pytest.raises(FormatError, match="has no time"):
        restore_record(paths, index, crash_id)
