"""The memory engine's core is the kernel's, to the byte, for every kind of memory there is."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd import registration
from crashd.store.paths import Paths
from tests.system.bothways import Comparison, Impostor

SOURCES = Path(__file__).parent / "programs"
MIB = 1 << 20


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program with every kind of memory."""
    program = tmp_path_factory.mktemp("zoo") / "zoo"
    source = SOURCES / "zoo.c"
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-w", "-o", program, source], check=True)
    return program


@pytest.fixture
def impostor(short_tmp: Path, core_pattern_owner: None) -> Iterator[Impostor]:
    """This process, registered with the kernel; the sysctls are put back after the test."""
    del core_pattern_owner

    def register(paths: Paths) -> None:
        registration.register(paths, 64)

    running = Impostor(short_tmp / "r", register)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def scratch(short_tmp: Path) -> Path:
    """A directory for the programs' files."""
    directory = short_tmp / "files"
    directory.mkdir()
    return directory


@contextlib.contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """Set a sysctl, and put it back."""
    path = Path("/proc/sys") / name.replace(".", "/")
    before = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


def check(found: Comparison, missed_bytes: int = 0) -> None:
    """Check that both are the same, and that memory was read at all."""
    assert found.doubt is None
    assert found.difference is None
    assert found.missed_bytes == missed_bytes
    assert found.size_bytes > 0


CASES = ["plain", "threads", "sparse", "shared", "files", "thp", "stack", "dontdump", "protections"]
CASES += ["mappings", "leader-ended", "dense", "sparse-shared", "guards", "uffd-missing"]


@pytest.mark.parametrize("case", CASES)
def test_memory_and_stream_are_the_same(
    impostor: Impostor, zoo: Path, scratch: Path, case: str
) -> None:
    found = impostor.crash([str(zoo), case, str(scratch)])
    check(found)
    if case == "sparse":
        assert found.size_bytes > 2000 * MIB
        assert found.hole_bytes > 1900 * MIB, "read what was never touched"
    if case == "sparse-shared":
        assert found.hole_bytes > 1000 * MIB, "read what no file has"
    if case == "mappings":
        assert found.extents > 1000


def test_execute_only_memory_is_read_although_the_kernel_may_leave_it_out(
    impostor: Impostor, zoo: Path
) -> None:
    """With protection keys, mprotect(PROT_EXEC) takes the right to read, also from the kernel's own
    dump, which writes zeros (pkeys(7); get_dump_page() of Linux 6.18).
    """
    has_keys = " ospke" in Path("/proc/cpuinfo").read_text()
    found = impostor.crash([str(zoo), "execute-only"])
    check(found, MIB if has_keys and found.missed_bytes else 0)


SCANNED = ["sparse", "thp", "protections", "mappings", "shared", "sparse-shared", "guards"]


@pytest.mark.parametrize("case", SCANNED)
def test_pagemap_itself_gives_the_same_where_it_cannot_be_scanned(
    impostor: Impostor, zoo: Path, scratch: Path, case: str
) -> None:
    check(impostor.crash([str(zoo), case, str(scratch)], scans=False))


def test_pages_that_a_program_brings_are_left_to_the_stream(impostor: Impostor, zoo: Path) -> None:
    start = time.monotonic()
    found = impostor.crash([str(zoo), "uffd-minor"])
    assert found.doubt is not None and "userfaultfd" in found.doubt
    assert time.monotonic() - start < 10, "waited for pages that nobody brings"


@pytest.mark.parametrize("bit", [None, *range(9)])
def test_every_bit_of_coredump_filter(
    impostor: Impostor, zoo: Path, scratch: Path, bit: int | None
) -> None:
    value = 0x1FF if bit is None else 1 << bit
    check(impostor.crash([str(zoo), f"filter-{value:#x}", str(scratch)]))


def test_swapped_pages(impostor: Impostor, zoo: Path, short_tmp: Path) -> None:
    disk = short_tmp / "swap"
    with disk.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 128 * MIB)
    disk.chmod(0o600)
    subprocess.run(["mkswap", disk], check=True, capture_output=True)
    loop = subprocess.run(
        ["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        subprocess.run(["swapon", loop], check=True)
        try:
            before = Path("/proc/vmstat").read_text()
            check(impostor.crash([str(zoo), "swapped"]))
            after = Path("/proc/vmstat").read_text()
            assert _swapped(after) > _swapped(before) + 1000, "nothing was swapped"
        finally:
            subprocess.run(["swapoff", loop], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def _swapped(vmstat: str) -> int:
    """Pages swapped out since boot."""
    return next(int(line.split()[1]) for line in vmstat.splitlines() if line.startswith("pswpout "))


def test_process_in_a_user_namespace(impostor: Impostor, zoo: Path, short_tmp: Path) -> None:
    short_tmp.chmod(0o711)
    zoo = Path(shutil.copy(zoo, short_tmp / "anyones"))
    inside = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    check(impostor.crash([*inside, "unshare", "--user", "--map-root-user", str(zoo), "dense"]))


def test_process_in_a_pid_namespace(impostor: Impostor, zoo: Path) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", f"{zoo} dense; exit 139"]
    check(impostor.crash(command))


def test_32_bit_program(impostor: Impostor, tmp_path: Path) -> None:
    program = tmp_path / "tiny32"
    flags = ["-m32", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-O1"]
    flags += ["-fno-stack-protector"]
    subprocess.run(["gcc", *flags, "-o", program, SOURCES / "tiny32.c"], check=True)
    found = impostor.crash([str(program)])
    check(found)
    assert found.head[4] == 1, "ELFCLASS32"


def test_more_segments_than_an_elf_header_can_count(impostor: Impostor, zoo: Path) -> None:
    with sysctl("vm.max_map_count", "80000"):
        found = impostor.crash([str(zoo), "mappings-max"])
    check(found)
    assert found.extents > 70_000


def test_segments_sorted_by_size(impostor: Impostor, zoo: Path, scratch: Path) -> None:
    if not Path("/proc/sys/kernel/core_sort_vma").exists():
        pytest.skip("kernel.core_sort_vma is not there (before Linux 6.14)")
    with sysctl("kernel.core_sort_vma", "1"):
        check(impostor.crash([str(zoo), "sparse", str(scratch)]))


def test_huge_pages_of_hugetlbfs_are_left_to_the_stream(impostor: Impostor, zoo: Path) -> None:
    with sysctl("vm.nr_hugepages", "8"):
        found = impostor.crash([str(zoo), "hugetlb"])
    assert found.doubt is not None
    assert "hugetlbfs" in found.doubt
    assert found.size_bytes > 4 * MIB
