"""The indexer on a real PostgreSQL: every crash once, whatever is written or killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crashd.domain.crash.model import State
from crashd.domain.fleet.lines import CoreReason, DeletedBy, Deletion, Line, build_line
from crashd.domain.fleet.policy import parse_signatures, parse_want
from crashd.edge.fleet.bucket import Bucket, Found
from crashd.errors import PermissionDeniedError, UnavailableError
from crashd.fleet import backlog, indexer, objects
from crashd.fleet.load import Batch
from crashd.fleet.main import main
from crashd.fleet.settings import NEWEST
from crashd.fleet.usual import Judged, read_usual
from crashd.store.corefile import unzstd
from tests.fleet.simulate import Plan, simulated_host, write_fleet
from tests.integration.fleetindex import (
    FleetIndex,
    fleet,
    make_crash,
    make_line,
    pack,
    postgres_server,
)
from tests.running import wait_until

__all__ = ["fleet", "postgres_server"]
HOST_A, HOST_B = simulated_host(1), simulated_host(2)
DAY_S = 86400


def assert_tallies_agree(fleet: FleetIndex) -> None:
    """The counts kept beside the rows are those of the rows."""
    of_rows = fleet.ask(
        "SELECT day, signature, host, count(*) FROM crash GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    of_tallies = fleet.ask(
        "SELECT day, signature, host, sum(crashes) FROM tally GROUP BY 1, 2, 3"
        " HAVING sum(crashes) <> 0 ORDER BY 1, 2, 3"
    )
    assert of_rows == of_tallies
    of_rows = fleet.ask(
        "SELECT signature, count(*), count(core_key) FROM crash WHERE signature <> 0"
        " GROUP BY 1 ORDER BY 1"
    )
    assert of_rows == fleet.ask(
        "SELECT number, count, cores FROM signature WHERE count <> 0 ORDER BY 1"
    )


def test_index_of_simulated_fleet_has_every_crash_once(fleet: FleetIndex) -> None:
    written = write_fleet(Plan(20, 1500, signatures=50, end_ns=time.time_ns()), fleet.bucket)
    fleet.index()
    fleet.index()
    assert fleet.ask("SELECT count(*), count(DISTINCT id) FROM crash") == [(1500, 1500)]
    found = fleet.ask("SELECT s.signature, s.count FROM signature s WHERE count > 0")
    assert dict(found) == written.by_signature
    results = fleet.results()
    assert results["new"] == 1500 and sum(results.values()) == written.records
    assert_tallies_agree(fleet)


def test_index_of_revisions_in_any_order_keeps_the_highest(fleet: FleetIndex) -> None:
    early = make_crash(signature=None, title="")
    late = make_crash(id=early.id, time_ns=early.time_ns, state=State.EVICTED)
    other = make_crash()
    fleet.put(1, make_line(late, 30), make_line(other, 5))
    fleet.index()
    fleet.put(1, make_line(early, 20), make_line(other, 6))
    fleet.index()
    fleet.put(1, make_line(early, 30), make_line(other, 5), make_line(other, 7))
    fleet.index()
    rows = fleet.ask("SELECT id, revision, state, doc ->> 'revision' FROM crash ORDER BY id")
    wanted = [(late.id, 30, "evicted", "30"), (other.id, 7, "complete", "7")]
    assert rows == sorted(wanted)
    assert_tallies_agree(fleet)


def test_index_of_deletion_removes_the_crash_for_good(fleet: FleetIndex) -> None:
    crash = make_crash()
    gone = Line(crash.id, 50, None, {}, "0.1.0", deletion=Deletion(DeletedBy.OPERATOR, 1))
    fleet.put(1, make_line(crash, 10))
    fleet.index()
    fleet.put(1, build_line(gone))
    fleet.put(2, make_line(make_crash(2)))
    fleet.index()
    fleet.put(1, make_line(crash, 99))
    fleet.index()
    assert fleet.ask("SELECT h.host FROM crash c JOIN host h ON h.number = c.host") == [(HOST_B,)]
    assert_tallies_agree(fleet)


def test_index_of_foreign_id_changes_no_row_of_its_owner(fleet: FleetIndex) -> None:
    victim = make_crash(1, hostname=b"victim")
    fleet.put(1, make_line(victim, 10))
    fleet.index()
    fleet.put(2, make_line(make_crash(1, id=victim.id, time_ns=victim.time_ns, title="forged"), 99))
    gone = Line(victim.id, 100, None, {}, "0.1.0", deletion=Deletion(DeletedBy.FLEET, 1))
    fleet.put(3, build_line(gone))
    fleet.index()
    rows = fleet.ask(
        "SELECT h.host, c.title FROM crash c JOIN host h ON h.number = c.host ORDER BY 2"
    )
    assert rows == [(HOST_A, victim.title), (HOST_B, "forged")]
    assert_tallies_agree(fleet)


def test_index_of_hostile_objects_quarantines_them_and_loads_the_rest(fleet: FleetIndex) -> None:
    good = [make_crash(number) for number in range(1, 7)]
    big = b"[" + b"0," * (40 << 20) + b"0]\n"
    fleet.put(1, make_line(good[0]), b"not json", b'{"id": 1}', make_line(good[1]))
    fleet.put_raw(2, pack(big), packed=False)  # a bomb: 80 MB in some kilobytes
    fleet.put_raw(3, b"this is not zstd", packed=False)
    fleet.put(3, *[make_line(make_crash(3)) for _ in range(300)])
    strange = fleet.bucket / f"records/v1/{HOST_A}/'; DROP TABLE crash; --.txt"
    strange.write_bytes(b"x")
    (fleet.bucket / "records/v1/no-host/2026-11-28/10").mkdir(parents=True)
    fleet.put(4, make_line(make_crash(4, title="\x1b[31m\0evil'); DROP TABLE crash; --")))
    nul = make_crash(5, analysis={"cause": "a\0b", "deep": [[["\0"]]]})
    fleet.put(5, make_line(nul), make_line(make_crash(5, age_s=-5 * DAY_S)))
    fleet.put(6, make_line(make_crash(6, age_s=400 * DAY_S)), make_line(good[5]))
    fleet.index()
    reasons = fleet.ask("SELECT reason, count(*) FROM quarantine GROUP BY 1 ORDER BY 1")
    assert dict(reasons) == {"damaged": 1, "future": 1, "malformed": 2, "name": 1, "too-large": 2}
    assert fleet.ask("SELECT count(*) FROM crash") == [(2 + 256 + 1 + 1 + 1,)]
    assert fleet.results()["quarantined"] == 7 and fleet.results()["expired"] == 1
    assert fleet.ask("SELECT sum(quarantined) FROM host") == [(7,)]
    assert fleet.ask("SELECT doc -> 'analysis' ->> 'cause' FROM crash WHERE id = %s", nul.id) == [
        ("a\\x00b",)
    ]
    fleet.index()
    assert fleet.results()["quarantined"] == 7
    assert_tallies_agree(fleet)


def test_index_of_host_that_cannot_be_listed_leaves_only_that_one_out(fleet: FleetIndex) -> None:
    fleet.put(1, make_line(make_crash(1)))
    fleet.put(2, make_line(make_crash(2)))
    strange = os.fsencode(fleet.bucket / f"records/v1/{HOST_A}") + b"/\xff"
    Path(os.fsdecode(strange)).write_bytes(b"x")
    with pytest.raises(UnavailableError, match="objects of 1 hosts cannot be read"):
        fleet.index()
    assert fleet.ask("SELECT h.host FROM crash c JOIN host h ON h.number = c.host") == [(HOST_B,)]
    os.unlink(strange)
    fleet.index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(2,)]


def test_index_of_object_that_is_not_given_out_leaves_only_its_host_out(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived = fleet.put(1, make_line(make_crash(1)))
    fleet.put(1, make_line(make_crash(1)))
    fleet.put(2, make_line(make_crash(2)))
    get = Bucket.get

    def get_some(bucket: Bucket, key: str, max_bytes: int) -> bytes:
        if key == archived:  # S3 says InvalidObjectState: a host chose its class of storage
            raise PermissionDeniedError("bucket: access denied")
        return get(bucket, key, max_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "get", get_some)
        with pytest.raises(UnavailableError, match="objects of 1 hosts cannot be read"):
            fleet.index()
    assert fleet.ask("SELECT h.host FROM crash c JOIN host h ON h.number = c.host") == [(HOST_B,)]
    fleet.index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(3,)]


def test_index_of_large_objects_holds_few_of_them_at_once(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 20
    monkeypatch.setattr(objects, "AHEAD_BYTES", 4 * size)
    for _ in range(24):
        fleet.put_raw(1, bytes(size), packed=False)
    held: Counter[str] = Counter()
    most: list[int] = []
    get, judge_object = Bucket.get, indexer._judge_object

    def get_counted(bucket: Bucket, key: str, max_bytes: int) -> bytes:
        held[key] = size
        most.append(held.total())
        return get(bucket, key, max_bytes)

    def judge_counted(batch: Batch, host: str, one: Found, *rest: Any) -> None:
        judge_object(batch, host, one, *rest)
        del held[one.key]

    monkeypatch.setattr(Bucket, "get", get_counted)
    monkeypatch.setattr(indexer, "_judge_object", judge_counted)
    fleet.index()
    assert max(most) <= 5 * size and len(most) == 24


def flood(fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let one host have written so many objects, which are read in turns of ten."""
    monkeypatch.setattr(objects, "TURN", 10)
    monkeypatch.setattr(indexer, "LONG_SECONDS", 0)
    for _ in range(count):
        fleet.put(1, make_line(make_crash(1)))


