import gzip
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.kdump.compressed import Wrapper
from crashd.domain.kdump.stream import DumpMeter, Unpacked
from crashd.domain.kdump.vmcore import (
    HEAD_SIZE,
    Completeness,
    DumpFormat,
    DumpVerdict,
    judge,
    parse_vmcore,
    parse_vmcoreinfo,
)
from crashd.errors import FormatError
from tests.builders.elfcore import CoreFormat
from tests.builders.kdumpdir import (
    VMCOREINFO,
    WRAPPERS,
    Alignment,
    KdumpFormat,
    build_elf_vmcore,
    flatten,
    lz4_frame,
)

DATA = Path(__file__).parents[3] / "data/kdump"
COMPLETE, INCOMPLETE, BOGUS = Completeness
KDUMP = KdumpFormat().build()
FLAT = flatten(KDUMP)
ELF = build_elf_vmcore()
FLAT_END = b"\xff" * 16
BUILD_ID = "3b43fad5034874490492495d552c0af6a5fab235"


def unzstd(head: bytes, limit: int) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(head)[:limit]
    except zstandard.ZstdError as e:
        raise FormatError(str(e)) from e


def judged(raw: bytes, *, unfinished: bool = False, head_size: int = HEAD_SIZE) -> DumpVerdict:
    """Judge a file that is all at hand."""
    return judge(raw[:head_size], len(raw), raw[-4096:], unzstd, unfinished=unfinished)


