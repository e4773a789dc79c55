"""`vacuum`: retention of process crashes at once, or what it would do."""

import argparse
import time
from typing import Any

from crashd.cli.context import Context
from crashd.cli.render import json_page, local_time, value_text
from crashd.cli.source import open_direct
from crashd.configfiles import load
from crashd.domain.retention import Deletion, plan
from crashd.domain.units import format_size
from crashd.store.expiry import Removed, carry_out_all, read_stored, read_usage
from crashd.store.index import Index


def vacuum(context: Context, arguments: argparse.Namespace) -> int:
    """Delete what the configured limits give up; 1 where something could not be deleted."""
    policy = load(context.paths).retention.process.policy
    source = open_direct(context, writable=not arguments.dry_run)
    try:
        usage = read_usage(context.paths)
        deletions = plan(read_stored(source.index), usage, policy, time.time_ns())
        rows = [_row(source.index, deletion) for deletion in deletions]
        wrong = 0 if arguments.dry_run else _carry_out(context, source.index, deletions)
    finally:
        source.close()
    if arguments.json:
        print(json_page(rows))
        return 1 if wrong else 0
    for row in rows:
        what = "crash" if row["whole"] else "core"
        size = format_size(row["frees_bytes"])
        when, title = local_time(row["time"]), value_text(row["title"])
        print(f"{row['id']}  {when}  {what:<5} {size:>5}  {row['reason']:<17}  {title}")
    freed = format_size(sum(row["frees_bytes"] for row in rows))
    verb = "would be" if arguments.dry_run else "were"
    context.note(f"{len(rows)} {verb} deleted, {freed} freed" if rows else "nothing to delete")
    return 1 if wrong else 0


def _row(index: Index, deletion: Deletion) -> dict[str, Any]:
    doc = index.get(deletion.id) or {}
    return {
        "id": deletion.id,
        "reason": deletion.reason.value,
        "frees_bytes": deletion.frees_bytes,
        "whole": deletion.whole,
        "time": doc.get("time"),
        "title": doc.get("title"),
    }


def _carry_out(context: Context, index: Index, deletions: tuple[Deletion, ...]) -> int:
    wrong = 0

    def done(removed: Removed) -> None:
        if removed.tombstone is not None:
            index.put([removed.tombstone])
        else:
            index.remove([removed.deletion.id])

    def failed(deletion: Deletion, error: Exception) -> None:
        nonlocal wrong
        wrong += 1
        context.warn(f"{deletion.id} was not deleted: {error}")

    carry_out_all(context.paths, deletions, done=done, failed=failed)
    return wrong
