"""Dump directories on disk, as each maker writes them, slowly where a test wants to look on."""

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.builders.kdumpdir import VMCOREINFO, KdumpFormat, build_elf_vmcore, flatten

DMESG = Path(__file__).parents[1] / "data" / "dmesg"
OLD_S = 1_700_000_000
"""A time at which nobody is still writing."""


def kernel_log(name: str = "gpf") -> bytes:
    """Give a real kernel's log."""
    return gzip.decompress((DMESG / f"{name}.gz").read_bytes())


@dataclass(frozen=True, slots=True)
class Maker:
    """How one maker saves a dump: names before and after, and the dump's bytes."""

    directory: str
    unfinished: str
    dump: str
    log: str
    data: bytes
    log_first: bool = False
    readme: bool = False


MAKERS = {
    "kdump-tools": Maker(
        "202601020304",
        "dump-incomplete",
        "dump.202601020304",
        "dmesg.202601020304",
        flatten(KdumpFormat().build()),
    ),
    "kdump-utils": Maker(
        "127.0.0.1-2026-01-02-03:04:05",
        "vmcore-incomplete",
        "vmcore",
        "vmcore-dmesg.txt",
        KdumpFormat(version=6).build(),
        log_first=True,
    ),
    "suse-kdump": Maker(
        "2026-01-02-03-04",
        "vmcore",
        "vmcore",
        "dmesg.txt",
        build_elf_vmcore(),
        log_first=True,
        readme=True,
    ),
    "sonic": Maker(
        "202601020305",
        "kdump.dump-incomplete",
        "kdump.202601020305",
        "dmesg.202601020305",
        flatten(KdumpFormat().build()),
    ),
}
"""What DESIGN section 5 says of each."""


def put(path: Path, data: bytes) -> None:
    """Write a file as root's kdump does."""
    path.write_bytes(data)
    path.chmod(0o600)


def capture(root: Path, maker: Maker, log: bytes) -> Iterator[str]:
    """Save a dump as a maker does, step by step: yields `begun`, `half` and `done`."""
    directory = root / maker.directory
    directory.mkdir(mode=0o755)
    readme = directory / "README.txt"
    if maker.readme:
        put(readme, b"If you see this text the crash dump is likely incomplete\n")
    yield "begun"
    if maker.log_first:
        put(directory / maker.log, log)
    put(directory / maker.unfinished, maker.data[: len(maker.data) // 2])
    yield "half"
    with (directory / maker.unfinished).open("ab") as file:
        file.write(maker.data[len(maker.data) // 2 :])
    os.rename(directory / maker.unfinished, directory / maker.dump)
    if not maker.log_first:
        put(directory / maker.log, log)
    if maker.readme:
        put(readme, b"Kernel crashdump\n----------------\n")
    yield "done"


def save(root: Path, stamp: str, log: bytes | None = None, *, cut: bool = False) -> Path:
    """Put a finished dump of kdump-tools there, of long ago; `cut` leaves its end out."""
    directory = root / stamp
    directory.mkdir(mode=0o755)
    # the stamp is the crash's time, in minutes of an invented calendar: it only has to grow
    crashed_s = 1_500_000_000 + int(stamp) % 10**8
    info = VMCOREINFO.replace(b"CRASHTIME=1700000000", b"CRASHTIME=%d" % crashed_s)
    dump = flatten(KdumpFormat(vmcoreinfo=info).build(), end=not cut)
    put(directory / f"dump.{stamp}", dump)
    put(directory / f"dmesg.{stamp}", kernel_log() if log is None else log)
    make_old(directory)
    return directory


def make_old(directory: Path) -> None:
    """Date a directory and its files back."""
    for path in (*directory.iterdir(), directory):
        os.utime(path, (OLD_S, OLD_S), follow_symlinks=False)