def read_data(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


# ---- what real kernels left ----


@pytest.mark.parametrize(
    ("name", "size", "tail", "expected"),
    [
        ("flattened-head", 19535938, FLAT_END, (COMPLETE, "")),
        (
            "flattened-head",
            19535938 - 16,
            b"N\0\0\0\1" + bytes(11),
            (INCOMPLETE, "no end marker of the flattened format"),
        ),
        (
            "cut-head",
            4599972,
            b"\x1c\xf1" * 8,
            (INCOMPLETE, "no end marker of the flattened format"),
        ),
        ("lzo-head-full", 31454238, b"", (COMPLETE, "")),
        (
            "lzo-head-full",
            31454237,
            b"",
            (
                INCOMPLETE,
                "file ends before the end of its pages: 31454237 of at least 31454238 bytes",
            ),
        ),
        ("elf-head", 180942412, b"", (COMPLETE, "")),
        (
            "elf-head",
            4194304,
            b"",
            (
                INCOMPLETE,
                "file ends before the end of its memory: 4194304 of at least 180942412 bytes",
            ),
        ),
        (
            "gzip-head",
            12345678,
            b"",
            (COMPLETE, "the end of what gzip compressed was not checked"),
        ),
        ("log-copy", 36045, b"", (BOGUS, "a copy of the log, no memory image (--dump-dmesg)")),
    ],
)
def test_judge_real_artefact_is_named_for_what_it_is(
    name: str, size: int, tail: bytes, expected: tuple[Completeness, str]
) -> None:
    verdict = judge(read_data(name), size, tail, unzstd)
    assert (verdict.completeness, verdict.reason) == expected
    assert verdict.sure == (name != "gzip-head")


def test_judge_real_error_text_is_bogus() -> None:
    verdict = judged((DATA / "error-text").read_bytes())
    assert verdict == DumpVerdict(BOGUS, "104 bytes of text, no memory image")


@pytest.mark.parametrize(
    ("name", "crash_time", "memory", "level", "compression", "offset"),
    [
        ("flattened-head", 1795385116, 131030 * 4096, 31, "zlib", "29e00000"),
        ("cut-head", 1795386665, 262102 * 4096, 31, "zlib", "34a00000"),
        ("lzo-head-full", 1795384167, 262102 * 4096, 31, "lzo", "9e00000"),
        ("elf-head", 1795384139, 262102 * 4096, None, None, "8600000"),
        ("gzip-head", 1795384898, 262102 * 4096, 31, "zlib", "34600000"),
    ],
)
def test_parse_vmcore_real_head_is_what_crash_says(
    name: str, crash_time: int, memory: int, level: int | None, compression: str, offset: str
) -> None:
    head = parse_vmcore(read_data(name), unzstd)
    assert (head.release, head.machine) == ("6.1.0-56-cloud-amd64", "x86_64")
    assert head.crash_time_ns == crash_time * 10**9
    assert head.memory_bytes == memory
    assert (head.dump_level, head.compression) == (level, compression)
    assert head.build_id == BUILD_ID
    assert head.vmcoreinfo == {
        "OSRELEASE": "6.1.0-56-cloud-amd64",
        "BUILD-ID": BUILD_ID,
        "PAGESIZE": "4096",
        "KERNELOFFSET": offset,
        "CRASHTIME": str(crash_time),
    }
    assert not head.incomplete
    assert head.problems == ()
    if head.format is DumpFormat.KDUMP:
        assert (head.nodename, head.header_version) == ("vmtest", 6)
        assert head.version.startswith("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2")


# ---- every version and layout ----


@pytest.mark.parametrize("version", range(1, 7))
@pytest.mark.parametrize(
    ("alignment", "byteorder", "machine", "bits"),
    [
        ("64", "little", b"x86_64", 64),
        ("64", "big", b"s390x", 64),
        ("32-packed", "little", b"i686", 32),
        ("32-padded", "little", b"armv7l", 32),
        ("32-padded", "big", b"ppc", 32),
    ],
)
def test_parse_vmcore_every_header_version_tells_what_it_has(
    version: int, alignment: Alignment, byteorder: str, machine: bytes, bits: int
) -> None:
    names = (b"Linux", b"host1", b"6.1.0-utsname", b"#1", machine, b"")
    form = KdumpFormat(
        version,
        alignment,
        "little" if byteorder == "little" else "big",
        utsname=names,
        split=(100, 200),
        max_mapnr=70000,
    )
    raw = form.build()
    head = parse_vmcore(raw, unzstd)
    assert (head.header_version, head.bits, head.byteorder) == (version, bits, byteorder)
    assert (head.machine, head.nodename) == (machine.decode(), "host1")
    assert head.memory_bytes == 70000 * 4096
    assert head.dump_level == 31
    assert head.split == ((100, 200) if version >= 2 else None)
    if version >= 3:
        assert head.release == "6.1.0-test"
        assert head.build_id == "00112233445566778899aabbccddeeff00112233"
        assert head.crash_time_ns == 1_700_000_000 * 10**9
        assert head.problems == ()
    else:
        assert head.release == "6.1.0-utsname"
        assert head.crash_time_ns == 1_700_000_009 * 10**9
        assert head.problems == ("no VMCOREINFO in the head",)
    assert judged(raw).completeness is COMPLETE


@pytest.mark.parametrize("version", [4, 5, 6])
def test_parse_vmcore_vmcoreinfo_in_the_notes_alone_is_found(version: int) -> None:
    head = parse_vmcore(KdumpFormat(version, info_in_notes=True).build(), unzstd)
    assert head.vmcoreinfo["OSRELEASE"] == "6.1.0-test"


def test_parse_vmcore_arm_with_64_bit_time_is_32_bit() -> None:
    raw = bytearray(KdumpFormat(utsname=(b"", b"", b"", b"", b"armv7l", b"")).build())
    narrow = KdumpFormat(alignment="32-padded").build()
    raw[4096 : 3 * 4096] = narrow[4096 : 3 * 4096]
    head = parse_vmcore(bytes(raw), unzstd)
    assert (head.bits, head.release, head.memory_bytes) == (32, "6.1.0-test", 4096 * 4096)


@pytest.mark.parametrize(
    ("status", "compression"),
    [(0, None), (1, "zlib"), (2, "lzo"), (4, "snappy"), (0x20, "zstd"), (0x10, None)],
)
def test_parse_vmcore_status_tells_the_compression(status: int, compression: str | None) -> None:
    head = parse_vmcore(KdumpFormat(status=status).build(), unzstd)
    assert (head.compression, head.incomplete) == (compression, False)


@pytest.mark.parametrize("form", [CoreFormat(), CoreFormat(3, 32), CoreFormat(22, 64, "big")])
def test_parse_vmcore_elf_tells_what_vmcoreinfo_has(form: CoreFormat) -> None:
    head = parse_vmcore(build_elf_vmcore(form), unzstd)
    assert (head.format, head.bits, head.byteorder) == (DumpFormat.ELF, form.bits, form.byteorder)
    assert head.machine == {62: "x86_64", 3: "i686", 22: "s390x"}[form.machine]
    assert (head.release, head.memory_bytes) == ("6.1.0-test", 2**20 + 600)
    assert (head.nodename, head.dump_level, head.problems) == ("", None, ())


def test_parse_vmcore_elf_ppc64_in_little_endian_is_ppc64le() -> None:
    assert parse_vmcore(build_elf_vmcore(CoreFormat(21)), unzstd).machine == "ppc64le"


def test_judge_elf_without_memory_is_bogus() -> None:
    raw = bytearray(build_elf_vmcore())
    raw[64 + 56] = 0  # p_type of the second: PT_NULL
    assert judged(bytes(raw)) == DumpVerdict(BOGUS, "ELF dump without any memory")


def test_parse_vmcore_core_of_a_process_is_refused() -> None:
    raw = build_elf_vmcore(vmcoreinfo=None, process=True)
    with pytest.raises(FormatError, match="core of a process"):
        parse_vmcore(raw, unzstd)
    assert judged(raw) == DumpVerdict(BOGUS, "the core of a process, not a kernel's dump")


# ---- is it whole? ----


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (KdumpFormat(status=9).build(), "incomplete bit set by makedumpfile: it ran out of space"),
        (
            flatten(KdumpFormat(status=9).build()),
            "incomplete bit set by makedumpfile: it ran out of space",
        ),
        (
            build_elf_vmcore(flags=1),
            "incomplete bit set by makedumpfile: it ran out of space",
        ),
        (flatten(KDUMP, end=False), "no end marker of the flattened format"),
        (FLAT[:-1], "no end marker of the flattened format"),
        (FLAT[:4096], "no end marker of the flattened format"),
        (FLAT[:20], "no end marker of the flattened format"),
        (KDUMP[:8], "file ends before its header does"),
        (KDUMP[:463], "file ends before its header does"),
        (ELF[:63], "file ends before its header does"),
    ],
    ids=["bit", "flat-bit", "elf-bit", "end", "end-1", "flat-head", "flat-20", "8", "463", "elf"],
)
def test_judge_cut_dump_is_incomplete(raw: bytes, reason: str) -> None:
    verdict = judged(raw)
    assert (verdict.completeness, verdict.reason) == (INCOMPLETE, reason)
    assert verdict.sure


