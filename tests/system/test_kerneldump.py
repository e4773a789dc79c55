"""Compressed kernel dumps with the sealed worker: judged by their end, in bounded memory."""

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crashd.analysisresult import parse_dump_report
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.unpack import MEMORY_BYTES, unpack
from crashd.domain.kdump.stream import Unpacked
from crashd.edge.sandbox.start import run_worker
from tests.builders.kdumpdir import KdumpFormat, flatten
from tests.builders.kdumps import kernel_log, make_old, put, save
from tests.running import PLAIN_CONFIG, Daemon, wait_until

NOISE = random.Random(7)
FLAT = flatten(KdumpFormat(pages=[NOISE.randbytes(4000) for _ in range(300)]).build())
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
GIB = 1 << 30


@pytest.mark.parametrize("name", COMPRESSORS)
def test_worker_reads_a_compressed_dump_to_its_end(tmp_path: Path, name: str) -> None:
    for data, cut, ended in (
        (COMPRESSORS[name](FLAT), False, True),
        (COMPRESSORS[name](FLAT[:-16]), False, False),
        (COMPRESSORS[name](FLAT)[:-20], True, False),
    ):
        (tmp_path / "dump").write_bytes(data)
        with (tmp_path / "dump").open("rb") as file:
            found = unpack(file.fileno(), AnalysisOptions())
        assert isinstance(found, Unpacked)
        assert (found.cut, found.flat_ended and not found.cut) == (cut, ended)


def test_dump_of_4_gib_is_judged_in_64_mib(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    header = FLAT[:4096] + (0).to_bytes(8, "big") + (4 * GIB).to_bytes(8, "big")
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        writer.write(header)
        zeros = bytes(64 << 20)
        for _ in range(4 * GIB // len(zeros)):
            writer.write(zeros)
        writer.write(b"\xff" * 16)
    request = {"task": "kernel dump", "cpu_seconds": 120, "memory_bytes": MEMORY_BYTES}
    with path.open("rb") as dump:
        result = run_worker(request, dump.fileno(), 400)
    assert result.failure is None
    found = parse_dump_report(result.output)
    assert (found.cut, found.flat_ended, found.size_bytes) == (
        False,
        True,
        len(header) + 4 * GIB + 16,
    )
    assert result.peak_bytes <= 64 << 20


def test_dump_that_is_not_surely_whole_deletes_no_other(short_tmp: Path) -> None:
    """KDUMP_NUM_DUMPS=1, and makedumpfile died behind kdump-tools' pipe to a compressor."""
    dumps = short_tmp / "var/crash"
    dumps.mkdir(parents=True)
    conf = short_tmp / "etc/default/kdump-tools"
    conf.parent.mkdir(parents=True)
    conf.write_text("USE_KDUMP=1\nKDUMP_NUM_DUMPS=1\n")
    save(dumps, "202601010101")
    stream = lzma.compress(FLAT, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}])
    kinds = [(name, compress(FLAT[:-16])) for name, compress in COMPRESSORS.items()]
    kinds += [("gz", gzip.compress(FLAT)[:-9]), ("xz", stream)]
    for number, (extension, data) in enumerate(kinds):
        directory = dumps / f"20260101011{number}"
        directory.mkdir()
        put(directory / f"dump.{directory.name}.{extension}", data)
        put(directory / f"dmesg.{directory.name}", kernel_log())
        make_old(directory)
    with Daemon(short_tmp, "--no-register", config=PLAIN_CONFIG) as daemon:
        wait_until(lambda: len(daemon.seen()) == len(kinds) + 1, 120, "all are judged")
        found = {Path(c["kernel"]["path"]).name: c for c in daemon.crashes()}
        assert (dumps / "202601010101").exists()
        assert [c["state"] for c in found.values()].count("complete") == 1
        assert found["202601010115"]["kernel"]["dump_state"] == "not known"
        assert "is not known" in found["202601010115"]["capture"]["reason"]
        whole = dumps / "202601010120"
        whole.mkdir()
        put(whole / f"dump.{whole.name}.gz", gzip.compress(FLAT))
        put(whole / f"dmesg.{whole.name}", kernel_log())
        make_old(whole)
        os.utime(whole, (1_700_000_500,) * 2)
        (dumps / "poke").mkdir()
        wait_until(lambda: not (dumps / "202601010101").exists(), 60, "a whole one counts")
