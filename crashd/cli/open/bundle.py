"""`bundle`: writes one file with everything that another machine needs to debug a crash.

    crash.json      the output of `crashctl info --json`
    report.txt      the output of `crashctl info --all`
    core.zst        the core
    modules.json    the executable and libraries: their paths, build-ids, and members here
    files/N/NAME    these files
    SHA256SUMS      checksums of all members above

crashd.cli.open.unbundle reads it.
"""

import argparse
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from crashd.cli.context import Context
from crashd.cli.open.crashfiles import FILE_MAX, find_files
from crashd.cli.open.dump import open_stored
from crashd.cli.output import terminable
from crashd.cli.progress import Progress, progress
from crashd.cli.show.pages import render_info
from crashd.cli.source import newest, open_source
from crashd.domain.crash.model import from_json
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import CrashdError, UsageError, reason_of
from crashd.store.corefile import zstd_writer

SUFFIX = ".tar.zst"


def bundle(context: Context, arguments: argparse.Namespace) -> int:
    """Write a bundle of the newest crash that matches."""
    target = Path(arguments.output)
    if not target.name.endswith(SUFFIX):
        raise UsageError(f"bundle: {target} does not end in {SUFFIX}")
    source = open_source(context)
    try:
        row = newest(context, source, arguments.match)
        doc = source.info(row["id"])
        stored = open_stored(context, source, row)
        try:
            with terminable(), progress(context, "packing", sizes=True) as shown:
                count = _write(target, doc, stored, shown, force=arguments.force)
        finally:
            os.close(stored)
    finally:
        source.close()
    size = format_size(target.stat().st_size)
    context.note(f"{target}: {size}; the core and {count} files of {row['id']}")
    return 0


def _write(target: Path, doc: dict[str, Any], stored: int, shown: Progress, *, force: bool) -> int:
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    if target.exists() and not force:
        raise UsageError(f"bundle: {target} exists", hint="--force replaces it")
    try:
        with (
            open(staged, "xb", opener=_private) as raw,
            zstd_writer(raw) as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            count = _Packer(tar, doc, shown).pack(stored)
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

    def pack(self, stored: int) -> int:
        """Write all members; return the number of module files."""
        page = "\n".join(
            render_info(
                self._doc, now_ns=time.time_ns(), show_all=True, color=False, core_file=None
            )
        )
        self._add("crash.json", json.dumps(self._doc, indent=1).encode())
        self._add("report.txt", page.encode() + b"\n")
        self._add_file("core.zst", stored)
        modules = list(self._add_modules(stored))
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

    def _add_modules(self, stored: int) -> Iterator[dict[str, Any]]:
        found = find_files(from_json(self._doc), stored).files
        for number, file in enumerate(found):
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
