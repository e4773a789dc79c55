"""The dump of a real kernel panic and its vmlinux, both reduced by tests.builders.reducekernel."""

import os
from pathlib import Path

import zstandard

from crashd.cli.output import write_sparse
from tests.builders.kdumps import make_old

DATA = Path(__file__).parents[1] / "data/kdump"
RELEASE = "6.1.0-56-cloud-amd64"
BUILD_ID = "3b43fad5034874490492495d552c0af6a5fab235"
PACKAGE = f"linux-image-{RELEASE}-dbg"
STAMP = "202611222205"
TITLE = "Kernel panic - not syncing: sysrq triggered crash"
_CHUNK = 1 << 20


def unpack(source: Path, target: Path) -> Path:
    """Decompress a file, with holes for its zeros; root's alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with source.open("rb") as file:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
            write_sparse(fd, iter(lambda: reader.read(_CHUNK), b""))
    finally:
        os.close(fd)
    return target


def put_vmlinux(target: Path) -> Path:
    """Put the vmlinux there."""
    return unpack(DATA / "vmlinux.zst", target)


def put_vmcore(target: Path) -> Path:
    """Put the kernel's whole memory there, as /proc/vmcore has it, with holes for most pages."""
    return unpack(DATA / "vmcore.zst", target)


def put_module(target: Path) -> Path:
    """Put the file of the module softdog with its debug information there."""
    return unpack(DATA / "softdog.ko.zst", target)


def put_dump(dumps: Path, *, note: bool = True, log: bytes | None = None) -> Path:
    """Put the dump there, as kdump-tools would have; without `note` as a hypervisor writes it."""
    directory = dumps / STAMP
    directory.mkdir(mode=0o755)
    dump = unpack(DATA / "panic-elf.zst", directory / f"dump.{STAMP}")
    if not note:
        raw = bytearray(dump.read_bytes())
        at = raw.index(b"VMCOREINFO\0")
        raw[at : at + 10] = b"CORE".ljust(10, b"\0")
        dump.write_bytes(raw)
    if log is not None:
        (directory / f"dmesg.{STAMP}").write_bytes(log)
        (directory / f"dmesg.{STAMP}").chmod(0o600)
    make_old(directory)
    return directory


def find_real_vmlinux(root: Path = Path("/")) -> Path | None:
    """Find the vmlinux of PACKAGE, where it is installed."""
    path = root / f"usr/lib/debug/boot/vmlinux-{RELEASE}"
    return path if path.exists() else None
