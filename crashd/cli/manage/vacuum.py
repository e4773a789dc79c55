"""`vacuum`: applies retention to process crashes now, or shows what it would delete.

A running daemon does the work; otherwise the same code runs here.
"""

import argparse
from dataclasses import dataclass, field
from typing import Any

from crashd.cli.context import Context
from crashd.cli.control import ControlClient
from crashd.cli.progress import Progress, progress
from crashd.cli.render import json_page, local_time, value_text
from crashd.cli.source import open_direct, require_store
from crashd.domain.keep.process import plan
from crashd.domain.units import format_size
from crashd.edge.host.clock import believed_now_ns
from crashd.store.daemonlock import is_daemon_live
from crashd.store.keptfiles import read_kept, remove_unneeded
from crashd.store.retention import (
    RowWriter,
    Told,
    carry_out_all,
    describe,
    read_stored,
    read_usage,
)


@dataclass(slots=True)
class _Done:
    """What was planned, and what was done."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """The deletions that the daemon lists; there may be more."""
    count: int = 0
    """The number of all deletions."""
    deleted: int = 0
    freed_bytes: int = 0
    kept: list[str] = field(default_factory=list)


def vacuum(context: Context, arguments: argparse.Namespace) -> int:
    """Delete what exceeds the configured limits; return 1 if something could not be deleted."""
    require_store(context.paths)
    with progress(context, "deleting") as shown:
        do = _by_daemon if is_daemon_live(context.paths) else _directly
        done = do(context, shown, dry_run=arguments.dry_run)
    for crash_id in done.kept:
        context.warn(f"{crash_id} was not deleted: it is pinned, in use, or cannot be read")
    if arguments.json:
        print(json_page(done.rows, arguments.json))
        return 1 if done.kept else 0
    for row in done.rows:
        what = "crash" if row["whole"] else "core"
        size = format_size(row["frees_bytes"])
        when, title = local_time(row["time"]), value_text(row["title"])
        print(f"{row['id']}  {when}  {what:<5} {size:>5}  {row['reason']:<17}  {title}")
    if not done.count:
        context.note("nothing to delete")
    elif arguments.dry_run:
        freed = format_size(sum(row["frees_bytes"] for row in done.rows))
        context.note(f"would delete {done.count} and free {freed}")
    else:
        context.note(f"deleted {done.deleted}, freed {format_size(done.freed_bytes)}")
    return 1 if done.kept else 0


def _by_daemon(context: Context, shown: Progress, *, dry_run: bool) -> _Done:
    done = _Done()
    client = ControlClient(context.paths.control_socket)
    with client.stream({"verb": "vacuum", "dry_run": dry_run}) as events:
        for event in events:
            if "plan" in event:
                done.rows, done.count = event["plan"], event["count"]
            elif "done" in event:
                shown(event["done"], event["total"])
            elif "result" in event:
                result = event["result"]
                done.deleted, done.freed_bytes = result["deleted"], result["freed_bytes"]
                done.kept = result["kept"]
                break
    return done


def _directly(context: Context, shown: Progress, *, dry_run: bool) -> _Done:
    from crashd.configuration.files import load  # loads pydantic: slow

    paths, policy = context.paths, load(context.paths).process_policy
    source = open_direct(context, writable=not dry_run)
    index = source.index
    try:
        usage = read_usage(paths, unlisted_bytes=read_kept(paths.kept_files).size_bytes)
        deletions = plan(read_stored(index), usage, policy, believed_now_ns())
        done = _Done(describe(index, deletions), len(deletions))
        if not dry_run:
            rows = RowWriter(index)
            told = Told(rows.add, settled=rows.write, progress=shown)
            outcome = carry_out_all(paths, deletions, told)
            done.deleted, done.freed_bytes = outcome.count, outcome.freed_bytes
            done.kept = sorted(outcome.kept)
            remove_unneeded(paths)
    finally:
        source.close()
    return done
