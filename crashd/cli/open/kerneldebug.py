"""`debug` of a kernel crash: crash(8) or drgn, with the vmlinux that matches the dump."""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crashd.cli.context import Context
from crashd.cli.open.kerneldump import (
    FoundInfo,
    copy_with_note,
    find_dump,
    find_missing_info,
    open_file,
    plain_copy,
    wrapper_of,
)
from crashd.cli.open.scratch import descriptor_path
from crashd.domain.elf.vmlinux import Vmlinux, debug_package, vmlinux_places
from crashd.domain.text import printable
from crashd.errors import CrashdError, NotFoundError
from crashd.store.vmlinuxfiles import read_vmlinux

_HINT = (
    "apt-get install linux-image-{release}-dbg (Debian), linux-image-{release}-dbgsym (Ubuntu), "
    "dnf debuginfo-install kernel-core-{release} (Fedora, RHEL), zypper install "
    "kernel-default-debuginfo (SUSE), or --vmlinux FILE"
)


@contextlib.contextmanager
def kernel_command(
    context: Context,
    arguments: argparse.Namespace,
    doc: dict[str, Any],
    program: str,
    directories: Iterable[str] = (),
) -> Iterator[tuple[list[str], list[int]]]:
    """Build the debugger's command line, without more arguments, and the descriptors that it needs;
    they are closed at the end.

    Raises:
        NotFoundError: there is no dump, or no vmlinux of it on this host.
        CrashdError: the vmlinux that was named is another kernel's; or the debugger does not read
            such a dump.

    """
    kernel = doc.get("kernel") or {}
    dump = find_dump(doc)
    is_drgn = Path(program).name == "drgn"
    if len(dump.names) > 1 and is_drgn:
        paths = " ".join(printable(os.fsencode(path)) for path in dump.paths)
        raise CrashdError(
            "drgn does not read a split dump",
            hint=f"--debugger crash, or makedumpfile --reassemble {paths} FILE",
        )
    with contextlib.ExitStack() as stack:
        opened = _OpenedDump(_VmlinuxSearch(context, directories), arguments.vmlinux, kernel)
        for path, name in zip(dump.paths, dump.names, strict=True):
            fd = open_file(dump, name)
            stack.callback(os.close, fd)
            opened.add(path, fd, stack)
        vmlinux = str(opened.vmlinux())
        if is_drgn:
            yield [program, "-c", opened.files[0], "-s", vmlinux], opened.keep
        else:
            yield [program, vmlinux, *opened.files], opened.keep


class _OpenedDump:
    """The files of a dump as a debugger gets them, and the vmlinux that they are of."""

    def __init__(
        self, search: "_VmlinuxSearch", named: str | None, kernel: Mapping[str, Any]
    ) -> None:
        self.files: list[str] = []
        self.keep: list[int] = []
        """Descriptors of the files that have no name."""
        self._search = search
        self._named = named
        self._kernel = kernel
        self._vmlinux: Path | None = None

    def vmlinux(self) -> Path:
        """Find the vmlinux, once."""
        if self._vmlinux is None:
            self._vmlinux = self._search.find(self._named, self._kernel)
        return self._vmlinux

    def add(self, path: Path, fd: int, stack: contextlib.ExitStack) -> None:
        """Take one of the files; where the debugger cannot read it as it is, a copy."""
        name = printable(os.fsencode(path.name))
        copy: int | None = None
        if (wrapper := wrapper_of(fd)) is not None:
            self.vmlinux()  # that one is missing is said before hours of unpacking
            self._search.context.note(f"{name}: unpacking what {wrapper} compressed")
            copy = stack.enter_context(plain_copy(fd))
        elif found := find_missing_info(fd):
            info, self._vmlinux = self._search.choose(self._named, self._kernel, found)
            self._search.context.note(f"{name}: no VMCOREINFO note, found in memory instead")
            copy = stack.enter_context(copy_with_note(fd, info))
        if copy is not None:
            self.keep.append(copy)
        self.files.append(str(path if copy is None else descriptor_path(copy)))


class _VmlinuxSearch:
    """Finds the vmlinux of a dump on this host."""

    def __init__(self, context: Context, directories: Iterable[str]) -> None:
        self.context = context
        self._directories = tuple(directories)

    def choose(
        self, named: str | None, kernel: Mapping[str, Any], found: list[FoundInfo]
    ) -> tuple[FoundInfo, Path]:
        """Choose the VMCOREINFO whose vmlinux is here: a process's memory can look like one."""
        first: NotFoundError | None = None
        wanted = kernel.get("build_id")
        for info in found:
            if wanted not in (None, info.build_id):
                continue
            try:
                known = {**kernel, "build_id": info.build_id, "release": info.release}
                return info, self.find(named, known)
            except NotFoundError as e:
                first = first or e
        raise first or NotFoundError("no VMCOREINFO was found in the dump")

    def find(self, named: str | None, kernel: Mapping[str, Any]) -> Path:
        """Find the vmlinux that a dump is of; one that is named must be it.

        Raises:
            NotFoundError: there is none.
            CrashdError: the one that was named is another kernel's.

        """
        release = str(kernel.get("release") or "")
        if named is not None:
            return self._named(named, kernel)
        if not release and not kernel.get("build_id"):
            raise NotFoundError(
                "the dump does not name its kernel's release", hint="use --vmlinux FILE"
            )
        others = []
        for place in vmlinux_places(release, kernel.get("build_id"), self._directories):
            path = self.context.paths.root / place
            if not os.path.isfile(path):  # False also for a name that is too long
                continue
            try:
                why, found = _judge(path, kernel)
            except CrashdError as e:
                others.append(str(e))
                continue
            if found is not None and found.has_debug_info:
                self._warn_unsure(why)
                return path
            others.append(f"{path} {why if found is None else 'has no debug information'}")
        told = f" with build-id {kernel['build_id']}" if kernel.get("build_id") else ""
        package = debug_package(release, str(kernel.get("version") or ""))
        general = _HINT.format(release=printable(release))
        raise NotFoundError(
            f"no vmlinux for {printable(release)}{told} on this host"
            + "".join(f"; {o}" for o in others),
            hint=f"install {package}, or --vmlinux FILE" if package else general,
        )

    def _named(self, named: str, kernel: Mapping[str, Any]) -> Path:
        why, found = _judge(Path(named), kernel)
        if found is None:
            raise CrashdError(f"{named} {why}")
        if not found.has_debug_info:
            self.context.warn(f"{named} has no debug information: the debugger may refuse it")
        self._warn_unsure(why)
        return Path(named)

    def _warn_unsure(self, why: str) -> None:
        if why:
            self.context.warn(f"{why}: the vmlinux may not match it")


def _judge(path: Path, kernel: Mapping[str, Any]) -> tuple[str, Vmlinux | None]:
    """Return whether a vmlinux is the dump's: it, and what is not sure of that; or why it is not.

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
