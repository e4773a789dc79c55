"""Make ELF cores and ELF images, byte by byte and as broken as a test needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Literal

# Of each architecture: bytes of pr_reg, and in it the offset and size of pc and sp.
# Source: what gdb and elfutils read (elfutils backends/*_corenote.c).
REGISTERS: Mapping[tuple[int, int], tuple[int, int, int, int]] = {
    (62, 64): (216, 128, 152, 8),  # x86-64
    (62, 32): (216, 128, 152, 8),  # x32
    (3, 32): (68, 48, 60, 4),  # i386
    (183, 64): (272, 256, 248, 8),  # aarch64
    (40, 32): (72, 60, 52, 4),  # arm
    (243, 64): (256, 0, 16, 8),  # riscv64
    (22, 64): (216, 8, 136, 8),  # s390x
    (21, 64): (384, 256, 8, 8),  # ppc64le
    (20, 32): (192, 128, 4, 4),  # ppc
    (8, 64): (360, 272, 232, 8),  # mips64
    (8, 32): (180, 160, 140, 4),  # mips o32
    (43, 64): (288, 264, 112, 8),  # sparc64
    (258, 64): (360, 264, 24, 8),  # loongarch64
    (0x9026, 64): (264, 248, 240, 8),  # alpha
}

PT_LOAD, PT_NOTE = 1, 4


@dataclass(frozen=True, slots=True)
class CoreFormat:
    """Machine, class and byte order of what is built."""

    machine: int = 62
    bits: Literal[32, 64] = 64
    byteorder: Literal["little", "big"] = "little"

    def pack(self, codes: str, *values: int | bytes) -> bytes:
        """Pack without padding; `L` is a word of the class."""
        codes = codes.replace("L", "Q" if self.bits == 64 else "I")
        return pack(("<" if self.byteorder == "little" else ">") + codes, *values)

    def note(
        self, kind: int, desc: bytes, name: bytes = b"CORE\0", descsz: int | None = None
    ) -> bytes:
        """Build a note; `descsz` may lie."""
        size = len(desc) if descsz is None else descsz
        head = self.pack("III", len(name), size, kind)
        return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)

    def prstatus(
        self, tid: int, signal: int = 11, pc: int = 0, sp: int = 0, blocked: int = 0
    ) -> bytes:
        """Build the descriptor of NT_PRSTATUS."""
        size, pc_at, sp_at, register = REGISTERS.get((self.machine, self.bits), (64, 0, 8, 8))
        base, tid_at = (112, 32) if self.bits == 64 else (72, 24)
        desc = bytearray(base + size + self.bits // 8)
        desc[12:14] = self.pack("h", signal)
        desc[tid_at : tid_at + 4] = self.pack("i", tid)
        word = self.bits // 8
        desc[tid_at - word : tid_at] = self.pack("L", blocked)
        code = "Q" if register == 8 else "I"
        desc[base + pc_at : base + pc_at + register] = self.pack(code, pc)
        desc[base + sp_at : base + sp_at + register] = self.pack(code, sp)
        return bytes(desc)

    def prpsinfo(self, comm: bytes, psargs: bytes) -> bytes:
        """Build the descriptor of NT_PRPSINFO."""
        return bytes(40 if self.bits == 64 else 28) + pack("16s80s", comm, psargs)

    def siginfo(self, signal: int, code: int, union: bytes = b"", errno: int = 0) -> bytes:
        """Build the descriptor of NT_SIGINFO: siginfo_t, its union given as bytes."""
        order = (signal, code, errno) if self.machine == 8 else (signal, errno, code)  # MIPS
        head = self.pack("iii", *order) + bytes(4 if self.bits == 64 else 0)
        return (head + union).ljust(128, b"\0")

    def auxv(self, values: Mapping[int, int]) -> bytes:
        """Build the descriptor of NT_AUXV."""
        pairs = [self.pack("LL", kind, value) for kind, value in values.items()]
        return b"".join(pairs) + self.pack("LL", 0, 0)

    def files(
        self,
        files: Sequence[tuple[int, int, int, bytes]],
        *,
        count: int | None = None,
        page_size: int = 4096,
    ) -> bytes:
        """Build the descriptor of NT_FILE from (start, end, page offset, name); `count` may lie."""
        head = self.pack("LL", len(files) if count is None else count, page_size)
        ranges = b"".join(self.pack("LLL", *file[:3]) for file in files)
        return head + ranges + b"".join(file[3] + b"\0" for file in files)

    def phdr(
        self,
        kind: int,
        offset: int,
        filesz: int,
        *,
        vaddr: int = 0,
        memsz: int | None = None,
        flags: int = 6,
        align: int = 4,
    ) -> bytes:
        """Build a program header."""
        memsz = filesz if memsz is None else memsz
        if self.bits == 64:
            return self.pack("IIQQQQQQ", kind, flags, offset, vaddr, 0, filesz, memsz, align)
        return self.pack("IIIIIIII", kind, offset, vaddr, 0, filesz, memsz, flags, align)

    def ehdr(
        self,
        phnum: int,
        *,
        kind: int = 4,
        phoff: int | None = None,
        phentsize: int | None = None,
        shoff: int = 0,
        shnum: int = 0,
    ) -> bytes:
        """Build an ELF header, by default that of a core."""
        ident = b"\x7fELF" + bytes(
            (2 if self.bits == 64 else 1, 1 if self.byteorder == "little" else 2, 1)
        )
        size = 64 if self.bits == 64 else 52
        phoff = size if phoff is None else phoff
        phentsize = self.phdr_size if phentsize is None else phentsize
        words = self.pack("LLL", 0, phoff, shoff)
        halves = self.pack("HHHHHH", size, phentsize, phnum, self.shdr_size, shnum, 0)
        head = ident.ljust(16, b"\0") + self.pack("HHI", kind, self.machine, 1)
        return head + words + self.pack("I", 0) + halves

    @property
    def phdr_size(self) -> int:
        """Bytes of a program header."""
        return 56 if self.bits == 64 else 32

    @property
    def shdr_size(self) -> int:
        """Bytes of a section header."""
        return 64 if self.bits == 64 else 40


@dataclass(frozen=True, slots=True)
class CoreThread:
    """One NT_PRSTATUS."""

    tid: int
    signal: int = 11
    pc: int = 0
    sp: int = 0
    blocked: int = 0


@dataclass(frozen=True, slots=True)
class CoreSegment:
    """One PT_LOAD and what it holds."""

    vaddr: int
    data: bytes = b""
    memsz: int | None = None
    """As many as `data` has, unless given."""
    flags: int = 6


def build_notes(
    form: CoreFormat,
    *,
    threads: Sequence[CoreThread] = (CoreThread(100),),
    siginfo: bytes | None = None,
    auxv: Mapping[int, int] | None = None,
    files: Sequence[tuple[int, int, int, bytes]] | None = None,
    comm: bytes = b"prog",
    psargs: bytes = b"prog --flag ",
) -> bytes:
    """Build the notes of a core in the kernel's order."""

    def prstatus(thread: CoreThread) -> bytes:
        desc = form.prstatus(thread.tid, thread.signal, thread.pc, thread.sp, thread.blocked)
        return form.note(1, desc) + form.note(0x202, bytes(64), b"LINUX\0")

    out = [prstatus(thread) for thread in threads[:1]]
    out.append(form.note(3, form.prpsinfo(comm, psargs)))
    if siginfo is not None:
        out.append(form.note(0x53494749, siginfo))
    if auxv is not None:
        out.append(form.note(6, form.auxv(auxv)))
    if files is not None:
        out.append(form.note(0x46494C45, form.files(files)))
    out.extend(prstatus(thread) for thread in threads[1:])
    return b"".join(out)


