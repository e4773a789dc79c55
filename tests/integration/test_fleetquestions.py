"""What people ask of a fleet's index: crashctl --fleet, Grafana, and what alerts are about."""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from crashd import __version__
from crashd.cli.main import main
from crashd.domain.crash.model import Kind, State
from crashd.domain.crash.query import Query
from crashd.domain.crash.tally import plan_timeline, tally
from crashd.edge.fleet.bucket import Bucket
from crashd.edge.fleet.metrics import FleetMetrics
from crashd.edge.fleet.reader import Reader
from crashd.errors import PermissionDeniedError
from crashd.fleet.questions import FLEET_KEYS, Questions
from tests import postgres
from tests.fleet.simulate import Plan, simulated_host, write_fleet
from tests.integration.fleetindex import (
    RESULTS,
    FleetIndex,
    fleet,
    make_crash,
    make_fleet,
    make_line,
    postgres_server,
)

__all__ = ["fleet", "postgres_server"]
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "etc/grafana/crashd-fleet.json"
RULES = ROOT / "etc/prometheus/crashd-fleet.rules.yml"
DAY_NS = 86400 * 10**9


def crashctl(fleet: FleetIndex, *arguments: str) -> tuple[int, str, str]:
    """Run crashctl on a fleet's index."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([f"--fleet={fleet.dsn}", *arguments])
    return status, out.getvalue(), err.getvalue()


def ask(fleet: FleetIndex, *arguments: str) -> Any:
    """Run crashctl, and read its JSON."""
    status, out, err = crashctl(fleet, *arguments, "--json")
    assert (status, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture(scope="module")
def simulated(
    postgres_server: postgres.Server, tmp_path_factory: pytest.TempPathFactory
) -> FleetIndex:
    """A small fleet, indexed."""
    fleet = make_fleet(postgres_server, tmp_path_factory.mktemp("fleet"))
    write_fleet(Plan(40, 3000, signatures=60, end_ns=time.time_ns()), fleet.bucket)
    fleet.index()
    return fleet


def test_list_has_the_keys_of_one_host_and_host_and_labels(simulated: FleetIndex) -> None:
    rows = ask(simulated, "list", "-n", "5")
    assert len(rows) == 5
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert list(rows[0])[-2:] == ["host", "labels"] and "capture" in rows[0]
    status, out, _ = crashctl(simulated, "list", "-n", "5")
    assert status == 0 and re.match(r"TIME +ID +HOST +PID", out)


def test_list_filters_by_host_label_signature_unit_and_time(simulated: FleetIndex) -> None:
    for words, sql in (
        (["--host", "host-00003"], "hostname = 'host-00003'"),
        (["--host", simulated_host(3)], "hostname = 'host-00003'"),
        (["--host", "host-0000[34]"], "hostname IN ('host-00003', 'host-00004')"),
        (["--host", "host-0001?", "--host", "*-00003"], "hostname ~ '0001.|00003'"),
        (["--label", "zone=fra"], "labels ->> 'zone' = 'fra'"),
        (["service-003.service"], "unit = 'service-003.service'"),
        (["service-00[12]"], "comm IN ('service-001', 'service-002')"),
        (["SIGSEGV", "--since", "-2d"], "signal = 11 AND time > now() - interval '2 days'"),
        (["signal=6", "--label", "zone=fra"], "signal = 6 AND labels ->> 'zone' = 'fra'"),
    ):
        rows = ask(simulated, "list", *words)
        ((count,),) = simulated.ask(f"SELECT count(*) FROM crashes WHERE {sql}")
        assert count and len(rows) == count, words
    assert crashctl(simulated, "list", "--host", "nowhere")[0] == 1
    assert crashctl(simulated, "list", "--host", "nowhere-*")[0] == 1
    assert crashctl(simulated, "list", "--host", "*" * 9999)[0] == 2
    assert crashctl(simulated, "list", "--label", "zone=nowhere")[0] == 1


def test_info_by_the_beginning_of_an_id_in_a_database_of_any_language(
    postgres_server: postgres.Server, tmp_path: Path
) -> None:
    english = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    fleet = make_fleet(postgres_server, tmp_path, english)
    crash = make_crash()
    fleet.put(1, make_line(crash))
    fleet.index()
    for beginning in (crash.id[:12], crash.id[-8:-2]):
        assert [row["id"] for row in ask(fleet, "list", beginning)] == [crash.id]
    host = simulated_host(1)
    assert [row["id"] for row in ask(fleet, "list", f"--host={host[:8]}")] == [crash.id]


def test_info_by_short_id_shows_the_record(simulated: FleetIndex) -> None:
    (row,) = ask(simulated, "list", "-n", "1")
    doc = ask(simulated, "info", row["id"][-8:])
    assert doc["id"] == row["id"] and doc["frames"] and doc["object"].startswith("records/v1/")
    status, out, _ = crashctl(simulated, "info", row["id"])
    assert status == 0 and row["hostname"] in out
    assert f"Host ID: {row['host']}" in out and f"zone={row['labels']['zone']}" in out
    status, _, err = crashctl(simulated, "info", "nosuch")
    assert status == 1 and "crashctl --fleet list shows all crashes" in err


def test_top_agrees_with_the_rows(simulated: FleetIndex) -> None:
    for words, sql in (([], "true"), (["--since", "-3d"], "time > now() - interval '3 days'")):
        rows = ask(simulated, "top", *words)
        found = [(row["signature"], row["count"], row["hosts"]) for row in rows]
        wanted = simulated.ask(
            "SELECT signature, count(*), count(DISTINCT host) FROM crashes"
            f" WHERE {sql} AND signature IS NOT NULL"
            " GROUP BY 1 ORDER BY 2 DESC, max(time) DESC LIMIT 20"
        )
        assert found == wanted
    for by, name in (
        ("version", "version"),
        ("build", "build_id"),
        ("host", "host"),
        ("label:zone", "labels ->> 'zone'"),
    ):
        counted = [(row["name"], row["count"]) for row in ask(simulated, "top", "--by", by)]
        wanted = simulated.ask(
            f"SELECT {name}, count(*) FROM crashes GROUP BY 1 ORDER BY 2 DESC, max(time) DESC"
            " LIMIT 20"
        )
        assert counted == wanted
    host = ask(simulated, "top", "--by", "host")[0]
    _, out, _ = crashctl(simulated, "top", "--by", "host")
    assert out.splitlines()[1].endswith(f" {host['hostname']} ({host['name'][:8]})")


def test_top_new_since_version_finds_the_regression_that_it_made(simulated: FleetIndex) -> None:
    rows = ask(simulated, "top", "--new-since", "2026.11")
    title = {row["title"]: row for row in rows}
    assert "SIGSEGV in frame_59_0 (service-059)" in title, "each host got it with the last version"
    changed = [row for row in rows if row["change"] == "more"]
    assert all(row["rate"] >= 2 * row["rate_before"] for row in changed)
    assert len(rows) < 15, "most have not become more frequent"
    assert crashctl(simulated, "top", "--new-since", "nothing")[0] == 1


def test_top_new_since_time_finds_signatures_never_seen_before(fleet: FleetIndex) -> None:
    old = [make_crash(n, age_s=5 * 86400, signature="p2-00000000000000aa") for n in range(1, 6)]
    new = [make_crash(n, signature="p2-00000000000000bb", title="new") for n in range(1, 6)]
    new.append(make_crash(1, signature="p2-00000000000000aa"))
    for crash in (*old, *new):
        fleet.put(int(crash.boot_id, 16), make_line(crash))
    fleet.index()
    rows = ask(fleet, "top", "--new-since", "-1d")
    assert [(row["signature"], row["change"]) for row in rows] == [("p2-00000000000000bb", "new")]


def test_stats_and_report_count_what_the_rows_are(simulated: FleetIndex, tmp_path: Path) -> None:
    found = ask(simulated, "stats", "--since", "-30d")
    assert found["total"] == 3000
    assert {one["name"]: one["count"] for one in found["kinds"]} == {"process": 3000}
    assert sum(one["process"] for one in found["timeline"]) == 3000
    page = tmp_path / "page.html"
    assert crashctl(simulated, "report", "--since", "-30d", "-o", str(page))[0] == 0
    assert "fleet" in page.read_text() and "3000" in page.read_text()


def test_counts_in_the_database_are_those_of_one_host(fleet: FleetIndex) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"unit": None, "container_id": "c" * 64},
        {"unit": None, "comm": b"", "exe": b"", "signal": None},
        {"exe": b"", "signal": 6, "state": State.EVICTED},
        {"kind": Kind.KERNEL, "signal": None, "kernel": {"panic_kind": "oops"}},
        {"kind": Kind.KERNEL, "signal": None, "kernel": {"release": "6.1.0"}, "unit": None},
    ]
    for number, more in enumerate(changes):
        for age_s in range(0, 86400 * number, 10000):
            fleet.put(1, make_line(make_crash(1, age_s=age_s + 60, **more)))
    fleet.index()
    query = Query(since_ns=time.time_ns() - 3 * DAY_NS)
    timelines = [plan_timeline(time.time_ns() - 2 * DAY_NS, time.time_ns(), 24) for _ in range(2)]
    timelines[1].end_ns, timelines[1].step_ns = timelines[0].end_ns, timelines[0].step_ns
    with Reader.connect(fleet.dsn, name="test", timeout_seconds=60) as db:
        found = Questions(db).tally(query, timelines[0])
        wanted = tally(Questions(db).select(query), timelines[1])
    assert found.names == wanted.names and found.total == wanted.total
    assert timelines[0].counts == timelines[1].counts and sum(timelines[0].totals()) > 10


def write_core(fleet: FleetIndex, key: str, data: bytes) -> None:
    """Write a core into the bucket, as stored."""
    path = fleet.bucket / key
    path.parent.mkdir(parents=True, exist_ok=True)
    import zstandard

    path.write_bytes(zstandard.ZstdCompressor().compress(data))


def test_dump_fetches_the_core_and_says_where_it_is_not(fleet: FleetIndex, tmp_path: Path) -> None:
    from dataclasses import replace

    from crashd.domain.crash.model import Core
    from crashd.domain.fleet.lines import CoreReason

    core = Core("core.zst", 5000, 100, 5000, 5000, complete=True)
    here, kept, none = (replace(make_crash(1), core=core) for _ in range(3))
    key = f"cores/v1/{simulated_host(1)}/{here.id}.core.zst"
    write_core(fleet, key, b"core!" * 1000)
    fleet.put(1, make_line(here, core=key), make_line(kept, reason=CoreReason.ENOUGH))
    fleet.put(1, make_line(none, reason=CoreReason.NO_CORE))
    fleet.index()
    target = tmp_path / "core"
    assert crashctl(fleet, "dump", here.id, "-o", str(target))[0] == 0
    assert target.read_bytes() == b"core!" * 1000
    status, _, err = crashctl(fleet, "dump", kept.id, "-o", str(tmp_path / "no"))
    assert status == 1 and "on its host only: there are enough" in err and "want" in err
    status, _, err = crashctl(fleet, "dump", none.id, "-o", str(tmp_path / "no"))
    assert status == 1 and "has no core" in err and "want" not in err
    for text in ("1 core is asked for; hosts look", "1 was asked for before"):
        status, _, err = crashctl(fleet, "want", kept.id)
        assert status == 0 and text in err
    assert fleet.ask("SELECT id, what, done FROM request") == [(kept.id, "core", None)]
    (fleet.bucket / key).unlink()
    status, _, err = crashctl(fleet, "dump", here.id, "-o", str(tmp_path / "no"))
    assert status == 1 and "has not arrived" in err


def test_delete_removes_row_and_core_and_asks_the_host(fleet: FleetIndex) -> None:
    gone, stays = make_crash(1), make_crash(1)
    key = f"cores/v1/{simulated_host(1)}/{gone.id}.core.zst"
    write_core(fleet, key, b"x")
    fleet.put(1, make_line(gone, core=key), make_line(stays))
    fleet.index()
    assert crashctl(fleet, "delete", gone.id)[0] == 0
    assert not (fleet.bucket / key).exists()
    fleet.put(1, make_line(gone, 99))
    fleet.index()
    assert [row["id"] for row in ask(fleet, "list")] == [stays.id]
    want = json.loads((fleet.bucket / f"policy/v1/want/{simulated_host(1)}").read_bytes())
    assert want["deleted"] == [gone.id]
    assert fleet.ask("SELECT sum(crashes) FROM tally") == [(1,)]


def test_delete_stops_when_nobody_reads_what_it_says(fleet: FleetIndex) -> None:
    fleet.put(1, *[make_line(make_crash(1)) for _ in range(3)])
    fleet.index()
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [str(Path(sys.executable).with_name("crashctl")), f"--fleet={fleet.dsn}"]
    with os.fdopen(writing) as pipe:
        subprocess.run(
            [*command, "delete", "--yes", "nginx"], stdout=pipe, env=buffered, check=False
        )
    assert fleet.ask("SELECT count(*) FROM crash") == [(2,)]


def test_delete_that_the_bucket_refuses_leaves_the_crash_to_be_named_again(
    fleet: FleetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = make_crash(1)
    key = f"cores/v1/{simulated_host(1)}/{crash.id}.core.zst"
    write_core(fleet, key, b"x")
    fleet.put(1, make_line(crash, core=key))
    fleet.index()

    def refuse(bucket: Bucket, key: str) -> None:
        raise PermissionDeniedError("bucket: access denied")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "delete", refuse)
        status, out, err = crashctl(fleet, "delete", crash.id)
    assert status == PermissionDeniedError.exit_code and "access denied" in err and not out
    assert [row["id"] for row in ask(fleet, "list")] == [crash.id]
    assert crashctl(fleet, "delete", crash.id)[0] == 0
    assert not (fleet.bucket / key).exists() and ask_nothing(fleet)


def ask_nothing(fleet: FleetIndex) -> bool:
    """Whether no crash is left."""
    return crashctl(fleet, "list", "--json")[1].strip() == "[]"


def test_reader_may_not_delete(fleet: FleetIndex) -> None:
    crash = make_crash(1)
    fleet.put(1, make_line(crash))
    fleet.index()
    name = fleet.dsn.split("dbname=")[1].split()[0]
    fleet.ask(f"CREATE ROLE person_{name} LOGIN IN ROLE crashd_read")
    reader = FleetIndex(fleet.dsn.replace("user=crashd", f"user=person_{name}"), fleet.bucket)
    assert len(ask(reader, "list")) == 1
    status, _, err = crashctl(reader, "delete", crash.id)
    assert status == 3 and "crashd_index" in err
    assert len(ask(reader, "list")) == 1


def test_hostile_record_cannot_drive_a_terminal_or_break_a_page(fleet: FleetIndex) -> None:
    crash = make_crash(
        1,
        title="\x1b]0;owned\x07 'x'); DROP TABLE crash; --",
        comm=b"\x1b[2J",
        unit="\x1b[31m.service",
        frames=({"function": ["\x1b"], "offset": {}}, {"module": 5, "line": "\x1b[1m"}),
        threads=({"tid": "\x1b", "crashed": []},),
        analysis={"state": 5, "warnings": "\x1b"},
    )
    fleet.put(1, make_line(crash, labels={"env": "prod"}))
    fleet.index()
    for words in (["list"], ["info", "-a"], ["top"], ["stats"], ["list", "\x1b[31m.service"]):
        status, out, err = crashctl(fleet, *words)
        assert status == 0, err
        assert ("\x1b" not in out and "owned" in out) or words[0] in ("stats", "top", "list")
        assert "\x1b" not in out and "\x1b" not in err


def test_list_of_large_record_has_what_info_has_but_for_a_huge_value(fleet: FleetIndex) -> None:
    large = make_crash(
        1,
        comm=b"a\xff",
        argv=(b"/bin/a", b"\xfe"),
        maps=random.Random(1).randbytes(20_000).hex().encode(),
        kernel={"panic_kind": "oops"},
    )
    hostile = make_crash(1, age_s=50, kernel={"x": "BRACKETS"})
    brackets = b"[" + b"[]," * 200_000 + b"1]"
    fleet.put(1, make_line(large), make_line(hostile).replace(b'"BRACKETS"', brackets))
    fleet.index()
    first, second = ask(fleet, "list")
    of_info = ask(fleet, "info", large.id)
    assert first == {key: of_info[key] for key in FLEET_KEYS} and "\\xfe" in first["cmdline"]
    assert (second["id"], second["kernel"], second["exe"]) == (hostile.id, None, "/usr/sbin/nginx")


# -- pictures --------------------------------------------------------------------------------------


def dashboard_queries() -> dict[str, str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = {p["title"]: t["rawSql"] for p in dashboard["panels"] for t in p["targets"]}
    variables = {v["name"]: v["query"] for v in dashboard["templating"]["list"]}
    return found | {"variable version": variables["version"]}


def as_grafana(sql: str, version: str) -> str:
    """Replace macros and variables as Grafana's PostgreSQL data source does."""
    start, end = "'2026-01-01T00:00:00Z'", "'2099-01-01T00:00:00Z'"
    sql = re.sub(r"\$__timeFilter\(([^()]+)\)", rf"\1 BETWEEN {start} AND {end}", sql)
    sql = re.sub(
        r"\$__timeGroup\(([^,()]+), *\$__interval\)",
        r"floor(extract(epoch from \1)/3600)*3600",
        sql,
    )
    sql = sql.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    sql = sql.replace("${version:sqlstring}", f"'{version}'")
    assert not re.search(r"\$(?!__all)", sql), sql
    return sql


