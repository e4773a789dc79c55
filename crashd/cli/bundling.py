"""`bundle`: one file with all that another machine needs to look at a crash; and opening it there.

    crash.json      what `crashctl info --json` tells
    report.txt      what `crashctl info` tells
    core.zst        the core
    modules.json    the executable and libraries: their paths, build-ids, and members here
    files/N/NAME    these files
    SHA256SUMS      of all that is above

A bundle that is opened may be anybody's: of its members only those with such names are taken, as
regular files, and the paths in modules.json become paths below a private directory, or nothing.
"""

import argparse
import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from crashd.cli.context import Context
from crashd.cli.debugging import private_directory
from crashd.cli.dumping import opened_core, terminable, write_file
from crashd.cli.pages import render_info
from crashd.cli.progress import Progress, progress
from crashd.cli.source import newest, open_source
from crashd.domain.elfcore import IMAGE_MAX, CoreHead, parse_head
from crashd.domain.modules import file_roots, find_modules, path_parts
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.edge.modulefiles import open_modules
from crashd.errors import CrashdError, FormatError, NotFoundError, UsageError, reason_of
from crashd.store.corefile import read_core, zstd_reader, zstd_writer

HEAD_MAX = 8 << 20
FILES_MAX = 400
MEMBER_MAX = 64 << 30
DOCUMENT_MAX = 32 << 20
CHUNK = 1 << 20
SUFFIX = ".tar.zst"
_MEMBER = re.compile(
    r"(?:crash\.json|report\.txt|core\.zst|modules\.json|files/\d{1,4}/[^/]{1,255})"
)


def bundle(context: Context, arguments: argparse.Namespace) -> int:
    """Write a bundle of the newest crash that matches."""
    target = Path(arguments.output)
    if not target.name.endswith(SUFFIX):
        raise UsageError(f"bundle: {target} does not end in {SUFFIX}")
    source = open_source(context)
    try:
        row = newest(context, source, arguments.match)
        doc = source.info(row["id"])
        with private_directory(None) as directory, opened_core(context, source, row) as chunks:
            plain = directory / "core"
            write_file(plain, chunks, force=False)
            stored = source.open_core(row["id"])
            try:
                with terminable(), progress(context, "packing", sizes=True) as shown:
                    count = _write(target, doc, stored, plain, shown, force=arguments.force)
            finally:
                os.close(stored)
    finally:
        source.close()
    size = format_size(target.stat().st_size)
    context.note(f"{target}: {size}, the core and {count} files of {row['id']}")
    return 0


