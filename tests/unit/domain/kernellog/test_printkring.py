"""The kernel's log in its memory: rings of both generations, wrapped, damaged, and hostile."""

import random
from typing import Literal

import pytest

from crashd.domain.kernellog import printkring
from crashd.domain.kernellog.printkring import KernelLog, Memory, parse_numbers, read_log
from crashd.errors import FormatError
from tests.builders.printkring import (
    BASE,
    DATA,
    DESCS,
    INFOS,
    REUSABLE,
    STRUCTURED,
    Image,
    Ring,
    ring_numbers,
    write_structured,
)

TEXTS = [f"line {number} {'x' * (number % 7)}".encode() for number in range(40)]


def memory(image: Image) -> Memory:
    return Memory(image.read, image.bits, image.byteorder)


def read_ring(image: Image) -> KernelLog:
    return read_log(memory(image), ring_numbers(image.bits))


def texts(log: KernelLog) -> list[bytes]:
    return [line[15:] for line in log.text.splitlines()]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("exact_fit", [False, True])
def test_ring_of_every_fill_gives_its_newest_records(
    bits: Literal[32, 64], byteorder: Literal["little", "big"], exact_fit: bool
) -> None:
    for count in range(1, len(TEXTS)):
        image = Image(bits, byteorder)
        Ring(image, exact_fit=exact_fit).write(TEXTS[:count])
        log = read_ring(image)
        assert texts(log) == TEXTS[count - log.records : count]
        assert log.records >= min(count, 4)
        assert log.skipped == 0
        assert not log.cut


def test_ring_whose_ids_overflow_gives_its_records() -> None:
    image = Image()
    Ring(image, first_id=(1 << 62) - 3).write(TEXTS[:6])
    assert texts(read_ring(image)) == TEXTS[:6]


def test_record_is_formatted_as_makedumpfile_does() -> None:
    image = Image()
    Ring(image).write([b"", b"two\nlines\x1b\xff\ttab"])
    assert read_ring(image).text == (
        b"[    0.000000] \n[    1.000001] two\n               lines\\x1b\\xff\ttab\n"
    )


def test_record_without_data_is_an_empty_line() -> None:
    image = Image()
    Ring(image).write(TEXTS[:3])
    for at in (8, 16):
        image.word(DESCS + 24 + at, 3)  # NO_LPOS
    assert texts(read_ring(image)) == [TEXTS[0], b"", TEXTS[2]]


def test_record_given_up_or_being_written_or_gone_is_left_out() -> None:
    image = Image()
    Ring(image).write(TEXTS[:6])
    image.word(DESCS, REUSABLE << 62 | 0)
    image.word(DESCS + 24, 0 << 62 | 1)  # reserved
    image.word(DESCS + 2 * 24, 2 << 62 | 77)  # another's
    del image.bytes_at[INFOS + 3 * 88 + 8]  # its page is not in the dump
    image.word(DATA, 5)
    log = read_ring(image)
    assert texts(log) == TEXTS[4:6]
    assert log.skipped == 3


def test_text_of_absurd_length_ends_with_its_block() -> None:
    image = Image()
    Ring(image).write([b"first", b"second", b"third"])
    image.number(INFOS + 88 + 16, 0xFFFF, 2)
    assert texts(read_ring(image))[1] == b"second\\x00\\x00" or read_ring(image).skipped == 1


@pytest.mark.parametrize("missing", sorted(ring_numbers(64)))
def test_vmcoreinfo_without_one_of_its_entries_is_refused(missing: str) -> None:
    image = Image()
    Ring(image).write(TEXTS[:3])
    numbers = ring_numbers(64)
    del numbers[missing]
    with pytest.raises(FormatError, match="VMCOREINFO"):
        read_log(memory(image), numbers)


def test_ring_that_is_not_in_the_dump_is_refused() -> None:
    with pytest.raises(FormatError, match="not in the dump"):
        read_ring(Image())