@pytest.mark.parametrize("title", dashboard_queries())
def test_dashboard_query_runs_as_a_reader(simulated: FleetIndex, title: str) -> None:
    with psycopg.connect(simulated.dsn, autocommit=True) as db:
        db.execute("SET ROLE crashd_read")
        sql = dashboard_queries()[title]
        every = db.execute(as_grafana(sql, "$__all").encode()).fetchall()
        some = db.execute(as_grafana(sql, "2026.9").encode()).fetchall()
    assert every or "efused" in title
    if title in ("Crashes", "Crashes by version", "Latest crashes"):
        assert every != some


def test_dashboard_numbers_are_those_of_the_rows(simulated: FleetIndex) -> None:
    queries = dashboard_queries()
    assert simulated.ask(as_grafana(queries["Hosts with crashes"], "$__all")) == simulated.ask(
        "SELECT count(DISTINCT host) FROM crash"
    )
    top = simulated.ask(as_grafana(queries["Top signatures"], "$__all"))
    assert int(top[0][0]) == simulated.ask("SELECT max(count) FROM signature")[0][0]


def test_rules_name_only_metrics_that_there_are() -> None:
    text, _ = FleetMetrics(__version__, RESULTS).render("")
    exported = {re.split(r"[ {]", line)[0] for line in text.decode().splitlines()}
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    page = (ROOT / "packaging/man/crashd-alerts.7.rst").read_text()
    for rule in group["rules"]:
        assert set(re.findall(r"crashd_\w+", rule["expr"])) <= exported
        for result in re.findall(r'result="(\w+)"', rule["expr"]):
            assert result in RESULTS
        assert f"\n{rule['alert']}\n    " in page