def build_core(
    *,
    form: CoreFormat | None = None,
    segments: Sequence[CoreSegment] = (),
    notes: bytes | None = None,
    notes_last: bool = False,
    page: int = 4096,
) -> bytes:
    """Build a complete core as the kernel lays it out, or with `notes_last` as gcore does.

    From 65,535 program headers on, their number stands in a section header at the end. `notes` are
    bytes, as build_notes() makes them: any other bytes do as well.
    """
    form = form or CoreFormat()
    notes = build_notes(form) if notes is None else notes
    count = len(segments) + 1
    ehdr_size = len(form.ehdr(0))
    table_end = ehdr_size + count * form.phdr_size
    data_at = -(-(table_end + (0 if notes_last else len(notes))) // page) * page
    loads: list[bytes] = []
    at = data_at
    for s in segments:
        memsz = len(s.data) if s.memsz is None else s.memsz
        loads.append(
            form.phdr(
                PT_LOAD, at, len(s.data), vaddr=s.vaddr, memsz=memsz, flags=s.flags, align=page
            )
        )
        at += len(s.data)
    end = at + (len(notes) if notes_last else 0)
    note = form.phdr(PT_NOTE, at if notes_last else table_end, len(notes), memsz=0, flags=0)
    xnum = count >= 0xFFFF
    ehdr = form.ehdr(0xFFFF, shoff=end, shnum=1) if xnum else form.ehdr(count)
    head = ehdr + note + b"".join(loads) + (b"" if notes_last else notes)
    tail = notes if notes_last else b""
    if xnum:  # sh_info
        tail += bytes(44 if form.bits == 64 else 28) + form.pack("I", count)
        tail += bytes(form.shdr_size - (48 if form.bits == 64 else 32))
    return head.ljust(data_at, b"\0") + b"".join(s.data for s in segments) + tail


def build_image(
    build_id: bytes | None = bytes(range(20)),
    *,
    form: CoreFormat | None = None,
    vaddr: int = 0,
    kind: int = 3,
    align: int = 4,
    note_offset: int | None = None,
) -> bytes:
    """Build the first bytes of an executable or library as they lie in memory."""
    form = form or CoreFormat()
    note = form.note(5, bytes(16), b"GNU\0")  # NT_GNU_PROPERTY_TYPE_0 often comes first
    if build_id is not None:
        note += form.note(3, build_id, b"GNU\0")
    at = len(form.ehdr(0)) + 2 * form.phdr_size
    where = at if note_offset is None else note_offset
    return (
        form.ehdr(2, kind=kind)
        + form.phdr(PT_LOAD, 0, 4096, vaddr=vaddr, align=4096)
        + form.phdr(PT_NOTE, where, len(note), vaddr=vaddr + where, align=align)
        + bytes(max(0, where - at))
        + note
    )
