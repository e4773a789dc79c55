"""The log of a crashed kernel out of its dump: what the sealed worker reads of real and of hostile
ones.
"""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel.log import LogFailure, read_log
from crashd.domain.kernellog.printkring import KernelLog
from crashd.domain.text import printable
from tests.builders.kdumpdir import WRAPPERS, KdumpFormat, build_elf_vmcore, flatten
from tests.builders.reducedump import unflatten
from tests.running import PLAIN_CONFIG, Daemon, wait_until

DATA = Path(__file__).parents[1] / "data/kdump"
OPTIONS = AnalysisOptions(timeout_seconds=20)
FLAT = gzip.decompress((DATA / "log-only.gz").read_bytes())
LOG = gzip.decompress((DATA / "log-only.dmesg.gz").read_bytes())


def read(path: Path, data: bytes) -> KernelLog | LogFailure:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_log([fd], OPTIONS)
    finally:
        os.close(fd)


@pytest.mark.parametrize("flattened", [True, False])
def test_log_of_a_real_dump_is_what_its_maker_saved(tmp_path: Path, flattened: bool) -> None:
    log = read(tmp_path / "dump", FLAT if flattened else unflatten(FLAT))
    assert isinstance(log, KernelLog)
    assert log.text == LOG
    assert (log.records, log.skipped, log.cut) == (523, 0, False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WRAPPERS["gzip"](FLAT), "gzip compressed the dump as a whole"),
        (WRAPPERS["xz"](FLAT), "xz compressed the dump as a whole"),
        (b"", "the dump cannot be opened: "),
        (b"\0", "the dump cannot be opened: "),
        (LOG, "the dump cannot be opened: "),
        (FLAT[:5000], "the dump cannot be opened: "),
        (KdumpFormat().build(), ""),
        (flatten(KdumpFormat().build()), ""),
        (build_elf_vmcore(), "the dump cannot be opened: VMCOREINFO does not"),
        (build_elf_vmcore(vmcoreinfo=b"SYMBOL(prb)=ffffffff81000000\n"), ""),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_dump_without_a_log_to_read_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    failure = read(tmp_path / "dump", data)
    assert isinstance(failure, LogFailure)
    assert failure.reason.startswith(reason)
    assert failure.reason.isprintable()


def test_damaged_dumps_give_a_log_or_a_reason(tmp_path: Path) -> None:
    """Whatever libkdumpfile does with them, it does so in the worker."""
    noise = random.Random(4)
    dump = unflatten(FLAT)
    for number in range(8):
        damaged = bytearray(FLAT if number % 2 else dump)
        for _ in range(30):
            damaged[noise.randrange(20_000)] = noise.randrange(256)
        found = read(tmp_path / "dump", bytes(damaged))
        assert isinstance(found, KernelLog | LogFailure)


def test_sparse_file_of_a_terabyte_is_answered_in_time(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(unflatten(FLAT)[:8192])
    os.truncate(path, 1 << 40)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert isinstance(read_log([fd], OPTIONS), LogFailure)
    finally:
        os.close(fd)


def test_crash_without_a_saved_log_is_explained_from_its_dump(short_tmp: Path) -> None:
    directory = short_tmp / "var/crash/202611222205"
    directory.mkdir(parents=True)
    (directory / "dump.202611222205").write_bytes(FLAT)
    os.utime(directory / "dump.202611222205", (1_700_000_000, 1_700_000_000))
    with Daemon(short_tmp, "--no-register", config=PLAIN_CONFIG) as daemon:
        wait_until(lambda: [bool(c["signature"]) for c in daemon.seen()] == [True], 30, "its log")
        (crash,) = daemon.crashes()
        assert crash["state"] == "complete"
        assert crash["kernel"]["panic_kind"] == "sysrq"
        assert crash["kernel"]["release"] == "6.1.0-56-cloud-amd64"
        told = json.loads(daemon.crashctl("info", "--json", crash["id"]).stdout)
        assert told["log"] == [printable(line) for line in LOG.decode().splitlines()]
