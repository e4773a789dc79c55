from struct import pack

import pytest

from crashd.domain.elf.elfcore import CoreHead, MappedFile, Segment, SigInfo, Thread, parse_head
from crashd.domain.elf.elfnotes import NOTES_MAX, PATH_MAX, PROBLEMS_MAX, Notes
from tests.builders.elfcore import (
    REGISTERS,
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_notes,
)

X86_64 = CoreFormat()
I386 = CoreFormat(machine=3, bits=32)
S390X = CoreFormat(machine=22, byteorder="big")
FORMATS = pytest.mark.parametrize("form", [X86_64, I386, S390X], ids=["x86_64", "i386", "s390x"])


def core_with_note(kind: int, desc: bytes, form: CoreFormat = X86_64) -> CoreHead:
    """Parse a core that has one thread and one more note."""
    return parse_head(build_core(form=form, notes=build_notes(form) + form.note(kind, desc)))


@pytest.mark.parametrize(("machine", "bits"), REGISTERS)
def test_parse_head_known_machine_has_registers(machine: int, bits: int) -> None:
    form = CoreFormat(machine, 64 if bits == 64 else 32, "big" if machine == 22 else "little")
    threads = [CoreThread(5, 6, 0x7654321, 0x1234567), CoreThread(9, 6, 0x11, 0x22)]
    head = parse_head(build_core(form=form, notes=build_notes(form, threads=threads)))
    assert (head.machine, head.bits, head.byteorder) == (machine, bits, form.byteorder)
    assert head.threads == (Thread(5, 6, 0x7654321, 0x1234567), Thread(9, 6, 0x11, 0x22))
    assert head.problems == ()


def test_parse_head_unknown_machine_has_thread_ids_only() -> None:
    form = CoreFormat(machine=999)
    head = parse_head(build_core(form=form, notes=build_notes(form, threads=[CoreThread(5, 6)])))
    assert head.threads == (Thread(5, 6, None, None),)
    assert head.problems == ()


@FORMATS
def test_parse_head_every_note_is_read(form: CoreFormat) -> None:
    notes = build_notes(
        form,
        siginfo=form.siginfo(7, 2, form.pack("L", 0xDEAD0000), errno=3),
        auxv={3: 0x40034, 9: 0x41000},
        files=[(0x1000, 0x3000, 5, b"/a"), (0x3000, 0x4000, 0, b"/b \xff\n")],
        comm=b"name\0junk",
        psargs=b"name --x ",
    )
    segments = [CoreSegment(0x1000, b"abcd" * 1024), CoreSegment(0x9000, b"", 8192, 4)]
    raw = build_core(form=form, notes=notes, segments=segments)
    head = parse_head(raw)
    assert head.siginfo == SigInfo(7, 2, 3, 0xDEAD0000, None, None)
    assert head.auxv == {3: 0x40034, 9: 0x41000}
    assert head.files == (
        MappedFile(0x1000, 0x3000, 5 * 4096, b"/a"),
        MappedFile(0x3000, 0x4000, 0, b"/b \xff\n"),
    )
    assert (head.comm, head.psargs) == (b"name", b"name --x")
    assert head.segments[0] == Segment(4096, 0x1000, 4096, 4096, 6)
    assert head.segments[1] == Segment(8192, 0x9000, 0, 8192, 4)
    assert head.expected_size == len(raw)
    assert head.problems == ()


def test_parse_head_old_uid_size_finds_comm() -> None:
    # A 32-bit prpsinfo has 124 bytes on x86 and arm, 128 where uid_t never had 16 bits.
    desc = bytes(32) + b"name".ljust(16, b"\0") + b"args".ljust(80, b"\0")
    form = CoreFormat(machine=20, bits=32, byteorder="big")
    notes = form.note(1, form.prstatus(1)) + form.note(3, desc)
    head = parse_head(build_core(form=form, notes=notes))
    assert (head.comm, head.psargs) == (b"name", b"args")


def test_parse_head_too_many_notes_are_capped() -> None:
    notes = X86_64.note(1, X86_64.prstatus(1)) + X86_64.note(99, b"", b"") * (NOTES_MAX + 10)
    notes += X86_64.note(1, X86_64.prstatus(2))
    head = parse_head(build_core(notes=notes))
    assert [thread.tid for thread in head.threads] == [1]
    assert head.problems == (f"more than {NOTES_MAX} notes",)


def test_parse_head_descriptor_of_4_gib_is_a_problem() -> None:
    notes = X86_64.note(1, X86_64.prstatus(1)) + X86_64.note(6, bytes(16), descsz=2**32 - 1)
    head = parse_head(build_core(notes=notes))
    assert len(head.threads) == 1
    assert head.problems == ("a note is cut",)


