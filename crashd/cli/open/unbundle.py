"""Reads a bundle, written here or elsewhere; crashd.cli.open.bundle documents its contents.

A bundle may come from anybody. It is read once, as a stream. Every size is compared with a limit
before anything is allocated or written. Only member names that bundles use are accepted. The core
goes to an unnamed file, documents stay in memory, and module files get the paths of modules.json
below a private directory, or are left out.

Over 400 lines, because it is one reading of one stream.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from crashd.base.files import NotRegularError, open_regular
from crashd.cli.open.scratch import nameless_file, private_directory, write_core
from crashd.cli.output import terminable
from crashd.domain.elf.modules import path_parts
from crashd.domain.tarheaders import (
    BLOCK,
    TarHeader,
    apply_records,
    parse_records,
    parse_tar_header,
)
from crashd.domain.text import printable
from crashd.errors import CrashdError, FormatError, NotFoundError, reason_of
from crashd.store.corefile import read_frames, zstd_reader

CHUNK = 1 << 20
_MEMBER = re.compile(
    r"crash\.json|report\.txt|core\.zst|modules\.json|files/\d{1,4}/[^/]{1,255}"
    r"|kernel\.json|dump/\d{1,3}/[^/]{1,255}|log/[^/]{1,255}"
)
_DOCUMENTS = ("crash.json", "modules.json")
_KERNEL = "kernel.json"
_DUMP = re.compile(r"dump/(\d{1,3})/[^/]{1,255}")
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links to the directories below /usr, as on a host with a merged /usr."""


class BundleLimits(NamedTuple):
    """The limits that a bundle must not exceed."""

    members: int = 1024
    records_bytes: int = 64 << 10
    """Size of an extended header."""
    document_bytes: int = 32 << 20
    """Size of crash.json and of modules.json; a record is never larger."""
    values: int = 1 << 20
    """JSON values in such a document; each takes about 100 bytes of memory."""
    sums_bytes: int = 1 << 20
    report_bytes: int = 64 << 20
    member_bytes: int = 64 << 30
    """Size of the stored core, or of one file."""
    files_bytes: int = 64 << 30
    """Size of all files together; in addition, they must not fill the disk."""
    core_bytes: int = 1 << 40
    """Size of the unpacked core, holes included."""
    depth: int = 64
    """Directories above one file."""


DEFAULT = BundleLimits()


class Unpacked(NamedTuple):
    """An unpacked bundle; removed when its context ends."""

    core: int
    """The unpacked core, in an unnamed file."""
    root: int
    """The directory that holds the module files, at the paths in the core."""
    exe: str | None
    """The executable's path below it."""
    kernel: "KernelBundle | None" = None
    """What there is instead in the bundle of a kernel's crash."""


class KernelBundle(NamedTuple):
    """The bundle of a kernel's crash."""

    about: Mapping[str, Any]
    """kernel.json: says which vmlinux it takes. Nothing in it is to be trusted."""
    dump: tuple[int, ...]
    """The dump's files, of a split dump all parts in their order."""


