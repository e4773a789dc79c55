"""How crashctl --fleet reads: hostile texts, servers that do not answer, Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from crashd.edge.fleet.reader import Reader
from crashd.errors import CrashdError, PermissionDeniedError, UnavailableError, UsageError
from tests import postgres
from tests.integration.fleetindex import FleetIndex, fleet, postgres_server

__all__ = ["fleet", "postgres_server"]
CRASHCTL = [sys.executable, "-c", "import sys; from crashd.cli.main import main; sys.exit(main())"]


def reader(fleet: FleetIndex, *, seconds: int = 10) -> Reader:
    return Reader.connect(fleet.dsn, name="test", timeout_seconds=seconds)


def test_values_come_back_as_they_went(fleet: FleetIndex) -> None:
    texts = ["", "a'b\"c\\d", "{1,NULL}", "später ✓", "%s $1", "NULL"]
    with reader(fleet) as db:
        (row,) = db.execute("SELECT %s::text[] = %s::text[], %s::text", (texts, texts, texts[1]))
        assert row == (True, texts[1])
        found = db.execute("SELECT t FROM unnest(%s::text[]) WITH ORDINALITY u(t, n)", (texts,))
        assert [one for (one,) in found] == texts
        found = db.execute(
            "SELECT %s, %s::bigint, %s::int[] @> '{5}', NULL::int, %s", (7, 1 << 40, [5, 6], True)
        )
        assert found.fetchall() == [(7, 1 << 40, True, None, True)]
        assert db.execute("SELECT 1 WHERE 1 = ANY(%s)", ([],)).fetchone() is None


def test_errors_of_the_server_are_ours_and_the_connection_goes_on(fleet: FleetIndex) -> None:
    with reader(fleet, seconds=1) as db:
        with pytest.raises(UnavailableError, match="took too long"):
            db.execute("SELECT pg_sleep(60)")
        with pytest.raises(UnavailableError, match="read-only"):
            db.execute("DELETE FROM crash")
        with pytest.raises(UnavailableError, match="holds no fleet index"):
            db.execute("SELECT * FROM nothing")
        with pytest.raises(CrashdError, match="invalid byte sequence"):
            db.execute("SELECT %s::text", ("\udcff",))
        with pytest.raises(UnavailableError), db.transaction():
            db.execute("SELECT * FROM nothing")
        assert db.execute("SELECT 1").fetchone() == (1,)
    fleet.ask("CREATE ROLE nobody_here LOGIN")
    dsn = fleet.dsn.replace("user=crashd", "user=nobody_here")
    with Reader.connect(dsn, name="test", timeout_seconds=1) as db:
        with pytest.raises(PermissionDeniedError) as e:
            db.execute("SELECT count(*) FROM crashd.crash")
        assert "crashd_read" in str(e.value.hint)
    fleet.ask("DROP ROLE nobody_here")


def test_a_connection_that_the_server_ends_is_one_line(fleet: FleetIndex) -> None:
    with reader(fleet) as db:
        (pid,) = db.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        fleet.ask("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(UnavailableError, match="PostgreSQL: "):
            db.execute("SELECT 1")


@pytest.mark.parametrize(
    ("dsn", "error", "status"),
    [
        ("host=/nonexistent password=geheim", "PostgreSQL: ", 4),
        ("password=geheim nonsense", "neither a PostgreSQL connection string", 2),
        ("host=127.0.0.1 port=1 password=geheim", "PostgreSQL: ", 4),
    ],
)
def test_no_server_is_one_line_without_the_password(dsn: str, error: str, status: int) -> None:
    done = subprocess.run(
        [*CRASHCTL, f"--fleet={dsn}", "list"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert error in done.stderr and "geheim" not in done.stderr and len(done.stderr) < 600


def _interrupt(process: "subprocess.Popen[bytes]") -> float:
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    return time.monotonic() - start


def test_ctrl_c_is_heard_while_a_server_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / ".s.PGSQL.5432"))
        server.listen()
        with subprocess.Popen([*CRASHCTL, f"--fleet=host={tmp_path}", "list"]) as process:
            link, _ = server.accept()
            with link:
                assert link.recv(8)
                assert _interrupt(process) < 5


def test_ctrl_c_ends_the_statement_on_the_server(
    fleet: FleetIndex, postgres_server: postgres.Server
) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    running += " AND application_name = 'crashctl'"
    with psycopg.connect(fleet.dsn) as db:
        db.execute("LOCK TABLE crashd.crash IN ACCESS EXCLUSIVE MODE")
        environ = {**os.environ, "CRASHD_FLEET": fleet.dsn}
        with subprocess.Popen([*CRASHCTL, "--fleet", "list"], env=environ) as process:
            deadline = time.monotonic() + 20
            while fleet.ask(f"{running} AND wait_event_type = 'Lock'") != [(1,)]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert _interrupt(process) < 5
        deadline = time.monotonic() + 5
        while fleet.ask(running) != [(0,)]:  # although the lock is still held
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_text_that_no_host_can_have_is_an_answer(fleet: FleetIndex) -> None:
    environ = {**os.environ, "CRASHD_FLEET": fleet.dsn}
    for words in (["--host", b"\xff"], ["--signature", b"\xff"], [b"unit=\xff\xfe"], [b"\xff*"]):
        command = [*CRASHCTL, "--fleet", "list", *words]
        done = subprocess.run(command, env=environ, capture_output=True, check=False)
        assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr


def test_a_dsn_with_a_control_character_is_refused_or_not_found() -> None:
    with pytest.raises((UsageError, UnavailableError)):
        Reader.connect("host=\x1b[31m", name="test", timeout_seconds=1)
