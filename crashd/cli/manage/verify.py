"""`verify`: compares the store with its index; with --strict finds unowned files too."""

import argparse

from crashd.cli.context import Context
from crashd.cli.progress import progress
from crashd.cli.render import json_page
from crashd.cli.source import open_direct
from crashd.domain.text import printable
from crashd.store import check
from crashd.store.daemonlock import is_daemon_live


def verify(context: Context, arguments: argparse.Namespace) -> int:
    """Compare the store with its index and print what is wrong; return 1 if anything is."""
    source = open_direct(context)
    try:
        with progress(context, "verifying") as shown:
            if arguments.strict:
                findings = check.verify_strictly(
                    context.paths,
                    source.index,
                    is_live=lambda: is_daemon_live(context.paths),
                    progress=shown,
                )
            else:
                findings = check.verify(
                    context.paths, source.index, deep=arguments.deep, progress=shown
                )
    finally:
        source.close()
    if arguments.json:
        print(
            json_page(
                [{"kind": f.kind, "subject": f.subject, "text": f.text} for f in findings],
                arguments.json,
            )
        )
    else:
        for finding in findings:
            print(_line(finding))
        if not findings:
            context.note("store and index are consistent")
    return 1 if findings else 0


def _line(finding: check.Finding) -> str:
    return f"{finding.kind}: {printable(finding.subject)}: {printable(finding.text)}"
