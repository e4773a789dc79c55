"""Cores in the bucket that hostile hosts wrote: how much of them is read, and that it is one."""

import os
import re
from pathlib import Path

import pytest
import zstandard

from crashd.cli import fleetsource
from crashd.domain.crash.model import Core, Crash, State
from crashd.domain.elf.zstdframes import FrameSize, build_seek_table
from crashd.domain.fleet.keys import core_key
from crashd.edge.fleet.bucket import Bucket, Version
from crashd.errors import FormatError, UnavailableError
from tests.fleet.simulate import simulated_host
from tests.integration.fleetindex import (
    FleetIndex,
    fetched,
    fleet,
    make_crash,
    make_line,
    postgres_server,
)
from tests.integration.test_fleetquestions import crashctl

__all__ = ["fetched", "fleet", "postgres_server"]
HOST = simulated_host(1)


@pytest.fixture
def crash(fleet: FleetIndex) -> Crash:
    """A crash in the index whose core is wherever `place` puts it."""
    described = Core("core.zst", 9000, 1000, 9000, 9000, complete=True)
    made = make_crash(core=described, state=State.COMPLETE)
    key = core_key(HOST, made.id, encrypted=False)
    fleet.put(1, make_line(made, core=key, stored_bytes=1000))
    fleet.index()
    return made


def place(fleet: FleetIndex, crash: Crash, size_bytes: int, tail: bytes = b"") -> Path:
    """Make the object of a core, with a hole of so many bytes."""
    path = fleet.bucket / core_key(HOST, crash.id, encrypted=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(size_bytes)
        file.write(tail)
    return path


FORGED = {
    "one frame": build_seek_table([FrameSize(3 << 30, 4096)]),
    "many frames": build_seek_table([FrameSize(3 << 20, 1)] * 1024),
    "no table": b"",
}


@pytest.mark.parametrize("tail", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("verb", [["dump", "-o", "core"], ["debug", "--debugger", "gdb"]])
def test_mini_of_forged_core_reads_a_bounded_part_and_says_so(
    fleet: FleetIndex,
    crash: Crash,
    tmp_path: Path,
    fetched: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tail: bytes,
    verb: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleetsource, "PARTS_MAX", 64 << 20)
    path = place(fleet, crash, 3 << 30, tail)
    with path.open("r+b") as file:
        for start in range(0, 3 << 30, 3 << 20):  # frames that unpack to a byte each
            file.seek(start)
            file.write(zstandard.ZstdCompressor().compress(b"x"))
    status, out, err = crashctl(fleet, verb[0], crash.id, *verb[1:], "--mini")
    assert status == FormatError.exit_code, (out, err)
    assert re.search(r"a mini core takes more than 64M of the 3\.[01]G", err), err
    assert sum(fetched) <= 64 << 20
    assert not (tmp_path / "core").exists()


def test_dump_of_core_larger_than_the_disk_reads_nothing_and_says_so(
    fleet: FleetIndex, crash: Crash, tmp_path: Path, fetched: list[int]
) -> None:
    place(fleet, crash, 15 << 40)
    target = tmp_path / "core"
    status, _, err = crashctl(fleet, "dump", crash.id, "-o", str(target))
    assert status == UnavailableError.exit_code
    assert "needs 15T of /" in err and "TMPDIR" in err and "--mini" in err
    assert fetched == [] and not target.exists()


@pytest.mark.parametrize("options", [[], ["--mini"]])
def test_dump_of_core_that_is_replaced_meanwhile_says_so(
    fleet: FleetIndex,
    crash: Crash,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
) -> None:
    path = place(fleet, crash, 9 << 20)
    read = Bucket.read_range

    def replace_after(bucket: Bucket, version: Version, start: int, size_bytes: int) -> bytes:
        data = read(bucket, version, start, size_bytes)
        (path.parent / "new").write_bytes(bytes(9 << 20))
        os.replace(path.parent / "new", path)
        return data

    monkeypatch.setattr(Bucket, "read_range", replace_after)
    target = tmp_path / "core"
    status, _, err = crashctl(fleet, "dump", crash.id, "-o", str(target), *options)
    assert status == FormatError.exit_code
    assert "has changed while it was read" in err and "try again" in err
    assert not target.exists()


def test_dump_of_large_core_says_so_before(
    fleet: FleetIndex, crash: Crash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleetsource, "NOTED_BYTES", 1 << 20)
    place(fleet, crash, 2 << 20)
    _, _, err = crashctl(fleet, "dump", crash.id, "-o", str(tmp_path / "core"))
    assert f"fetching the core of {crash.id}: 2.0M" in err
