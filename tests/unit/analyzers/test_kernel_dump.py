"""What the worker says of compressed dumps; in its sandbox: tests/system/test_kerneldump.py."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crashd.analysisresult import parse_dump_report
from crashd.analyzers.kernel_dump import ZSTD_WINDOW_MAX, analyse, load_lz4
from crashd.domain.kdump.stream import Unpacked
from crashd.errors import FormatError
from tests.builders.kdumpdir import KdumpFormat, flatten, lz4_frame

PLAIN = KdumpFormat(pages=[random.Random(n).randbytes(4000) for n in range(300)]).build()
FLAT = flatten(PLAIN)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
}


def report(path: Path, data: bytes) -> Unpacked:
    path.write_bytes(data)
    with path.open("rb") as file:
        return parse_dump_report(json.dumps(analyse(file.fileno(), load_lz4())).encode())


@pytest.mark.parametrize("name", COMPRESSORS)
def test_whole_stream_gives_what_is_inside(tmp_path: Path, name: str) -> None:
    found = report(tmp_path / "dump", COMPRESSORS[name](PLAIN))
    assert (found.cut, found.size_bytes, found.flattened) == (False, len(PLAIN), False)
    assert found.least == (len(PLAIN), "pages", True)
    found = report(tmp_path / "dump", COMPRESSORS[name](FLAT))
    assert (found.cut, found.flattened, found.flat_ended) == (False, True, True)
    assert found.head == PLAIN[: 2**20]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_whole_stream_around_a_cut_flattened_dump_has_no_end(tmp_path: Path, name: str) -> None:
    found = report(tmp_path / "dump", COMPRESSORS[name](FLAT[:-16]))
    assert (found.cut, found.flattened, found.flat_ended) == (False, True, False)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_stream_that_is_cut_anywhere_is_cut(tmp_path: Path, name: str) -> None:
    packed = COMPRESSORS[name](FLAT)
    for part in range(1, 10, 2):
        assert report(tmp_path / "dump", packed[: len(packed) * part // 10]).cut
    for less in (1, 4, 8, 12):
        assert report(tmp_path / "dump", packed[:-less]).cut


@pytest.mark.parametrize("name", COMPRESSORS)
def test_streams_one_after_the_other_are_one_dump(tmp_path: Path, name: str) -> None:
    compress = COMPRESSORS[name]
    packed = compress(FLAT[:5000]) + compress(FLAT[5000:9000]) + compress(FLAT[9000:])
    found = report(tmp_path / "dump", packed)
    assert (found.cut, found.size_bytes, found.flat_ended) == (False, len(FLAT), True)
    assert report(tmp_path / "dump", packed[:-1]).cut


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_follows_a_stream_makes_it_no_whole_one(tmp_path: Path, name: str) -> None:
    found = report(tmp_path / "dump", COMPRESSORS[name](FLAT) + b"more")
    assert found.cut


@pytest.mark.parametrize("name", COMPRESSORS)
def test_stream_with_a_damaged_byte_is_not_whole(tmp_path: Path, name: str) -> None:
    packed = bytearray(COMPRESSORS[name](FLAT))
    packed[len(packed) // 2] ^= 0x55
    found = report(tmp_path / "dump", bytes(packed))
    assert found.cut
    assert found.why.startswith(("damaged inside what", "cut inside what"))


@pytest.mark.skipif(load_lz4() is None, reason="no liblz4")
@pytest.mark.parametrize("data", [FLAT, FLAT[:-16]])
def test_lz4_frame_is_read_to_its_end(tmp_path: Path, data: bytes) -> None:
    # without the content checksum, which the builder does not compute
    packed = bytearray(lz4_frame(data))
    packed[4:7] = b"\x60\x70\x73"
    whole = bytes(packed[:-4])
    found = report(tmp_path / "dump", whole)
    assert (found.cut, found.why, found.size_bytes) == (False, "", len(data))
    assert found.flat_ended is (data is FLAT)
    for less in (1, 2, 3, 4, 5, 1000, len(whole) // 2):
        assert report(tmp_path / "dump", whole[:-less]).cut


def test_lz4_without_a_library_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(lz4_frame(FLAT))
    with (tmp_path / "dump").open("rb") as file:
        assert analyse(file.fileno(), None) == {"failed": "there is no liblz4 on this host"}


def test_stream_that_wants_much_memory_is_not_judged(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**26}]
    with pytest.raises(FormatError, match="xz wants more memory"):
        report(tmp_path / "dump", lzma.compress(FLAT, filters=filters))
    window_log = 25
    assert 2**window_log > ZSTD_WINDOW_MAX
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    with pytest.raises(FormatError, match="zstd wants a window"):
        report(tmp_path / "dump", header + b"\1\0\0")


def test_file_that_nothing_compressed_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no compressor"):
        report(tmp_path / "dump", FLAT)


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 2**63},
        {"size": True},
        {"cut": 1},
        {"why": None},
        {"head": "%"},
        {"head": "AAAA"},
        {"head": 5},
        {"least": [1, 2, 3]},
        {"least": [-1, "pages", True]},
    ],
)
def test_hostile_report_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "dump").write_bytes(gzip.compress(FLAT))
    with (tmp_path / "dump").open("rb") as file:
        good = analyse(file.fileno(), None)
    parse_dump_report(json.dumps(good).encode())
    with pytest.raises(FormatError):
        parse_dump_report(json.dumps({**good, **change}).encode())
