"""`--fleet follow`: crashes as they are indexed."""

import argparse
import time
from datetime import timedelta

from crashd.cli.context import Context
from crashd.cli.fleetsource import FleetSource
from crashd.cli.render import Table, follow_widths, json_line
from crashd.errors import UnavailableError

POLL_SECONDS = 1.0
OVERLAP = timedelta(seconds=30)
"""Transactions commit up to so long after the time of their rows."""
SHOWN_MAX = 1000
"""Crashes shown of one look; the rest is only counted."""


def follow(context: Context, arguments: argparse.Namespace) -> int:
    """Print each crash as it is indexed, until Ctrl-C."""
    assert context.fleet is not None
    source = FleetSource.open(context.fleet)
    table = Table(context.width, color=context.color, fleet=True)
    table.expect({**follow_widths(context.width), "HOST": 16})
    try:
        if context.legend and not arguments.json:
            print(table.legend(), flush=True)
        start = source.questions.now()
        seen = {row["id"] for _, row in source.questions.since(start - OVERLAP, SHOWN_MAX)}
        while True:
            try:
                found = source.questions.since(start - OVERLAP, SHOWN_MAX)
            except UnavailableError as e:
                context.warn(f"{e}; connecting again")
                source = _connect_again(source, context)
                continue
            for moment, row in found:
                if row["id"] not in seen:
                    print(json_line(row) if arguments.json else table.line(row), flush=True)
                start = max(start, moment)
            seen = {row["id"] for _, row in found}
            if len(found) >= SHOWN_MAX:
                context.warn("some crashes may not be shown: too many at once")
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return 0
    finally:
        source.close()


def _connect_again(source: FleetSource, context: Context) -> FleetSource:
    assert context.fleet is not None
    source.close()
    while True:
        time.sleep(POLL_SECONDS)
        try:
            return FleetSource.open(context.fleet)
        except UnavailableError:
            continue
