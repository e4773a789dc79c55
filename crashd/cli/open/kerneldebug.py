"""`debug` of a kernel crash: crash(8) or drgn, with the vmlinux that matches the dump."""

import argparse
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crashd.cli.context import Context
from crashd.cli.debuginfod import fetch_vmlinux
from crashd.cli.open.kerneldump import (
    FoundInfo,
    copy_with_note,
    find_dump,
    find_missing_info,
    joined_copy,
    open_file,
    plain_copy,
    wrapper_of,
)
from crashd.cli.open.scratch import descriptor_path, give
from crashd.cli.open.session import User
from crashd.domain.elf.vmlinux import Vmlinux, debug_package, vmlinux_places
from crashd.domain.text import printable
from crashd.errors import CrashdError, NotFoundError
from crashd.store.vmlinuxfiles import read_vmlinux

if TYPE_CHECKING:
    from crashd.cli.open.unbundle import KernelBundle

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
    dump = find_dump(doc)
    with contextlib.ExitStack() as stack:
        files: list[DumpFile] = []
        for path, name in zip(dump.paths, dump.names, strict=True):
            fd = open_file(dump, name)
            stack.callback(os.close, fd)
            files.append(DumpFile(name, fd, path))
        search = VmlinuxSearch(context, directories, arguments.vmlinux)
        yield stack.enter_context(debugger_command(files, search, doc.get("kernel") or {}, program))


@contextlib.contextmanager
def bundle_command(
    bundle: "KernelBundle", search: "VmlinuxSearch", program: str, user: User | None
) -> Iterator[tuple[list[str], list[int]]]:
    """Like kernel_command(), for a bundle, which may come from anybody: the debugger runs by
    `user`, and the bundle only chooses among the vmlinux files of this host.

    Raises:
        NotFoundError: there is no dump in it, or no vmlinux of it on this host.
        CrashdError: see debugger_command().

    """
    if not bundle.dump:
        raise NotFoundError("the bundle has no dump, only a report")
    known = {key: str(value) for key, value in bundle.about.items() if isinstance(value, str)}
    files = [DumpFile(f"dump/{number}", fd) for number, fd in enumerate(bundle.dump)]
    with debugger_command(files, search, known, program, user) as command:
        yield command


class DumpFile(NamedTuple):
    """An opened file of a dump."""

    name: str
    fd: int
    path: Path | None = None
    """By which the debugger may open it; None: by the descriptor."""


@contextlib.contextmanager
def debugger_command(
    files: Sequence[DumpFile],
    search: "VmlinuxSearch",
    kernel: Mapping[str, Any],
    program: str,
    user: User | None = None,
) -> Iterator[tuple[list[str], list[int]]]:
    """Build the debugger's command line for the files of a dump, and the descriptors that it needs;
    `user`, by which the debugger runs, may read them.

    Raises:
        NotFoundError: there is no vmlinux of it on this host.
        CrashdError: the vmlinux that was named is another kernel's.

    """
    is_drgn = Path(program).name == "drgn"
    with contextlib.ExitStack() as stack:
        opened = _OpenedDump(search, kernel)
        for file in files:
            opened.add(file, stack)
        if len(files) > 1 and is_drgn:
            opened.join(stack)
        for fd in opened.keep:
            give(fd, user)
        names = [str(path or descriptor_path(fd)) for path, fd in opened.files]
        vmlinux = str(opened.vmlinux())
        if is_drgn:
            yield [program, "-c", names[0], "-s", vmlinux], opened.keep
        else:
            yield [program, vmlinux, *names], opened.keep


class _OpenedDump:
    """The files of a dump as a debugger gets them, and the vmlinux that they are of."""

    def __init__(self, search: "VmlinuxSearch", kernel: Mapping[str, Any]) -> None:
        self.files: list[tuple[Path | None, int]] = []
        """Path, if the debugger opens it by that, and descriptor."""
        self._search = search
        self._kernel = kernel
        self._vmlinux: Path | None = None

    def vmlinux(self) -> Path:
        """Find the vmlinux, once."""
        if self._vmlinux is None:
            self._vmlinux = self._search.find(self._kernel)
        return self._vmlinux

    @property
    def keep(self) -> list[int]:
        """The descriptors that the debugger needs."""
        return [fd for path, fd in self.files if path is None]

    def join(self, stack: contextlib.ExitStack) -> None:
        """Put the parts of a split dump together."""
        self.vmlinux()
        self._search.context.note(f"putting the {len(self.files)} parts of the dump together")
        copy = stack.enter_context(joined_copy(fd for _, fd in self.files))
        self.files = [(None, copy)]

    def add(self, file: DumpFile, stack: contextlib.ExitStack) -> None:
        """Take one of the files; where the debugger cannot read it as it is, a copy."""
        name, fd = printable(os.fsencode(file.name)), file.fd
        copy: int | None = None
        if (wrapper := wrapper_of(fd)) is not None:
            self.vmlinux()  # that one is missing is said before hours of unpacking
            self._search.context.note(f"{name}: unpacking what {wrapper} compressed")
            copy = stack.enter_context(plain_copy(fd))
        elif found := find_missing_info(fd):
            info, self._vmlinux = self._search.choose(self._kernel, found)
            self._search.context.note(f"{name}: no VMCOREINFO note, found in memory instead")
            copy = stack.enter_context(copy_with_note(fd, info))
        self.files.append((file.path, fd) if copy is None else (None, copy))


class VmlinuxSearch:
    """Finds the vmlinux of a dump on this host."""

    def __init__(
        self, context: Context, directories: Iterable[str], named: str | None = None
    ) -> None:
        """With `named`, the vmlinux must be that file."""
        self.context = context
        cache = f"/{context.paths.debug_cache.relative_to(context.paths.root)}"
        self._directories = (*directories, cache)
        self._named = named

    def choose(self, kernel: Mapping[str, Any], found: list[FoundInfo]) -> tuple[FoundInfo, Path]:
        """Choose the VMCOREINFO whose vmlinux is here: a process's memory can look like one."""
        first: NotFoundError | None = None
        wanted = kernel.get("build_id")
        for info in found:
            if wanted not in (None, info.build_id):
                continue
            try:
                known = {**kernel, "build_id": info.build_id, "release": info.release}
                return info, self.find(known)
            except NotFoundError as e:
                first = first or e
        raise first or NotFoundError("no VMCOREINFO was found in the dump")

    def find(self, kernel: Mapping[str, Any]) -> Path:
        """Find the vmlinux that a dump is of; one that is named must be it.

        Raises:
            NotFoundError: there is none.
            CrashdError: the one that was named is another kernel's.

        """
        release = str(kernel.get("release") or "")
        if self._named is not None:
            return self._judge_named(self._named, kernel)
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
        fetched = fetch_vmlinux(self.context, kernel.get("build_id"))
        if fetched is not None:
            return fetched
        told = f" with build-id {kernel['build_id']}" if kernel.get("build_id") else ""
        package = debug_package(release, str(kernel.get("version") or ""))
        general = _HINT.format(release=printable(release))
        raise NotFoundError(
            f"no vmlinux for {printable(release)}{told} on this host"
            + "".join(f"; {o}" for o in others),
            hint=f"install {package}, or --vmlinux FILE" if package else general,
        )

    def _judge_named(self, named: str, kernel: Mapping[str, Any]) -> Path:
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
