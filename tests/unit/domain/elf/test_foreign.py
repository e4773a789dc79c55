"""Cores of other architectures, written by qemu-user and gdb; readelf and gdb are the witnesses."""

import gzip
from pathlib import Path

import pytest

from crashd.domain.elf.elfcore import head_size, move_notes, parse_head
from crashd.domain.elf.headers import Layout, split_notes

FOREIGN = Path(__file__).parents[3] / "data" / "foreign"


def read_table() -> list[list[str]]:
    """The core's name, pc, sp, thread ids, and notes with their sizes."""
    lines = (FOREIGN / "table.txt").read_text().splitlines()
    return [line.split(" | ") for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("row", read_table(), ids=lambda row: str(row[0]))
def test_parse_head_foreign_core_equals_readelf_and_gdb(row: list[str]) -> None:
    name, pc, sp, tids, notes = row
    core = gzip.decompress((FOREIGN / f"{name}.gz").read_bytes())
    raw = core[: head_size(core)]
    moved = move_notes(raw, lambda offset, size: core[offset : offset + size])
    assert (moved is raw) == name.startswith("qemu")
    head = parse_head(moved)
    assert head.problems == ()
    first = head.threads[0]
    assert (first.pc, first.sp, first.signal) == (int(pc, 16), int(sp, 16), 11)
    assert [thread.tid for thread in head.threads] == [int(tid) for tid in tids.split(" ")]
    layout = Layout(head.machine, head.bits, head.byteorder)
    found = [
        (kind, len(desc), whole)
        for offset, size in head.notes
        for _, kind, desc, whole in split_notes(moved[offset : offset + size], layout)
    ]
    assert [size for _, size, _ in found] == [int(n.split(":")[1], 16) for n in notes.split(" ")]
    assert all(whole for *_, whole in found)
