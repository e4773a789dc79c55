import gzip
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.elf.elfcore import (
    HEAD_MAX,
    CoreHead,
    MappedFile,
    Segment,
    SigInfo,
    Thread,
    executable_range,
    head_size,
    move_notes,
    parse_build_id,
    parse_head,
)
from crashd.errors import FormatError
from tests.builders.elfcore import (
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_image,
    build_notes,
)

DATA = Path(__file__).parents[3] / "data"
X86_64 = CoreFormat()
I386 = CoreFormat(machine=3, bits=32)
S390X = CoreFormat(machine=22, byteorder="big")
FORMATS = pytest.mark.parametrize("form", [X86_64, I386, S390X], ids=["x86_64", "i386", "s390x"])

SAMPLE_NOTES = build_notes(
    X86_64,
    threads=[CoreThread(7), CoreThread(8)],
    siginfo=X86_64.siginfo(11, 1, pack("<Q", 16)),
    auxv={3: 0x400040, 6: 4096},
    files=[(0x400000, 0x401000, 0, b"/bin/prog")],
)
SAMPLE = build_core(
    notes=SAMPLE_NOTES, segments=[CoreSegment(0x400000, b"\x7fELF".ljust(4096, b"x"))]
)
SAMPLE_HEAD_SIZE = 64 + 2 * 56 + len(SAMPLE_NOTES)


@pytest.mark.parametrize(
    ("name", "machine", "thread", "auxv_phdr", "build_id"),
    [
        (
            "core-x86_64.gz",
            62,
            Thread(10689, 11, 0x401000, 0x7FFD45FD90E0),
            0x400040,
            "e37160cb89dd4ab170fd7018572e37b6a2fcd1bb",
        ),
        (
            "core-i386.gz",
            3,
            Thread(10709, 11, 0x8049000, 0xFFFB61C0),
            0x8048034,
            "5978486bd9fcdf53a7dcba8c3c3a24ba15b582dd",
        ),
    ],
)
def test_parse_head_real_core_is_what_gdb_and_readelf_say(
    name: str, machine: int, thread: Thread, auxv_phdr: int, build_id: str
) -> None:
    raw = gzip.decompress((DATA / name).read_bytes())
    head = parse_head(raw)
    assert head.machine == machine
    assert head.threads == (thread,)
    assert head.siginfo == SigInfo(11, 1, 0, 0x1234, None, None)
    assert (head.comm, head.psargs) == (b"crash", b"./crash one two words")
    assert head.auxv[3] == auxv_phdr
    start = auxv_phdr & -4096
    assert head.files[1] == MappedFile(start + 4096, start + 8192, 4096, b"/tmp/g/crash")
    assert head.segments[0] == Segment(8192, start, 4096, 4096, 4)
    assert head.problems == ()
    found = executable_range(head)
    assert found == (8192, 4096)
    assert parse_build_id(raw[8192:]) == build_id


@pytest.mark.parametrize(("name", "size"), [("core-x86_64.gz", 184320), ("core-i386.gz", 180224)])
def test_parse_head_real_core_expects_its_real_size(name: str, size: int) -> None:
    raw = gzip.decompress((DATA / name).read_bytes())
    assert parse_head(raw[: head_size(raw)]).expected_size == size


@pytest.mark.parametrize("raw", [b"", b"\x7fELF", bytes(63), SAMPLE[:63]])
def test_head_size_short_asks_for_elf_header(raw: bytes) -> None:
    assert head_size(raw) == 64


@FORMATS
def test_head_size_growing_buffer_ends_after_the_notes(form: CoreFormat) -> None:
    notes = build_notes(form, threads=[CoreThread(i) for i in range(1, 9)])
    raw = build_core(form=form, notes=notes, segments=[CoreSegment(0x1000, bytes(8192))])
    table_end = len(form.ehdr(2)) + 2 * form.phdr_size
    assert head_size(raw[:64]) == table_end
    assert head_size(raw[: table_end - 1]) == table_end
    assert head_size(raw[:table_end]) == table_end + len(notes)
    assert head_size(raw) == table_end + len(notes)
    head = parse_head(raw[: head_size(raw)])
    assert (len(head.threads), head.problems) == (8, ())


