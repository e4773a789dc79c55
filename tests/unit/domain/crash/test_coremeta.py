"""Fields of the hand-over: every source, one validator."""

import pytest

from crashd import corehandler
from crashd.domain.crash.coremeta import CoreMeta, parse_fields
from crashd.domain.crash.model import Identity
from crashd.errors import FormatError

NOW_NS = 1_800_000_000 * 10**9
GOOD = {
    "token": b"2c6b-18ea96486ebc4389-530744fc",
    "seen_ns": b"1800000000500000000",
    "boottime_ns": b"42",
    "p": b"2",
    "e": b"sleep",
    "s": b"11",
    "t": b"1800000000",
    "P": b"4711",
    "I": b"4712",
    "u": b"1000",
    "g": b"1001",
    "c": b"18446744073709551615",
    "d": b"1",
    "h": b"vm",
    "identity": b"kernel",
}


def test_parse_fields_what_the_handler_packs_comes_back() -> None:
    fields = {**GOOD, "e": b"a=b\n\xff"}
    assert parse_fields(corehandler.pack(fields)) == fields


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"p=1",
        b"p\0",
        b"=1\0",
        b"p=1\0p=2\0",
        b"a b=1\0",
        b"k\xff=1\0",
        b"p=" + b"x" * 5000 + b"\0",
        b"".join(b"k%d=\0" % n for n in range(100)),
        b"p=1\0\0",
    ],
)
def test_parse_fields_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_fields(raw)


def test_parse_fields_cut_anywhere_is_refused_or_shorter() -> None:
    whole = corehandler.pack(GOOD)
    for length in range(len(whole)):
        try:
            fields = parse_fields(whole[:length])
        except FormatError:
            continue
        assert fields.items() <= GOOD.items()


def test_from_fields_good_values_are_numbers() -> None:
    meta = CoreMeta.from_fields(GOOD, NOW_NS)
    assert (meta.pid, meta.tid, meta.ns_pid, meta.uid, meta.gid) == (4711, 4712, 2, 1000, 1001)
    assert (meta.signal, meta.dumpable, meta.rlimit_core) == (11, 1, 2**64 - 1)
    assert meta.identity is Identity.KERNEL
    assert meta.time_ns == 1_800_000_000_500_000_000
    assert meta.malformed == ()


def test_from_fields_clock_far_from_the_kernels_loses() -> None:
    meta = CoreMeta.from_fields({**GOOD, "seen_ns": b"5"}, NOW_NS)
    assert meta.time_ns == 1_800_000_000 * 10**9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("P", b"-1"),
        ("P", b"4194305"),
        ("p", b"abc"),
        ("s", b"65"),
        ("s", b"0"),
        ("u", b"4294967296"),
        ("d", b"3"),
        ("t", b"9" * 30),
        ("t", b"%d" % (1 << 40)),
        ("seen_ns", b"%d" % (1 << 63)),
        ("P", "٣".encode()),
    ],
)
def test_from_fields_nonsense_is_none_and_named(key: str, value: bytes) -> None:
    meta = CoreMeta.from_fields({**GOOD, key: value}, NOW_NS)
    assert len(meta.malformed) == 1
    assert meta.malformed[0].startswith(f"%{key} is ")


def test_from_fields_no_arguments_at_all_still_makes_a_record() -> None:
    meta = CoreMeta.from_fields({"token": b"1-2-3"}, NOW_NS)
    assert meta.time_ns == NOW_NS
    assert sorted(meta.malformed) == ["%p is missing", "%s is missing", "%t is missing"]
    assert meta.identity is Identity.NONE


@pytest.mark.parametrize("token", [b"", b"a/b", b"x" * 65, b"a\nb", b"..", b"\xff"])
def test_from_fields_token_of_another_form_is_refused(token: bytes) -> None:
    with pytest.raises(FormatError):
        CoreMeta.from_fields({**GOOD, "token": token}, NOW_NS)