def test_judge_riscv_elf_flag_of_compressed_code_is_not_the_incomplete_bit() -> None:
    assert judged(build_elf_vmcore(CoreFormat(243), flags=1)).completeness is COMPLETE


@pytest.mark.parametrize("raw", [KDUMP, ELF], ids=["kdump", "elf"])
def test_judge_cut_at_any_byte_is_never_complete(raw: bytes) -> None:
    assert judged(raw) == DumpVerdict(COMPLETE, "", parse_vmcore(raw, unzstd))
    for size in [*range(len(raw) - 700, len(raw)), *range(1, len(raw), 97)]:
        assert judged(raw[:size]).completeness is not COMPLETE, size


def test_judge_flattened_cut_at_any_byte_is_never_complete() -> None:
    assert judged(FLAT).completeness is COMPLETE
    for size in [*range(len(FLAT) - 700, len(FLAT)), *range(1, len(FLAT), 97)]:
        assert judged(FLAT[:size]).completeness is not COMPLETE, size


def test_judge_flattened_cut_in_a_bitmap_of_ones_is_incomplete() -> None:
    head = read_data("flattened-head")
    for tail in (b"\xff" * 4096, b"\xff" * 32):
        assert judge(head, 19535938, tail, unzstd).completeness is INCOMPLETE
    assert judge(head, 19535938, b"\xfe" + b"\xff" * 31, unzstd).completeness is COMPLETE


