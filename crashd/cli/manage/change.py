"""`delete`, `pin`, `unpin` and `reindex`: for callers who may write to the store."""

import argparse
import sys
from pathlib import Path
from typing import Any

from crashd.cli.context import Context
from crashd.cli.progress import progress
from crashd.cli.render import local_time, value_text
from crashd.cli.source import (
    DirectSource,
    all_named_by_id,
    matching,
    open_direct,
    refuse_several,
    require_store,
)
from crashd.domain.text import printable
from crashd.errors import CrashdError, UsageError
from crashd.store.catalog import reindex as reindex_store

SHOWN_MAX = 20
"""Crashes listed before the question whether to delete them; of more, the newest."""


def delete(context: Context, arguments: argparse.Namespace) -> int:
    """Delete the crashes that match; ask first if a MATCH that is not an id selects several."""
    source = open_direct(context, writable=True)
    try:
        rows = matching(source, arguments.match)
        if not may_delete(context, arguments, rows, listing="crashctl list"):
            return 1
        return max([_delete_one(context, source, row) for row in rows])
    finally:
        source.close()


def _delete_one(context: Context, source: DirectSource, row: dict[str, Any]) -> int:
    try:
        source.catalog.delete([row["id"]])
    except CrashdError as e:  # still being captured, or deleted meanwhile: go on
        context.warn(f"{row['id']} was not deleted: {printable(str(e))}")
        return e.exit_code
    print(f"deleted {describe(row)}", flush=True)  # nobody reads on: no more is deleted
    path = (row.get("kernel") or {}).get("path")
    if isinstance(path, str) and Path(path).is_dir():
        context.note(f"{printable(path)} was kept: it holds files that no dump tool wrote")
    return 0


def may_delete(
    context: Context, arguments: argparse.Namespace, rows: list[dict[str, Any]], *, listing: str
) -> bool:
    """Return whether the crashes may be deleted; ask if a MATCH that is not an id selects several.

    Raises:
        UsageError: one is pinned, or nobody can be asked; the hint names the command `listing`.

    """
    if not arguments.force:
        refuse_pinned(rows)
    if len(rows) > 1 and not arguments.yes and not all_named_by_id(rows, arguments.match):
        if not sys.stdin.isatty():
            raise UsageError(
                f"delete: {len(rows)} crashes match {' '.join(arguments.match)}",
                hint=f"delete them all with --yes; see them with {listing}",
            )
        if not confirm(rows):
            context.note("nothing was deleted")
            return False
    return True


def refuse_pinned(rows: list[dict[str, Any]]) -> None:
    """Raise a CrashdError if one of the crashes is pinned."""
    pinned = [row["id"] for row in rows if row.get("pinned")]
    if pinned:
        others = f" and {len(pinned) - 1} more are" if len(pinned) > 1 else " is"
        raise CrashdError(
            f"crash {pinned[0]}{others} pinned; nothing was deleted",
            hint="unpin first (crashctl unpin), or use --force",
        )


def confirm(rows: list[dict[str, Any]]) -> bool:
    """Ask whether to delete the crashes."""
    for row in rows[-SHOWN_MAX:]:
        print(f"  {describe(row)}", file=sys.stderr)
    if len(rows) > SHOWN_MAX:
        print(f"  and {len(rows) - SHOWN_MAX} older ones", file=sys.stderr)
    print(f"Delete these {len(rows)} crashes? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def describe(row: dict[str, Any]) -> str:
    """Return a crash in one line."""
    return f"{row['id']}  {local_time(row.get('time'))}  {value_text(row.get('title'))}"


def pin(context: Context, arguments: argparse.Namespace) -> int:
    """Pin the crashes that match: only `delete --force` deletes them."""
    return _set_pinned(context, arguments.match, pinned=True)


def unpin(context: Context, arguments: argparse.Namespace) -> int:
    """Unpin the crashes that match."""
    return _set_pinned(context, arguments.match, pinned=False)


def _set_pinned(context: Context, match: list[str], *, pinned: bool) -> int:
    source = open_direct(context, writable=True)
    try:
        rows = matching(source, match)
        if len(rows) > 1 and not all_named_by_id(rows, match):
            raise refuse_several(rows, match)
        source.catalog.set_pinned([row["id"] for row in rows], pinned)
        for row in rows:
            print(f"{'pinned' if pinned else 'unpinned'} {describe(row)}")
    finally:
        source.close()
    return 0


def reindex(context: Context, arguments: argparse.Namespace) -> int:
    """Rebuild the index from the store, and replace the old one."""
    del arguments
    require_store(context.paths)
    with progress(context, "reading") as shown:
        count = reindex_store(context.paths, shown)
    print(f"{count} crashes indexed")
    return 0
