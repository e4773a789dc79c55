from struct import pack
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.elf.auxv import AUXV_ENTRIES_MAX, parse_auxv


@given(st.binary(max_size=300))
def test_parse_auxv_any_bytes_do_not_raise(raw: bytes) -> None:
    parse_auxv(raw)


@pytest.mark.parametrize(
    ("bits", "byteorder", "code"),
    [(64, "little", "<QQ"), (64, "big", ">QQ"), (32, "little", "<II"), (32, "big", ">II")],
)
def test_parse_auxv_both_classes_and_orders_are_read(
    bits: Literal[32, 64], byteorder: Literal["little", "big"], code: str
) -> None:
    raw = pack(code, 6, 4096) + pack(code, 23, 1) + pack(code, 0, 0) + pack(code, 11, 0)
    assert parse_auxv(raw, bits, byteorder) == {6: 4096, 23: 1}


def test_parse_auxv_truncated_at_every_length_gives_whole_pairs() -> None:
    raw = pack("<6Q", 3, 30, 6, 60, 9, 90)
    for size in range(len(raw) + 1):
        want = {kind: kind * 10 for kind in (3, 6, 9)[: size // 16]}
        assert parse_auxv(raw[:size], 64, "little") == want


def test_parse_auxv_double_type_first_counts() -> None:
    assert parse_auxv(pack("<4Q", 23, 1, 23, 0), 64, "little") == {23: 1}


def test_parse_auxv_without_end_is_capped() -> None:
    raw = b"".join(pack("<QQ", kind, 1) for kind in range(1, 10_000))
    assert len(parse_auxv(raw, 64, "little")) == AUXV_ENTRIES_MAX