def test_parse_vmcore_head_cut_at_every_length_never_tells_what_is_wrong() -> None:
    whole = parse_vmcore(KDUMP, unzstd)
    for size in range(0, len(KDUMP), 3):
        try:
            head = parse_vmcore(KDUMP[:size], unzstd)
        except FormatError:
            assert size < 464
            continue
        assert head.nodename == whole.nodename
        assert head.dump_level in (None, whole.dump_level)
        assert head.size_at_least <= whole.size_at_least
        assert head.vmcoreinfo.get("OSRELEASE", "") in "6.1.0-test"
        assert bool(head.problems) == (size <= 4096 + 200), size


@pytest.mark.parametrize(
    ("raw", "unfinished", "expected"),
    [
        (b"", True, (INCOMPLETE, "empty")),
        (b"", False, (BOGUS, "empty")),
        (FLAT, True, (COMPLETE, "")),
        (KDUMP, True, (INCOMPLETE, "never given its final name")),
        (ELF, True, (INCOMPLETE, "never given its final name")),
        (gzip.compress(FLAT, mtime=0), True, (COMPLETE, "")),
    ],
)
def test_judge_unfinished_name_counts_unless_the_end_is_proven(
    raw: bytes, unfinished: bool, expected: tuple[Completeness, str]
) -> None:
    verdict = judged(raw, unfinished=unfinished)
    assert (verdict.completeness, verdict.reason) == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\0", "1 bytes, zeros at the start"),
        (bytes(100_000), "100000 bytes, zeros at the start"),
        (b"makedumpfile Failed.\n", "21 bytes of text, no memory image"),
        (b"\x01\x02garbage", "9 bytes of an unknown format, no memory image"),
        (b"Linux version 6.1\n", "a copy of the log, no memory image (--dump-dmesg)"),
        (b"<6>[    1.000000] x\n", "a copy of the log, no memory image (--dump-dmesg)"),
        (b"\n[    1.000000] x" + bytes(99), "a copy of the log, no memory image (--dump-dmesg)"),
        (flatten(b"[    1.000000] x\n"), "a copy of the log, no memory image (--dump-dmesg)"),
        (
            gzip.compress(b"[    1.000000] x\n", mtime=0),
            "a copy of the log, no memory image (--dump-dmesg)",
        ),
        (gzip.compress(b"error\n", mtime=0), "6 bytes of text, no memory image"),
        (gzip.compress(b"", mtime=0), "empty inside gzip"),
        (
            KDUMP[:8] + b"\xff" * 600,
            "dump has an absurd header: neither byte order nor word size makes sense",
        ),
        (ELF[:16] + b"\2" + ELF[17:], "ELF file is of type 2, not a core"),
    ],
)
def test_judge_no_dump_is_named_for_what_it_is(raw: bytes, reason: str) -> None:
    assert judged(raw) == DumpVerdict(BOGUS, reason)


# ---- wrapped ----


@pytest.mark.parametrize("name", WRAPPERS)
def test_judge_small_wrapped_dump_is_looked_into_to_its_end(name: str) -> None:
    wrap = WRAPPERS[name]
    verdict = judged(wrap(FLAT))
    assert (verdict.completeness, verdict.reason, verdict.sure) == (COMPLETE, "", True)
    assert verdict.head is not None
    assert (verdict.head.wrapped_by, verdict.head.flattened) == (Wrapper(name), True)
    assert verdict.head.release == "6.1.0-test"
    # The failure that kdump-tools cannot see: makedumpfile died, the compressor did not.
    cut = judged(wrap(FLAT[:-100]))
    assert cut.reason == "no end marker of the flattened format"
    short = judged(wrap(FLAT)[:-9])
    assert (short.completeness, short.reason) == (INCOMPLETE, f"no end marker of {name}")


def test_judge_zstd_dump_is_believed_but_not_sure() -> None:
    verdict = judged(zstandard.ZstdCompressor().compress(FLAT))
    assert (verdict.completeness, verdict.sure) == (COMPLETE, False)
    assert verdict.head is not None
    assert verdict.head.wrapped_by is Wrapper.ZSTD