@contextlib.contextmanager
def unpack(path: Path, limits: BundleLimits = DEFAULT) -> Iterator[Unpacked]:
    """Unpack a bundle; it exists until the context ends.

    Raises:
        NotFoundError: the file does not exist.
        FormatError: it is not a bundle, is damaged, or exceeds a limit.
        CrashdError: there is not enough room.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_open(path))
        stack.enter_context(terminable())
        directory = stack.enter_context(private_directory())
        core = stack.enter_context(nameless_file())
        try:
            exe, taken = unpack_tar(zstd_reader(raw), directory, core, limits)
        except FormatError as e:
            name = printable(os.fsencode(path))
            raise FormatError(f"{name} is not a bundle, or is damaged: {e}") from e
        if taken.is_kernel:
            files = tuple(_open_parts(taken, stack))
            about = parse_document(_KERNEL, taken.documents[_KERNEL], limits.values)
            found = KernelBundle(about if isinstance(about, dict) else {}, files)
            yield Unpacked(core, core, None, found)
            return
        root = os.open(directory / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        yield Unpacked(core, root, exe)


def _open_parts(taken: "_Taken", stack: contextlib.ExitStack) -> Iterator[int]:
    """Open the files of a kernel's dump in their order; closed by the stack."""
    found = [(int(match[1]), name) for name in taken.files if (match := _DUMP.fullmatch(name))]
    for _, name in sorted(found):
        fd = os.open(taken.files[name], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        yield fd


def _open(path: Path) -> IO[bytes]:
    name = printable(os.fsencode(path))
    try:
        return open(open_regular(path, follow=True), "rb")
    except NotRegularError as e:
        raise FormatError(f"{name} is not a regular file") from e
    except OSError as e:
        raise NotFoundError(f"cannot open {name}: {reason_of(e)}") from e


def unpack_tar(
    read: Callable[[int], bytes], directory: Path, core: int, limits: BundleLimits = DEFAULT
) -> tuple[str | None, "_Taken"]:
    """Unpack the archive that `read` returns; return the executable's path below the root, and the
    members.

    The core goes to the file `core`, module files go below `directory`/root. The files of a
    kernel's dump stay in `directory`.

    Raises:
        FormatError: the archive is not one that `crashctl bundle` writes.
        CrashdError: there is not enough room.
    """
    taken = _Taken(directory, core, limits)
    for member in _members(read, limits):
        taken.take(member)
    taken.check()
    if taken.is_kernel:
        return None, taken
    crash, modules = (
        parse_document(name, taken.documents[name], limits.values) for name in _DOCUMENTS
    )
    exe, planned = plan_layout(crash, modules, limits.depth)
    _lay_out(directory, taken.files, planned)
    return exe if exe is not None and (directory / "root" / exe).is_file() else None, taken


# -- the archive -----------------------------------------------------------------------------------


class _Member(io.RawIOBase):
    """One file in the archive, hashed while it is read."""

    def __init__(self, header: TarHeader, read: Callable[[int], bytes]) -> None:
        self.name = header.name
        self.size_bytes = header.size_bytes
        self.digest = hashlib.sha256()
        self._left = header.size_bytes
        self._read = read

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes of the rest."""
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        data = self._read(min(wanted, CHUNK))
        if not data:
            raise FormatError("the archive is cut")
        self._left -= len(data)
        self.digest.update(data)
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the rest."""
        while data := self.read(CHUNK):
            yield data


def _members(read: Callable[[int], bytes], limits: BundleLimits) -> Iterator[_Member]:
    """Yield the members; each must be used before the next one is read."""
    for _ in range(limits.members):
        header = _read_header(read, limits)
        if header is None:
            return
        member = _Member(header, read)
        yield member
        for _ in member.chunks():
            pass  # the unused rest belongs to the checksum too
        _exactly(read, -member.size_bytes % BLOCK)
    raise FormatError(f"the archive has more than {limits.members} files")


def _read_header(read: Callable[[int], bytes], limits: BundleLimits) -> TarHeader | None:
    header = parse_tar_header(_exactly(read, BLOCK))
    if header is None or not header.is_extended:
        return header
    if header.size_bytes > limits.records_bytes:
        raise FormatError(f"an extended header of the archive is {header.size_bytes} bytes long")
    records = parse_records(_exactly(read, header.size_bytes))
    _exactly(read, -header.size_bytes % BLOCK)
    header = parse_tar_header(_exactly(read, BLOCK))
    if header is None or header.is_extended:
        raise FormatError("an extended header of the archive has no file")
    return apply_records(header, records)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts, left = [], size
    while left:
        data = read(left)
        if not data:
            raise FormatError("the archive is cut")
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


# -- its members -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Taken:
    """The members read so far."""

    directory: Path
    core: int
    limits: BundleLimits
    documents: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    members: dict[str, _Member] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    files_bytes: int = 0

    @property
    def is_kernel(self) -> bool:
        """Whether the bundle is of a kernel's crash."""
        return _KERNEL in self.members

    def take(self, member: _Member) -> None:
        """Read a member and keep what is needed of it."""
        name, limits = member.name, self.limits
        if name in self.members or not (name == "SHA256SUMS" or _MEMBER.fullmatch(name)):
            raise FormatError(f"the bundle has an unexpected member {printable(name)}")
        self.members[name] = member
        if name == "SHA256SUMS":
            self.sums = parse_sums(self._whole(member, limits.sums_bytes))
        elif name in _DOCUMENTS or name == _KERNEL:
            self.documents[name] = self._whole(member, limits.document_bytes)
        elif name == "report.txt":
            self._bound(member, limits.report_bytes)
        elif name == "core.zst":
            self._bound(member, limits.member_bytes)
            write_core(self.core, _bounded(read_frames(cast(IO[bytes], member)), limits.core_bytes))
        else:
            self._bound(member, limits.member_bytes)
            self._bound(member, limits.files_bytes - self.files_bytes)
            self.files_bytes += member.size_bytes
            self.files[name] = self._store(member)

    def _bound(self, member: _Member, limit: int) -> None:
        if member.size_bytes > limit:
            raise FormatError(
                f"{printable(member.name)} in the bundle has {member.size_bytes} bytes,"
                f" more than the {limit} allowed"
            )

    def _whole(self, member: _Member, limit: int) -> bytes:
        self._bound(member, limit)
        return b"".join(member.chunks())

    def _store(self, member: _Member) -> Path:
        path = self.directory / f"member{len(self.files)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_core(fd, member.chunks())
            os.fchmod(fd, 0o644)  # for the debugger's user; nobody else can enter the directory
        finally:
            os.close(fd)
        return path

    def check(self) -> None:
        """Check that all members are present and undamaged.

        Raises:
            FormatError: one is missing or damaged.
        """
        names = {"crash.json"} if self.is_kernel else {"core.zst", *_DOCUMENTS}
        if not names <= self.members.keys():
            raise FormatError("the bundle has no core, no crash.json or no modules.json")
        for name, member in self.members.items():
            if name != "SHA256SUMS" and self.sums.get(name) != member.digest.hexdigest():
                raise FormatError(f"{printable(name)} in the bundle is damaged")


def _bounded(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise FormatError(f"the core in the bundle has more than {limit} bytes")
        yield chunk


def parse_sums(raw: bytes) -> dict[str, str]:
    """Parse SHA256SUMS: digests by name.

    Raises:
        FormatError: a line is malformed.
    """
    found = {}
    for line in raw.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n"):
        match = _SUM.fullmatch(line)
        if match is None:
            raise FormatError("SHA256SUMS in the bundle is damaged")
        found[match[2]] = match[1]
    return found


def parse_document(name: str, raw: bytes, values_max: int) -> Any:
    """Parse a JSON document with at most `values_max` values.

    Raises:
        FormatError: it has more, or is not JSON.
    """
    # every value but the first follows one of these; strings can only add to the count
    if sum(map(raw.count, (b",", b"[", b"{", b":"))) > values_max:
        raise FormatError(f"{name} in the bundle has too many values")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{name} in the bundle is damaged") from e


def plan_layout(
    crash: Any, modules: Any, depth: int
) -> tuple[str | None, Mapping[str, tuple[str, ...]]]:
    """Plan the path of each member below the root; return it, and the executable's path.

    Raises:
        FormatError: the documents do not have the expected form.
    """
    if not isinstance(crash, dict) or not isinstance(modules, list):
        raise FormatError("crash.json or modules.json in the bundle is damaged")
    exe: str | None = None
    planned: dict[str, tuple[str, ...]] = {}
    for module in modules:
        if not isinstance(module, dict):
            raise FormatError("modules.json in the bundle is damaged")
        member, path = module.get("member"), module.get("path")
        if module.get("kind") != "file" or not isinstance(member, str) or member in planned:
            continue
        parts = _parts_of(path)
        if parts is None or len(parts) > depth:
            continue
        planned[member] = parts
        if path == str(crash.get("exe")).removesuffix(" (deleted)"):
            exe = "/".join(parts)
    return exe, planned


def _parts_of(path: object) -> tuple[str, ...] | None:
    try:
        parts = path_parts(os.fsencode(path)) if isinstance(path, str) else None
    except UnicodeEncodeError:
        return None
    return None if parts is None else tuple(map(os.fsdecode, parts))


def _lay_out(
    directory: Path, files: Mapping[str, Path], planned: Mapping[str, tuple[str, ...]]
) -> None:
    """Move the files to their paths; leave out those with a path that cannot exist here."""
    root = directory / "root"
    before = os.umask(0o022)
    try:
        root.mkdir()
        for member, parts in planned.items():
            target = root.joinpath(*parts)
            try:
                if member in files and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(files[member], target)
            except OSError as e:
                if e.errno not in _NO_PATH:
                    raise CrashdError(f"cannot write to {directory}: {reason_of(e)}") from e
        for name in _MERGED:
            # the core lists libraries under the names they were loaded by
            if (root / "usr" / name).is_dir() and not os.path.lexists(root / name):
                (root / name).symlink_to(f"usr/{name}")
    finally:
        os.umask(before)
