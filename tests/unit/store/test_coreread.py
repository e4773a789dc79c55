"""Any byte of a stored core, with and without a seek table."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.domain.elf.zstdframes import SEEK_FOOTER_SIZE, seek_table_size
from crashd.store import corefile
from crashd.store.corefile import HOLE_MIN, CoreWriter
from crashd.store.coreread import StoredCore, read_head
from tests.builders.elfcore import CoreSegment, build_core

FRAME = 1 << 18


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "core.zst", os.O_RDWR | os.O_CREAT, 0o600)
    yield number
    os.close(number)


def store(fd: int, core: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corefile, "FRAME_MAX", FRAME)
    writer = CoreWriter(fd, level=1, threads=0)
    for at in range(0, len(core), 70_000):
        writer.write(memoryview(core)[at : at + 70_000])
    writer.finish()


def build(seed: int = 1) -> bytes:
    noise = random.Random(seed)
    parts = [noise.randbytes(700_000), bytes(3 * HOLE_MIN), noise.randbytes(300_000)]
    return b"".join([*parts, bytes(HOLE_MIN), b"end"])


def cut_table(fd: int) -> None:
    size = os.fstat(fd).st_size
    table = seek_table_size(os.pread(fd, SEEK_FOOTER_SIZE, size - SEEK_FOOTER_SIZE))
    assert table is not None
    os.ftruncate(fd, size - table)


@pytest.mark.parametrize("table", [True, False])
def test_read_anywhere_gives_the_cores_bytes(
    fd: int, monkeypatch: pytest.MonkeyPatch, table: bool
) -> None:
    core = build()
    store(fd, core, monkeypatch)
    if not table:
        cut_table(fd)
    stored = StoredCore(fd)
    assert stored.indexed is table
    assert stored.size_bytes == len(core)
    dice = random.Random(2)
    for _ in range(200):
        at, size = dice.randrange(len(core)), dice.choice([1, 8, 5000, 400_000])
        assert stored.read(at, size) == core[at : at + size]
    assert stored.read(len(core), 10) == b""
    assert stored.read(0, len(core) + 9) == core


def test_read_unpacks_no_more_than_it_must(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    core = random.Random(3).randbytes(20 * FRAME)
    store(fd, core, monkeypatch)
    stored = StoredCore(fd)
    assert stored.read(19 * FRAME + 5, 8) == core[19 * FRAME + 5 : 19 * FRAME + 13]
    assert stored.unpacked_bytes <= FRAME + 140_000


def test_runs_leave_out_holes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    core = build()
    store(fd, core, monkeypatch)
    stored = StoredCore(fd)
    rebuilt = bytearray(len(core))
    runs = list(stored.runs())
    for offset, size in runs:
        rebuilt[offset : offset + size] = stored.read(offset, size)
    assert bytes(rebuilt) == core
    assert sum(size for _, size in runs) < len(core) - 2 * HOLE_MIN


@pytest.mark.parametrize("cut", [0, 1, 5, 100, 5_000, 300_000, 900_000])
def test_read_file_cut_anywhere_gives_a_beginning(
    fd: int, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    core = build()
    store(fd, core, monkeypatch)
    os.ftruncate(fd, cut)
    stored = StoredCore(fd)
    read = stored.read(0, len(core))
    assert core.startswith(read)


def test_read_of_nonsense_is_empty(fd: int) -> None:
    os.pwrite(fd, random.Random(5).randbytes(50_000), 0)
    assert StoredCore(fd).read(0, 100) == b""
    os.pwrite(fd, b"\x28\xb5\x2f\xfd" + bytes(200), 0)
    assert StoredCore(fd).size_bytes == 0


def test_read_head_of_gcore_has_the_notes_behind_memory(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = build_core(segments=[CoreSegment(0x1000, bytes(300_000))], notes_last=True)
    store(fd, core, monkeypatch)
    raw, head = read_head(StoredCore(fd))
    assert [thread.tid for thread in head.threads] == [100]
    assert head.problems == ()
    assert head.expected_size == len(core)
    assert b"CORE" in raw
    assert len(raw) < 4096
