"""`status`: shows the daemon's status."""

import argparse
import time
from typing import Any

from crashd.cli.context import Context
from crashd.cli.control import ControlClient
from crashd.cli.render import json_page

STATUS_SECONDS = 5.0


def status(context: Context, arguments: argparse.Namespace) -> int:
    """Print the daemon's status; return 0 if it is ready and registered."""
    from crashd.cli.show.pages import render_status

    found = ask_status(context)
    if arguments.json:
        print(json_page(found, arguments.json))
    else:
        for line in render_status(
            found, now_ns=time.time_ns(), color=context.color, width=context.width
        ):
            print(line)
    return 0 if found.get("ready") and found.get("registered") else 1


def ask_status(context: Context) -> dict[str, Any]:
    """Ask the daemon for its status.

    Raises:
        UnavailableError: no daemon runs, or it does not answer.
    """
    client = ControlClient(context.paths.control_socket, STATUS_SECONDS)
    found = client.ask({"verb": "status"}).get("status")
    return found if isinstance(found, dict) else {}
