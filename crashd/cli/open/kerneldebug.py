"""`debug` of a kernel crash: crash(8) or drgn, with the vmlinux that matches the dump."""

import argparse
import os
from pathlib import Path
from typing import Any

from crashd.base.files import NotRegularError, open_regular
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
"""Where distributions, and people who build their own kernels, keep vmlinux."""
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
    """Build the debugger's command line, without the user's extra arguments.

    Raises:
        NotFoundError: there is no dump, or this host has no vmlinux for it.
        CrashdError: the given vmlinux belongs to another kernel.
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
        raise NotFoundError(f"crash {doc.get('id')} has no dump to open")
    if kernel.get("dump_state") == "bogus":
        reason = (doc.get("capture") or {}).get("reason")
        raise NotFoundError(f"crash {doc.get('id')} has no usable dump: {reason}")
    dump = Path(str(path)) / str(name)
    _check_dump(dump, kernel.get("inode"))
    return dump


def _check_dump(dump: Path, inode: object) -> None:
    """Check that the dump is still the recorded one, and that only root could have written it."""
    name = printable(os.fsencode(dump))
    try:
        with DumpRoot(dump.parent.parent) as root:
            seen = root.look(os.fsencode(dump.parent.name))
            told = root.classify(seen)
            faults = "not a dump directory" if told is None else ", ".join(map(str, told.faults))
            if root.distrust or faults:
                raise CrashdError(f"{name} is not a trusted kernel dump: {root.distrust or faults}")
            if isinstance(inode, int) and inode != seen.inode:
                raise NotFoundError(f"{name}: its directory has been replaced")
            with root.open(seen) as directory:
                os.close(directory.open_file(os.fsencode(dump.name)))
    except OSError as e:
        raise NotFoundError(f"{name}: {reason_of(e)}") from e


def _vmlinux_of(context: Context, named: str | None, kernel: dict[str, Any]) -> Path:
    """Find the vmlinux that matches the dump; a given one must match it."""
    release = str(kernel.get("release") or "")
    if named is not None:
        why, found = _why_unfit(Path(named), kernel)
        if found is None:
            raise CrashdError(f"{named} {why}")
        if not found.has_debug_info:
            context.warn(f"{named} has no debug information: the debugger may refuse it")
        _warn_unsure(context, why)
        return Path(named)
    if not release or "/" in release:
        raise NotFoundError(
            "the dump does not name its kernel's release", hint="use --vmlinux FILE"
        )
    others = []
    for place in PLACES:
        path = context.paths.root / place.format(release=release)
        if not os.path.isfile(path):  # False also for a name that is too long
            continue
        try:
            why, found = _why_unfit(path, kernel)
        except CrashdError as e:
            others.append(str(e))
            continue
        if found is not None and found.has_debug_info:
            _warn_unsure(context, why)
            return path
        others.append(f"{path} {why if found is None else 'has no debug information'}")
    told = f" with build-id {kernel['build_id']}" if kernel.get("build_id") else ""
    raise NotFoundError(
        f"no vmlinux for {printable(release)}{told} on this host"
        + "".join(f"; {o}" for o in others),
        hint=_HINT.format(release=printable(release)),
    )


def _why_unfit(path: Path, kernel: dict[str, Any]) -> tuple[str, Vmlinux | None]:
    """Decide whether a vmlinux matches the dump.

    Return what is unsure about it, and the vmlinux; or why it does not match, and None.

    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is not a vmlinux.

    """
    wanted, release = kernel.get("build_id"), kernel.get("release")
    found, banner = read_vmlinux(path, with_release=wanted is None)
    if wanted is not None:
        if found.build_id == wanted:
            return "", found
        own = f"its build-id is {found.build_id}" if found.build_id else "it has no build-id"
        return f"is of another kernel: {own}, the dump's is {wanted}", None
    if banner is None or not release:
        return "the dump has no build-id, and the releases cannot be compared", found
    if banner != release:
        return f"is of another kernel: Linux {banner}, the dump's is {printable(release)}", None
    return f"the dump has no build-id, only the release {banner}", found


def _warn_unsure(context: Context, why: str) -> None:
    if why:
        context.warn(f"{why}: the vmlinux may not match it")


def read_vmlinux(path: Path, *, with_release: bool) -> tuple[Vmlinux, str | None]:
    """Read the identity of a vmlinux, and with `with_release` the release in its banner.

    The banner is somewhere in the loaded segments, so all of them are searched.

    Raises:
        NotFoundError: it cannot be read.
        FormatError: it is not a vmlinux.
    """
    name = printable(os.fsencode(path))
    try:
        fd = open_regular(path, follow=True)
    except NotRegularError as e:
        raise FormatError(f"{name} is not a regular file") from e
    except OSError as e:
        raise NotFoundError(f"{name}: {reason_of(e)}") from e
    try:
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
