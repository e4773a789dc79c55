"""The table of functions that have unwind information."""

from struct import pack

import pytest

from crashd.domain.elf.ehframe import UnwindTable

AT = 0x40_2000
FUNCTIONS = [(0x40_1000, 0x20), (0x40_1020, 0x100), (0x40_1400, 0x10)]


def build_table(prefix: bytes = bytes((1, 0x1B, 3, 0x3B))) -> bytes:
    """Build .eh_frame_hdr, followed by an FDE for each function."""
    rows = AT + 12
    fdes = rows + 8 * len(FUNCTIONS)
    out = pack("<4siI", prefix, 0, len(FUNCTIONS))
    for index, (start, _) in enumerate(FUNCTIONS):
        out += pack("<ii", start - AT, fdes + 16 * index - AT)
    for index, (start, size) in enumerate(FUNCTIONS):
        at = fdes + 16 * index
        out += pack("<IIiI", 12, 4, start - (at + 8), size)
    return out


def table(raw: bytes) -> UnwindTable:
    return UnwindTable(lambda at, size: raw[at - AT : at - AT + size] if at >= AT else b"", AT)


@pytest.mark.parametrize(
    ("pc", "found"),
    [
        (0x40_0FFF, None),
        (0x40_1000, (0x40_1000, 0x40_1020)),
        (0x40_101F, (0x40_1000, 0x40_1020)),
        (0x40_1020, (0x40_1020, 0x40_1120)),
        (0x40_1120, None),
        (0x40_140F, (0x40_1400, 0x40_1410)),
        (0x40_1410, None),
        (1 << 63, None),
    ],
)
def test_function_has_start_and_end(pc: int, found: tuple[int, int] | None) -> None:
    assert table(build_table()).function(pc) == found


def test_function_of_another_encoding_is_none() -> None:
    assert table(build_table(bytes((1, 0x1B, 3, 0x0B)))).function(0x40_1000) is None


def test_function_cut_anywhere_does_no_harm() -> None:
    raw = build_table()
    for size in range(len(raw)):
        assert table(raw[:size]).function(0x40_1000) in (None, (0x40_1000, 0x40_1020))
