"""`bundle`: writes one file with everything that another machine needs to debug a crash.

    crash.json      the output of `crashctl info --json`
    report.txt      the output of `crashctl info --all`
    core.zst        the core
    modules.json    the executable and libraries: their paths, build-ids, and members here
    files/N/NAME    these files
    SHA256SUMS      checksums of all members above

crashd.cli.open.unbundle opens it. Of a kernel's crash there is instead of the last three:

    kernel.json     which vmlinux it takes (release, build_id, package), where that was on this
                    host, and the members below
    dump/N/NAME     the dump's files as they lie in its directory; of a split dump all parts
    log/NAME        the log that was saved beside it
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from crashd.cli.context import Context
from crashd.cli.open.crashfiles import FILE_MAX, find_files
from crashd.cli.open.dump import is_opened_mini, open_stored
from crashd.cli.open.kerneldump import KernelDump, find_dump, open_file
from crashd.cli.output import terminable
from crashd.cli.progress import Progress, progress
from crashd.cli.show.pages import render_info
from crashd.cli.source import newest, open_source
from crashd.domain.crash.model import Disposition, from_json
from crashd.domain.elf.vmlinux import debug_package
from crashd.domain.kdump.symbols import symbols_of
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import CrashdError, NotFoundError, UsageError, reason_of
from crashd.store.corefile import zstd_writer
from crashd.store.paths import Paths

SUFFIX = ".tar.zst"


def bundle(context: Context, arguments: argparse.Namespace) -> int:
    """Write a bundle of the newest crash that matches."""
    target = Path(arguments.output)
    if not target.name.endswith(SUFFIX):
        raise UsageError(f"bundle: {target} does not end in {SUFFIX}")
    source = open_source(context)
    try:
        row = newest(context, source, arguments)
        doc = source.info(row["id"])
        if row.get("kind") == "kernel":
            return _bundle_kernel(context, target, doc, force=arguments.force)
        stored = open_stored(context, source, row)
        if is_opened_mini(source):  # who opens the bundle elsewhere knows only what it says
            doc["capture"] = {**(doc.get("capture") or {}), "disposition": Disposition.MINI.value}
        try:
            with terminable(), progress(context, "packing", sizes=True) as shown:
                count = _write(
                    target,
                    doc,
                    shown,
                    lambda packer: packer.pack(context.paths, stored),
                    force=arguments.force,
                )
        finally:
            os.close(stored)
    finally:
        source.close()
    size = format_size(target.stat().st_size)
    context.note(f"{target}: {size}; the core and {count} files of {row['id']}")
    return 0


def _bundle_kernel(context: Context, target: Path, doc: dict[str, Any], *, force: bool) -> int:
    """Write a bundle of a kernel's crash: its dump and log as far as there are any, and which
    vmlinux they take. That is in no bundle: it is half a gigabyte, and anybody's to install.
    """
    with contextlib.ExitStack() as stack:
        files = list(_kernel_files(context, doc, stack))
        stack.enter_context(terminable())
        shown = stack.enter_context(progress(context, "packing", sizes=True))
        _write(target, doc, shown, lambda packer: packer.pack_kernel(files), force=force)
    size = format_size(target.stat().st_size)
    what = ", ".join(name for name, _ in files) or "no dump"
    context.note(f"{target}: {size}, the report of {doc['id']}, {what}")
    return 0


def _kernel_files(
    context: Context, doc: dict[str, Any], stack: contextlib.ExitStack
) -> Iterator[tuple[str, int]]:
    """Open what there is of a kernel's crash; yield members' names and descriptors of the stack."""
    kernel = doc.get("kernel") or {}
    try:
        dump = find_dump(doc)
        named = [(f"dump/{number}/{name}", name) for number, name in enumerate(dump.names)]
    except NotFoundError as e:
        context.warn(f"{e}")
        where, log = kernel.get("path"), kernel.get("log_file")
        if not isinstance(where, str) or not isinstance(log, str):
            return
        inode = kernel.get("inode")
        dump = KernelDump(Path(where), inode if isinstance(inode, int) else None, (), log)
        named = []
    if dump.log is not None:
        named.append((f"log/{dump.log}", dump.log))
    for member, name in named:
        try:
            fd = open_file(dump, name)
        except CrashdError as e:
            context.warn(f"{e}: not in the bundle")
            continue
        stack.callback(os.close, fd)
        yield member, fd


def _write(
    target: Path,
    doc: dict[str, Any],
    shown: Progress,
    pack: Callable[["_Packer"], int],
    *,
    force: bool,
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
            count = pack(_Packer(tar, doc, shown))
        os.replace(staged, target)
    except OSError as e:
        raise CrashdError(f"bundle: cannot write {target}: {reason_of(e)}") from e
    finally:
        staged.unlink(missing_ok=True)
    return count


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


class _Packer:
    """Writes the members and collects their checksums."""

    def __init__(self, tar: tarfile.TarFile, doc: dict[str, Any], shown: Progress) -> None:
        self._shown = shown
        self._packed = 0
        self._tar = tar
        self._doc = doc
        self._sums: list[str] = []

    def pack(self, paths: Paths, stored: int) -> int:
        """Write everything; return how many files of modules there are."""
        self._add_report()
        self._add_file("core.zst", stored)
        modules = list(self._add_modules(paths, stored))
        self._add("modules.json", json.dumps(modules, indent=1).encode())
        self._add("SHA256SUMS", "".join(self._sums).encode())
        return len(modules)

    def pack_kernel(self, files: Sequence[tuple[str, int]]) -> int:
        """Write everything of a kernel's crash; return how many files there are."""
        self._add_report()
        kernel = self._doc.get("kernel") or {}
        release, version = str(kernel.get("release") or ""), str(kernel.get("version") or "")
        about = {
            "release": release,
            "version": version,
            "machine": kernel.get("machine"),
            "build_id": kernel.get("build_id"),
            "package": debug_package(release, version),
            "vmlinux": (symbols_of(kernel) or {}).get("vmlinux"),
            "path": kernel.get("path"),
            "members": [name for name, _ in files],
        }
        self._add("kernel.json", json.dumps(about, indent=1).encode())
        for name, fd in files:
            self._add_file(name, fd)
        self._add("SHA256SUMS", "".join(self._sums).encode())
        return len(files)

    def _add_report(self) -> None:
        page = "\n".join(
            render_info(
                self._doc, now_ns=time.time_ns(), show_all=True, color=False, core_file=None
            )
        )
        self._add("crash.json", json.dumps(self._doc, indent=1).encode())
        self._add("report.txt", page.encode() + b"\n")

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

    def _add_modules(self, paths: Paths, stored: int) -> Iterator[dict[str, Any]]:
        found = find_files(paths, from_json(self._doc), stored).files
        for number, file in enumerate(found):
            if file.alternate_fd is not None:
                os.close(file.alternate_fd)  # the report has what it says
            for kind, opened in (("file", file.fd), ("debug", file.debug_fd)):
                if opened is None:
                    continue
                if os.fstat(opened).st_size > FILE_MAX:  # the crashed user's, maybe huge
                    os.close(opened)
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
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes], counted: Callable[[int], None]) -> None:
        self._counted = counted
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read, hash and count."""
        data = self._file.read(size)
        self.digest.update(data)
        self._counted(len(data))
        return data
