"""The index: nothing but a picture of the records, whatever happens to its file."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.model import LIST_KEYS, Core, Kind, State
from crashd.domain.crash.query import Query
from crashd.domain.crash.viewer import Viewer
from crashd.errors import IndexCorruptError, IndexOutdatedError, UnavailableError, UsageError
from crashd.store.index import Index
from crashd.store.schema import PAST_UNITS_MAX, VERSION
from tests.builders.crashes import START_NS, build_crash, build_crashes

COUNT = 60
USER = Viewer(1000, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[Index]:
    with Index.open(path) as opened:
        opened.put(build_crashes(COUNT))
        yield opened


def pids(index: Index, *terms: str, viewer: Viewer | None = None, **more: object) -> list[int]:
    query = Query(terms=terms, **more)  # type: ignore[arg-type]
    return [row["pid"] for row in index.select(query, viewer)]


def test_select_newest_first_with_stable_keys(index: Index) -> None:
    rows = index.select(Query(limit=3), None)
    assert [row["pid"] for row in rows] == [1059, 1058, 1057]
    assert all(tuple(row) == LIST_KEYS for row in rows)
    assert pids(index, limit=3, reverse=True) == [1057, 1058, 1059]
    assert len(pids(index)) == COUNT


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 600])
@pytest.mark.parametrize("reverse", [False, True])
def test_each_yields_what_select_returns(path: Path, count: int, reverse: bool) -> None:
    with Index.open(path) as index:
        index.put(build_crashes(count))
        for limit in (None, 0, 1, 300):
            query = Query(limit=limit, reverse=reverse)
            assert list(index.each(query)) == index.select(query, None)
        query = Query(terms=("prog3",), reverse=reverse)
        assert list(index.each(query)) == index.select(query, None)


def test_each_holds_no_transaction_while_its_reader_waits(path: Path) -> None:
    with Index.open(path) as writer, Index.open(path, readonly=True) as reader:
        writer.put(build_crashes(600))
        rows = reader.each(Query(reverse=True))
        first = next(rows)
        writer.remove([str(first["id"])])
        busy, *_ = writer.fetch("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        assert busy == 0
        assert len(list(rows)) == 599


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (("1007",), [1007]),
        (("PID=1007", "PID=1008"), [1008, 1007]),
        (("prog3", "UID=0"), [1000 + n for n in range(COUNT - 1, -1, -1) if n % 7 == 3]),
        (
            ("prog3", "web1.service"),
            [1000 + n for n in range(COUNT - 1, -1, -1) if n % 7 == 3 and n % 5 == 1],
        ),
        (("/usr/bin/prog6", "web0.service"), [1055, 1020]),
        (("SIGNAL=ABRT",), []),
        (("system.slice", "PID=1001"), [1001]),
        (("nobody",), []),
    ],
)
def test_select_by_match(index: Index, terms: tuple[str, ...], expected: list[int]) -> None:
    assert pids(index, *terms) == expected


def test_select_by_id_in_all_its_forms(index: Index) -> None:
    crash, other = build_crash(5), build_crash(6)
    for term in (crash.id, crash.id[:-1], crash.short_id, crash.short_id[:6], f"ID={crash.id}"):
        assert pids(index, term) == [1005]
    assert pids(index, crash.id, other.short_id) == [1006, 1005], "ids widen, however written"


def test_select_prefix_of_several_ids_is_ambiguous(index: Index) -> None:
    with pytest.raises(UsageError, match=r"'2026' is ambiguous: it begins 2026\d+t.*…") as error:
        pids(index, "2026")
    assert error.value.exit_code == 2


def test_select_word_that_means_something_else_is_no_prefix_of_many(index: Index) -> None:
    index.put([build_crash(2026 - 1000)])
    assert pids(index, "2026") == [2026]
    index.put([build_crash(900, comm=b"2026")])
    assert pids(index, "2026") == [2026, 1900]


def test_select_exact_short_id_wins_over_a_comm_of_that_name(index: Index) -> None:
    index.put([build_crash(99, comm=build_crash(5).short_id.encode())])
    assert pids(index, build_crash(5).short_id) == [1005]


def test_select_by_time_kind_and_signature(index: Index) -> None:
    second = 10**9
    assert pids(index, since_ns=START_NS + 58 * second) == [1059, 1058]
    assert pids(index, until_ns=START_NS + second) == [1001, 1000]
    assert pids(index, kind="kernel") == []
    index.put([build_crash(3, signature="v1:abc")])
    assert pids(index, signature="v1:abc") == [1003]


def test_select_viewer_sees_only_what_is_his(index: Index) -> None:
    index.put([build_crash(7, owner_uid=1000), build_crash(8, owner_uid=1001)])
    assert pids(index, viewer=USER) == [1007]
    assert pids(index, "1008", viewer=USER) == []
    assert pids(index, build_crash(8).id, viewer=USER) == []
    assert pids(index, "2026", viewer=USER) == [1007], "others' ids make nothing ambiguous for him"


def test_select_hostile_words_are_data(index: Index) -> None:
    for term in ("' OR 1=1 --", "%", "_", "COMM='; DROP TABLE crash", "prog3\0"):
        assert pids(index, term) == []
    assert len(pids(index)) == COUNT


def test_select_bytes_that_are_not_utf8_are_matched_exactly(index: Index) -> None:
    index.put([build_crash(70, comm=b"\xff\xfe", exe=b"/x\xff")])
    assert pids(index, "\udcff\udcfe") == [1070]
    assert pids(index, "/x\udcff") == [1070]


@pytest.mark.parametrize(
    "term",
    [
        "\ud800",
        "\udcff" * 8,
        "UNIT=\udcff",
        "COMM=\ud800",
        "ID=\udcff",
        "/\ud800",
        "\udcff.service",
    ],
)
def test_select_words_that_are_no_text_match_nothing(index: Index, term: str) -> None:
    assert pids(index, term) == []
    assert pids(index, signature=term) == []


def test_select_more_than_max_bytes_is_refused(index: Index) -> None:
    (row,) = index.select(Query(limit=1), None, max_bytes=1 << 20)
    index.put([build_crash(80, argv=(b"\xc3\xbc" * 700_000,))])
    with pytest.raises(UsageError, match="more than 1 MiB"):
        index.select(Query(), None, max_bytes=1 << 20)
    assert len(index.select(Query(until_ns=START_NS), None, max_bytes=1 << 20)) == 1
    assert row["pid"] == 1059


def test_counts_follow_every_change(index: Index) -> None:
    assert index.usage() == {"process": (COUNT, COUNT * 1000), "kernel": (0, 0)}
    index.put([build_crash(n, signature="s") for n in range(5)])
    assert [r["count_of_signature"] for r in index.select(Query(signature="s"), None)] == [5] * 5
    index.put([build_crash(0, signature="t", core=Core("core.zst", 1, 5000, 1, 1, True))])
    index.remove([build_crash(1).id, "no such id"])
    assert [r["count_of_signature"] for r in index.select(Query(signature="s"), None)] == [3] * 3
    assert index.usage()["process"] == (COUNT - 1, (COUNT - 2) * 1000 + 5000)


def test_totals_leave_out_what_is_not_finished(index: Index) -> None:
    index.put(
        [build_crash(200, state=State.CAPTURING), build_crash(201, kind=Kind.KERNEL, signal=None)]
    )
    totals = index.totals()
    assert totals.by_disposition == {("process", "full"): COUNT, ("kernel", "full"): 1}
    assert totals.by_signal == {11: COUNT}
    assert totals.last_ns["kernel"] == START_NS + 201 * 10**9


def test_totals_keep_what_is_removed(index: Index) -> None:
    index.put([build_crash(200, state=State.CAPTURING)])
    before, units = index.totals(), index.unit_totals(3)
    index.remove(build_crash(number).id for number in (1, 2, 3, 200))
    assert index.totals().by_disposition == before.by_disposition
    assert index.totals().by_signal == before.by_signal
    assert index.unit_totals(3) == units
    index.replace_all(list(build_crashes(COUNT))[5:])  # a reindex: what the rows held is put again
    assert index.totals().by_disposition["process", "full"] == COUNT - 5 + 3


def test_unit_totals_name_the_most_frequent_and_count_the_others(index: Index) -> None:
    index.put([replace(build_crash(300 + n), unit="busy.service") for n in range(COUNT)])
    index.put([replace(build_crash(400), unit=None)])
    found = index.unit_totals(1)
    assert found == {"busy.service": COUNT, None: COUNT + 1}
    assert list(found) == ["busy.service", None]
    assert sum(index.unit_totals(1000).values()) == 2 * COUNT + 1


def test_unit_totals_of_what_is_removed_are_bounded(index: Index) -> None:
    many = [
        replace(build_crash(1000 + n), unit=f"run-{n}.scope") for n in range(PAST_UNITS_MAX + 20)
    ]
    index.put(many)
    index.remove(crash.id for crash in many)
    assert index.fetch("SELECT count(*) FROM past WHERE what = 'unit'") == [(PAST_UNITS_MAX + 1,)]
    assert sum(index.unit_totals(3).values()) == COUNT + len(many)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", range(1, VERSION))
def test_open_older_is_outdated_and_left_as_it_is(
    index: Index, path: Path, version: int, readonly: bool
) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(IndexOutdatedError, match=f"version {version}, older than {VERSION}"):
        Index.open(path, readonly=readonly)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("SELECT count(*) FROM crash").fetchone() == (COUNT,)
    db.close()


def test_open_of_a_new_file_has_the_version_and_nothing_of_another(path: Path) -> None:
    Index.open(path).close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()


def test_tokens_states_and_missing(index: Index) -> None:
    crash = build_crash(9)
    assert index.id_of_token(crash.token) == crash.id
    assert index.id_of_token("") is None
    assert index.ids_in_state(State.CAPTURING) == []
    index.mark_missing([crash.id])
    row = index.get(crash.id)
    assert row is not None
    assert row["state"] == "missing"
    assert index.ids_in_state(State.MISSING) == [crash.id]


def test_put_again_replaces_and_leaves_one_row(index: Index) -> None:
    index.put([replace(build_crash(4), pinned=True)])
    row = index.get(build_crash(4).id)
    assert row is not None
    assert row["pinned"] is True
    assert len(index.ids()) == COUNT


def test_rows_are_what_row_of_says(index: Index) -> None:
    expected = sorted(Index.row_of(crash) for crash in build_crashes(COUNT))
    assert [index.row(crash_id) for crash_id in index.ids()] == expected


def test_open_makes_a_private_file_in_wal_mode(index: Index, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_open_readonly_while_a_writer_is_at_work(index: Index, path: Path) -> None:
    with Index.open(path, readonly=True) as reader:
        assert len(reader.ids()) == COUNT
        index.put([build_crash(500)])
        assert len(reader.ids()) == COUNT + 1
        with pytest.raises(UnavailableError):
            reader.put([build_crash(501)])


def test_open_readonly_without_an_index_is_unavailable(path: Path) -> None:
    with pytest.raises(UnavailableError):
        Index.open(path, readonly=True)


@pytest.mark.parametrize("readonly", [False, True])
def test_open_newer_is_refused_with_both_versions(index: Index, path: Path, readonly: bool) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(IndexCorruptError, match=f"version 7, newer than {VERSION}"):
        Index.open(path, readonly=readonly)


@pytest.mark.parametrize(
    "content", [b"not a database" * 500, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_open_garbage_is_corrupt(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IndexCorruptError):
        Index.open(path)


def test_open_another_programs_database_is_corrupt(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE crash (x)")
        db.execute("PRAGMA user_version = 1")
    db.close()
    with pytest.raises(IndexCorruptError):
        Index.open(path)


def test_open_locked_for_long_is_unavailable_not_corrupt(
    index: Index, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashd.store.indexfile.BUSY_SECONDS", 0.05)
    with Index.open(path) as second:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            second.put([build_crash(900)])
        db.execute("ROLLBACK")
        db.close()
        second.put([build_crash(900)])


@pytest.mark.allow_subprocess
def test_open_twice_in_one_process_keeps_the_first_ones_locks(index: Index, path: Path) -> None:
    """Another process that closes last must not take the WAL away from a connection that is
    open.
    """
    Index.open(path).close()
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
        "db.execute('DELETE FROM crash').fetchall(); db.commit(); db.close()"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True)
    assert path.with_name(path.name + "-wal").exists()
    index.put([build_crash(1)])
    with Index.open(path, readonly=True) as other:
        assert other.ids() == [build_crash(1).id]


def test_is_current_notices_a_replaced_file(index: Index, path: Path) -> None:
    assert index.is_current()
    path.rename(path.with_name("aside"))
    assert not index.is_current()


def test_open_readonly_of_a_locked_file_never_reads_past_its_wal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashd.store.indexfile.BUSY_SECONDS", 0.05)
    with Index.open(path) as index:
        index.put([build_crash(1)])
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("DELETE FROM crash")
    with pytest.raises(UnavailableError, match="locked"):
        Index.open(path, readonly=True)
    db.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_open_that_fails_leaves_no_descriptor(path: Path, readonly: bool) -> None:
    path.write_bytes(b"garbage" * 1000)
    free = os.dup(0)
    os.close(free)
    with pytest.raises(IndexCorruptError) as kept:
        Index.open(path, readonly=readonly)
    now_free = os.dup(0)
    os.close(now_free)
    assert now_free == free, f"{kept.value}: the connection is still open"


def test_open_closes_its_companions_to_others(index: Index, path: Path) -> None:
    files = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]
    for file in files:
        file.chmod(0o644)
    Index.open(path).close()
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3


def test_wal_shrinks_once_no_reader_needs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crashd.store.indexfile.WAL_BYTES", 256 << 10)
    monkeypatch.setattr("crashd.store.indexfile.WAL_PAGES", 10)
    wal = path.with_name(path.name + "-wal")
    with Index.open(path) as writer:
        writer.put([build_crash(1)])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM crash").fetchall()
        for number in range(20):
            writer.put(build_crashes(10, title=f"round {number}"))
        assert wal.stat().st_size > 256 << 10
        reader.close()
        for number in range(3):
            writer.put([build_crash(number)])
        assert wal.stat().st_size <= 256 << 10


def test_any_damage_is_one_clear_error(tmp_path: Path) -> None:
    """Whatever bytes of the file are others: all is well, or IndexCorruptError in one line."""
    whole = tmp_path / "whole"
    with Index.open(whole) as index:
        index.put(build_crashes(12))
    raw = whole.read_bytes()
    dice = random.Random(5)
    refused = 0
    for number in range(300):
        damaged = bytearray(raw)
        start, size = dice.randrange(len(raw)), dice.choice([1, 4, 64])
        damaged[start : start + size] = dice.randbytes(min(size, len(raw) - start))
        path = tmp_path / str(number)
        path.write_bytes(damaged)
        try:
            with Index.open(path) as index:
                index.select(Query(), None)
                index.totals()
                index.ids()
                [index.row(crash_id) for crash_id in index.ids()]
                index.put([build_crash(50)])
        except IndexCorruptError as e:
            refused += 1
            assert str(e).isprintable(), str(e)
            assert len(str(e)) < 400
    assert refused > 20


@pytest.mark.parametrize("doc", [b"{\xff}", b"{cut", b"[]", 5])
def test_select_row_that_is_not_ours_is_corrupt(index: Index, path: Path, doc: object) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE crash SET doc = CAST(? AS TEXT) WHERE pid = 1003", [doc])
    db.close()
    with pytest.raises(IndexCorruptError, match="damaged"):
        index.select(Query(), None)


@pytest.mark.parametrize("readonly", [True, False])
def test_temporary_data_stays_in_memory(tmp_path: Path, readonly: bool) -> None:
    """Else every put writes rows to /var/tmp."""
    path = tmp_path / "index.sqlite"
    Index.open(path).close()
    with Index.open(path, readonly=readonly) as index:
        assert index.fetch("PRAGMA temp_store") == [(2,)]