@pytest.mark.parametrize(("at", "bits"), [(0, 0), (0, 29), (48, 0), (48, 33)])
def test_ring_of_absurd_size_is_refused(at: int, bits: int) -> None:
    image = Image()
    ring = Ring(image)
    ring.write(TEXTS[:3])
    image.number(ring.address + at, bits, 4)
    with pytest.raises(FormatError, match="not plausible"):
        read_ring(image)


def test_more_than_fits_is_cut_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image()
    Ring(image).write(TEXTS[:6])
    monkeypatch.setattr(printkring, "TEXT_MAX", 60)
    log = read_ring(image)
    assert texts(log) == TEXTS[4:6]
    assert log.cut
    monkeypatch.setattr(printkring, "TEXT_MAX", 1000)
    monkeypatch.setattr(printkring, "RECORDS_MAX", 3)
    log = read_ring(image)
    assert texts(log) == TEXTS[3:6]
    assert log.cut


@pytest.mark.parametrize("size", [256, 264, 300])
def test_structured_log_of_every_fill_gives_its_newest_records(size: int) -> None:
    for count in range(1, len(TEXTS)):
        image = Image()
        write_structured(image, TEXTS[:count], size)
        log = read_log(memory(image), STRUCTURED)
        assert texts(log) == TEXTS[count - log.records : count]
        assert log.records >= min(count, 4)


def test_structured_log_of_old_kernels_has_another_name() -> None:
    image = Image()
    write_structured(image, TEXTS[:3], 256)
    numbers = {key.replace("printk_log", "log"): value for key, value in STRUCTURED.items()}
    assert texts(read_log(memory(image), numbers)) == TEXTS[:3]


def test_structured_log_that_is_empty_is_no_fault() -> None:
    image = Image()
    write_structured(image, [], 256)
    assert read_log(memory(image), STRUCTURED) == KernelLog(b"", 0)


def test_structured_log_is_read_up_to_a_damaged_record() -> None:
    image = Image()
    write_structured(image, TEXTS[:4], 256)
    image.number(DATA + 2 * 24 + 8, 3, 2)
    log = read_log(memory(image), STRUCTURED)
    assert texts(log) == TEXTS[:2]
    assert log.skipped == 1


def test_structured_log_of_absurd_bounds_is_refused() -> None:
    image = Image()
    write_structured(image, TEXTS[:4], 256)
    image.number(BASE + 16, 256, 4)
    with pytest.raises(FormatError, match="not plausible"):
        read_log(memory(image), STRUCTURED)


def test_dump_of_a_kernel_that_tells_nothing_is_refused() -> None:
    with pytest.raises(FormatError, match="does not locate"):
        read_log(memory(Image()), {"SYMBOL(log_buf)": 1})


def test_damaged_logs_end_and_raise_nothing_else() -> None:
    noise = random.Random(1)
    for _ in range(300):
        image = Image()
        if noise.random() < 0.5:
            Ring(image).write(TEXTS[:20])
            numbers = ring_numbers(64)
        else:
            write_structured(image, TEXTS[:20], 256)
            numbers = dict(STRUCTURED)
        for at in noise.sample(sorted(image.bytes_at), 20):
            image.bytes_at[at] = noise.randrange(256)
        try:
            log = read_log(memory(image), numbers)
        except FormatError:
            continue
        assert log.text.isascii()


def test_parse_numbers_takes_what_is_well_formed() -> None:
    assert parse_numbers(
        b"OSRELEASE=6.1\nSYMBOL(prb)=ffffffffac8622c0\nSIZE(prb_desc)=24\nNUMBER(x)=-129\n"
        b"SIZE(y)=0x10\nSIZE(z)=1f\nOFFSET(a.b)=8\r\nSYMBOL(\xff)=1\nLENGTH(q)=99\0"
    ) == {
        "SYMBOL(prb)": 0xFFFFFFFFAC8622C0,
        "SIZE(prb_desc)": 24,
        "NUMBER(x)": -129,
        "OFFSET(a.b)": 8,
        "LENGTH(q)": 99,
    }
