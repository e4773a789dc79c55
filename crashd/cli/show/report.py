"""`report`: writes one HTML page about the crashes of a period."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from crashd import __version__
from crashd.base.files import write_all
from crashd.cli.context import Context
from crashd.cli.output import write_file
from crashd.cli.render import Row
from crashd.cli.show.htmlpage import LATEST, TOP, Page, render
from crashd.cli.show.stats import plan
from crashd.cli.source import open_source
from crashd.cli.sourcetypes import CountingSource, Source
from crashd.domain.crash.tally import Tally, tally
from crashd.domain.units import format_size
from crashd.errors import NotFoundError, UsageError

COLUMNS = 96
"""Columns of the timeline."""


def report(context: Context, arguments: argparse.Namespace) -> int:
    """Write the page, even if there are no crashes."""
    to_file = arguments.output not in (None, "-")
    if arguments.force and not to_file:
        raise UsageError("report: --force needs --output FILE")
    if not to_file and os.isatty(1):
        raise UsageError("report: refusing to write HTML to a terminal", hint="use --output FILE")
    page = read_page(context, arguments, time.time_ns())
    lines = (line.encode("utf-8", "backslashreplace") + b"\n" for line in render(page))
    if to_file:
        target = Path(arguments.output)
        size_bytes = write_file(target, lines, force=arguments.force)
        context.note(f"{page.tally.total} crashes; {format_size(size_bytes)} written to {target}")
    else:
        sys.stdout.flush()
        for line in lines:
            write_all(1, line)
    return 0


def read_page(context: Context, arguments: argparse.Namespace, now_ns: int) -> Page:
    """Read the contents of the page.

    Raises:
        UsageError: a time or a MATCH is not valid.
    """
    query, timeline = plan(arguments, now_ns, COLUMNS)
    source = open_source(context)
    try:
        if isinstance(source, CountingSource):
            found = source.tally(query, timeline)
            source.add_groups(query, found, TOP)
            rows = source.select(query._replace(limit=LATEST))
        else:
            rows = source.select(query)
            found = tally(rows, timeline)
        stacks = dict(_read_stacks(source, found))
    finally:
        source.close()
    host = _place(context, rows)
    return Page(host, now_ns, __version__, found, stacks, rows[:LATEST])


def _place(context: Context, rows: Sequence[Row]) -> str:
    """Return whose crashes they are."""
    if context.fleet is not None:
        labels = [f"{name}={value}" for name, value in context.fleet.labels]
        return " ".join(["fleet", *context.fleet.hosts, *labels])
    names = (str(row["hostname"]) for row in rows if row.get("hostname"))
    return next(names, os.uname().nodename)


def _read_stacks(source: Source, found: Tally) -> Iterator[tuple[int, Row]]:
    """Read the record of the newest crash of each top signature."""
    for rank, group in enumerate(found.top()[:TOP]):
        try:
            yield rank, source.info(str(group.newest.get("id")))
        except NotFoundError:
            continue  # deleted meanwhile: the page shows its row instead