def test_index_of_host_with_very_many_objects_does_not_delay_others(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood(fleet, monkeypatch, 95)
    passes = 0
    with fleet.indexer() as service:
        service.discover()
        while fleet.ask("SELECT objects FROM cursor WHERE host = %s", HOST_A) == [(None,)]:
            other = fleet.put(2, make_line(make_crash(2)))
            service.discover()
            fleet.ask("UPDATE cursor SET due = now() WHERE host = %s", HOST_B)
            done = service.run_once()
            assert done.objects <= 2 * 10 + 1, "a turn of the survey, and one after the others'"
            assert fleet.ask("SELECT count(*) FROM crash WHERE object = %s", other) == [(1,)]
            passes += 1
    assert 4 <= passes <= 10
    assert fleet.results() == {"new": 95 + passes}, "nothing was read twice"
    assert_tallies_agree(fleet)


def test_index_of_host_with_very_many_objects_amid_a_reindex_has_them_all(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood(fleet, monkeypatch, 45)
    with fleet.indexer() as service:
        service.discover()
        service.run_once()
        assert 0 < fleet.ask("SELECT count(*) FROM crash")[0][0] < 45
        fleet.ask("DELETE FROM crash")
        fleet.ask("DELETE FROM tally")
        fleet.ask("UPDATE signature SET count = 0, cores = 0")
        fleet.ask("UPDATE cursor SET due = now()")  # as reindex does
        for _ in range(8):
            service.run_once()
    assert fleet.ask("SELECT count(*) FROM crash") == [(45,)]
    assert_tallies_agree(fleet)


def test_index_of_more_flooding_hosts_than_are_surveyed_at_once_has_every_crash(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "TURN", 5)
    monkeypatch.setattr(backlog, "SURVEYS_MAX", 2)
    monkeypatch.setattr(objects, "PAGES", 1)
    monkeypatch.setattr(objects, "PAGE", 3)
    for host in range(1, 8):
        for _ in range(23):
            fleet.put(host, make_line(make_crash(host)))
    fleet.index()
    fleet.put(3, make_line(make_crash(3)))  # after pages of old ones
    fleet.index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(7 * 23 + 1,)]
    assert_tallies_agree(fleet)


@pytest.mark.parametrize("doc", [b'{"x": "\\u0000"}', b"[" * 50_000 + b"]" * 50_000])
def test_index_of_value_that_only_postgresql_refuses_loads_the_others(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch, doc: bytes
) -> None:
    crashes = [make_crash(1) for _ in range(9)]
    fleet.put(1, *[make_line(crash) for crash in crashes])

    def read(raw: bytes, host: str, title_max: int) -> Judged | None:
        found = read_usual(raw, host, title_max)
        if found is None or found.id != crashes[4].id:
            return found
        return found._replace(doc=doc)

    monkeypatch.setattr("crashd.fleet.rows.read_usual", read)
    fleet.index()
    assert fleet.ask("SELECT line, reason FROM quarantine") == [(5, "refused")]
    assert fleet.ask("SELECT count(*) FROM crash") == [(8,)]
    assert_tallies_agree(fleet)


def test_index_loads_what_it_has_while_more_is_read(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "BATCH_SECONDS", 0)
    keys: list[str] = []
    get = Bucket.get

    def get_late(bucket: Bucket, key: str, max_bytes: int) -> bytes:
        if keys:
            question = "SELECT count(*) FROM crash"
            wait_until(lambda: fleet.ask(question) == [(1,)], 20, "the first host's rows are there")
        keys.append(key)
        return get(bucket, key, max_bytes)

    monkeypatch.setattr(Bucket, "get", get_late)
    for number in (1, 2):
        fleet.put(number, make_line(make_crash(number)))
    fleet.index()
    assert len(keys) == 2 and fleet.ask("SELECT count(*) FROM crash") == [(2,)]


def test_index_by_killed_and_concurrent_indexers_has_every_crash_once(fleet: FleetIndex) -> None:
    written = write_fleet(Plan(40, 4000, signatures=50, end_ns=time.time_ns()), fleet.bucket)
    command = [sys.executable, "-m", "crashd.fleet.main", "index", "--dsn", fleet.dsn]
    command += ["--poll", "50ms", "--idle", "50ms", "--listen", "off"]
    chance, before, kills = random.Random(5), 0, 0
    for _ in range(4):
        running = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
        deadline = time.monotonic() + 20
        while (count := fleet.ask("SELECT count(*) FROM crash")[0][0]) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        for process in running:  # in the midst of what comes next
            process.send_signal(signal.SIGKILL)
            process.wait()
        before, kills = count, kills + 1
        if count == 4000:
            break
    assert kills > 1
    fleet.index()
    assert fleet.ask("SELECT count(*), count(DISTINCT id) FROM crash") == [(4000, 4000)]
    found = fleet.ask("SELECT signature, count FROM signature WHERE count > 0")
    assert dict(found) == written.by_signature
    assert_tallies_agree(fleet)


def test_reindex_after_damage_makes_the_same_index(fleet: FleetIndex) -> None:
    write_fleet(Plan(5, 300, signatures=9, end_ns=time.time_ns()), fleet.bucket)
    fleet.index()
    question = "SELECT id, revision, title, doc FROM crash ORDER BY id"
    before = fleet.ask(question)
    fleet.ask("DELETE FROM crash WHERE mod(pid, 2) = 0")
    fleet.ask("UPDATE crash SET title = 'damaged', revision = 1152921504606846976")
    assert main(["reindex", "--dsn", fleet.dsn]) == 0
    assert fleet.ask(question) == before
    assert_tallies_agree(fleet)


def test_upkeep_drops_days_that_are_not_kept(fleet: FleetIndex) -> None:
    fleet.put(1, make_line(make_crash(age_s=80 * DAY_S)), make_line(make_crash(age_s=3 * DAY_S)))
    fleet.index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(2,)]
    main(["init", "--dsn", fleet.dsn, "--keep", "30d"])
    fleet.index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(1,)]
    days = fleet.ask("SELECT count(*) FROM pg_inherits WHERE inhparent = 'crashd.crash'::regclass")
    assert days == [(4,)]  # that day, today and the next two
    assert fleet.ask("SELECT count FROM signature") == [(2,)], "a count never falls by age"
    assert main(["reindex", "--dsn", fleet.dsn]) == 0
    assert fleet.ask("SELECT count(*) FROM crash") == [(1,)]


