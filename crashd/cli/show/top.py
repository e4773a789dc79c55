"""`analyze` and `top`: the analysis of one crash, and counts by signature."""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

from crashd.cli.context import Context
from crashd.cli.control import ControlClient
from crashd.cli.debuginfod import fetch_debug_info, fetch_vmlinux
from crashd.cli.render import (
    NARROW,
    UNDERLINE,
    headline_text,
    json_page,
    local_time,
    program_name,
    render_grid,
    short_age,
    signal_text,
    value_text,
)
from crashd.cli.show.kernelpage import symbols_text
from crashd.cli.show.listing import show
from crashd.cli.source import newest, open_source
from crashd.cli.sourcetypes import Source
from crashd.domain.crash.keys import SHORT_ID_LENGTH
from crashd.domain.crash.kinds import State
from crashd.domain.crash.query import Query
from crashd.domain.crash.timestamp import parse_time
from crashd.domain.kdump.symbols import symbols_of
from crashd.domain.text import printable
from crashd.errors import CrashdError, UnavailableError

WAIT_SECONDS = 3700.0
"""Longer than the longest analysis that can be configured."""
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 2.0


def analyze(context: Context, arguments: argparse.Namespace) -> int:
    """Have the daemon analyse the newest crash that matches, wait, and show the crash."""
    source = open_source(context)
    try:
        row = newest(context, source, arguments)
        doc = source.info(row["id"])
        before = _analysis(doc)
        if before.get("state") == "none":  # of a kernel's dump: no vmlinux is on this host
            fetch_vmlinux(context, (doc.get("kernel") or {}).get("build_id"))
        if doc.get("kind") != "kernel":
            fetch_debug_info(context, row["id"])
        client = ControlClient(context.paths.control_socket)
        daemon = _daemon_pid(client)
        client.ask({"verb": "analyze", "id": row["id"]})
        found = _wait(source, row["id"], before.get("time"), lambda: _daemon_pid(client) == daemon)
    finally:
        source.close()
    if found.get("kept"):
        why = printable(str(found["kept"]))
        context.warn(f"this analysis found less than an earlier one, which is kept: {why}")
    if found.get("state") == "none":
        raise CrashdError(f"no symbols: {symbols_text(found)}")
    if found.get("state") != "done":
        raise CrashdError(f"the analysis failed: {found.get('reason')}")
    arguments.match, arguments.since, arguments.until = [row["id"]], None, None
    arguments.all, arguments.limit, arguments.reverse = False, None, False
    return show(context, arguments)


def _analysis(doc: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of its analysis: of a kernel's dump, of its symbols."""
    if doc.get("kind") == "kernel":
        return symbols_of(doc.get("kernel")) or {}
    return doc.get("analysis") or {}


def _daemon_pid(client: ControlClient) -> object:
    return (client.ask({"verb": "status"}).get("status") or {}).get("pid")


def _wait(
    source: Source, crash_id: str, before: object, is_same: Callable[[], bool]
) -> dict[str, Any]:
    """Wait for an analysis other than `before`; `is_same` says whether the asked daemon still runs.

    Raises:
        CrashdError: the crash has no core, so no analysis will come.
        UnavailableError: the daemon ended or was restarted, or takes too long.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    next_look = time.monotonic() + _LOOK_SECONDS
    while (now := time.monotonic()) < deadline:
        doc = source.info(crash_id)
        found = _analysis(doc)
        if found.get("time") not in (None, before):
            return dict(found)
        if doc.get("kind") == "kernel":
            if State(doc["state"]).is_gone:
                raise CrashdError(f"crash {crash_id} has no dump to analyse")
        elif not (doc.get("core") or {}).get("path"):
            raise CrashdError(f"crash {crash_id} has no core to analyse")
        if now >= next_look:
            next_look = now + _LOOK_SECONDS
            if not is_same():
                raise UnavailableError(
                    "crashd was restarted before it had analysed this", hint="try again"
                )
        time.sleep(_POLL_SECONDS)
    raise UnavailableError("the daemon did not analyse it", hint="see journalctl -u crashd")


def top(context: Context, arguments: argparse.Namespace) -> int:
    """Print signatures, most frequent first; return 1 if a filter matches nothing."""
    now_ns = time.time_ns()
    since, fresh = arguments.since, arguments.new_since
    query = Query(
        terms=tuple(arguments.match),
        since_ns=None if since is None else parse_time(since, now_ns),
        kind=arguments.kind,
        limit=None if fresh is not None else arguments.limit,
    )
    source = open_source(context)
    try:
        rows = source.top(query)
    finally:
        source.close()
    if fresh is not None:
        rows = _only_new(rows, parse_time(fresh, now_ns))[: arguments.limit]
    if arguments.json:
        print(json_page(rows, arguments.json))
    else:
        look = {"legend": context.legend, "color": context.color}
        for line in render_top(rows, context.width, **look, now_ns=now_ns):
            print(line)
    if not rows:
        context.note("no analysed crashes found")
    return 0 if rows or not (arguments.match or since or fresh) else 1


def _only_new(rows: list[dict[str, Any]], since_ns: int) -> list[dict[str, Any]]:
    """Return the signatures first seen since then."""
    return [row for row in rows if parse_time(str(row["first"]), 0) >= since_ns]


def render_top(
    rows: list[dict[str, Any]],
    width: int | None,
    *,
    legend: bool,
    color: bool,
    now_ns: int,
) -> Iterator[str]:
    """Yield a line for each signature, with the id of its newest crash; the signatures themselves
    only where there is room.
    """
    if not rows:
        return
    narrow = width is not None and width < NARROW
    cells = [["COUNT", "FIRST", "LAST", "ID", "SIGNATURE", "SIGNAL", "EXE", "TITLE"]]
    for row in rows:
        times = (row["first"], row["last"])
        cells.append(
            [
                str(row["count"]),
                *(short_age(t, now_ns) if narrow else local_time(t) for t in times),
                value_text(row["id"])[-SHORT_ID_LENGTH:],
                value_text(row["signature"]),
                signal_text(row),
                program_name(row),
                headline_text(row),
            ]
        )
    yield from render_grid(
        cells,
        width,
        numbers={"COUNT"},
        give_way=("SIGNATURE", "FIRST", "SIGNAL", "EXE"),
        heading_style=UNDERLINE if color else None,
        legend=legend,
    )
