import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kernellog.pstore import (
    PART_MAX,
    PARTS_MAX,
    Part,
    PstoreLog,
    assemble,
    is_record_name,
    merge_events,
    parse_part,
    parse_record,
)

SECOND = 10**9


def part(number: int, text: bytes, *, count: int = 1, time_s: int = 100) -> Part:
    return Part("efi", "Panic", count, number, time_s * SECOND, text)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("dmesg-efi_pstore-170000000001001", "efi"),
        ("dmesg-efi-170000000001001", "efi"),
        ("dmesg-erst-7000000001", "erst"),
        ("dmesg-ramoops-0", "ramoops"),
    ],
)
def test_parse_part_name_tells_the_backend(name: str, backend: str) -> None:
    found = parse_part(name, b"Oops#2 Part3\nwords", 5)
    assert found == Part(backend, "Oops", 2, 3, 5, b"words")


@pytest.mark.parametrize(
    "name", ["console-ramoops-0", "dmesg-efi-1.enc.z", "dmesg-", "../dmesg-a-1", "dmesg-e-1\n"]
)
def test_parse_part_other_file_is_none(name: str) -> None:
    assert parse_part(name, b"Panic#1 Part1\nx", 0) is None


def test_parse_part_without_head_is_a_log_of_its_own() -> None:
    found = parse_part("dmesg-ramoops-0", b"<6>[ 1.0] words", 7)
    assert found == Part("ramoops", "Unknown", 0, 1, 7, b"<6>[ 1.0] words")


def test_assemble_parts_of_one_event_end_first_are_put_in_order() -> None:
    (log,) = assemble([part(1, b"end"), part(3, b"start "), part(2, b"middle ")])
    assert log.text == b"start middle end"
    assert log.parts == 3


def test_assemble_events_of_one_count_at_other_times_stay_apart() -> None:
    logs = assemble([part(1, b"old", time_s=100), part(1, b"new", time_s=5000)])
    assert [log.text for log in logs] == [b"old", b"new"]
    assert len({log.token for log in logs}) == 2


def test_assemble_token_is_the_words_wherever_they_lie() -> None:
    (here,) = assemble([part(1, b"words", time_s=100)])
    (moved,) = assemble([part(1, b"words", time_s=900)])
    assert here.token == moved.token


@given(
    st.lists(
        st.builds(
            Part,
            st.sampled_from(["efi", "erst"]),
            st.sampled_from(["Panic", "Oops"]),
            st.integers(0, 3),
            st.integers(0, 5),
            st.integers(0, 3).map(lambda n: n * 100 * SECOND),
            st.binary(max_size=4),
        ),
        max_size=40,
    )
)
def test_assemble_loses_no_part(parts: list[Part]) -> None:
    logs = assemble(parts)
    assert sum(log.parts for log in logs) == len(parts)
    assert all(log.parts <= PARTS_MAX for log in logs)
    assert sum(len(log.text) for log in logs) == sum(len(p.text) for p in parts)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("dmesg-efi-1", b"Panic#1\nwords", ("Panic", 1, 1, b"words")),
        ("dmesg-efi-1", b"Panic#1", ("Panic", 1, 1, b"")),
        ("dmesg-pstore_blk-0", b"Oops: Total 3 times\nwords", ("Oops", 3, 1, b"words")),
        ("dmesg-efi-7.enc.z", deflate(b"Panic#2 Part4\nwords"), ("Panic", 2, 4, b"words")),
        ("dmesg-efi-7.enc.z", zlib.compress(b"Panic#2 Part4\nx"), ("Panic", 2, 4, b"x")),
        ("dmesg-efi-7.enc.z", b"\x13lzo or so", ("Compressed", 0, 7, b"\x13lzo or so")),
        ("console-ramoops-0", b"all of it", ("Console", 0, 1, b"all of it")),
        ("console-ramoops", b"all of it", ("Console", 0, 1, b"all of it")),
    ],
)
def test_parse_record_of_any_form_is_read(
    name: str, raw: bytes, expected: tuple[str, int, int, bytes]
) -> None:
    found = parse_record(name, raw, 5)
    assert found is not None
    assert (found.reason, found.count, found.part, found.text) == expected
    assert is_record_name(name)


@pytest.mark.parametrize("name", ["pmsg-ramoops-0", "ftrace-ramoops-0", "dmesg.txt", "dmesg-efi-"])
def test_parse_record_of_what_is_no_kernel_log_is_none(name: str) -> None:
    assert parse_record(name, b"Panic#1 Part1\nx", 0) is None
    assert not is_record_name(name)


def test_parse_record_that_would_unpack_to_much_is_bounded() -> None:
    found = parse_record("dmesg-efi-7.enc.z", deflate(b"Panic#1 Part1\n" + bytes(9 << 20)), 0)
    assert found is not None
    assert len(found.text) <= PART_MAX


def words(reason: str, count: int, text: bytes, time_s: int = 100) -> PstoreLog:
    (log,) = assemble([Part("efi", reason, count, 1, time_s * SECOND, text)])
    return log


def test_oops_and_the_panic_it_led_to_are_one_event() -> None:
    oops, panic = words("Oops", 1, b"a\nb\nc\n"), words("Panic", 2, b"b\nc\nd\n", 101)
    (log,) = merge_events([oops, panic])
    assert log.text == b"a\nb\nc\nd\n"
    assert (log.reason, log.parts, log.time_ns) == ("Panic", 2, 101 * SECOND)
    assert set(log.tokens) == {log.token, oops.token, panic.token}


def test_cut_first_line_of_the_later_log_is_found_in_the_earlier() -> None:
    (log,) = merge_events(
        [words("Oops", 1, b"aaa\nbbb\nccc\n"), words("Panic", 2, b"aa\nbbb\nd\n")]
    )
    assert log.text == b"aaa\nbbb\nd\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (words("Oops", 1, b"a"), words("Panic", 2, b"b", 1000)),  # the next boot's, or much later
        (words("Panic", 2, b"a"), words("Oops", 1, b"b")),
        (words("Shutdown", 1, b"a"), words("Panic", 2, b"b")),
        (words("Oops", 1, b"a"), words("Unknown", 0, b"b")),
    ],
)
def test_events_that_did_not_lead_to_one_another_stay_apart(
    first: PstoreLog, second: PstoreLog
) -> None:
    assert merge_events([first, second]) == [first, second]


def test_compressed_parts_of_one_event_are_one_without_text() -> None:
    parts = [Part("efi", "Compressed", 0, number, 5, b"x%d" % number) for number in range(3)]
    (log,) = assemble(parts)
    assert (log.text, log.parts, log.is_crash) == (b"", 3, True)
