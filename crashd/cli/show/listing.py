"""`list`, `info` and `follow`."""

import argparse
import time
from typing import Any

from crashd.cli.context import Context
from crashd.cli.render import FOLLOW_WIDTHS, Table, json_line, json_page, render_json_list
from crashd.cli.source import DirectSource, newest, open_source
from crashd.domain.crash.match import Query, parse_time


def list_crashes(context: Context, arguments: argparse.Namespace) -> int:
    """Print a line for each crash that matches; return 1 if a filter matches nothing."""
    query = build_query(arguments, time.time_ns())
    source = open_source(context)
    try:
        rows = source.select(query)
    finally:
        source.close()
    if not arguments.reverse:
        rows.reverse()  # newest last, next to the prompt
    if arguments.json:
        for line in render_json_list(rows):
            print(line)
    elif rows:
        table = Table(context.width, color=context.color)
        for line in table.lines(rows, legend=context.legend):
            print(line)
    if rows:
        return 0
    asked = is_filtered(query)
    if asked or not arguments.json:
        context.note("no crashes found" if asked else "no crashes so far")
    return 1 if asked else 0


def build_query(arguments: argparse.Namespace, now_ns: int) -> Query:
    """Build the query from the options of `list`.

    It asks for the newest crashes first, so that a limit keeps the newest.

    Raises:
        UsageError: a time or a MATCH is not valid.
    """
    since, until = arguments.since, arguments.until
    return Query(
        terms=tuple(arguments.match),
        since_ns=None if since is None else parse_time(since, now_ns),
        until_ns=None if until is None else parse_time(until, now_ns),
        kind=arguments.kind,
        signature=arguments.signature,
        limit=arguments.limit,
    )


def is_filtered(query: Query) -> bool:
    """Return whether a query filters anything."""
    wanted = (query.since_ns, query.until_ns, query.kind, query.signature)
    return bool(query.terms) or any(value is not None for value in wanted)


def show(context: Context, arguments: argparse.Namespace) -> int:
    """Print everything known about the newest crash that matches."""
    from crashd.cli.show.pages import render_info

    source = open_source(context)
    try:
        row = newest(context, source, arguments.match)
        doc = source.info(row["id"])
    finally:
        source.close()
    if arguments.json:
        print(json_page(doc))
        return 0
    core_file = None
    if isinstance(source, DirectSource) and (doc.get("core") or {}).get("path"):
        core_file = str(context.paths.crashes / doc["id"] / doc["core"]["path"])
    for line in render_info(
        doc,
        now_ns=time.time_ns(),
        show_all=arguments.all,
        color=context.color,
        core_file=core_file,
    ):
        print(line)
    return 0


def follow(context: Context, arguments: argparse.Namespace) -> int:
    """Print each crash as it happens, until Ctrl-C."""
    from crashd.cli.control import ControlClient

    client = ControlClient(context.paths.control_socket)
    table = Table(context.width, color=context.color)
    table.expect(FOLLOW_WIDTHS)
    try:
        with client.stream({"verb": "follow"}) as events:
            if context.legend and not arguments.json:
                print(table.legend(), flush=True)
            for event in events:
                _print_event(context, arguments.json, table, event)
    except KeyboardInterrupt:
        return 0
    return 0


def _print_event(context: Context, as_json: bool, table: Table, event: dict[str, Any]) -> None:
    crash = event.get("crash")
    if isinstance(crash, dict):
        print(json_line(crash) if as_json else table.line(crash), flush=True)
    elif event.get("dropped"):
        context.warn(f"{event['dropped']} crashes are not shown: too many at once")
