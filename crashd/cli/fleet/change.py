"""`--fleet want` and `--fleet delete`: for users with the role crashd_index."""

import argparse

from crashd.cli.context import Context
from crashd.cli.fleetsource import STATEMENT_SECONDS, FleetSource
from crashd.cli.manage.change import describe, may_delete
from crashd.cli.source import FLEET_LISTING, matching, not_found
from crashd.domain.crash.query import Query
from crashd.domain.fleet.policy import WANT_MAX
from crashd.domain.text import printable
from crashd.errors import CrashdError, UnsupportedError, UsageError
from crashd.fleet.settings import read_setting

try:
    from crashd.edge.fleet.bucket import Bucket
    from crashd.edge.fleet.postgres import connect
    from crashd.fleet import requests
except ImportError as e:
    raise UnsupportedError(
        f"the module {e.name} is not installed",
        hint="install python3-psycopg or crashd[fleet-server]",
    ) from e


def want(context: Context, arguments: argparse.Namespace) -> int:
    """Ask hosts for the cores of the crashes that match."""
    assert context.fleet is not None
    source = FleetSource.open(context.fleet)
    try:
        rows = source.select(Query(terms=tuple(arguments.match), limit=WANT_MAX + 1))
    finally:
        source.close()
    if not rows:
        raise not_found(arguments.match, FLEET_LISTING)
    if len(rows) > WANT_MAX:
        raise UsageError(f"want: more than {WANT_MAX} crashes match", hint="ask for fewer")
    kept = [row for row in rows if (row.get("core") or {}).get("path")]
    for row in rows:
        if row not in kept:
            context.warn(f"{row['id']} has no core: {printable(str(row.get('state')))}")
    db = connect(context.fleet.dsn, name="crashctl", timeout_seconds=STATEMENT_SECONDS)
    try:
        asked = requests.want(db, kept)
    finally:
        db.close()
    before = len(kept) - asked
    counted = "1 core is" if asked == 1 else f"{asked} cores are"
    text = f"{counted} asked for; hosts look every few minutes" if asked else ""
    was = "was" if before == 1 else "were"
    known = f"{before} {was} asked for before" if before else ""
    if kept:
        context.note("; ".join(part for part in (text, known) if part))
    return 0 if kept else 1


def delete(context: Context, arguments: argparse.Namespace) -> int:
    """Delete the crashes that match, on their hosts as well; ask first if it is not only by id."""
    assert context.fleet is not None
    source = FleetSource.open(context.fleet)
    try:
        rows = matching(source, arguments.match, FLEET_LISTING)
        bucket = Bucket.open(read_setting(source.db, "url") or "")
    finally:
        source.close()
    if not may_delete(context, arguments, rows, listing=FLEET_LISTING):
        return 1
    db = connect(context.fleet.dsn, name="crashctl", timeout_seconds=STATEMENT_SECONDS)
    status = 0
    try:
        for row in rows:
            try:
                requests.delete(db, bucket, row)
            except CrashdError as e:
                if len(rows) == 1:
                    raise
                context.warn(f"{row['id']} was not deleted: {printable(str(e))}")
                status = max(status, e.exit_code)
                continue
            print(f"deleted {describe(row)}", flush=True)  # nobody reads on: no more is deleted
    finally:
        db.close()
    return status