@pytest.mark.parametrize("raw", [b"\x28\xb5\x2f\xfdgarbage", b"\x1f\x8b\x08\xffgarbage" * 9])
def test_judge_damaged_wrapper_is_bogus(raw: bytes) -> None:
    assert judged(raw).completeness is BOGUS


def test_judge_bomb_is_not_inflated_beyond_the_limit() -> None:
    verdict = judged(gzip.compress(bytes(50 * HEAD_SIZE), mtime=0))
    assert verdict.completeness is BOGUS


# ---- hostile ----


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (4096 + 32, 2**64 - 1),  # offset_vmcoreinfo
        (4096 + 40, 2**64 - 1),  # size_vmcoreinfo
        (4096 + 48, 2**63),
        (4096 + 56, 2**64 - 1),
        (4096 + 96, 2**64 - 1),  # max_mapnr_64
        (436, 2**32 - 1),  # bitmap_blocks
        (432, 65536),
        (408, 2**63 - 1),  # tv_sec
    ],
)
def test_judge_hostile_count_is_no_more_than_a_problem(at: int, value: int) -> None:
    raw = bytearray(KDUMP)
    packed = pack("<Q", value) if value >= 2**32 else pack("<I", value)
    raw[at : at + len(packed)] = packed
    verdict = judged(bytes(raw))
    assert verdict.head is not None
    assert 0 <= verdict.head.size_at_least < 2**64
    assert (verdict.head.memory_bytes or 0) < 2**63
    assert (verdict.head.crash_time_ns or 0) < 2**63


@pytest.mark.parametrize(
    "record",
    [(-2, 5), (0, 0), (0, -1), (-(2**63), 2**63 - 1), (2**63 - 1, 2**63 - 1), (0, 2**63 - 1)],
)
def test_judge_hostile_flattened_record_ends_the_reading(record: tuple[int, int]) -> None:
    raw = flatten(b"", end=False) + pack(">qq", *record) + b"data" * 100 + FLAT_END
    assert judged(raw).completeness is not COMPLETE


def test_parse_vmcoreinfo_hostile_text_is_bounded_and_printable() -> None:
    lines = [b"A%d=1" % i for i in range(9999)]
    assert len(parse_vmcoreinfo(b"\n".join(lines))) == 4096
    found = parse_vmcoreinfo(b"A=\x1b[2Jx\nSYMBOL(a)=1\nB\n=c\nC==\nD=" + b"y" * 999 + b"\nb=1")
    assert found == {"A": "\\x1b[2Jx", "C": "=", "D": "y" * 256}


def test_parse_vmcore_hostile_names_are_printable() -> None:
    names = (b"", b"evil\x1b]0;x\x07\n", b"6.1\n", b"\xff", b"x86_64", b"")
    head = parse_vmcore(replace(KdumpFormat(), utsname=names, vmcoreinfo=b"").build(), unzstd)
    assert (head.nodename, head.release) == ("evil\\x1b]0;x\\x07\\x0a", "6.1\\x0a")
    assert head.version == "\\xff"


@pytest.mark.parametrize(
    "crash_time", [b"0", b"-1", b" 5_0", b"99999999999", b"9" * 99, b"\xd9\xa3", b""]
)
def test_parse_vmcore_absurd_crash_time_is_none(crash_time: bytes) -> None:
    raw = build_elf_vmcore(vmcoreinfo=b"CRASHTIME=" + crash_time + b"\n")
    assert parse_vmcore(raw, unzstd).crash_time_ns is None


SEEDS = [KDUMP, FLAT, ELF, KdumpFormat(alignment="32-packed").build(), lz4_frame(FLAT)]
SEEDS += [gzip.compress(FLAT, mtime=0), zstandard.ZstdCompressor().compress(FLAT)]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=9)), max_size=6),
    st.integers(0, 40000),
)
def test_judge_mutated_dump_raises_nothing(
    seed: bytes, changes: list[tuple[int, bytes]], size: int
) -> None:
    raw = bytearray(seed)
    for at, new in changes:
        raw[at : at + len(new)] = new
    verdict = judged(bytes(raw[:size]))
    assert verdict.completeness is COMPLETE or verdict.reason
    assert verdict.reason.isprintable()


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [b"", b"KDUMP   \6\0\0\0", b"\x7fELF\2\1", b"makedumpfile\0", b"BZh9", b"\x04\x22\x4d\x18d"]
    ),
    st.binary(max_size=2000),
)
def test_judge_random_bytes_raises_nothing(magic: bytes, rest: bytes) -> None:
    assert judged(magic + rest).completeness is not COMPLETE