def test_upkeep_publishes_signatures_with_enough_cores_and_wants(fleet: FleetIndex) -> None:
    crashes = [make_crash(1) for _ in range(2)]
    lines = [make_line(c, core=f"cores/v1/{HOST_A}/{c.id}.core.zst") for c in crashes]
    fleet.put(1, lines[0])
    fleet.index()
    policy = fleet.bucket / "policy/v1/signatures.zst"
    assert parse_signatures(unzstd(policy.read_bytes(), 1 << 20)) == frozenset()
    fleet.put(1, lines[1])
    fleet.index()
    found = parse_signatures(unzstd(policy.read_bytes(), 1 << 20))
    assert found == {crashes[0].signature}
    asked = make_crash(2)
    fleet.put(2, make_line(asked, reason=CoreReason.ENOUGH))
    fleet.index()
    fleet.ask(
        "INSERT INTO request (host, id, what, day) VALUES (%s, %s, 'core', now())", HOST_B, asked.id
    )
    fleet.index()
    want = fleet.bucket / f"policy/v1/want/{HOST_B}"
    assert parse_want(want.read_bytes()).cores == (asked.id,)
    fleet.put(2, make_line(asked, 11, core=f"cores/v1/{HOST_B}/{asked.id}.core.zst"))
    fleet.index()
    fleet.index()
    assert parse_want(want.read_bytes()).cores == ()