def test_parse_head_name_of_4_gib_is_a_problem() -> None:
    notes = X86_64.note(1, X86_64.prstatus(1)) + pack("<III", 2**32 - 1, 8, 99) + b"CORE\0\0\0\0"
    head = parse_head(build_core(notes=notes))
    assert len(head.threads) == 1
    assert head.problems == ("a note is cut",)


def test_parse_head_other_owners_note_is_not_a_thread() -> None:
    notes = X86_64.note(1, X86_64.prstatus(5), b"LINUX\0") + X86_64.note(1, X86_64.prstatus(6))
    head = parse_head(build_core(notes=notes))
    assert [thread.tid for thread in head.threads] == [6]


@pytest.mark.parametrize("kind", [3, 6, 0x46494C45])
def test_parse_head_second_note_of_a_kind_does_not_count(kind: int) -> None:
    first = build_notes(
        X86_64, auxv={3: 1}, files=[(1, 2, 0, b"/first")], comm=b"first", psargs=b"first"
    )
    second = {
        3: X86_64.prpsinfo(b"second", b"second"),
        6: X86_64.auxv({3: 2}),
        0x46494C45: X86_64.files([(1, 2, 0, b"/second")]),
    }[kind]
    head = parse_head(build_core(notes=first + X86_64.note(kind, second)))
    assert (head.comm, head.auxv, head.files[0].name) == (b"first", {3: 1}, b"/first")
    assert head.problems == (f"there is a second note of type {kind:#x}",)


def test_parse_head_siginfo_of_each_thread_is_no_problem() -> None:
    notes = build_notes(X86_64, siginfo=X86_64.siginfo(11, 0, pack("<iI", 1, 2)))
    notes += X86_64.note(0x53494749, X86_64.siginfo(5, 1))
    head = parse_head(build_core(notes=notes))
    assert head.siginfo == SigInfo(11, 0, 0, None, 1, 2)
    assert head.problems == ()


@FORMATS
@pytest.mark.parametrize(
    ("kind", "size64", "size32", "text"),
    [
        (1, 35, 27, "NT_PRSTATUS is too short for a thread id"),
        (1, 36, 28, "NT_PRSTATUS is too short for its registers"),
        (3, 135, 123, "an unknown layout"),
        (3, 0, 0, "an unknown layout"),
        (0x53494749, 23, 19, "NT_SIGINFO is too short"),
        (0x46494C45, 15, 7, "NT_FILE is too short"),
    ],
)
def test_parse_head_short_note_is_a_problem(
    form: CoreFormat, kind: int, size64: int, size32: int, text: str
) -> None:
    desc = bytes(size64 if form.bits == 64 else size32)
    notes = form.note(1, form.prstatus(1)) + form.note(kind, desc)
    head = parse_head(build_core(form=form, notes=notes))
    assert len(head.problems) == 1
    assert text in head.problems[0]
    assert head.threads[0].tid == 1


def test_problem_many_are_capped() -> None:
    found = Notes()
    for number in range(100):
        found.problem(f"problem {number}")
        found.problem("again and again")
    assert len(found.problems) == len(set(found.problems)) == PROBLEMS_MAX


SENDER = pack("<iI", 77, 1000)


FAULT = pack("<Q", 0x123456789ABC)


@pytest.mark.parametrize(
    ("signal", "code", "union", "address", "pid", "uid"),
    [
        (11, 1, FAULT, 0x123456789ABC, None, None),  # SEGV_MAPERR
        (4, 2, FAULT, 0x123456789ABC, None, None),
        (5, 1, FAULT, 0x123456789ABC, None, None),
        (7, 3, FAULT, 0x123456789ABC, None, None),
        (8, 1, FAULT, 0x123456789ABC, None, None),
        (31, 1, FAULT, 0x123456789ABC, None, None),  # SYS_SECCOMP: si_call_addr
        (11, 0x7F, FAULT, 0x123456789ABC, None, None),
        (11, 0x80, FAULT, None, None, None),  # SI_KERNEL
        (11, 0, SENDER, None, 77, 1000),  # SI_USER
        (6, -6, SENDER, None, 77, 1000),  # SI_TKILL
        (6, -1, SENDER, None, 77, 1000),  # SI_QUEUE
        (6, 0, bytes(8), None, 0, 0),  # from outside of the pid namespace
        (6, -2, SENDER, None, None, None),  # SI_TIMER
        (6, -5, SENDER, None, None, None),  # SI_SIGIO
        (17, 2, SENDER, None, 77, 1000),  # CLD_KILLED
        (6, 1, SENDER, None, None, None),
        (10, 0x1000, SENDER, None, None, None),
    ],
)
def test_parse_head_siginfo_union_is_read_by_signal_and_code(
    signal: int, code: int, union: bytes, address: int | None, pid: int | None, uid: int | None
) -> None:
    head = core_with_note(0x53494749, X86_64.siginfo(signal, code, union))
    assert head.siginfo == SigInfo(signal, code, 0, address, pid, uid)


