"""Queries: right, and of the same cost whatever the size of the index."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashd.domain.crash.model import Crash
from crashd.domain.crash.query import Query
from crashd.domain.crash.viewer import Viewer
from crashd.errors import UsageError
from crashd.store import selection
from crashd.store.index import Index
from crashd.store.schema import LISTED
from crashd.store.selection import BLOBS, Selector
from tests.builders.crashes import START_NS, build_crash, build_crashes

SMALL, LARGE = 300, 3000
SECOND = 10**9
USER, STRANGER, IN_A_GROUP = Viewer(1000, 0), Viewer(4242, 0), Viewer(1000, 7)
EARLY = build_crash(SMALL // 2)
"""In both indexes."""


@dataclass(frozen=True)
class Filled:
    """An index's rows, by a connection of the test's own."""

    db: sqlite3.Connection
    crashes: list[Crash]

    def run(self, query: Query, viewer: Viewer | None) -> tuple[list[int], list[str], int]:
        """Give the pids found, the plan, and the steps that SQLite took for all of it."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        self.db.set_progress_handler(count, 1)
        where, values = Selector(self.db, viewer).where(query)
        sql = f"SELECT pid FROM crash {where} ORDER BY time_ns DESC, id DESC LIMIT ?"
        values.append(-1 if query.limit is None else query.limit)
        found = [row[0] for row in self.db.execute(sql, values)]
        self.db.set_progress_handler(None, 1)
        plan = [row[3] for row in self.db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        return found, plan, steps


def fill(path: Path, count: int) -> Filled:
    crashes = [
        build_crash(
            number,
            signature=f"s{number % 10}",
            owner_uid=1000 if number % 3 == 0 else None,
            gid=7 if number % 2 else 0,
            user_unit="web1.service" if number % 11 == 0 else None,
        )
        for number in range(count)
    ]
    with Index.open(path) as index:
        index.put(crashes)
    return Filled(sqlite3.connect(path), crashes)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Filled, Filled]]:
    where = tmp_path_factory.mktemp("selection")
    small, large = fill(where / "small", SMALL), fill(where / "large", LARGE)
    yield small, large
    small.db.close()
    large.db.close()


