import os
from pathlib import Path

import pytest

from crashd.domain.kdump.ready import KdumpFacts, Target
from crashd.edge.host.kdumpfacts import read_details
from tests.builders.elfcore import CoreFormat
from tests.builders.kdumpdir import KdumpFormat, build_elf_vmcore, flatten

FACTS = KdumpFacts(
    loaded=True,
    reserved_bytes=256 << 20,
    cmdline=b"",
    ram_bytes=4 << 30,
    targets=(Target("/var/crash", True),),
)
FLAT = flatten(KdumpFormat().build())


@pytest.fixture
def crash(tmp_path: Path) -> Path:
    directory = tmp_path / "var/crash"
    directory.mkdir(parents=True)
    return directory


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_size_of_the_newest_dumps_of_this_host_is_learnt(tmp_path: Path, crash: Path) -> None:
    assert read_details(tmp_path, FACTS).dump_bytes is None
    put(crash / "202601010101/dump.202601010101", bytes(900))  # older than the newest three
    put(crash / "202601010102/dump.202601010102", bytes(300))
    put(crash / "202601010103/dump.202601010103", bytes(500))
    put(crash / "202601010103/dmesg.202601010103", bytes(5000))
    put(crash / "202601010104/dump-incomplete", bytes(200))
    put(crash / "other-202601010105/dump.202601010105", bytes(9000))
    assert read_details(tmp_path, FACTS).dump_bytes == 500


def test_plain_dumps_are_named_and_nothing_else(tmp_path: Path, crash: Path) -> None:
    core = CoreFormat().ehdr(1) + bytes(4096)
    put(crash / "vmcore", FLAT)
    put(crash / "mine", KdumpFormat().build())
    put(crash / "vm1-2026-01-02-03:04:05", build_elf_vmcore())
    put(crash / "core.1234", core)
    put(crash / "_usr_bin_x.0.crash", FLAT)
    put(crash / "kexec_cmd", FLAT)
    put(crash / "notes.txt", b"words")
    put(crash / "vmcore-dmesg.txt", b"words")
    os.mkfifo(crash / "vmcore.1")
    os.symlink("vmcore", crash / "vmcore.2")
    found = read_details(tmp_path, FACTS).plain_dumps
    assert sorted(found) == [
        "/var/crash/mine",
        "/var/crash/vm1-2026-01-02-03:04:05",
        "/var/crash/vmcore",
    ]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (b"lzo\tenabled\0snappy\tdisabled\0zstd\tdisabled", frozenset({"lzo"})),
        (b"lzo\tenabled\0snappy\tdisabled\0zstd\tenabled", frozenset({"lzo", "zstd"})),
    ],
)
def test_what_makedumpfile_can_compress_with_is_read_from_it(
    tmp_path: Path, crash: Path, program: bytes, expected: frozenset[str]
) -> None:
    assert read_details(tmp_path, FACTS).compressions is None
    put(tmp_path / "usr/bin/makedumpfile", b"\x7fELF" + program)
    assert read_details(tmp_path, FACTS).compressions == expected


def test_directories_that_the_unit_may_not_write_to_are_denied(tmp_path: Path, crash: Path) -> None:
    (tmp_path / "data").mkdir()
    assert read_details(tmp_path, FACTS, ["/data", "/none"]).denied == ()
    unit = b"[Service]\nProtectSystem=strict\nReadWritePaths=-/var/crash\n"
    put(tmp_path / "usr/lib/systemd/system/crashd.service", unit)
    found = read_details(tmp_path, FACTS, ["/data", "/none"])
    assert found.denied == ("/data",)
    drop_in = tmp_path / "etc/systemd/system/crashd.service.d/x.conf"
    put(drop_in, b"[Service]\nReadWritePaths=/data\n")
    assert read_details(tmp_path, FACTS, ["/data"]).denied == ()


def test_initramfs_of_the_capture_kernel_is_measured(tmp_path: Path, crash: Path) -> None:
    assert read_details(tmp_path, FACTS).initrd_bytes is None
    put(tmp_path / f"var/lib/kdump/initrd.img-{os.uname().release}", bytes(77))
    assert read_details(tmp_path, FACTS).initrd_bytes == 77
