"""`debug` of a kernel's crash: crash(8) or drgn, with the vmlinux that the dump is of."""

import argparse
import os
import stat
import struct
from pathlib import Path
from typing import Any

from crashd.cli.context import Context
from crashd.domain.elfnotes import Layout, split_notes
from crashd.domain.text import printable
from crashd.errors import CrashdError, FormatError, NotFoundError

PLACES = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux",
    "lib/modules/{release}/build/vmlinux",
    "lib/modules/{release}/vmlinux",
    "boot/vmlinux-{release}",
)
"""Where distributions and those who build their own kernels have it."""
NOTES_MAX = 1 << 20
BUILD_ID_MAX = 64
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


def kernel_command(
    context: Context, arguments: argparse.Namespace, doc: dict[str, Any], program: str
) -> list[str]:
    """Build the debugger's command line, without more arguments.

    Raises:
        NotFoundError: there is no dump, or no vmlinux of it on this host.
        CrashdError: the vmlinux that was named is another kernel's.

    """
    kernel = doc.get("kernel") or {}
    dump = _dump_of(doc, kernel)
    vmlinux = _vmlinux_of(context, arguments.vmlinux, kernel)
    if Path(program).name == "drgn":
        return [program, "-c", str(dump), "-s", str(vmlinux)]
    return [program, str(vmlinux), str(dump)]


def _dump_of(doc: dict[str, Any], kernel: dict[str, Any]) -> Path:
    path, name = kernel.get("path"), kernel.get("dump")
    if doc.get("state") not in ("complete", "incomplete") or not (path and name):
        raise NotFoundError(f"crash {doc.get('id')} has no dump that could be opened")
    if kernel.get("dump_state") == "bogus":
        reason = (doc.get("capture") or {}).get("reason")
        raise NotFoundError(f"the dump of crash {doc.get('id')} is none: {reason}")
    dump = Path(str(path)) / str(name)
    try:
        status = dump.lstat()
    except OSError as e:
        raise NotFoundError(f"{printable(os.fsencode(dump))}: {e.strerror}") from e
    if not stat.S_ISREG(status.st_mode):
        raise NotFoundError(f"{printable(os.fsencode(dump))} is no regular file")
    return dump


def _vmlinux_of(context: Context, named: str | None, kernel: dict[str, Any]) -> Path:
    """Find the vmlinux with the dump's build-id; one that is named must have it."""
    wanted, release = kernel.get("build_id"), str(kernel.get("release") or "")
    if named is not None:
        found = read_vmlinux_id(Path(named))
        if wanted is not None and found != wanted:
            raise CrashdError(
                f"{named} is of another kernel: its build-id is {found}, the dump's is {wanted}"
            )
        _warn_unsure(context, wanted)
        return Path(named)
    if not release or "/" in release:
        raise NotFoundError("the dump does not tell its kernel's release", hint="--vmlinux FILE")
    others = []
    for place in PLACES:
        path = context.paths.root / place.format(release=release)
        if not path.is_file():
            continue
        found = read_vmlinux_id(path)
        if wanted in (None, found):
            _warn_unsure(context, wanted)
            return path
        others.append(f"{path} has {found}")
    why = f" with build-id {wanted}" if wanted else ""
    raise NotFoundError(
        f"no vmlinux of {printable(release)}{why} is here" + "".join(f"; {o}" for o in others),
        hint=f"apt-get install linux-image-{printable(release)}-dbg (Debian), "
        "dnf debuginfo-install kernel (Fedora, RHEL), or --vmlinux FILE",
    )


def _warn_unsure(context: Context, wanted: object) -> None:
    if wanted is None:
        context.warn("the dump tells no build-id: whether the vmlinux is its own is not sure")


def read_vmlinux_id(path: Path) -> str | None:
    """Read the build-id of a vmlinux, in hex; None where it has none.

    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is no ELF file of 64 bits.

    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise NotFoundError(f"{printable(os.fsencode(path))}: {e.strerror}") from e
    try:
        head = os.pread(fd, _EHDR.size, 0)
        if len(head) < _EHDR.size or head[:6] != b"\x7fELF\2\1":
            raise FormatError(f"{printable(os.fsencode(path))} is no vmlinux")
        fields = _EHDR.unpack(head)
        phoff, count = fields[5], fields[10]
        table = os.pread(fd, _PHDR.size * min(count, 64), phoff) if phoff < 1 << 62 else b""
        for row in _PHDR.iter_unpack(table[: len(table) - len(table) % _PHDR.size]):
            if row[0] == _PT_NOTE and row[2] < 1 << 62:
                notes = os.pread(fd, min(row[5], NOTES_MAX), row[2])
                found = _build_id(notes)
                if found is not None:
                    return found
        return None
    finally:
        os.close(fd)


def _build_id(notes: bytes) -> str | None:
    for name, kind, desc, whole in split_notes(notes, Layout(0, 64, "little")):
        if (name, kind) == (b"GNU", _NT_GNU_BUILD_ID) and whole and len(desc) <= BUILD_ID_MAX:
            return desc.hex()
    return None