def test_vmcoreinfo_of_the_builder_is_read_whole() -> None:
    assert parse_vmcoreinfo(VMCOREINFO).keys() >= {"OSRELEASE", "BUILD-ID", "KERNELOFFSET"}


# ---- a machine so large that the head does not tell where its dump ends ----

LARGE = KdumpFormat(max_mapnr=2**24, pages=(b"page" * 100, b"", b"last" * 50)).build()


def judged_by_reading(raw: bytes) -> DumpVerdict:
    def read(at: int, size: int) -> bytes:
        return raw[at : at + size]

    return judge(raw[:HEAD_SIZE], len(raw), raw[-4096:], unzstd, read=read)


def test_judge_large_machine_reads_bitmap_and_descriptors_behind_the_head() -> None:
    assert len(LARGE) > 4 * HEAD_SIZE
    whole = judged_by_reading(LARGE)
    assert (whole.completeness, whole.reason, whole.sure) == (COMPLETE, "", True)
    descriptors = len(LARGE) - 600 - 3 * 24
    for cut in (
        len(LARGE) - 1,
        len(LARGE) - 200,
        len(LARGE) - 600,
        descriptors + 1,
        descriptors,
        descriptors - 1,
        len(LARGE) // 2,
        HEAD_SIZE + 1,
        HEAD_SIZE,
        HEAD_SIZE - 1,
    ):
        assert judged_by_reading(LARGE[:cut]).completeness is INCOMPLETE, cut


def test_judge_large_machine_by_its_head_alone_is_not_sure() -> None:
    verdict = judged(LARGE)
    assert verdict.completeness is COMPLETE
    assert not verdict.sure
    assert verdict.reason == "where it ends could not be read"


@pytest.mark.parametrize("split", [(0, 4096), (0, 3), (1, 2), (2, 4096)])
def test_judge_part_of_a_split_dump_counts_the_pages_of_its_range(split: tuple[int, int]) -> None:
    first, last = max(0, split[0]), min(3, split[1])
    pages = (b"one" * 50, b"two" * 60, b"three" * 70)
    raw = bytearray(KdumpFormat(split=split, pages=pages[first:last]).build())
    at = 5 * 4096 - 4096  # of the second bitmap: a header, two of the sub-header, the first bitmap
    raw[at] = 0b111  # all pages of the machine, as each part has it
    assert judged(bytes(raw)).sure
    assert judged(bytes(raw)).completeness is COMPLETE
    assert judged(bytes(raw[:-1])).completeness is INCOMPLETE


def flatten_elf(memory: int) -> bytes:
    """Flatten an ELF dump as makedumpfile -E -F does: the program headers last but one."""
    elf = build_elf_vmcore(memory=b"m" * memory)
    out = (b"makedumpfile".ljust(16, b"\0") + pack(">qq", 1, 1)).ljust(4096, b"\0")
    for start, end in ((0, 64), (2**20, len(elf)), (64, 2**20)):
        out += pack(">qq", start, end - start) + elf[start:end]
    return out + FLAT_END


def test_judge_flattened_elf_with_its_program_headers_behind_the_head() -> None:
    raw = flatten_elf(3 * 2**20)
    verdict = judged_by_reading(raw)
    assert (verdict.completeness, verdict.sure) == (COMPLETE, True)
    assert verdict.head is not None
    assert verdict.head.flattened
    assert verdict.head.release == parse_vmcore(ELF, unzstd).release
    for cut in (1, 15, 16, 17, 2**19, 2**20, 2**20 + 31, 2**21, 2**21 + 5):
        assert judged_by_reading(raw[:-cut]).completeness is INCOMPLETE, cut
    assert judged_by_reading(raw + b"more").completeness is INCOMPLETE


