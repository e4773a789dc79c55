import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kernellog.pstore import PARTS_MAX, Part, assemble, parse_part

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
