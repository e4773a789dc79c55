"""The files of a kernel's dump: found by its record, opened only while they are those of the record
and root's alone, unpacked where a compressor wrapped them, and with a VMCOREINFO note where a
hypervisor wrote none. The parts of a split dump are put together where only one file will do.
"""

import bz2
import contextlib
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crashd.cli.open.scratch import leaving_room, nameless_file, write_core
from crashd.cli.output import write_sparse
from crashd.domain.kdump.compressed import XZ_MEMORY_MAX, Wrapper, find_wrapper, unlz4_block
from crashd.domain.kdump.diskdump import Read
from crashd.domain.kdump.joined import join, parse_part
from crashd.domain.kdump.vmcoreinfo import (
    ElfHead,
    add_note,
    build_id_in,
    find_vmcoreinfo,
    has_note,
    parse_elf_dump,
    release_in,
)
from crashd.domain.text import printable
from crashd.errors import CrashdError, FormatError, NotFoundError, reason_of
from crashd.store.corefile import zstd_reader
from crashd.store.kerneldumps import DumpRoot

_CHUNK = 1 << 20
_HEAD = 16
_LZ4_WINDOW = 64 << 10
_LZ4_BLOCK_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class KernelDump:
    """Where the dump of a kernel's crash lies."""

    directory: Path
    inode: int | None
    names: tuple[str, ...]
    """Of one file, or of all parts of a split dump."""
    log: str | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The dump's files."""
        return tuple(self.directory / name for name in self.names)


def find_dump(doc: dict[str, Any]) -> KernelDump:
    """Find the dump of a kernel's crash by its record.

    Raises:
        NotFoundError: there is none; the message says what there is.

    """
    crash_id, kernel = doc.get("id"), doc.get("kernel") or {}
    where = kernel.get("path")
    if not isinstance(where, str):
        source = {"kmsg": "the log of the running kernel"}.get(
            str(kernel.get("source")), str(kernel.get("source"))
        )
        raise NotFoundError(
            f"crash {crash_id} left no dump: it is known from {printable(source)}",
            hint=f"crashctl info --all {crash_id} shows what it says",
        )
    names = kernel.get("dump_parts") or [kernel.get("dump")]
    if doc.get("state") not in ("complete", "incomplete") or not all(names):
        log = kernel.get("log_file")
        only = f"; its log is {where}/{printable(str(log))}" if log else ""
        reason = (doc.get("capture") or {}).get("reason")
        why = f": {printable(str(reason))}" if reason else ""
        raise NotFoundError(f"crash {crash_id} has no dump to open{why}{only}")
    if kernel.get("dump_state") == "bogus":
        reason = (doc.get("capture") or {}).get("reason")
        raise NotFoundError(f"crash {crash_id} has no usable dump: {reason}")
    inode, log = kernel.get("inode"), kernel.get("log_file")
    return KernelDump(
        Path(where),
        inode if isinstance(inode, int) else None,
        tuple(map(str, names)),
        log if isinstance(log, str) else None,
    )


def open_file(dump: KernelDump, name: str) -> int:
    """Open a file of a dump's directory; the caller owns the descriptor.

    Raises:
        CrashdError: others than root could have changed it.
        NotFoundError: it is gone, or there is another in its place.

    """
    shown = printable(os.fsencode(dump.directory / name))
    try:
        with DumpRoot(dump.directory.parent) as root:
            seen = root.look(os.fsencode(dump.directory.name))
            told = root.classify(seen)
            faults = "not a dump directory" if told is None else ", ".join(map(str, told.faults))
            if root.distrust or faults:
                raise CrashdError(
                    f"{shown} is not a trusted kernel dump: {root.distrust or faults}"
                )
            if dump.inode is not None and dump.inode != seen.inode:
                raise NotFoundError(f"{shown}: its directory has been replaced")
            with root.open(seen) as directory:
                return directory.open_file(os.fsencode(name))
    except OSError as e:
        raise NotFoundError(f"{shown}: {reason_of(e)}") from e


@contextlib.contextmanager
def opened_dump(dump: KernelDump) -> Iterator[tuple[Iterator[bytes], int]]:
    """Open a dump for reading from its start, without what a compressor put around it, and with the
    parts of a split one put together; yields also its size, 0 where that is not known before.

    Raises:
        CrashdError: it is not to be trusted, or there is no room to unpack its parts.
        NotFoundError: it is gone.

    """
    with contextlib.ExitStack() as stack:
        fds: list[int] = []
        for name in dump.names:
            fds.append(open_file(dump, name))
            stack.callback(os.close, fds[-1])
        if len(fds) > 1:
            copies = [(fd, wrapper_of(fd)) for fd in fds]
            plain = [stack.enter_context(plain_copy(fd)) if by else fd for fd, by in copies]
            yield read_joined(plain), 0
        else:
            size = os.fstat(fds[0]).st_size if wrapper_of(fds[0]) is None else 0
            yield read_unwrapped(fds[0]), size


def read_joined(fds: Iterable[int]) -> Iterator[bytes]:
    """Read the parts of a split dump as the one dump that they are.

    Raises:
        FormatError: they are not the parts of one dump, or a part is cut.

    """
    return join([parse_part(_reader(fd)) for fd in fds])


def _reader(fd: int) -> Read:
    return lambda offset, size: os.pread(fd, size, offset)


