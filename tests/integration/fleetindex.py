"""A fleet's index on a real PostgreSQL, with a directory as its bucket."""

import argparse
import contextlib
import io
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard

from crashd.domain.crash.model import Crash, Kind, State, build_id_text
from crashd.domain.fleet.keys import records_key
from crashd.domain.fleet.lines import FleetFiles, Line, build_line
from crashd.edge.fleet.bucket import Bucket, Version
from crashd.edge.fleet.postgres import connect
from crashd.fleet.indexer import Indexer, Pace
from crashd.fleet.load import Result
from crashd.fleet.run import index, init
from tests import postgres
from tests.fleet.simulate import simulated_host

_numbers = itertools.count(1)


def why_no_postgres() -> str | None:
    """Say why there is no server to test with; in CI there always is."""
    if postgres.find_programs() is None and os.environ.get("CRASHD_TEST_SYSTEM") != "1":
        return "PostgreSQL is not installed (Debian's package postgresql)"
    return None


@dataclass(slots=True)
class FleetIndex:
    """A database with the schema, and its bucket."""

    dsn: str
    bucket: Path

    def index(self, *options: str) -> None:
        """Index all that is there, as `crashd-fleet index --once`."""
        arguments = argparse.Namespace(dsn=self.dsn, once=True, poll=0.05, idle=0.05, listen="off")
        assert index(arguments) == 0

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Query the tables."""
        with psycopg.connect(self.dsn, options="-c search_path=crashd", autocommit=True) as db:
            cursor = db.execute(sql.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def put(self, host: int, *lines: bytes, time_ns: int | None = None, packed: bool = True) -> str:
        """Write an object of a host."""
        return self.put_raw(host, b"".join(line + b"\n" for line in lines), time_ns, packed=packed)

    def put_raw(self, host: int, data: bytes, time_ns: int | None = None, *, packed: bool) -> str:
        """Write an object with any content."""
        now_ns = time.time_ns() if time_ns is None else time_ns
        key = records_key(simulated_host(host), now_ns, f"{host:032x}", next(_numbers))
        path = self.bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.ZstdCompressor().compress(data) if packed else data)
        return key

    def results(self) -> dict[str, int]:
        """Return the totals by result."""
        return dict(self.ask("SELECT result, records FROM total"))

    @contextlib.contextmanager
    def indexer(self) -> Iterator[Indexer]:
        """Make an indexer with a connection of its own."""
        bucket = Bucket.open(f"file://{self.bucket}")
        with connect(self.dsn, name="test") as db:
            made = Indexer(db, bucket, keep_days=90, pace=Pace(0.05, 0.05))
            try:
                yield made
            finally:
                made.close()


def make_crash(host: int = 1, *, age_s: float = 60, **changes: Any) -> Crash:
    """Make a crash of a host."""
    time_ns = time.time_ns() - int(age_s * 1e9)
    boot = f"{host:032x}"
    given: dict[str, Any] = {
        "id": build_id_text(time_ns, boot, 1000, 36**7 * 2 + next(_numbers)),
        "kind": Kind.PROCESS,
        "state": State.COMPLETE,
        "time_ns": time_ns,
        "boot_id": boot,
        "hostname": f"host-{host}".encode(),
        "pid": 1000,
        "signal": 11,
        "comm": b"nginx",
        "exe": b"/usr/sbin/nginx",
        "unit": "nginx.service",
        "signature": "p2-00000000000000aa",
        "title": "SIGSEGV in main (nginx)",
    }
    return Crash(**(given | changes))


def make_line(
    crash: Crash, revision: int = 10, labels: dict[str, str] | None = None, **files: Any
) -> bytes:
    """Make the line of a crash."""
    return build_line(Line(crash.id, revision, crash, labels or {}, "0.1.0", FleetFiles(**files)))


def pack(data: bytes) -> bytes:
    """Compress as hosts do."""
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as stream:
        stream.write(data)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """One server for all tests of a session."""
    why = why_no_postgres()
    if why:
        pytest.skip(why)
    with postgres.running() as server:
        yield server


@pytest.fixture
def fleet(postgres_server: postgres.Server, tmp_path: Path) -> FleetIndex:
    """A new database with the schema, and an empty bucket."""
    return make_fleet(postgres_server, tmp_path)


def make_fleet(postgres_server: postgres.Server, tmp_path: Path, options: str = "") -> FleetIndex:
    """Make a new database with the schema, and an empty bucket; options are the database's."""
    name = f"fleet{next(_numbers)}"
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} {options}".encode())
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    dsn = postgres_server.dsn(name)
    settings = {"keep": None, "cores_keep": None, "cores_per_signature": 2}
    assert init(argparse.Namespace(dsn=dsn, url=f"file://{bucket}", **settings)) == 0
    return FleetIndex(dsn, bucket)


RESULTS = frozenset(result.value for result in Result)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many bytes each request for a part gets."""
    sizes: list[int] = []
    read = Bucket.read_range

    def note(bucket: Bucket, version: Version, start: int, size_bytes: int) -> bytes:
        data = read(bucket, version, start, size_bytes)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(Bucket, "read_range", note)
    return sizes
