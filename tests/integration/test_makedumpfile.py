"""Dumps that a real makedumpfile makes of a real kernel's memory, in each of its forms: whole, and
cut at ten places.

The memory is that of a dump outside of the tree, too large for it: CRASHD_TEST_DUMP names another
flattened one. Where there is none, or no makedumpfile, unit tests on recorded heads remain.
"""

import os
import shutil
import subprocess
import zlib
from pathlib import Path
from struct import pack, unpack

import pytest

from crashd.daemon.kernel.look import find_missing_part
from crashd.domain.kdump.diskdump import parse_diskdump
from crashd.domain.kdump.vmcore import HEAD_SIZE, Completeness, DumpVerdict, judge
from crashd.store.corefile import unzstd

SHARED = Path(__file__).parents[3] / "shared/data/kdump/default-m512/202611222205"
DUMP = Path(os.environ.get("CRASHD_TEST_DUMP", SHARED / "dump.202611222205"))
PAGE = 4096

pytestmark = pytest.mark.skipif(
    shutil.which("makedumpfile") is None or not DUMP.exists(),
    reason="no makedumpfile, or no real dump to make others of",
)


def makedumpfile(*arguments: str | Path, stdin: Path | None = None) -> bytes:
    with open(stdin or os.devnull, "rb") as file:
        done = subprocess.run(
            ["makedumpfile", *arguments], stdin=file, capture_output=True, check=True, timeout=120
        )
    return done.stdout


@pytest.fixture(scope="module")
def vmcore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the real dump, put in order."""
    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    makedumpfile("-R", path, stdin=DUMP)
    return path


@pytest.fixture(scope="module")
def elf(vmcore: Path) -> Path:
    """Give the same memory as /proc/vmcore has it; what the dump left out are holes."""
    raw = vmcore.read_bytes()
    dump = parse_diskdump(raw[:HEAD_SIZE])
    notes = raw[dump.notes[0] : sum(dump.notes)]
    size = dump.bitmap_blocks // 2 * PAGE
    bits = int.from_bytes(raw[dump.descriptors_at - size : dump.descriptors_at], "little")
    path = vmcore.with_name("elf")
    first = 64 + 2 * 56
    start = -(-(first + len(notes)) // PAGE) * PAGE
    memory = dump.max_mapnr * PAGE
    at = dump.descriptors_at
    with path.open("wb") as file:
        ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
        file.write(ident + pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0))
        file.write(pack("<IIQQQQQQ", 4, 0, first, 0, 0, len(notes), len(notes), 0))
        file.write(pack("<IIQQQQQQ", 1, 7, start, 0, 0, memory, memory, 0))
        file.write(notes)
        file.truncate(start + memory)
        for frame in range(dump.max_mapnr):
            if not bits >> frame & 1:
                continue
            offset, length, flags, _ = unpack("<QIIQ", raw[at : at + 24])
            at += 24
            data = raw[offset : offset + length]
            file.seek(start + frame * PAGE)
            file.write(zlib.decompress(data) if flags & 1 else data)
    return path


def judged(path: Path, size: int) -> DumpVerdict:
    """Judge a file as if it ended at `size`."""
    with path.open("rb") as file:

        def read(at: int, length: int) -> bytes:
            return os.pread(file.fileno(), max(0, min(length, size - at)), at)

        tail_at = max(0, size - 4096)
        head, tail = read(0, HEAD_SIZE), read(tail_at, 4096)
        return judge(head, size, tail, unzstd, read=read)


def check(path: Path) -> None:
    """Judge a dump whole and cut at ten places: only whole it is surely complete."""
    size = path.stat().st_size
    verdict = judged(path, size)
    assert (verdict.completeness, verdict.reason) == (Completeness.COMPLETE, "")
    assert verdict.sure
    places = [size - 1, size - 16, size - 4096, *(size * part // 8 for part in range(1, 8))]
    for place in places:
        cut = judged(path, place)
        assert cut.completeness is Completeness.INCOMPLETE, (place, cut)


@pytest.mark.parametrize(
    "arguments",
    ["-c -d 31", "-l -d 31", "-p -d 31", "-z -d 31", "-d 31", "-c -d 0", "-c -d 1"],
)
def test_kdump_compressed_form_is_judged_right(
    vmcore: Path, tmp_path: Path, arguments: str
) -> None:
    makedumpfile(*arguments.split(), vmcore, tmp_path / "dump")
    check(tmp_path / "dump")


@pytest.mark.parametrize("arguments", ["-E -d 31", "-E -d 1"])
def test_elf_form_is_judged_right(elf: Path, tmp_path: Path, arguments: str) -> None:
    makedumpfile(*arguments.split(), elf, tmp_path / "dump")
    check(tmp_path / "dump")


@pytest.mark.parametrize("arguments", ["-F -c -d 31", "-F -E -d 31"])
def test_flattened_form_is_judged_right(elf: Path, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "dump").write_bytes(makedumpfile(*arguments.split(), elf))
    check(tmp_path / "dump")


def test_split_form_is_judged_right(vmcore: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{number}" for number in range(3)]
    makedumpfile("--split", "-c", "-d", "31", vmcore, *parts)
    verdicts = [judged(part, part.stat().st_size) for part in parts]
    assert all(verdict.completeness is Completeness.COMPLETE for verdict in verdicts)
    heads = [verdict.head for verdict in verdicts if verdict.head is not None]
    assert find_missing_part(heads) == ""
    empty = [head for head in heads if head.split and head.split[0] == head.split[1]]
    for left_out in heads:
        rest = [head for head in heads if head is not left_out]
        assert bool(find_missing_part(rest)) is (left_out not in empty)
    check(parts[0])