@contextlib.contextmanager
def joined_copy(fds: Iterable[int]) -> Iterator[int]:
    """Put the parts of a split dump together in a file without a name; yield its descriptor.

    Raises:
        FormatError: see read_joined().
        CrashdError: there is no room for it.

    """
    with nameless_file() as copy:
        write_core(copy, read_joined(fds))
        yield copy


def wrapper_of(fd: int) -> Wrapper | None:
    """Recognise what compressed a file as a whole; None where nothing did."""
    return find_wrapper(os.pread(fd, _HEAD, 0))


def read_unwrapped(fd: int) -> Iterator[bytes]:
    """Read a file from its start, decompressed where a compressor wrapped it; memory is bounded.

    Raises:
        FormatError: it is damaged or cut.

    """
    wrapper = wrapper_of(fd)
    with open(os.dup(fd), "rb", buffering=0) as file:
        file.seek(0)
        match wrapper:
            case None:
                yield from iter(lambda: file.read(_CHUNK), b"")
            case Wrapper.ZSTD:
                read = zstd_reader(file)
                yield from iter(lambda: read(_CHUNK), b"")
            case Wrapper.LZ4:
                yield from _read_lz4(file)
            case _:
                yield from _read_stdlib(file, wrapper)


def _read_stdlib(file: IO[bytes], wrapper: Wrapper) -> Iterator[bytes]:
    """Decompress by the standard library: one stream, or several one behind the other."""

    def begin() -> Any:
        if wrapper is Wrapper.GZIP:
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        if wrapper is Wrapper.BZIP2:
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)

    stream, data = begin(), b""
    try:
        while True:
            if not data and not (data := file.read(_CHUNK)):
                break
            if stream.eof:
                data = data.lstrip(b"\0")  # padding is allowed
                if not data:
                    continue
                stream = begin()
            yield stream.decompress(data, _CHUNK)
            while not stream.eof and _has_more(stream):
                left = getattr(stream, "unconsumed_tail", b"")
                yield stream.decompress(left, _CHUNK)
            data = stream.unused_data if stream.eof else b""
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as e:
        raise FormatError(f"the {wrapper} stream is damaged: {e}") from e
    if not stream.eof:
        raise FormatError(f"the {wrapper} stream is cut")


def _has_more(stream: Any) -> bool:
    """Return whether a decompressor has more output for the input that it was given."""
    if hasattr(stream, "needs_input"):
        return not stream.needs_input
    return bool(stream.unconsumed_tail)


def _read_lz4(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress an lz4 frame (lz4_Frame_format.md); blocks may need the 64 KiB before them."""
    head = _exactly(file, 7)
    flags = head[4]
    if flags >> 6 != 1:
        raise FormatError(f"the lz4 frame is of version {flags >> 6}, not 1")
    _exactly(file, (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0))
    out = bytearray()
    while word := int.from_bytes(_exactly(file, 4), "little"):
        size = word & 0x7FFFFFFF
        if size > _LZ4_BLOCK_MAX:
            raise FormatError(f"a block of the lz4 frame has {size} bytes")
        block, before = _exactly(file, size), len(out)
        if word >> 31:
            out += block
        elif not unlz4_block(block, out, before + _LZ4_BLOCK_MAX):
            raise FormatError("a block of the lz4 frame is damaged")
        _exactly(file, 4 if flags & 0x10 else 0)
        yield bytes(out[before:])
        del out[:-_LZ4_WINDOW]


def _exactly(file: IO[bytes], size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        data = file.read(size - len(parts))
        if not data:
            raise FormatError("the lz4 frame is cut")
        parts += data
    return bytes(parts)


@contextlib.contextmanager
def plain_copy(fd: int) -> Iterator[int]:
    """Unpack a wrapped dump into a file without a name; yield its descriptor.

    Raises:
        FormatError: it is damaged or cut.
        CrashdError: there is no room for it.

    """
    with nameless_file() as copy:
        write_core(copy, read_unwrapped(fd))
        yield copy


@dataclass(frozen=True, slots=True)
class FoundInfo:
    """A VMCOREINFO that was found in the memory of a dump without that note."""

    dump: ElfHead
    text: bytes

    @property
    def build_id(self) -> str | None:
        """Of the vmlinux."""
        return build_id_in(self.text)

    @property
    def release(self) -> str:
        """What `uname -r` said."""
        return release_in(self.text)


def find_missing_info(fd: int) -> list[FoundInfo]:
    """Find what could be the VMCOREINFO of an ELF dump that has no such note; nothing for a dump of
    another format, or with the note. Reads all of the dump.
    """

    def read(offset: int, size: int) -> bytes:
        return os.pread(fd, size, offset)

    dump = parse_elf_dump(read)
    if dump is None or has_note(read, dump):
        return []
    return [FoundInfo(dump, text) for text in find_vmcoreinfo(read, dump)]


@contextlib.contextmanager
def copy_with_note(fd: int, info: FoundInfo) -> Iterator[int]:
    """Copy an ELF dump into a file without a name and give it the note; yield its descriptor.

    Raises:
        CrashdError: there is no room for it.

    """
    size = os.fstat(fd).st_size
    head, tail = add_note(info.dump, size, info.text)
    with nameless_file() as copy:
        try:
            chunks = (os.pread(fd, _CHUNK, at) for at in range(0, size, _CHUNK))
            write_sparse(copy, leaving_room(copy, chunks))
            os.pwrite(copy, tail, size)
            os.pwrite(copy, head, 0)
        except OSError as e:
            raise CrashdError(f"the dump cannot be copied: {reason_of(e)}") from e
        yield copy