def test_head_size_empty_segment_is_no_memory() -> None:
    notes = build_notes(X86_64)
    raw = X86_64.ehdr(2) + X86_64.phdr(1, 0, 0, memsz=4096) + X86_64.phdr(4, 4096, len(notes))
    assert head_size(raw) == 4096 + len(notes)


def test_head_size_notes_behind_memory_are_not_waited_for() -> None:
    raw = build_core(segments=[CoreSegment(0x1000, bytes(4096))], notes_last=True)
    assert head_size(raw) == 64 + 2 * 56
    head = parse_head(raw[:4096])
    assert head.threads == ()
    assert "notes are not at the start of the core" in head.problems


def test_parse_head_whole_gcore_file_has_its_threads() -> None:
    raw = build_core(segments=[CoreSegment(0x1000, bytes(4096))], notes_last=True)
    head = parse_head(raw)
    assert [thread.tid for thread in head.threads] == [100]
    assert head.problems == ()


@pytest.mark.parametrize("form", [X86_64, CoreFormat(40, 32), CoreFormat(22, 64, "big")])
def test_move_notes_behind_memory_come_into_the_head(form: CoreFormat) -> None:
    notes = build_notes(form, files=[(0x1000, 0x2000, 0, b"/a")], auxv={3: 64})
    segments = [CoreSegment(0x1000, b"m" * 4096), CoreSegment(0x4000, b"n" * 8192)]
    raw = build_core(form=form, notes=notes, segments=segments, notes_last=True)
    whole = parse_head(raw)
    moved = move_notes(raw[: head_size(raw)], lambda at, size: raw[at : at + size])
    assert len(moved) < 2048
    head = parse_head(moved)
    assert (head.threads, head.files, head.auxv) == (whole.threads, whole.files, whole.auxv)
    assert (head.segments, head.problems) == (whole.segments, ())


def test_move_notes_in_front_stay() -> None:
    raw = build_core(segments=[CoreSegment(0x1000, bytes(4096))])
    start = raw[: head_size(raw)]
    assert move_notes(start, lambda at, size: b"") is start


@pytest.mark.parametrize("there", [0, 3, 400])
def test_move_notes_of_a_cut_core_are_cut(there: int) -> None:
    raw = build_core(segments=[CoreSegment(0x1000, bytes(4096))], notes_last=True)
    moved = move_notes(raw[: head_size(raw)], lambda at, size: raw[at : at + there])
    head = parse_head(moved)
    assert head.problems
    assert len(head.threads) == (there == 400)


def test_move_notes_of_more_segments_than_a_header_can_count_stay() -> None:
    """The number did not fit the new header, and the analysis of such a cut core failed."""
    count = 0x10000
    end = 64 + count * X86_64.phdr_size
    notes = X86_64.phdr(4, end, 100)
    rest = X86_64.phdr(1, end + 4096, 4096) * (count - 1)
    head = X86_64.ehdr(0xFFFF) + notes + rest + b"\1" * 50
    assert move_notes(head, lambda at, size: b"\1" * min(size, 50)) is head


def test_move_notes_hostile_sizes_are_not_read() -> None:
    raw = X86_64.ehdr(2) + X86_64.phdr(1, 4096, 1) + X86_64.phdr(4, 8192, 2**40)
    start = raw.ljust(4096, b"\0")
    assert move_notes(start, lambda at, size: bytes(size)) is start


