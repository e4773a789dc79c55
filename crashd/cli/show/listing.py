"""`list`, `info` and `follow`."""

from __future__ import annotations

import time

from crashd.cli.context import Context
from crashd.cli.render import (
    Table,
    follow_widths,
    json_line,
    json_page,
    render_field,
    render_json_list,
    shown_field,
)
from crashd.cli.source import (
    DirectSource,
    build_query,
    is_filtered,
    newest_of,
    open_source,
)
from crashd.domain.crash.query import Query
from crashd.errors import CrashdError, NotFoundError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator
    from typing import Any

    from crashd.cli.sourcetypes import Source


def list_crashes(context: Context, arguments: Namespace) -> int:
    """Print a line for each crash that matches; return 1 if a filter matches nothing."""
    query = build_query(arguments, time.time_ns())
    is_table = arguments.field is None and not arguments.json
    rows: list[dict[str, Any]]
    source = open_source(context)
    try:
        if not isinstance(source, DirectSource):
            rows = [*_whole(context, source, arguments.field, source.select(query))]
        elif is_table:
            rows = source.listing(query)
        else:
            oldest_first = query._replace(reverse=not arguments.reverse)
            each = _whole(context, source, arguments.field, source.each(oldest_first))
            found = _print_values(context, arguments, each)
            return _conclude(context, arguments, query, found)
    finally:
        source.close()
    if not arguments.reverse:
        rows.reverse()  # newest last, next to the prompt
    if not is_table:
        _print_values(context, arguments, rows)
    elif rows:
        fleet = context.fleet is not None
        table = Table(context.width, color=context.color, now_ns=time.time_ns(), fleet=fleet)
        for line in table.lines(rows, legend=context.legend):
            print(line)
    return _conclude(context, arguments, query, len(rows))


def _whole(
    context: Context, source: Source, field: str | None, rows: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield rows; with the rest of their records, if `-F` asks for what rows do not have."""
    known = None if field is None else shown_field(field)
    for row in rows:
        if known is None or known in row or known == "truncated":
            yield row
        elif known == "filename":
            yield locate_core(context, row)
        else:
            try:
                yield source.info(row["id"])
            except NotFoundError:
                yield row  # it was deleted meanwhile


def _print_values(context: Context, arguments: Namespace, rows: Iterable[dict[str, Any]]) -> int:
    """Print one field of each crash, or JSON; return the number of crashes."""
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in rows:
            count += 1
            yield row if arguments.field is not None else locate_core(context, row)

    if arguments.field is not None:
        for text in render_field(counted(), arguments.field):
            print(text)
    else:
        for part in render_json_list(counted(), arguments.json):
            print(part, end="")
    return count


def _conclude(context: Context, arguments: Namespace, query: Query, found: int) -> int:
    """Say if nothing was found; return the exit status."""
    if found:
        return 0
    asked = is_filtered(query) or (context.fleet is not None and context.fleet.is_narrow)
    if asked or not arguments.json:
        context.note("no crashes found" if asked else "no crashes so far")
    return 1 if asked else 0


def locate_core(context: Context, doc: dict[str, Any]) -> dict[str, Any]:
    """Return a crash whose core has its path, not only the name in its entry; without a store it
    has none.
    """
    core = doc.get("core")
    name = core.get("path") if isinstance(core, dict) else None
    if not isinstance(core, dict) or not isinstance(name, str):
        return doc
    path = None
    if context.index_files is None and context.fleet is None:
        path = context.core_file(str(doc.get("id")), name)
    return {**doc, "core": {**core, "path": path}}


def mark_pending(context: Context, doc: dict[str, Any]) -> dict[str, Any]:
    """Return a crash that says whether its analysis is still to come."""
    if doc.get("kind") != "process" or doc.get("analysis") or context.index_files is not None:
        return doc
    if context.fleet is not None:
        return doc
    from crashd.domain.crash.kinds import State  # few crashes are looked at so soon

    analysed = [state.value for state in State if state.has_core]
    if doc.get("state") != State.CAPTURING and (
        doc.get("state") not in analysed or not (doc.get("core") or {}).get("path")
    ):
        return doc
    from crashd.cli.control import ControlClient

    try:
        status = ControlClient(context.paths.control_socket, 1.0).ask({"verb": "status"})["status"]
    except (CrashdError, KeyError):
        return doc
    if not isinstance(status, dict) or status.get("analyses_waiting") is None:
        return doc
    return {**doc, "analysis": {"state": "pending"}}


def show(context: Context, arguments: Namespace) -> int:
    """Print everything known about the newest crash that matches, or about the newest few."""
    source = open_source(context)
    try:
        rows = newest_of(context, source, arguments, arguments.limit or 1)
        docs = [mark_pending(context, source.info(row["id"])) for row in rows]
    finally:
        source.close()
    if not arguments.reverse:
        docs.reverse()  # newest last, as in a listing
    if arguments.json:
        located = [locate_core(context, doc) for doc in docs]
        print(json_page(located[0] if arguments.limit is None else located, arguments.json))
        return 0
    for number, doc in enumerate(docs):
        if number:
            print()
        _print_page(context, doc, show_all=arguments.all, on_disk=isinstance(source, DirectSource))
    return 0


def _print_page(context: Context, doc: dict[str, Any], *, show_all: bool, on_disk: bool) -> None:
    from crashd.cli.show.pages import render_info

    core_file = (locate_core(context, doc).get("core") or {}).get("path") if on_disk else None
    for line in render_info(
        doc,
        now_ns=time.time_ns(),
        show_all=show_all,
        color=context.color,
        core_file=core_file,
        width=context.width,
    ):
        print(line)


def follow(context: Context, arguments: Namespace) -> int:
    """Print each crash as it happens, until Ctrl-C."""
    from crashd.cli.control import ControlClient

    client = ControlClient(context.paths.control_socket)
    table = Table(context.width, color=context.color)
    table.expect(follow_widths(context.width))
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
    crash, explained = event.get("crash"), event.get("explained")
    if isinstance(crash, dict):
        located = locate_core(context, crash) if as_json else crash
        print(json_line(located) if as_json else table.line(crash), flush=True)
    elif isinstance(explained, dict):
        line = json_line(locate_core(context, explained)) if as_json else table.note(explained)
        print(line, flush=True)
    elif event.get("dropped"):
        context.warn(f"{event['dropped']} crashes are not shown: too many at once")
