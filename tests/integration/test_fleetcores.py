"""Cores that `crashctl --fleet` fetches from a real S3 service: whole, and the parts of a stack."""

import argparse
import io
import itertools
import os
import random
import re
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import zstandard

from crashd.domain.crash.model import Core, Crash, State
from crashd.domain.elf.elfcore import parse_head
from crashd.domain.fleet.keys import core_key, records_key
from crashd.edge.fleet.bucket import Bucket
from crashd.errors import NotFoundError
from crashd.fleet.run import init
from crashd.store.corefile import CHUNK, CoreWriter
from tests import postgres
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes
from tests.fleet.simulate import simulated_host
from tests.integration.fleetindex import FleetIndex, fetched, make_crash, make_line, postgres_server
from tests.integration.test_fleetquestions import crashctl
from tests.integration.test_ship import service
from tests.objectstore import BUCKET, ObjectStore

__all__ = ["fetched", "postgres_server", "service"]
URL = f"s3://{BUCKET}/cores"
_NUMBERS = itertools.count(1)
HEAP, STACK = 0x10000000, 0x7FFC00000000
SP = STACK + 0x8000


@dataclass(frozen=True, slots=True)
class Stored:
    """A crash of a fleet, and its core."""

    fleet: FleetIndex
    crash: Crash
    core: bytes
    stack: bytes
    stored_bytes: int


def pack(core: bytes, path: Path) -> bytes:
    """Compress a core as the daemon does."""
    with path.open("w+b") as file:
        writer = CoreWriter(file.fileno(), level=1, threads=0)
        for start in range(0, len(core), CHUNK):
            writer.write(memoryview(core)[start : start + CHUNK])
        writer.finish()
    return path.read_bytes()


@pytest.fixture(params=["core", "mini"])
def stored(
    request: pytest.FixtureRequest,
    postgres_server: postgres.Server,
    service: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Stored]:
    """Store a crash and its core of 48 MB, or a mini core that its host has made of it."""
    for name, value in service.environ.items():
        monkeypatch.setenv(name, value)
    dice = random.Random(1)
    stack = dice.randbytes(64 << 10)
    segments = [CoreSegment(HEAP, dice.randbytes(48 << 20)), CoreSegment(STACK, stack)]
    notes = build_notes(CoreFormat(), threads=[CoreThread(1000, sp=SP)])
    core = build_core(segments=segments, notes=notes)
    sent = build_core(segments=segments[1:], notes=notes) if request.param == "mini" else core
    data = pack(sent, tmp_path / "core")
    described = Core("core.zst", len(core), 1 << 20, 1 << 20, len(core), complete=True)
    crash = make_crash(core=described, state=State.COMPLETE)
    host = simulated_host(1)
    key = core_key(host, crash.id, encrypted=False)
    line = make_line(crash, core=key, stored_bytes=len(data), mini=request.param == "mini")
    bucket = Bucket.open(URL)
    bucket.put(key, data)
    records = records_key(host, crash.time_ns, crash.boot_id, crash.time_ns)
    bucket.put(records, zstandard.ZstdCompressor().compress(line + b"\n"))
    name = f"cores{next(_NUMBERS)}"
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    fleet = FleetIndex(postgres_server.dsn(name), tmp_path)
    settings = {"keep": None, "cores_keep": None, "cores_per_signature": None}
    init(argparse.Namespace(dsn=fleet.dsn, url=URL, **settings))
    fleet.index()
    yield Stored(fleet, crash, sent, stack, len(data))
    bucket.delete(key)
    bucket.delete(records)


def dump(stored: Stored, target: Path, *options: str) -> bytes:
    found = crashctl(stored.fleet, "dump", stored.crash.id, "-o", str(target), *options)
    assert found[0] == 0, found
    return target.read_bytes()


def test_dump_of_a_fleets_core_is_what_was_stored(stored: Stored, tmp_path: Path) -> None:
    assert dump(stored, tmp_path / "found") == stored.core


def test_dump_mini_fetches_the_stack_and_little_else(
    stored: Stored, tmp_path: Path, fetched: list[int]
) -> None:
    found = dump(stored, tmp_path / "found", "--mini")
    if len(stored.core) < 1 << 20:
        assert found == stored.core, "a mini core is not cut again"
        return
    assert len(found) < 2 << 20
    head = parse_head(found)
    assert [thread.tid for thread in head.threads] == [1000]
    (kept,) = [one for one in head.segments if one.vaddr <= SP < one.vaddr + one.filesz]
    inside = kept.offset + SP - kept.vaddr
    assert found[inside : inside + 4096] == stored.stack[0x8000:0x9000]
    assert 0 < sum(fetched) < stored.stored_bytes // 2, "frames between head and stack stay away"


def test_core_that_is_gone_is_said(stored: Stored, tmp_path: Path) -> None:
    Bucket.open(URL).delete(core_key(simulated_host(1), stored.crash.id, encrypted=False))
    for options in ([], ["--mini"]):
        target = str(tmp_path / "found")
        status, _, err = crashctl(stored.fleet, "dump", stored.crash.id, "-o", target, *options)
        assert status == NotFoundError.exit_code and "has not arrived yet" in err


def test_debug_mini_gives_a_debugger_the_stack(
    stored: Stored, capfd: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    words = ["-nx", "-batch", "-ex", "info registers rsp", "-ex", f"x/4xb {SP:#x}"]
    options = [f"--debugger-arguments={shlex.join(words)}", "--debugger", "gdb"]
    if os.geteuid() == 0:
        options.append("--as-root")
    for more in ([], ["--mini"]):
        status, _, err = crashctl(stored.fleet, "debug", stored.crash.id, *options, *more)
        out, noise = capfd.readouterr()
        assert status == 0, err + noise
        values = [int(word, 16) for word in re.findall(r"\t(0x[0-9a-f]{2})\b", out)]
        assert bytes(values) == stored.stack[0x8000:0x8004], out + err + noise


def test_bundle_of_a_fleets_core_holds_what_was_stored(stored: Stored, tmp_path: Path) -> None:
    target = tmp_path / "bundle.tar.zst"
    status, _, err = crashctl(stored.fleet, "bundle", stored.crash.id, "-o", str(target))
    assert status == 0, err
    data = io.BytesIO(zstandard.ZstdDecompressor().stream_reader(target.read_bytes()).read())
    with tarfile.open(fileobj=data) as tar:
        core, report = (tar.extractfile(name) for name in ("core.zst", "report.txt"))
        assert core is not None and report is not None
        reader = zstandard.ZstdDecompressor().stream_reader(core, read_across_frames=True)
        assert reader.read() == stored.core
        is_mini = len(stored.core) < 1 << 20
        assert ("only a mini core" in err) == is_mini, err
        assert ("kept: mini" in report.read().decode()) == is_mini
