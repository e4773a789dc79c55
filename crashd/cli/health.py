"""`status` and `doctor`."""

import argparse
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from crashd.cli.checks import Check, Level, run_checks
from crashd.cli.context import Context
from crashd.cli.control import ControlClient
from crashd.cli.render import GREEN, RED, YELLOW, json_page, styled
from crashd.cli.source import open_source
from crashd.domain.match import Query
from crashd.domain.text import printable
from crashd.errors import CrashdError

PROC = Path("/proc")
STATUS_SECONDS = 5.0
CRASH_SECONDS = 10.0
"""How long a test crash may take to be listed as complete."""
_POLL_SECONDS = 0.05
_COMM = b"crashctl-doctor"
_STYLES = {Level.OK: GREEN, Level.WARNING: YELLOW, Level.PROBLEM: RED}


def status(context: Context, arguments: argparse.Namespace) -> int:
    """Print what the daemon says of itself; 0 where it is ready and registered."""
    from crashd.cli.pages import render_status

    found = _ask(context)
    if arguments.json:
        print(json_page(found))
    else:
        for line in render_status(found, now_ns=time.time_ns(), color=context.color):
            print(line)
    return 0 if found.get("ready") and found.get("registered") else 1


def _ask(context: Context) -> dict[str, Any]:
    client = ControlClient(context.paths.control_socket, STATUS_SECONDS)
    found = client.ask({"verb": "status"}).get("status")
    return found if isinstance(found, dict) else {}


def doctor(context: Context, arguments: argparse.Namespace) -> int:
    """Check everything, and say what to do; 1 where there is a problem."""
    checks: list[Check] = []
    for check in run_checks(context.paths, PROC, lambda: _ask(context)):
        checks.append(check)
        if not arguments.json:
            _print_check(context, check)
    if arguments.crash:
        checks.append(crash_and_look(context, registered=checks[0].level is Level.OK))
        if not arguments.json:
            _print_check(context, checks[-1])
    if arguments.json:
        keys = ("name", "level", "text", "hint")
        print(json_page([{key: getattr(check, key) for key in keys} for check in checks]))
    return 1 if any(check.level is Level.PROBLEM for check in checks) else 0


def _print_check(context: Context, check: Check) -> None:
    level = styled(f"{check.level:<7}", _STYLES[check.level] if context.color else None)
    print(f"{level}  {check.name:<15}  {printable(check.text)}", flush=True)
    if check.hint and check.level is not Level.OK:
        print(f"{'':<26}-> {printable(check.hint)}", flush=True)


def crash_and_look(context: Context, *, registered: bool) -> Check:
    """Really crash a process, and look for it among the crashes."""
    name = "test crash"
    if not registered:  # it would leave a core wherever the present pattern says
        return Check(name, Level.PROBLEM, "not tried: core_pattern is not crashd's")
    started_ns = time.time_ns()
    pid = crash_child()
    query = Query(terms=(f"PID={pid}",), since_ns=started_ns - 2 * 10**9)
    deadline = time.monotonic() + CRASH_SECONDS
    seen = "it was not listed"
    while time.monotonic() < deadline:
        try:
            source = open_source(context)
            try:
                rows = source.select(query)
            finally:
                source.close()
        except CrashdError as e:
            return Check(name, Level.PROBLEM, f"pid {pid}: {e}", e.hint)
        if rows and rows[0].get("state") == "complete":
            took_ms = (time.time_ns() - started_ns) // 10**6
            text = f"pid {pid} was caught whole within {took_ms} ms: {rows[0]['id']}"
            return Check(name, Level.OK, text)
        if rows:
            reason = (rows[0].get("capture") or {}).get("reason")
            seen = f"its state is {rows[0].get('state')}" + (f": {reason}" if reason else "")
        time.sleep(_POLL_SECONDS)
    text = f"pid {pid} was not caught whole within {CRASH_SECONDS:.0f} s: {seen}"
    return Check(name, Level.PROBLEM, text, "see the checks above, and journalctl -u crashd")


def crash_child() -> int:
    """Fork a child that dies of SIGSEGV with as high a core limit as it may have; give its pid."""
    child = os.fork()
    if child == 0:
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_CORE)
            if os.geteuid() == 0:
                hard = resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
            Path("/proc/self/comm").write_bytes(_COMM)
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        finally:
            os._exit(1)
    _, outcome = os.waitpid(child, 0)
    if not os.WIFSIGNALED(outcome):
        raise CrashdError(f"the test process {child} did not crash")
    return child
