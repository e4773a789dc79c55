"""Cores that lie about every size and count, and files that unpack to a thousand times their own:
what they cost is bounded, in each parser by itself and through the real handler, daemon and store.
"""

import contextlib
import json
import os
import resource
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from crashd.domain.elf.elfcore import executable_range, head_size, parse_head
from crashd.domain.elf.minicore import plan_mini
from crashd.domain.elf.zstdframes import BLOCK_MAX, MAGIC, build_hole
from crashd.domain.kdump.vmcore import TAIL_SIZE, judge
from crashd.errors import CrashdError, FormatError
from crashd.store.corefile import read_core, repair, unzstd
from crashd.store.coreread import StoredCore
from crashd.store.handlerfile import install_handler
from tests.builders.elfcore import CoreFormat, CoreSegment, build_core, build_notes
from tests.integration.handler import start_handler
from tests.integration.test_daemon import CORE, SHORT
from tests.running import PLAIN_CONFIG, Daemon

MIB = 1 << 20
GIB = 1 << 30
BOMB_BYTES = 10 * GIB
MEMORY_BYTES = 256 * MIB
SECONDS = 5
FORM = CoreFormat()
NT_FILE = 0x46494C45


def within_bounds(act: Callable[[], object], seconds: int = SECONDS) -> None:
    """Do it in a child that is given no more memory and CPU time; it may refuse in our words."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            act()
            status = 0
        except CrashdError:
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def overlapping(kind: int, count: int, size: int) -> bytes:
    """Build a core with many segments that are all of the same bytes."""
    start = len(FORM.ehdr(0)) + count * FORM.phdr_size
    phdrs = FORM.phdr(kind, start, size, vaddr=0x1000) * count
    return FORM.ehdr(count) + phdrs + build_notes(FORM) * (size // len(build_notes(FORM)))


def many_headers(count: int) -> bytes:
    """Build a core that says that so many program headers come before its notes."""
    end = 64 + count * FORM.phdr_size
    first = FORM.phdr(4, end, 100) + FORM.phdr(1, end + 4096, 4096)
    return (FORM.ehdr(0xFFFF) + first).ljust(min(end, 33 * MIB), b"\1")


def noted(kind: int, desc: bytes, descsz: int | None = None) -> bytes:
    notes = build_notes(FORM) + FORM.note(kind, desc, descsz=descsz)
    return build_core(notes=notes, segments=[CoreSegment(0x1000, b"x" * 4096)])


LIARS: dict[str, Callable[[], bytes]] = {
    "phnum": lambda: FORM.ehdr(0xFFFF) + FORM.phdr(4, 1 << 60, 1 << 60) * 2,
    "phnum-all": lambda: many_headers(500_000),
    "phnum-past": lambda: many_headers(1 << 40),
    "descsz": lambda: noted(6, b"x" * 64, 0xFFFFFFFF),
    "descsz-all": lambda: build_core(notes=FORM.note(1, b"", descsz=0xFFFFFFFF) * 100_000),
    "files": lambda: noted(NT_FILE, FORM.files([(1, 2, 3, b"/x")], count=1 << 60)),
    "files-names": lambda: noted(NT_FILE, FORM.files([], count=1 << 60) + bytes(8 * MIB)),
    "loads": lambda: overlapping(1, 60_000, 1 << 16),
    "notes": lambda: overlapping(4, 60_000, MIB),
    "sizes": lambda: FORM.ehdr(3) + FORM.phdr(1, 1 << 62, 1 << 62) * 3,
}


def parse_all(raw: bytes) -> None:
    """Do what the daemon does with a core's head."""
    head_size(raw)
    head = parse_head(raw)
    executable_range(head)
    plan_mini(head, raw, None)


@pytest.mark.parametrize("liar", list(LIARS))
def test_sec_33_core_that_lies_costs_no_more_than_its_bytes(liar: str) -> None:
    raw = LIARS[liar]()
    within_bounds(partial(parse_all, raw))
    within_bounds(partial(judge, raw, len(raw), raw[-TAIL_SIZE:], unzstd))


def test_sec_33_head_that_says_it_is_endless_is_not_waited_for() -> None:
    with pytest.raises(FormatError, match="more than"):
        head_size(many_headers(1 << 40))


def one_frame() -> bytes:
    """Build 10 GiB of zeros as one frame, which no hole of ours is, but for its checksum's bit."""
    block = ((BLOCK_MAX << 3) | 2).to_bytes(3, "little") + b"\0"
    return MAGIC + bytes([4, 7 << 3]) + block * (BOMB_BYTES // BLOCK_MAX)


BOMBS = {"holes": lambda: build_hole(BOMB_BYTES), "one-frame": one_frame}


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_sec_33_bomb_is_unpacked_no_further_than_asked(tmp_path: Path, bomb: str) -> None:
    raw = BOMBS[bomb]()
    assert len(raw) < MIB
    path = tmp_path / "core.zst"
    path.write_bytes(raw)
    fd = os.open(path, os.O_RDWR)

    def read_some() -> None:
        stored = StoredCore(fd)
        with contextlib.suppress(MemoryError):  # as in the sandbox, where it is a result
            for offset in range(0, 11 * GIB, GIB):
                stored.read(offset, 4096)

    try:
        within_bounds(lambda: unzstd(raw, MIB), 1)
        within_bounds(lambda: judge(raw, len(raw), raw[-TAIL_SIZE:], unzstd), 2)
        within_bounds(read_some, 30)
        within_bounds(lambda: sum(len(chunk) for chunk in read_core(fd)), 30)
        within_bounds(lambda: repair(fd))
    finally:
        os.close(fd)


def peak_bytes(pid: int) -> int:
    """The most memory that a process or one of those it started had at once; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0
    peak = status.partition("VmHWM:")[2].split()  # a zombie has none
    children: list[int] = []
    for task in tasks:
        with contextlib.suppress(OSError):  # the thread ended meanwhile
            children += map(int, (task / "children").read_text().split())
    return max([int(peak[0]) << 10 if peak else 0, *map(peak_bytes, children)])


def test_sec_33_liars_and_bombs_through_the_real_store(short_tmp: Path) -> None:
    with Daemon(short_tmp / "r", "--no-register", config=PLAIN_CONFIG) as daemon:
        install_handler(daemon.paths)
        before = peak_bytes(daemon.pid)
        for make in LIARS.values():
            run = start_handler(daemon.paths, SHORT)
            run.feed(make())
            assert run.wait() == 0
        found = daemon.wait_for(len(LIARS), seconds=60)
        for crash in found:
            told = json.loads(daemon.crashctl("info", "--json", crash["id"]).stdout)["warnings"]
            assert [text for text in told if text.startswith("core: ")] or crash[
                "state"
            ] != "complete"
        run = start_handler(daemon.paths, SHORT)
        run.feed(CORE)
        (last,) = (c for c in daemon.wait_for(len(LIARS) + 1) if c["id"] not in str(found))
        assert last["state"] == "complete"
        assert peak_bytes(daemon.pid) - before < MEMORY_BYTES
        for make in BOMBS.values():
            (daemon.paths.crashes / last["id"] / "core.zst").write_bytes(make())
            began = time.monotonic()
            done = daemon.crashctl("analyze", last["id"], check=False)
            assert time.monotonic() - began < 60
            assert "Traceback" not in done.stdout + done.stderr
        shown = json.loads(daemon.crashctl("info", "--json", last["id"]).stdout)
        assert shown["analysis"]["state"] in ("failed", "done")
        assert "Ready: yes" in daemon.crashctl("status", check=False).stdout
        assert peak_bytes(daemon.pid) - before < MEMORY_BYTES
