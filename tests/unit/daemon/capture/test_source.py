"""Plans for a core of which only the head has arrived."""

from typing import Any

import pytest

from crashd.daemon.capture.source import CoreSource
from crashd.domain.elf.elfcore import head_size, parse_head
from crashd.domain.elf.minicore import MINI_MAX
from tests.builders.elfcore import CoreSegment, build_core


@pytest.mark.parametrize("notes_last", [False, True])
def test_plan_mini_without_the_notes_is_none(notes_last: bool) -> None:
    """A mini core of gcore's would have no threads, because its notes come after the memory."""
    core = build_core(segments=[CoreSegment(0x1000, bytes(8192))], notes_last=notes_last)
    raw = core[: head_size(core)]
    unused: Any = None
    source = CoreSource(unused, raw, parse_head(raw), unused, unused)
    assert (source.plan_mini(MINI_MAX) is None) == notes_last