@pytest.mark.parametrize(
    "raw",
    [
        b"\x7fELG" + SAMPLE[4:],
        SAMPLE[:4] + b"\3" + SAMPLE[5:],
        SAMPLE[:5] + b"\0" + SAMPLE[6:],
        X86_64.ehdr(2, kind=2),
        X86_64.ehdr(0),
        X86_64.ehdr(2, phentsize=32),
        X86_64.ehdr(2, phentsize=0),
        X86_64.ehdr(2, phoff=0),
        X86_64.ehdr(2, phoff=2**64 - 1),
        X86_64.ehdr(2, phoff=HEAD_MAX),
        b"#!/bin/sh\n".ljust(64),
    ],
    ids=[
        "magic",
        "class",
        "data",
        "type",
        "none",
        "entsize",
        "noentsize",
        "phoff0",
        "phoffmax",
        "phofffar",
        "script",
    ],
)
def test_head_no_core_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        head_size(raw)
    with pytest.raises(FormatError):
        parse_head(raw)


def test_head_size_notes_over_limit_is_refused() -> None:
    raw = X86_64.ehdr(1) + X86_64.phdr(4, 120, HEAD_MAX - 119)
    with pytest.raises(FormatError, match="head of 50331649 bytes"):
        head_size(raw)
    assert head_size(X86_64.ehdr(1) + X86_64.phdr(4, 120, HEAD_MAX - 120)) == HEAD_MAX


@FORMATS
def test_parse_head_65535_headers_are_counted_by_the_notes(form: CoreFormat) -> None:
    segments = [CoreSegment(0x1000 * i, b"", 0x1000) for i in range(1, 65535)]
    segments.append(CoreSegment(0x10000000, b"data" * 1024))
    raw = build_core(form=form, segments=segments)
    table_end = len(form.ehdr(2)) + 65536 * form.phdr_size
    assert raw[-form.shdr_size :].count((65536).to_bytes(4, form.byteorder)) == 1
    assert head_size(raw[:64]) == len(form.ehdr(2)) + 2 * form.phdr_size
    assert head_size(raw[:4096]) == table_end
    size = head_size(raw[:table_end])
    assert size == table_end + len(build_notes(form))
    head = parse_head(raw[:size])
    assert len(head.segments) == 65535
    assert head.segments[-1].vaddr == 0x10000000
    assert head.expected_size == len(raw)
    assert (len(head.threads), head.problems) == (1, ())


@pytest.mark.parametrize(
    "phdrs",
    [
        X86_64.phdr(1, 65535 * 56 + 64, 1) + X86_64.phdr(1, 65535 * 56 + 64, 1),
        X86_64.phdr(4, 65535 * 56 + 65, 1) + X86_64.phdr(1, 65536 * 56 + 64, 1),
        X86_64.phdr(4, 65534 * 56 + 64, 1) + X86_64.phdr(1, 65536 * 56 + 64, 1),
        X86_64.phdr(4, 70000 * 56 + 64, 1) + X86_64.phdr(1, 4096 * 900, 1),
        X86_64.phdr(4, 0, 1) + X86_64.phdr(1, 4096, 1),
        X86_64.phdr(4, 900000 * 56 + 64, 1) + X86_64.phdr(1, 2**40, 1),
    ],
    ids=["no-note", "odd", "too-few", "gcore", "zero", "too-many"],
)
def test_head_count_only_at_the_end_is_refused(phdrs: bytes) -> None:
    raw = X86_64.ehdr(0xFFFF) + phdrs
    with pytest.raises(FormatError):
        head_size(raw)
    with pytest.raises(FormatError):
        parse_head(raw)


def test_head_truncated_at_every_length_gives_what_is_there() -> None:
    assert parse_head(SAMPLE[:SAMPLE_HEAD_SIZE]).problems == ()
    whole = parse_head(SAMPLE)
    for size in range(SAMPLE_HEAD_SIZE):
        raw = SAMPLE[:size]
        assert size < head_size(raw) <= SAMPLE_HEAD_SIZE
        if size < 64:
            with pytest.raises(FormatError):
                parse_head(raw)
            continue
        head = parse_head(raw)
        assert head.problems, size
        assert ("program headers are cut" in head.problems) == (size < 64 + 2 * 56)
        tids = [thread.tid for thread in head.threads]
        assert tids == [7, 8][: len(tids)]
        assert head.segments in ((), whole.segments)
        assert head.siginfo in (None, whole.siginfo)
        assert head.files in ((), whole.files)
        assert head.auxv.items() <= whole.auxv.items()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=8)), max_size=6))