def test_enough_cores_are_of_two_hosts_and_in_the_bucket_still(fleet: FleetIndex) -> None:
    policy = fleet.bucket / "policy/v1/signatures.zst"

    def put(host: int, age_days: float, *, core: bool = True) -> frozenset[str]:
        crash, name = make_crash(host, age_s=age_days * DAY_S + 60), simulated_host(host)
        key = f"cores/v1/{name}/{crash.id}.core.zst" if core else None
        fleet.put(host, make_line(crash, core=key))
        fleet.index()
        fleet.index()  # as upkeep counts hosts, it knows them next time
        return parse_signatures(unzstd(policy.read_bytes(), 1 << 20))

    for _ in range(3):
        put(1, 40)
    assert not put(1, 0), "the bucket's lifecycle has deleted the old ones"
    assert put(1, 0), "nobody else has it"
    assert not put(2, 0, core=False), "another host's own core is still wanted"
    assert not put(1, 0)
    assert put(2, 0)


# -- what is wrong from the start ------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "crashd.fleet.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()


def test_index_of_newer_schema_is_one_clear_line(fleet: FleetIndex) -> None:
    fleet.ask("INSERT INTO migration VALUES (9999)")
    for verb in ("init", "index"):
        status, lines = run(verb, "--dsn", fleet.dsn)
        assert status == 4
        assert lines[0] == f"crashd-fleet: the fleet index has schema 9999, newer than {NEWEST}"


