"""The stored core: exact, sparse, and mendable at every length."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.errors import FormatError
from crashd.store.corefile import (
    HOLE_MIN,
    ZERO_BLOCK,
    CoreWriter,
    SpareCompressor,
    read_core,
    repair,
)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "core.zst", os.O_RDWR | os.O_CREAT, 0o600)
    yield number
    os.close(number)


def store(fd: int, pieces: list[bytes]) -> CoreWriter:
    writer = CoreWriter(fd, level=1, threads=0)
    for piece in pieces:
        writer.write(memoryview(piece))
    writer.finish()
    return writer


def mixed(seed: int) -> bytes:
    noise = random.Random(seed)
    return b"".join(
        [
            noise.randbytes(300_000),
            bytes(HOLE_MIN * 2 + 17),
            b"abc" * 50_000,
            bytes(HOLE_MIN - ZERO_BLOCK),
            noise.randbytes(1),
            bytes(200_000),
        ]
    )


@pytest.mark.parametrize("step", [1 << 20, ZERO_BLOCK, ZERO_BLOCK - 1, 4097, 65_536])
def test_write_in_any_steps_reads_back_exactly(fd: int, step: int) -> None:
    core = mixed(step)
    writer = store(fd, [core[n : n + step] for n in range(0, len(core), step)])
    assert b"".join(read_core(fd, len(core))) == core
    assert writer.size_bytes == len(core)
    assert writer.stored_bytes == os.fstat(fd).st_size


def test_spare_compressor_writes_the_same_bytes_as_a_new_one(tmp_path: Path) -> None:
    spare, stored = SpareCompressor(), []
    for number, seed in enumerate((1, 1, 2, 1)):
        with (tmp_path / f"{number}").open("w+b") as file:
            writer = CoreWriter(file.fileno(), level=3, threads=0, spare=spare)
            writer.write(memoryview(mixed(seed)))
            if seed == 2:
                writer.flush()  # this core is never finished: its writer met a full disk
                writer.write(memoryview(mixed(seed)))
                continue
            writer.finish()
            assert b"".join(read_core(file.fileno())) == mixed(seed)
            stored.append((tmp_path / f"{number}").read_bytes())
    assert stored[0] == stored[1] == stored[2]


def test_spare_compressor_is_kept_only_for_the_same_level_and_without_threads() -> None:
    spare = SpareCompressor()
    first = spare.take(3, 0)
    other = spare.take(3, 0)
    assert other is not first, "the first is still in use"
    spare.give_back(other)
    assert spare.take(3, 0) is other
    spare.give_back(other)
    assert spare.take(1, 0) is not other
    threaded = spare.take(1, 2)
    spare.give_back(threaded)
    assert spare.take(1, 2) is not threaded


def test_write_nothing_stores_nothing(fd: int) -> None:
    assert store(fd, []).stored_bytes == 0
    assert b"".join(read_core(fd, 0)) == b""


def test_write_long_zeros_cost_nothing(fd: int) -> None:
    writer = CoreWriter(fd, level=3, threads=0)
    zeros = memoryview(bytes(1 << 20))
    for _ in range(256):
        writer.write(zeros)
    writer.finish()
    assert writer.resident_bytes == 0
    assert writer.stored_bytes < 9_000


def test_hole_equals_writing_the_zeros(fd: int) -> None:
    writer = CoreWriter(fd, level=1, threads=0)
    writer.write(memoryview(b"head"))
    writer.hole(3 * HOLE_MIN + 5)
    writer.write(memoryview(b"tail"))
    writer.hole(7)
    writer.finish()
    assert b"".join(read_core(fd)) == b"head" + bytes(3 * HOLE_MIN + 5) + b"tail" + bytes(7)


def test_read_core_yields_bounded_chunks(fd: int) -> None:
    store(fd, [bytes(20 << 20), b"x"])
    assert max(len(chunk) for chunk in read_core(fd)) <= 1 << 20


def test_read_core_flipped_bit_is_damage(fd: int) -> None:
    noise = random.Random(7).randbytes(400_000)
    store(fd, [noise])
    os.pwrite(fd, bytes([os.pread(fd, 1, 200_000)[0] ^ 1]), 200_000)
    with pytest.raises(FormatError, match="damaged"):
        list(read_core(fd))


def test_read_core_shorter_than_promised_is_told(fd: int) -> None:
    store(fd, [b"x" * 100])
    with pytest.raises(FormatError, match="ends after 100 of 101"):
        list(read_core(fd, 101))


def test_repair_cut_anywhere_gives_a_readable_beginning(fd: int, tmp_path: Path) -> None:
    core = mixed(3)
    store(fd, [core])
    whole = os.pread(fd, os.fstat(fd).st_size, 0)
    lengths: list[int] = []
    for cut in [
        *range(0, 40),
        *range(40, len(whole), 4999),
        *range(len(whole) - 40, len(whole) + 1),
    ]:
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        cut_fd = os.open(path, os.O_RDWR)
        size = repair(cut_fd)
        assert size == os.fstat(cut_fd).st_size
        read = b"".join(read_core(cut_fd))
        assert core.startswith(read)
        assert repair(cut_fd) == size, "mending twice changes nothing"
        lengths.append(len(read))
        os.close(cut_fd)
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(core)