def test_head_mutated_raises_format_error_only(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(SAMPLE)
    for at, new in changes:
        raw[at : at + len(new)] = new
    with suppress(FormatError):
        assert head_size(bytes(raw)) <= HEAD_MAX
    try:
        head = parse_head(bytes(raw))
    except FormatError:
        return
    assert 0 <= head.expected_size < 2**63
    found = executable_range(head)
    if found is not None:
        parse_build_id(bytes(raw)[found[0] : found[0] + found[1]])


@pytest.mark.parametrize(
    ("offset", "filesz", "vaddr", "memsz"),
    [(2**63 - 5, 5, 0, 5), (2**64 - 1, 2**64 - 1, 0, 5), (4096, 1, 2**64 - 1, 2)],
)
def test_parse_head_segment_past_the_end_of_all_is_left_out(
    offset: int, filesz: int, vaddr: int, memsz: int
) -> None:
    notes = build_notes(X86_64)
    raw = X86_64.ehdr(2) + X86_64.phdr(4, 176, len(notes))
    raw += X86_64.phdr(1, offset, filesz, vaddr=vaddr, memsz=memsz) + notes
    head = parse_head(raw)
    assert head.segments == ()
    assert head.expected_size == 176 + len(notes)
    assert head.problems == ("a segment lies past the end of any file or address space",)
    assert len(head.threads) == 1


def test_parse_head_vsyscall_page_is_kept() -> None:
    head = parse_head(build_core(segments=[CoreSegment(2**64 - 4096, bytes(4096))]))
    assert head.segments[0].vaddr == 2**64 - 4096


def test_parse_head_many_overlapping_note_segments_are_capped() -> None:
    notes = build_notes(X86_64)
    count = 5000
    at = 64 + count * 56
    raw = X86_64.ehdr(count) + X86_64.phdr(4, at, len(notes)) * count + notes
    head = parse_head(raw)
    assert len(head.threads) == 16
    assert "5000 note segments, more than 16" in head.problems


def test_parse_head_no_thread_is_a_problem() -> None:
    assert parse_head(build_core(notes=b"")).problems == ("no thread in the notes",)


def exec_head(
    auxv: dict[int, int],
    segments: tuple[Segment, ...],
    files: tuple[MappedFile, ...] = (),
) -> CoreHead:
    return CoreHead(62, 64, "little", segments, 0, auxv=auxv, files=files)


def test_executable_range_headers_behind_elf_header_is_their_page() -> None:
    segments = (Segment(4096, 0x1000, 4096, 4096, 4), Segment(8192, 0x400000, 4096, 65536, 4))
    assert executable_range(exec_head({3: 0x400040}, segments)) == (8192, 4096)


def test_executable_range_first_page_missing_is_its_second_mapping() -> None:
    """Without -z separate-code, a small file's data are on the page of its headers."""
    files = [(0x400000, 0x401000, 0, b"/prog"), (0x401000, 0x402000, 0, b"/prog")]
    notes = build_notes(X86_64, auxv={3: 0x400040}, files=files)
    segments = [CoreSegment(0x400000, b"", 4096), CoreSegment(0x401000, build_image())]
    raw = build_core(notes=notes, segments=segments)
    found = executable_range(parse_head(raw))
    assert found is not None
    assert parse_build_id(raw[found[0] : sum(found)]) == bytes(range(20)).hex()


def test_executable_range_large_segment_is_capped() -> None:
    segments = (Segment(8192, 0x400000, 2**30, 2**30, 4),)
    assert executable_range(exec_head({3: 0x400040}, segments)) == (8192, 65536)


def test_executable_range_inside_a_segment_begins_there() -> None:
    segments = (Segment(8192, 0x3FF000, 12288, 12288, 4),)
    assert executable_range(exec_head({3: 0x400040}, segments)) == (8192 + 4096, 8192)


@pytest.mark.parametrize(
    ("auxv", "filesz"),
    [({}, 4096), ({3: 0x400040}, 0), ({3: 0}, 4096), ({3: 2**64 - 1}, 4096), ({3: 0x401040}, 4096)],
    ids=["no-auxv", "not-dumped", "null", "end", "behind"],
)
def test_executable_range_not_there_is_none(auxv: dict[int, int], filesz: int) -> None:
    assert executable_range(exec_head(auxv, (Segment(8192, 0x400000, filesz, 4096, 4),))) is None


def test_executable_range_headers_moved_finds_start_of_the_file() -> None:
    files = (
        MappedFile(0x100000, 0x101000, 0, b"/bin/other"),
        MappedFile(0x400000, 0x401000, 0, b"/bin/prog"),
        MappedFile(0x401000, 0x403000, 4096, b"/bin/prog"),
        MappedFile(0x500000, 0x501000, 0, b"/bin/prog"),
    )
    segments = (Segment(8192, 0x400000, 4096, 4096, 4), Segment(12288, 0x401000, 8192, 8192, 4))
    assert executable_range(exec_head({3: 0x402340}, segments, files)) == (8192, 4096)


@FORMATS
@pytest.mark.parametrize(("vaddr", "kind"), [(0, 3), (0x400000, 2)])
def test_parse_build_id_image_truncated_at_every_length(
    form: CoreFormat, vaddr: int, kind: int
) -> None:
    image = build_image(bytes(range(20)), form=form, vaddr=vaddr, kind=kind)
    assert parse_build_id(image + bytes(100)) == bytes(range(20)).hex()
    assert parse_build_id(image) == bytes(range(20)).hex()
    for size in range(len(image)):
        assert parse_build_id(image[:size]) is None


def test_parse_build_id_notes_aligned_to_8_are_found() -> None:
    note = X86_64.note(5, bytes(12), b"GNU\0") + bytes(4) + X86_64.note(3, b"id", b"GNU\0")
    image = X86_64.ehdr(2, kind=3) + X86_64.phdr(1, 0, 4096)
    image += X86_64.phdr(4, 176, len(note), vaddr=176, align=8) + note
    assert parse_build_id(image) == b"id".hex()


def test_parse_build_id_note_below_the_image_is_none() -> None:
    note = X86_64.note(3, bytes(20), b"GNU\0")
    image = X86_64.ehdr(2, kind=3) + X86_64.phdr(1, 0, 4096, vaddr=8192)
    image += X86_64.phdr(4, 0, len(note), vaddr=8192 - len(note) - 4) + note + bytes(4)
    assert parse_build_id(image) is None


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF",
        build_image(None),
        build_image(b""),
        build_image(bytes(65)),
        X86_64.ehdr(2, kind=3) + X86_64.phdr(1, 0, 9) + X86_64.phdr(4, 2**40, 99, vaddr=2**40),
        X86_64.ehdr(2, kind=3) + X86_64.phdr(1, 0, 9, vaddr=8192) + X86_64.phdr(4, 0, 99),
        X86_64.ehdr(1, kind=3) + X86_64.phdr(4, 0, 100) + bytes(200),
        X86_64.ehdr(0xFFFF, kind=3) + bytes(4096),
        X86_64.ehdr(1, kind=3, phoff=2**63) + bytes(4096),
    ],
    ids=["empty", "cut", "no-id", "empty-id", "long", "far", "below", "no-load", "phnum", "phoff"],
)
def test_parse_build_id_none_or_absurd_is_none(image: bytes) -> None:
    assert parse_build_id(image) is None