def test_index_of_missing_bucket_is_one_clear_line(fleet: FleetIndex) -> None:
    fleet.bucket.rename(fleet.bucket.with_name("away"))
    status, lines = run("index", "--once", "--dsn", fleet.dsn)
    assert (status, lines) == (
        4,
        [f"crashd-fleet: bucket file://{fleet.bucket}: there is no such directory"],
    )


def test_index_without_schema_or_server_says_so(postgres_server: object, tmp_path: Path) -> None:
    dsn = postgres_server.dsn()  # type: ignore[attr-defined]
    status, lines = run("index", "--once", "--dsn", dsn)
    assert (status, lines[0]) == (4, "crashd-fleet: the database holds no fleet index")
    status, lines = run("index", "--once", "--dsn", f"host={tmp_path} dbname=x")
    assert status == 4 and lines[0].startswith("crashd-fleet: PostgreSQL: ")
    status, lines = run("status", "--dsn", "password=secret nonsense")
    assert status == 2 and "secret" not in "".join(lines)


def test_user_who_may_not_is_told_what_is_needed(fleet: FleetIndex) -> None:
    name = fleet.dsn.split("dbname=")[1].split()[0]
    fleet.ask(f"CREATE ROLE only_{name} LOGIN IN ROLE crashd_read")
    dsn = fleet.dsn.replace("user=crashd", f"user=only_{name}")
    status, lines = run("index", "--once", "--dsn", dsn)
    assert status == 3 and "crashd_index" in lines[1] and len(lines) == 2
    fleet.ask("DELETE FROM migration WHERE number = (SELECT max(number) FROM migration)")
    status, lines = run("init", "--dsn", dsn)
    assert status == 3 and "may create schemas and roles" in lines[1] and len(lines) == 2
    status, lines = run("index", "--once", "--dsn", fleet.dsn.replace("user=crashd", "user=ghost"))
    assert status == 4 and "pg_hba.conf" in lines[1] and len(lines) == 2
    assert lines[0].startswith("crashd-fleet: PostgreSQL: connection to server")


def test_roles_hold_what_they_should_and_no_more(fleet: FleetIndex) -> None:
    fleet.put(1, make_line(make_crash()))
    fleet.index()
    name = fleet.dsn.split("dbname=")[1].split()[0]
    fleet.ask(f"CREATE ROLE reader_{name} LOGIN IN ROLE crashd_read")
    fleet.ask(f"CREATE ROLE writer_{name} LOGIN IN ROLE crashd_index")
    reader = fleet.dsn.replace("user=crashd", f"user=reader_{name}")
    writer = fleet.dsn.replace("user=crashd", f"user=writer_{name}")
    with psycopg.connect(reader, autocommit=True) as db:
        assert db.execute("SELECT count(*) FROM crashd.crashes").fetchone() == (1,)
        for sql in ("DELETE FROM crashd.crash", "SELECT crashd.drop_days(now()::date)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(sql.encode())
    with psycopg.connect(writer, autocommit=True) as db:
        for sql in ("DROP TABLE crashd.crash", "SELECT crashd.drop_days('3000-01-01')"):
            with pytest.raises(psycopg.Error):
                db.execute(sql.encode())
    fleet.put(1, make_line(make_crash()))
    FleetIndex(writer, fleet.bucket).index()
    assert fleet.ask("SELECT count(*) FROM crash") == [(2,)]
