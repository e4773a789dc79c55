"""`dump`: writes the core of a crash as the kernel would have written it, or the kernel's dump."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

from crashd.base.files import write_all
from crashd.cli.context import Context
from crashd.cli.output import write_file
from crashd.cli.progress import Progress, progress
from crashd.cli.source import newest, open_source
from crashd.cli.sourcetypes import MiniSource, Source
from crashd.domain.crash.model import State
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import FormatError, NotFoundError, UsageError
from crashd.store.corefile import read_core


def _why_coreless(state: State) -> str:
    match state:
        case State.CAPTURING:
            return "still being captured"
        case State.METADATA_ONLY:
            return "only its metadata was kept"
        case State.LOST:
            return "it was lost"
        case State.EVICTED:
            return "deleted to free space"
        case State.MISSING:
            return "no longer on disk"
        case State.COMPLETE | State.TRUNCATED | State.INCOMPLETE:
            return "none was kept"
        case _:
            assert_never(state)


_NO_CORE: dict[str, str] = {state: _why_coreless(state) for state in State}
"""By what a row says, which may be a state of a newer crashd."""


def dump(context: Context, arguments: argparse.Namespace) -> int:
    """Write the core of the newest crash that matches."""
    to_file = arguments.output not in (None, "-")
    if arguments.force and not to_file:
        raise UsageError("dump: --force needs --output FILE")
    if not to_file and os.isatty(1):
        raise UsageError(
            "dump: refusing to write a core to a terminal",
            hint="use --output FILE, or redirect standard output",
        )
    source = open_source(context)
    try:
        row = newest(context, source, arguments)
        with _opened(context, source, row) as chunks:
            if to_file:
                target = Path(arguments.output)
                size_bytes = write_file(target, chunks, force=arguments.force)
                context.note(f"{row['id']}: {format_size(size_bytes)} written to {target}")
            else:
                sys.stdout.flush()
                for chunk in chunks:
                    write_all(1, chunk)
    finally:
        source.close()
    return 0


@contextlib.contextmanager
def _opened(context: Context, source: Source, row: dict[str, Any]) -> Iterator[Iterator[bytes]]:
    """Open what `dump` writes: a process's core, or a kernel's dump."""
    if row.get("kind") != "kernel":
        with opened_core(context, source, row) as chunks:
            yield chunks
        return
    from crashd.cli.open.kerneldump import find_dump, opened_dump

    with opened_dump(find_dump(row)) as (chunks, size_bytes):
        if row.get("state") != "complete":
            reason = (row.get("capture") or {}).get("reason")
            context.warn(f"the dump of {row['id']} is not whole: {printable(str(reason))}")
        with progress(context, "copying", sizes=True) as shown:
            yield _counted(chunks, shown, size_bytes)


@contextlib.contextmanager
def opened_core(context: Context, source: Source, row: dict[str, Any]) -> Iterator[Iterator[bytes]]:
    """Open the core of a crash, and yield it in uncompressed chunks; warn if it is truncated.

    Raises:
        NotFoundError: there is no core; the message says why.
    """
    fd = open_stored(context, source, row)
    try:
        size_bytes = 0 if is_opened_mini(source) else (row.get("core") or {}).get("size_bytes") or 0
        with progress(context, "unpacking", sizes=True) as shown:
            hint = None if context.fleet else "crashctl verify --deep shows more"
            chunks = _checked(read_core(fd, size_bytes or None), row["id"], hint)
            yield _counted(chunks, shown, size_bytes)
    finally:
        os.close(fd)


def open_stored(context: Context, source: Source, row: dict[str, Any]) -> int:
    """Open the stored core of a crash; warn if it is truncated, or less than its record says. The
    caller owns the descriptor.

    Raises:
        NotFoundError: there is no core; the message says why.
    """
    crash_id, core = row["id"], row.get("core") or {}
    reason = (row.get("capture") or {}).get("reason")
    if not core.get("path"):
        limit = (row.get("evicted") or {}).get("reason")
        deleted = f"deleted by retention ({limit})" if limit else None
        why = deleted or reason or _NO_CORE.get(str(row.get("state")), "no core was kept")
        raise NotFoundError(f"crash {crash_id} has no core: {printable(str(why))}")
    fd = source.open_core(crash_id)
    if not core.get("complete"):
        context.warn(
            f"the core of {crash_id} is truncated"
            + (f": {printable(str(reason))}" if reason else "")
        )
    if is_opened_mini(source) and not (context.fleet and context.fleet.mini):
        context.warn(f"its host has sent only a mini core of {crash_id}: stacks, and no heap")
    return fd


def is_opened_mini(source: Source) -> bool:
    """Return whether the core that was opened last is a mini core, whatever its record says."""
    return isinstance(source, MiniSource) and source.opened_mini


def _counted(chunks: Iterator[bytes], shown: Progress, total: int) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        shown(done, total)


def _checked(chunks: Iterator[bytes], crash_id: str, hint: str | None) -> Iterator[bytes]:
    try:
        yield from chunks
    except FormatError as e:
        raise FormatError(f"crash {crash_id}: {e}", hint=hint) from e