def _write(
    target: Path, doc: dict[str, Any], stored: int, core: Path, shown: Progress, *, force: bool
) -> int:
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    if target.exists() and not force:
        raise UsageError(f"bundle: {target} exists", hint="--force replaces it")
    try:
        with (
            open(staged, "xb", opener=_private) as raw,
            zstd_writer(raw) as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            count = _Packer(tar, doc, shown).pack(stored, core)
        os.replace(staged, target)
    except OSError as e:
        raise CrashdError(f"bundle: cannot write {target}: {reason_of(e)}") from e
    finally:
        staged.unlink(missing_ok=True)
    return count


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


class _Packer:
    """Writes the members, and remembers their checksums."""

    def __init__(self, tar: tarfile.TarFile, doc: dict[str, Any], shown: Progress) -> None:
        self._shown = shown
        self._packed = 0
        self._tar = tar
        self._doc = doc
        self._sums: list[str] = []

    def pack(self, stored: int, core: Path) -> int:
        """Write everything; return how many files of modules there are."""
        page = "\n".join(
            render_info(
                self._doc, now_ns=time.time_ns(), show_all=True, color=False, core_file=None
            )
        )
        self._add("crash.json", json.dumps(self._doc, indent=1).encode())
        self._add("report.txt", page.encode() + b"\n")
        self._add_file("core.zst", stored)
        modules = list(self._add_modules(core))
        self._add("modules.json", json.dumps(modules, indent=1).encode())
        self._add("SHA256SUMS", "".join(self._sums).encode())
        return len(modules)

    def _add(self, name: str, data: bytes) -> None:
        self._put(name, io.BytesIO(data), len(data))

    def _add_file(self, name: str, fd: int) -> None:
        with open(os.dup(fd), "rb") as file:
            file.seek(0)
            self._put(name, file, os.fstat(fd).st_size)

    def _put(self, name: str, file: IO[bytes], size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        summed = _Summed(file, self._count)
        self._tar.addfile(member, summed)
        self._sums.append(f"{summed.digest.hexdigest()}  {name}\n")

    def _count(self, size: int) -> None:
        self._packed += size
        self._shown(self._packed, 0)

    def _add_modules(self, core: Path) -> Iterator[dict[str, Any]]:
        head, fd = _read_head(core)
        try:
            modules = find_modules(head, lambda at, size: _read_at(head, fd, at, size))
        finally:
            os.close(fd)
        mounts, root = _bytes(self._doc, "mountinfo"), _bytes(self._doc, "root") or b"/"
        found = open_modules(modules, file_roots(mounts, root), os.geteuid(), FILES_MAX)
        for number, file in enumerate(found):
            for kind, opened in (("file", file.fd), ("debug", file.debug_fd)):
                if opened is None:
                    continue
                base = printable(file.module.name.rpartition(b"/")[2])[:200] or "x"
                member = f"files/{number}/{base}" + (".debug" if kind == "debug" else "")
                self._add_file(member, opened)
                os.close(opened)
                yield {
                    "path": file.module.name.decode("utf-8", "backslashreplace"),
                    "build_id": file.module.build_id,
                    "kind": kind,
                    "member": member,
                }


class _Summed(io.RawIOBase):
    """A file that is summed up as it is read."""

    def __init__(self, file: IO[bytes], counted: Callable[[int], None]) -> None:
        self._counted = counted
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read, and sum up."""
        data = self._file.read(size)
        self.digest.update(data)
        self._counted(len(data))
        return data


def _bytes(doc: dict[str, Any], key: str) -> bytes:
    value = doc.get(key)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def _read_head(core: Path) -> tuple[CoreHead, int]:
    fd = os.open(core, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return parse_head(os.pread(fd, HEAD_MAX, 0)), fd
    except FormatError:
        os.close(fd)
        raise


def _read_at(head: CoreHead, fd: int, address: int, size: int) -> bytes:
    for segment in head.segments:
        if segment.vaddr <= address < segment.vaddr + segment.filesz:
            room = segment.vaddr + segment.filesz - address
            return os.pread(
                fd, min(size, room, IMAGE_MAX), segment.offset + address - segment.vaddr
            )
    return b""


# -- opening ---------------------------------------------------------------------------------------


def extract(path: Path, directory: Path) -> tuple[Path, Path | None, Path]:
    """Unpack a bundle below a private directory; tell the core, the executable, and the root that
    the libraries lie below.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is no bundle, or damaged.

    """
    name = printable(os.fsencode(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise NotFoundError(f"cannot open {name}: {reason_of(e)}") from e
    taken: dict[str, Path] = {}
    sums: dict[str, str] = {}
    with open(fd, "rb") as raw, zstd_reader(raw) as plain:
        try:
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    _take(tar, member, directory, taken, sums)
        except (tarfile.TarError, EOFError, OSError) as e:
            raise FormatError(f"{name} is no bundle: {reason_of(e)}") from e
    if "core.zst" not in taken or "crash.json" not in taken:
        raise FormatError(f"{name} has no core, or no crash.json")
    for part, file in taken.items():
        if sums.get(part) != _sum(file):
            raise FormatError(f"{printable(part)} in the bundle is damaged")
    return _unpack_core(taken["core.zst"], directory), *_lay_out(taken, directory)


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    directory: Path,
    taken: dict[str, Path],
    sums: dict[str, str],
) -> None:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None or not 0 <= member.size <= MEMBER_MAX:
        raise FormatError(f"the bundle has {printable(member.name)}, which is no file")
    if member.name == "SHA256SUMS":
        for line in file.read(DOCUMENT_MAX).decode("utf-8", "replace").splitlines():
            digest, _, name = line.partition("  ")
            sums[name] = digest
        return
    if not _MEMBER.fullmatch(member.name) or member.name in taken or len(taken) > 2 * FILES_MAX:
        raise FormatError(f"the bundle has {printable(member.name)}, which no bundle has")
    target = directory / f"member{len(taken)}"
    with open(target, "xb", opener=_private) as out:
        while chunk := file.read(CHUNK):
            out.write(chunk)
    taken[member.name] = target


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack_core(stored: Path, directory: Path) -> Path:
    fd = os.open(stored, os.O_RDONLY | os.O_CLOEXEC)
    try:
        core = directory / "core"
        write_file(core, read_core(fd), force=False)
        return core
    finally:
        os.close(fd)


def _lay_out(taken: dict[str, Path], directory: Path) -> tuple[Path | None, Path]:
    """Put the modules below a root where the core says that they are; name the executable."""
    root, exe = directory / "root", None
    root.mkdir()
    try:
        doc = json.loads(taken["crash.json"].read_bytes()[:DOCUMENT_MAX])
        modules = json.loads(taken["modules.json"].read_bytes()[:DOCUMENT_MAX])
        wanted = doc.get("exe")
    except (KeyError, ValueError, RecursionError, AttributeError) as e:
        raise FormatError("crash.json or modules.json in the bundle is damaged") from e
    for module in modules if isinstance(modules, list) else []:
        member, name = module.get("member"), module.get("path")
        parts = path_parts(os.fsencode(name)) if isinstance(name, str) else None
        if parts is None or member not in taken or module.get("kind") != "file":
            continue
        target = root.joinpath(*map(os.fsdecode, parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.rename(taken[member], target)
        if name == wanted:
            exe = target
    return exe, root
