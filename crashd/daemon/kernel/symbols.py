"""Symbols for a kernel's dump: its vmlinux, found by build-id, and what a sealed worker reads from
the dump with it.
"""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashd.analysisresult import parse_symbols_report
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.domain.elf.vmlinux import debug_package
from crashd.domain.kdump.symbols import (
    DONE,
    FAILED,
    NONE,
    REASON_MAX,
    Symbols,
    modules_without_lines,
    symbols_of,
)
from crashd.domain.text import printable
from crashd.edge.sandbox.start import ask_worker, run_worker
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store.modulefiles import find_modules, open_modules
from crashd.store.vmlinuxfiles import VmlinuxSearch, find_vmlinux, open_vmlinux

MODULES_MAX = 16
"""Modules of one dump whose files are used."""


@dataclass(frozen=True, slots=True)
class WantedKernel:
    """What a dump says about its kernel."""

    release: str | None
    version: str | None
    build_id: str | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "WantedKernel | None":
        """Read it from the `kernel` of a record; None if there is no memory image."""
        if record.get("format") is None or record.get("dump") is None:
            return None
        release, version, build_id = map(record.get, ("release", "version", "build_id"))
        return cls(
            release if isinstance(release, str) else None,
            version if isinstance(version, str) else None,
            build_id if isinstance(build_id, str) else None,
        )

    @property
    def package(self) -> str | None:
        """The package that contains its vmlinux."""
        return debug_package(self.release, self.version)


@dataclass(slots=True)
class SymbolState:
    """The progress of the symbols of one dump."""

    kernel: WantedKernel | None = None
    state: str | None = None
    stamp: tuple[int, ...] | None = None
    """Stamp of the vmlinux that was tried."""
    reason: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "SymbolState":
        """Read it from the `kernel` of a record."""
        found = symbols_of(record) or {}
        stamp = found.get("stamp")
        return cls(
            WantedKernel.of(record),
            found.get("state"),
            tuple(stamp) if isinstance(stamp, list) else None,
            found.get("reason"),
        )

    def is_worth(self, search: "VmlinuxSearch") -> bool:
        """Return whether a found vmlinux may show something new."""
        if self.kernel is None or self.state == DONE:
            return False
        return search.path is not None and search.stamp != self.stamp

    def is_news(self, search: "VmlinuxSearch") -> bool:
        """Return whether the lack of a vmlinux, or its reason, is new and must be recorded."""
        if self.kernel is None or self.state in (DONE, FAILED) or search.path is not None:
            return False
        told = no_symbols(self.kernel, search)
        return (self.state, self.reason) != (told.state, told.reason)


class VmlinuxFinder:
    """Finds vmlinux files. During one scan it looks for each kernel's once, no matter how many
    dumps of that kernel there are.
    """

    def __init__(self, root: Path, directories: Iterable[str]) -> None:
        self._root = root
        self._directories = tuple(directories)
        self._found: dict[tuple[str | None, str], VmlinuxSearch] = {}

    def find(self, kernel: WantedKernel) -> VmlinuxSearch:
        """Find the vmlinux of a kernel; without a build-id the search finds nothing, because no
        file is certain to be the right one.
        """
        if kernel.build_id is None:
            return VmlinuxSearch()
        key = kernel.release, kernel.build_id
        if key not in self._found:
            self._found[key] = find_vmlinux(self._root, *key, self._directories)
        return self._found[key]


def no_symbols(kernel: WantedKernel, search: VmlinuxSearch) -> Symbols:
    """Build the result for a missing vmlinux, with the reasons why candidates were refused."""
    reason = "; ".join(search.refused)[:REASON_MAX]
    if kernel.build_id is None:
        reason = "the dump has no build-id, by which alone a vmlinux is used"
    return Symbols(NONE, _now(), package=kernel.package, reason=reason or None)


def not_readable(kernel: WantedKernel, search: VmlinuxSearch, reason: str) -> Symbols:
    """Build the result for a vmlinux that was found but is of no use, with the reason."""
    return Symbols(
        FAILED,
        _now(),
        vmlinux=None if search.path is None else printable(os.fsencode(search.path)),
        stamp=search.stamp,
        package=kernel.package,
        reason=printable(reason),
    )


def read_symbols(
    dump_fds: Sequence[int],
    kernel: WantedKernel,
    search: VmlinuxSearch,
    options: AnalysisOptions,
    modules: "ModuleFinder | None" = None,
    likely: Iterable[str] = (),
) -> Symbols:
    """Read stacks from a dump, whose files' descriptors stay the caller's, with the vmlinux that
    was found, and with the files of the modules on them: those that are `likely`, by the log, and
    once more if a stack shows another. Blocks for twice `options.timeout_seconds` at most.

    A hostile dump or vmlinux cannot make this function raise.
    """
    if search.path is None or kernel.build_id is None:
        return no_symbols(kernel, search)
    files = modules.find(kernel, likely) if modules is not None else {}
    first = _read_once(dump_fds, kernel, search, options, files)
    if modules is None or first.facts is None:
        return first
    more = modules.find(kernel, modules_without_lines(first.facts) - files.keys())
    if not more:
        return first
    second = _read_once(dump_fds, kernel, search, options, {**files, **more})
    return second if second.facts is not None else first


class ModuleFinder:
    """Finds the files of kernels' modules."""

    def __init__(self, root: Path, directories: Iterable[str]) -> None:
        self._root = root
        self._directories = tuple(directories)

    def find(self, kernel: WantedKernel, names: Iterable[str]) -> dict[str, Path]:
        """Find the files of these modules, MODULES_MAX at most."""
        wanted = sorted(set(names))[:MODULES_MAX]
        if not wanted:
            return {}
        return find_modules(self._root, kernel.release, wanted, self._directories)


def _read_once(
    dump_fds: Sequence[int],
    kernel: WantedKernel,
    search: VmlinuxSearch,
    options: AnalysisOptions,
    files: Mapping[str, Path],
) -> Symbols:
    if search.path is None or kernel.build_id is None:
        return no_symbols(kernel, search)
    try:
        vmlinux = open_vmlinux(search.path, kernel.build_id)
    except (CrashdError, OSError) as e:
        return not_readable(kernel, search, reason_of(e))
    modules = open_modules(files)
    seconds = options.timeout_seconds
    first, *others = dump_fds
    request: dict[str, Any] = {
        "task": "kernel symbols",
        "cpu_seconds": max(1, math.ceil(seconds)),
        "memory_bytes": options.memory_bytes,
        "build_id": kernel.build_id,
        "parts": len(others),
        "modules": list(modules),
    }
    extra = (*others, vmlinux, *modules.values())
    try:
        if options.worker_socket is None:
            result = run_worker(request, first, seconds, extra)
        else:
            result = ask_worker(request, first, seconds, options.worker_socket, extra)
    finally:
        for fd in (vmlinux, *modules.values()):
            os.close(fd)
    if result.failure is not None:
        return not_readable(kernel, search, result.failure)
    try:
        facts = parse_symbols_report(result.output)
    except FormatError as e:
        return not_readable(kernel, search, reason_of(e))
    return Symbols(
        DONE,
        _now(),
        vmlinux=printable(os.fsencode(search.path)),
        stamp=search.stamp,
        facts=facts,
        seconds=result.seconds,
        cpu_seconds=result.cpu_seconds or facts.cpu_seconds,
        peak_bytes=result.peak_bytes,
    )


def _now() -> float:
    return round(time.time(), 3)