@pytest.mark.parametrize(
    ("machine", "own", "signal"),
    [(8, 10, 7), (8, 12, 31), (8, 11, 11), (43, 10, 7), (2, 25, 25), (0x9026, 12, 31), (8, 7, 0)],
)
def test_parse_head_signal_of_an_architecture_has_the_common_number(
    machine: int, own: int, signal: int
) -> None:
    form = CoreFormat(machine, 32 if machine in (2, 8) else 64, "big")
    info = form.siginfo(own, 2, form.pack("L", 0x1234))
    notes = build_notes(form, threads=[CoreThread(5, own)], siginfo=info)
    head = parse_head(build_core(form=form, notes=notes))
    assert head.threads[0].signal == signal
    assert head.siginfo is not None
    assert (head.siginfo.signal, head.siginfo.code, head.siginfo.errno) == (signal, 2, 0)


def test_parse_head_siginfo_of_mips_has_code_before_errno() -> None:
    form = CoreFormat(8, 64, "little")
    head = core_with_note(0x53494749, form.siginfo(11, 2, FAULT, errno=5), form)
    assert head.siginfo == SigInfo(11, 2, 5, 0x123456789ABC, None, None)
    head = core_with_note(0x53494749, form.siginfo(6, -3, SENDER), form)
    assert head.siginfo == SigInfo(6, -2, 0, None, None, None)  # its SI_TIMER is -3


def test_parse_head_mips_n32_has_wide_registers() -> None:
    form, wide = CoreFormat(8, 32, "big"), CoreFormat(8, 64, "big")
    registers = wide.prstatus(5, 11, 0x1200_0000, 0x7FFF_0000)[112:]
    desc = form.prstatus(5, 11)[:72] + registers[: 45 * 8] + bytes(8)
    head = parse_head(build_core(form=form, notes=form.note(1, desc)))
    assert head.threads == (Thread(5, 11, 0x1200_0000, 0x7FFF_0000),)


@pytest.mark.parametrize("count", [3, 2**60, 2**64 - 1])
def test_parse_head_files_fewer_than_said_is_a_problem(count: int) -> None:
    desc = X86_64.files([(1, 2, 0, b"/a"), (3, 4, 0, b"/b")], count=count)
    head = core_with_note(0x46494C45, desc)
    assert "NT_FILE holds less than it says" in head.problems
    assert len(head.files) <= 2


def test_parse_head_files_cut_in_the_last_name_leaves_that_out() -> None:
    desc = X86_64.files([(1, 2, 0, b"/first"), (3, 4, 0, b"/second")])[:-3]
    head = core_with_note(0x46494C45, desc)
    assert head.files == (MappedFile(1, 2, 0, b"/first"),)
    assert head.problems == ("NT_FILE holds less than it says",)


def test_parse_head_files_absurd_entries_are_left_out() -> None:
    desc = X86_64.files([(9, 2, 0, b"/a"), (3, 4, 2**62, b"/b"), (5, 6, 1, b"/c")])
    head = core_with_note(0x46494C45, desc)
    assert head.files == (MappedFile(5, 6, 4096, b"/c"),)
    assert head.problems == ("NT_FILE has an absurd entry",)


def test_parse_head_files_long_name_is_cut() -> None:
    head = core_with_note(0x46494C45, X86_64.files([(1, 2, 0, b"/" * (PATH_MAX + 1))]))
    assert head.files[0].name == b"/" * PATH_MAX
    assert head.problems == ("NT_FILE has a name longer than PATH_MAX",)
    head = core_with_note(0x46494C45, X86_64.files([(1, 2, 0, b"/" * PATH_MAX)]))
    assert (head.files[0].name, head.problems) == (b"/" * PATH_MAX, ())


def test_parse_head_files_of_gdb_have_offsets_in_bytes() -> None:
    head = core_with_note(0x46494C45, X86_64.files([(1, 2, 8192, b"/a")], page_size=1))
    assert head.files[0].offset_bytes == 8192


def test_parse_head_files_60000_are_all_read() -> None:
    files = [(i * 4096, i * 4096 + 4096, i, b"/lib/%d" % i) for i in range(60000)]
    head = core_with_note(0x46494C45, X86_64.files(files))
    assert head.files[-1] == MappedFile(59999 * 4096, 60000 * 4096, 59999 * 4096, b"/lib/59999")
    assert head.problems == ()