@pytest.fixture(autouse=True)
def soon_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is common in the small index already count as that."""
    monkeypatch.setattr(selection, "COMMON", 20)


CASES: list[tuple[Query, Viewer | None]] = [
    (Query(limit=20), None),
    (Query(limit=20), USER),
    (Query(limit=20), STRANGER),
    (Query((str(EARLY.pid),), limit=20), None),
    (Query((f"PID={EARLY.pid}",), kind="process", limit=20), None),
    (Query(("prog3",), limit=20), None),
    (Query(("prog3",), limit=20), USER),
    (Query(("COMM=prog3", "COMM=prog4"), limit=20), None),
    (Query(("nobody",), limit=20), None),
    (Query(("/usr/bin/prog3",), limit=20), None),
    (Query(("web1.service",), limit=20), None),
    (Query(("web1.service", "prog3"), limit=20), None),
    (Query(("system.slice",), limit=20), None),
    (Query((EARLY.id,), limit=20), None),
    (Query((EARLY.id[:-2],), limit=20), None),
    (Query((EARLY.id[:-2],), limit=20), USER),
    (Query((EARLY.short_id,), limit=20), None),
    (Query((EARLY.short_id[:6],), limit=20), None),
    (Query(signature="s3", limit=20), None),
    (Query(("SIGNAL=SEGV",), limit=20), None),
    (Query(kind="process", limit=20), None),
    (Query(kind="kernel", limit=20), None),
    (Query(since_ns=START_NS + 100 * SECOND, limit=20), None),
    (Query(until_ns=START_NS + 100 * SECOND, limit=20), None),
    (Query(("prog3",), until_ns=START_NS + 200 * SECOND, limit=20), None),
    (Query(since_ns=START_NS + SECOND, until_ns=START_NS + 100 * SECOND, limit=20), USER),
    (Query(("UID=0",), until_ns=START_NS + 100 * SECOND, limit=20), None),
]


@pytest.mark.parametrize(("query", "viewer"), CASES, ids=str)
def test_where_costs_the_same_in_an_index_ten_times_as_large(
    indexes: tuple[Filled, Filled], query: Query, viewer: Viewer | None
) -> None:
    small, large = indexes
    found, plan, steps = large.run(query, viewer)
    assert len(found) <= 20
    # as long a list, and no more than a deeper tree or a condition more to tell apart
    assert steps <= small.run(query, viewer)[2] * 1.5 + 1000
    assert steps < LARGE * 3, "not a few steps for every row"
    assert "SCAN crash" not in plan
    assert not any("MULTI-INDEX" in step for step in plan), plan


@pytest.mark.parametrize("common", [1, 20, 10_000])
def test_where_finds_exactly_what_matches(
    indexes: tuple[Filled, Filled], monkeypatch: pytest.MonkeyPatch, common: int
) -> None:
    monkeypatch.setattr(selection, "COMMON", common)
    small, dice = indexes[0], random.Random(common)
    for _ in range(150):
        comms = dice.sample([f"prog{n}" for n in range(9)], dice.randrange(3))
        unit = dice.choice([None, "web1.service", "web9.service"])
        uid = dice.choice([None, None, 0, 7])
        signature = dice.choice([None, None, "s3", "none"])
        viewer = dice.choice([None, None, USER, STRANGER, IN_A_GROUP])
        since, until = (START_NS + dice.randrange(SMALL) * SECOND for _ in range(2))
        terms = [*(f"COMM={comm}" for comm in comms), *([unit] if unit else [])]
        terms += [] if uid is None else [f"UID={uid}"]
        dice.shuffle(terms)
        query = Query(tuple(terms), since, until, "process", signature, dice.choice([None, 5]))
        expected = [
            crash.pid
            for crash in reversed(small.crashes)
            if since <= crash.time_ns <= until
            and (not comms or crash.comm.decode() in comms)
            and unit in (None, crash.unit, crash.user_unit)
            and uid in (None, crash.uid)
            and signature in (None, crash.signature)
            and (viewer is None or viewer.owns(crash.owner_uid, crash.gid))
        ][: query.limit]
        assert small.run(query, viewer)[0] == expected, query


def test_blobs_and_listed_are_those_of_the_schema(tmp_path: Path) -> None:
    with Index.open(tmp_path / "index") as index:
        index.put(build_crashes(1))
    db = sqlite3.connect(tmp_path / "index")
    columns = db.execute("PRAGMA table_info(crash)").fetchall()
    assert {row[1] for row in columns if row[2] == "BLOB"} == BLOBS
    for column in LISTED:
        keys = db.execute(f"PRAGMA index_info(crash_{column})").fetchall()
        assert [row[2] for row in keys] == [column, "time_ns", "id"]
    for sql in ("token = 'x'", "state = 'capturing'", "short = 'x'", "id = 'x'"):
        (plan,) = db.execute(f"EXPLAIN QUERY PLAN SELECT id FROM crash WHERE {sql}").fetchall()
        assert " INDEX " in plan[3], plan
    db.close()


@pytest.mark.parametrize(
    ("term", "matches"),
    [
        ("exe=*", lambda crash: bool(crash.exe)),
        ("comm=*1", lambda crash: crash.comm.endswith(b"1")),
        (
            "unit=web[12].service",
            lambda crash: {crash.unit, crash.user_unit} & {"web1.service", "web2.service"},
        ),
        ("w*1.service", lambda crash: "web1.service" in (crash.unit, crash.user_unit)),
        ("signature=s?", lambda crash: True),
    ],
)
def test_patterns_find_what_they_say(
    indexes: tuple[Filled, Filled], term: str, matches: Callable[[Crash], bool]
) -> None:
    filled = indexes[0]
    found, _, _ = filled.run(Query((term,)), None)
    assert found == [crash.pid for crash in reversed(filled.crashes) if matches(crash)]


def test_patterns_that_take_too_long_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "GLOB_SECONDS", 0.0)
    with Index.open(tmp_path / "index") as index:
        index.put([build_crash(1)])
        with pytest.raises(UsageError, match="pattern takes too long"):
            index.select(Query(("comm=*x*",)), None)


def test_patterns_are_no_power_of_their_asterisks(tmp_path: Path) -> None:
    hostile = build_crash(1, exe=b"/" + b"a" * 4000)
    with Index.open(tmp_path / "index") as index:
        index.put([hostile])
        assert index.select(Query(("/" + "*a" * 100 + "*b",)), None) == []  # for ever, by GLOB