# ---- what a compressed dump turned out to be ----


def unpacked(raw: bytes, *, cut: bool = False) -> Unpacked:
    meter = DumpMeter()
    meter.feed(raw)
    return meter.finish(cut=cut, why="cut inside what gzip wrote" if cut else "")


@pytest.mark.parametrize(
    ("inner", "cut", "expected"),
    [
        (KDUMP, False, (COMPLETE, "", True)),
        (FLAT, False, (COMPLETE, "", True)),
        (ELF, False, (COMPLETE, "", True)),
        (flatten(ELF), False, (COMPLETE, "", True)),
        (FLAT[:-16], False, (INCOMPLETE, "no end marker of the flattened format", True)),
        (flatten(ELF)[:-1], False, (INCOMPLETE, "no end marker of the flattened format", True)),
        (ELF[:-1], False, (INCOMPLETE, "file ends before the end of its memory", True)),
        (KDUMP[:-1], False, (INCOMPLETE, "file ends before the end of its pages", True)),
        (KDUMP, True, (INCOMPLETE, "cut inside what gzip wrote", True)),
        (FLAT, True, (INCOMPLETE, "cut inside what gzip wrote", True)),
        (ELF, True, (INCOMPLETE, "cut inside what gzip wrote", True)),
        (b"just a log", False, (BOGUS, "10 bytes of text", True)),
    ],
)
def test_compressed_dump_is_judged_by_what_is_inside(
    inner: bytes, cut: bool, expected: tuple[Completeness, str, bool]
) -> None:
    # the head alone, as of a file that is too large to be had whole
    head = gzip.compress(inner, mtime=0)[:-9]
    verdict = judge(head, 10**9, b"", unzstd, unpacked=unpacked(inner, cut=cut))
    assert verdict.completeness is expected[0]
    assert verdict.reason.startswith(expected[1])
    assert verdict.sure is expected[2]


def test_compressed_dump_that_could_not_be_read_is_not_known() -> None:
    head = gzip.compress(KDUMP, mtime=0)[:-9]
    verdict = judge(head, 10**9, b"", unzstd, unpacked="it did not end in time")
    assert (verdict.completeness, verdict.sure) == (COMPLETE, False)
    assert verdict.reason == (
        "the end of what gzip compressed was not checked: it did not end in time"
    )


def test_stream_that_wants_too_much_memory_is_not_known() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    verdict = judged(lzma.compress(FLAT, filters=filters))
    assert (verdict.completeness, verdict.sure) == (COMPLETE, False)


def reader(raw: bytes) -> Callable[[int, int], bytes]:
    return lambda at, size: raw[at : at + size]


def test_memory_full_of_ones_is_no_end_of_a_flattened_dump() -> None:
    """To who sees the last bytes alone, a cut dump's memory looks like the end marker."""
    whole = flatten(KDUMP + b"\xff" * 500)
    for raw, expected in ((whole, COMPLETE), (whole[:-16], INCOMPLETE), (whole[:-30], INCOMPLETE)):
        verdict = judge(raw, len(raw), raw[-4096:], unzstd, read=reader(raw))
        assert verdict.completeness is expected


def test_dump_of_qemu_ends_with_its_section_names() -> None:
    raw = bytearray(build_elf_vmcore())
    names = b"\0.shstrtab\0"
    table = bytes(64) + pack("<IIQQQQIIQQ", 1, 3, 0, 0, len(raw) + 128, len(names), 0, 0, 1, 0)
    raw[40:48] = len(raw).to_bytes(8, "little")  # e_shoff
    raw[58:64] = pack("<HHH", 64, 2, 1)
    whole = bytes(raw) + table + names
    for size in (len(whole), len(whole) - 1, len(raw) + 1):
        verdict = judge(whole[:size], size, whole[:size][-4096:], unzstd)
        wanted = Completeness.COMPLETE if size == len(whole) else Completeness.INCOMPLETE
        assert verdict.completeness is wanted, size
