"""`--fleet top`: signatures, builds, hosts, versions or labels by count; what is new."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crashd.cli.context import Context
from crashd.cli.fleetsource import FleetSource
from crashd.cli.render import (
    NARROW,
    UNDERLINE,
    headline_text,
    json_page,
    local_time,
    program_name,
    render_grid,
    short_age,
    value_text,
)
from crashd.domain.crash.model import SHORT_ID_LENGTH
from crashd.domain.crash.query import Query
from crashd.domain.crash.timestamp import parse_time
from crashd.domain.fleet.lines import LABEL_PATTERN
from crashd.errors import UsageError

if TYPE_CHECKING:
    from argparse import Namespace

_Moment = Callable[[object], str]
_NUMBERS = frozenset({"COUNT", "HOSTS", "VERSIONS", "SIGNATURES"})
_BY = ("build", "host", "version")
_GIVE_WAY = ("FIRST", "VERSIONS", "LAST", "EXE")


def top(context: Context, arguments: "Namespace") -> int:
    """Print the most frequent; return 1 if a filter matches nothing."""
    now_ns = time.time_ns()
    since = arguments.since
    query = Query(
        terms=tuple(arguments.match),
        since_ns=None if since is None else parse_time(since, now_ns),
        kind=arguments.kind,
        limit=arguments.limit,
    )
    by = _checked(arguments.by)
    if arguments.new_since is not None and (query.terms or since or by):
        raise UsageError("top: --new-since takes neither MATCH, --since nor --by")
    assert context.fleet is not None
    source = FleetSource.open(context.fleet)
    try:
        if arguments.new_since is not None:
            rows = _new_since(source, arguments.new_since, query, now_ns)
        elif by:
            rows = source.questions.top_by(query, by)
        else:
            rows = source.top(query)
    finally:
        source.close()
    if arguments.json:
        print(json_page(rows, arguments.json))
    elif rows:
        narrow = context.width is not None and context.width < NARROW
        when = partial(short_age, now_ns=now_ns) if narrow else local_time
        new = arguments.new_since is not None
        for line in render_grid(
            _named(rows, when) if by else _signatures(rows, when, new=new),
            context.width,
            numbers=_NUMBERS,
            give_way=_GIVE_WAY,
            heading_style=UNDERLINE if context.color else None,
            legend=context.legend,
        ):
            print(line)
    if not rows:
        context.note("no analysed crashes found")
    filtered = arguments.match or since or arguments.new_since or context.fleet.is_narrow
    return 0 if rows or not filtered else 1


def _checked(by: str | None) -> str | None:
    if by is None or by in _BY:
        return by
    if by.startswith("label:") and LABEL_PATTERN.fullmatch(by.removeprefix("label:")):
        return by
    raise UsageError(f"top: --by is build, host, version or label:NAME, not {by!r}")


def _new_since(source: FleetSource, text: str, query: Query, now_ns: int) -> list[dict[str, Any]]:
    """A text that is not a time is a version."""
    from crashd.fleet.newsince import NewSince  # counts need none of it

    new = NewSince(source.db, source.scope)
    version = text.removeprefix("version:")
    if version == text:
        try:
            return new.time(parse_time(text, now_ns), query)
        except UsageError:
            pass
    return new.version(version, query)


def _signatures(rows: Sequence[dict[str, Any]], when: _Moment, *, new: bool) -> list[list[str]]:
    heading = ["COUNT", "HOSTS", "VERSIONS", "FIRST", "LAST", "ID", "EXE", "TITLE"]
    cells = [["CHANGE", *heading] if new else heading]
    for row in rows:
        line = [
            str(row["count"]),
            str(row["hosts"]),
            str(row["versions"]),
            *(when(row[key]) for key in ("first", "last")),
            value_text(row["id"])[-SHORT_ID_LENGTH:],
            program_name(row),
            headline_text(row),
        ]
        cells.append([_change(row), *line] if new else line)
    return cells


def _change(row: dict[str, Any]) -> str:
    """Return "new", or the share of hosts that have it, before and now."""
    if row["change"] == "new":
        return "new"
    return f"{row['rate_before']:.1%} > {row['rate']:.1%}"


def _named(rows: Sequence[dict[str, Any]], when: _Moment) -> list[list[str]]:
    cells = [["COUNT", "HOSTS", "SIGNATURES", "FIRST", "LAST", "NAME"]]
    for row in rows:
        numbers = [str(row[key]) for key in ("count", "hosts", "signatures")]
        times = [when(row["first"]), when(row["last"])]
        name = row["name"]
        if row.get("hostname"):
            name = f"{row['hostname']} ({name[:SHORT_ID_LENGTH]})"
        cells.append([*numbers, *times, value_text(name)])
    return cells
