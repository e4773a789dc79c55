"""`debug` of a kernel's crash: crash(8) or drgn, with the vmlinux that the dump is of."""

import argparse
import os
import stat
from pathlib import Path
from typing import Any

from crashd.cli.context import Context
from crashd.domain.crash.model import State
from crashd.domain.elf.vmlinux import Vmlinux, find_release, parse_vmlinux
from crashd.domain.text import printable
from crashd.errors import CrashdError, FormatError, NotFoundError, reason_of
from crashd.store.kerneldumps import DumpRoot

_WITH_DUMP = frozenset(state for state in State if state.has_core)
PLACES = (
    "usr/lib/debug/boot/vmlinux-{release}",
    "usr/lib/debug/lib/modules/{release}/vmlinux",
    "usr/lib/debug/usr/lib/modules/{release}/vmlinux",
    "lib/modules/{release}/build/vmlinux",
    "lib/modules/{release}/vmlinux",
    "boot/vmlinux-{release}",
)
"""Where distributions and those who build their own kernels have it."""
_CHUNK = 4 << 20
_OVERLAP = 256
_HINT = (
    "apt-get install linux-image-{release}-dbg (Debian), linux-image-{release}-dbgsym (Ubuntu), "
    "dnf debuginfo-install kernel-core-{release} (Fedora, RHEL), zypper install "
    "kernel-default-debuginfo (SUSE), or --vmlinux FILE"
)


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
    if doc.get("state") not in _WITH_DUMP or not (path and name):
        raise NotFoundError(f"crash {doc.get('id')} has no dump that could be opened")
    if kernel.get("dump_state") == "bogus":
        reason = (doc.get("capture") or {}).get("reason")
        raise NotFoundError(f"the dump of crash {doc.get('id')} is none: {reason}")
    dump = Path(str(path)) / str(name)
    _check_dump(dump, kernel.get("inode"))
    return dump


def _check_dump(dump: Path, inode: object) -> None:
    """See to it that the dump is still the one of the record, and that no other user made it."""
    name = printable(os.fsencode(dump))
    try:
        with DumpRoot(dump.parent.parent) as root:
            seen = root.look(os.fsencode(dump.parent.name))
            told = root.classify(seen)
            faults = "no dump's directory" if told is None else ", ".join(map(str, told.faults))
            if root.distrust or faults:
                raise CrashdError(f"{name} is not to be trusted: {root.distrust or faults}")
            if isinstance(inode, int) and inode != seen.inode:
                raise NotFoundError(f"{name}: its directory is another one now")
            with root.open(seen) as directory:
                os.close(directory.open_file(os.fsencode(dump.name)))
    except OSError as e:
        raise NotFoundError(f"{name}: {reason_of(e)}") from e


def _vmlinux_of(context: Context, named: str | None, kernel: dict[str, Any]) -> Path:
    """Find the vmlinux that the dump is of; one that is named must be it."""
    release = str(kernel.get("release") or "")
    if named is not None:
        why, found = _judge(Path(named), kernel)
        if found is None:
            raise CrashdError(f"{named} {why}")
        if not found.has_debug_info:
            context.warn(f"{named} has no debug information: the debugger may refuse it")
        _warn_unsure(context, why)
        return Path(named)
    if not release or "/" in release:
        raise NotFoundError("the dump does not tell its kernel's release", hint="--vmlinux FILE")
    others = []
    for place in PLACES:
        path = context.paths.root / place.format(release=release)
        if not os.path.isfile(path):  # False also for a name that is too long
            continue
        try:
            why, found = _judge(path, kernel)
        except CrashdError as e:
            others.append(str(e))
            continue
        if found is not None and found.has_debug_info:
            _warn_unsure(context, why)
            return path
        others.append(f"{path} {why if found is None else 'has no debug information'}")
    told = f" with build-id {kernel['build_id']}" if kernel.get("build_id") else ""
    raise NotFoundError(
        f"no vmlinux of {printable(release)}{told} is here" + "".join(f"; {o}" for o in others),
        hint=_HINT.format(release=printable(release)),
    )


def _judge(path: Path, kernel: dict[str, Any]) -> tuple[str, Vmlinux | None]:
    """Tell whether a vmlinux is the dump's: it, and what is not sure of that; or why it is not.

    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is none.

    """
    wanted, release = kernel.get("build_id"), kernel.get("release")
    found, banner = read_vmlinux(path, with_release=wanted is None)
    if wanted is not None:
        if found.build_id == wanted:
            return "", found
        own = f"its build-id is {found.build_id}" if found.build_id else "it has no build-id"
        return f"is of another kernel: {own}, the dump's is {wanted}", None
    if banner is None or not release:
        return "the dump tells no build-id, and the releases cannot be compared", found
    if banner != release:
        return f"is of another kernel: Linux {banner}, the dump's is {printable(release)}", None
    return f"the dump tells no build-id, only that it is of Linux {banner}", found


def _warn_unsure(context: Context, why: str) -> None:
    if why:
        context.warn(f"{why}: whether the vmlinux is its own is not sure")


def read_vmlinux(path: Path, *, with_release: bool) -> tuple[Vmlinux, str | None]:
    """Read which kernel a vmlinux is, and if wanted what its banner says of its release: for that
    all that it loads is searched.

    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is none.

    """
    name = printable(os.fsencode(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        raise NotFoundError(f"{name}: {reason_of(e)}") from e
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError(f"{name} is no regular file")
        try:
            found = parse_vmlinux(lambda offset, size: os.pread(fd, size, offset))
            return found, _release(fd, found) if with_release else None
        except FormatError as e:
            raise FormatError(f"{name} {e}") from e
        except OSError as e:
            raise NotFoundError(f"{name}: {reason_of(e)}") from e
    finally:
        os.close(fd)


def _release(fd: int, found: Vmlinux) -> str | None:
    before = b""
    for offset, size in found.loaded:
        for at in range(offset, offset + size, _CHUNK):
            chunk = os.pread(fd, min(_CHUNK, offset + size - at), at)
            release = find_release(before + chunk)
            if release is not None:
                return release
            if not chunk:
                break
            before = chunk[-_OVERLAP:]
    return None
