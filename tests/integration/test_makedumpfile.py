"""Dumps that a real makedumpfile makes of a real kernel's memory, in each of its forms: whole, and
cut at ten places.

The memory is reduced (tests.builders.reducevmcore) to what makedumpfile needs, log and symbols.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crashd.cli.open.kerneldump import read_joined
from crashd.daemon.kernel.look import find_missing_part
from crashd.domain.kdump.vmcore import HEAD_SIZE, Completeness, DumpVerdict, judge
from crashd.store.corefile import unzstd
from tests.builders.kernel import put_vmcore

PAGE = 4096

pytestmark = pytest.mark.skipif(
    shutil.which("makedumpfile") is None, reason="makedumpfile is not installed"
)


def makedumpfile(*arguments: str | Path, stdin: Path | None = None) -> bytes:
    with open(stdin or os.devnull, "rb") as file:
        done = subprocess.run(
            ["makedumpfile", *arguments], stdin=file, capture_output=True, check=True, timeout=120
        )
    return done.stdout


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a kernel's memory as /proc/vmcore has it."""
    return put_vmcore(tmp_path_factory.mktemp("elf") / "elf")


@pytest.fixture(scope="module")
def vmcore(elf: Path) -> Path:
    """Give the dump that kdump-tools makes of it, in order, so that others can be made of it."""
    path = elf.with_name("vmcore")
    makedumpfile("-c", "-d", "31", elf, path)
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


def test_parts_are_joined_as_makedumpfile_does(vmcore: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{number}" for number in range(4)]
    makedumpfile("--split", "-c", "-d", "31", vmcore, *parts)
    makedumpfile("--reassemble", *parts, tmp_path / "theirs")
    theirs = (tmp_path / "theirs").read_bytes()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in reversed(parts)]
        ours = b"".join(read_joined(file.fileno() for file in files))
    assert len(ours) == len(theirs)
    assert ours[2 * PAGE :] == theirs[2 * PAGE :]  # the sub-header names the range of all pages
    (tmp_path / "ours").write_bytes(ours)
    check(tmp_path / "ours")
