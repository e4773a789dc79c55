"""`stats`: draws crash counts over time, and by kind, signal, unit and more."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping

from crashd.cli.context import Context
from crashd.cli.render import BOLD, RED, json_page, local_time_of_ns, wrap
from crashd.cli.show.charts import WIDTH_MIN, Canvas, draw_bars, draw_columns
from crashd.cli.source import open_source
from crashd.cli.sourcetypes import CountingSource
from crashd.domain.crash.query import Query
from crashd.domain.crash.tally import Tally, Timeline, plan_timeline, tally
from crashd.domain.crash.timestamp import parse_time
from crashd.domain.units import format_duration
from crashd.errors import UsageError

DAY_NS = 86400 * 10**9
COLUMNS_MAX = 120
JSON_COLUMNS = 96
LINES = 8
"""Bars per chart."""
PIPE_WIDTH = 80
HEIGHT = 6
_CHARTS = (
    ("kinds", "Kind"),
    ("signals", "Signal, or kernel panic"),
    ("units", "Unit"),
    ("programs", "Program"),
    ("dispositions", "Kept"),
    ("states", "State"),
)


def stats(context: Context, arguments: argparse.Namespace) -> int:
    """Draw the charts; return 1 if there are no crashes."""
    canvas = Canvas(
        context.width or PIPE_WIDTH, can_draw(sys.stdout.encoding, os.environ), context.color
    )
    columns = JSON_COLUMNS if arguments.json else min(canvas.width - 8, COLUMNS_MAX)
    found = count_crashes(context, arguments, max(columns, WIDTH_MIN - 8))
    if arguments.json:
        print(json_page(found.to_json(), arguments.json))
    elif found.total:
        for line in render(found, canvas, arguments.limit or LINES):
            print(line)
    else:
        context.note("no crashes found")
    return 0 if found.total else 1


def can_draw(encoding: str | None, environ: Mapping[str, str]) -> bool:
    """Return whether standard output has the block and line characters.

    Python writes UTF-8 in the locale C as well. As for systemctl, C is taken for what the terminal
    shows if it was asked for, and not if it is only what is left without any setting.
    """
    asked = [environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    if next(filter(None, asked), None) in ("C", "POSIX"):
        return False
    return (encoding or "").lower().replace("-", "") == "utf8"


def count_crashes(context: Context, arguments: argparse.Namespace, columns_max: int) -> Tally:
    """Count the crashes that the options select, by default those of the last 24 hours.

    Raises:
        UsageError: a time or a MATCH is not valid.
    """
    query, timeline = plan(arguments, time.time_ns(), columns_max)
    source = open_source(context)
    try:
        if isinstance(source, CountingSource):
            return source.tally(query, timeline)
        return tally(source.select(query), timeline)
    finally:
        source.close()


def plan(arguments: argparse.Namespace, now_ns: int, columns_max: int) -> tuple[Query, Timeline]:
    """Build query and timeline from the options."""
    until_ns = now_ns if arguments.until is None else parse_time(arguments.until, now_ns)
    since = arguments.since
    since_ns = until_ns - DAY_NS if since is None else parse_time(since, now_ns)
    if since_ns >= until_ns:
        raise UsageError("--since is not before --until")
    timeline = plan_timeline(since_ns, until_ns, columns_max)
    # from the start of the first column, so that the chart draws exactly what is counted
    return Query(tuple(arguments.match), timeline.start_ns, until_ns, arguments.kind), timeline


def render(found: Tally, canvas: Canvas, lines_max: int) -> Iterator[str]:
    """Yield the lines of the timeline and the bars."""
    line = found.timeline
    crashes = "1 crash" if found.total == 1 else f"{found.total} crashes"
    span = f"{local_time_of_ns(line.start_ns)} to {local_time_of_ns(line.end_ns)}"
    for text in wrap(f"{crashes}, {span}", canvas.width, 2):
        yield canvas.paint(text, BOLD)
    yield ""
    kernel = [index for index, count in enumerate(line.counts["kernel"]) if count]
    yield from draw_columns(
        canvas,
        line.totals(),
        height=HEIGHT,
        ends=(local_time_of_ns(line.start_ns)[5:16], local_time_of_ns(line.end_ns)[5:16]),
        marks=dict.fromkeys(kernel, "K"),
    )
    legend = f"  each column: {format_duration(line.step_ns)}"
    yield legend + (canvas.paint("; K: the kernel crashed", RED) if kernel else "")
    for subject, heading in _CHARTS:
        yield ""
        yield canvas.paint(heading, BOLD)
        yield from draw_bars(canvas, found.ranked(subject), lines_max)
