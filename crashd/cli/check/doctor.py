"""`doctor`: checks that crashes will be caught; with --crash also makes one and follows it."""

import argparse
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from crashd.cli.check import doctorfacts
from crashd.cli.context import Context
from crashd.cli.manage.status import ask_status
from crashd.cli.render import DIM, GREEN, RED, TITLE_MIN, YELLOW, json_page, styled, wrap
from crashd.cli.source import open_source
from crashd.cli.sourcetypes import Source
from crashd.domain.crash.query import Query
from crashd.domain.host.denials import check_denials
from crashd.domain.host.doctor import Check, Level, check_own, failed, passed, warned
from crashd.domain.host.doctorfleet import check_fleet
from crashd.domain.host.doctorhost import check_analysis, check_around, check_kernel_dumps
from crashd.domain.kdump.ready import assess
from crashd.domain.text import printable
from crashd.edge.host import hostfacts, kdumpfacts
from crashd.edge.host.needed import missing_for_analyses
from crashd.errors import CrashdError
from crashd.store.paths import Paths

PROC = Path("/proc")
CRASH_SECONDS = 10.0
"""How long a test crash may take to be listed as complete."""
QUEUE_SECONDS = 30.0
"""How long its analysis may wait behind others, on top of its own time limit."""
NAME = "test crash"
_POLL_SECONDS = 0.05
_COMM = b"crashctl-doctor"
_STYLES = {Level.OK: GREEN, Level.WARNING: YELLOW, Level.PROBLEM: RED}
_INDENT = 26
_INDENT_NARROW = 4


def doctor(context: Context, arguments: argparse.Namespace) -> int:
    """Print every check, and what to do about faults; return 1 if there is a problem."""
    checks: list[Check] = []
    own = run_checks(context.paths, PROC, lambda: ask_status(context))
    for check in chain(own, _really_crash(context, checks) if arguments.crash else ()):
        checks.append(check)
        if not arguments.json:
            _print_check(context, check)
    if arguments.json:
        print(json_page([check.to_json() for check in checks], arguments.json))
    return 1 if any(check.level is Level.PROBLEM for check in checks) else 0


def run_checks(paths: Paths, proc: Path, ask: Callable[[], dict[str, Any]]) -> Iterator[Check]:
    """Yield every check; `ask` returns the daemon's status or raises UnavailableError."""
    now_ns = time.time_ns()
    daemon = doctorfacts.read_daemon(paths, ask)
    settings = doctorfacts.read_settings(proc)
    store = doctorfacts.read_store(paths, now_ns)
    yield from check_own(settings, doctorfacts.read_handler(paths), daemon, store)
    around = doctorfacts.read_surroundings(paths, proc, now_ns)
    yield from check_around(
        around, str(paths.handler), daemon.capture_mode, honours_limits=daemon.honours_limits
    )
    yield check_analysis(missing_for_analyses())
    yield check_kernel_dumps(assess(kdumpfacts.read_facts(paths.root)))
    yield from check_denials(hostfacts.read_denials(paths.root, now_ns))
    yield from check_fleet(daemon, now_ns)


def _print_check(context: Context, check: Check) -> None:
    for line in render_check(check, color=context.color, width=context.width):
        print(line, flush=True)


def render_check(check: Check, *, color: bool, width: int | None) -> Iterator[str]:
    """Yield the lines of one check, wrapped to `width` columns, except commands, which are there to
    be copied.
    """
    indent = _INDENT if width is None or width >= _INDENT + TITLE_MIN else _INDENT_NARROW
    level = f"{check.level:<7}"
    first, *rest = wrap(f"{level}  {check.name:<15}  {printable(check.text)}", width, indent)
    yield styled(level, _STYLES[check.level] if color else None) + first[len(level) :]
    yield from rest
    if check.level is Level.OK:
        return
    for line in wrap(" " * indent + printable(check.why), width, indent):
        yield styled(line, DIM if color else None)
    if check.hint:
        yield f"{'':{indent}}-> {printable(check.hint)}"


# -- a real crash ----------------------------------------------------------------------------------


def _really_crash(context: Context, before: list[Check]) -> Iterator[Check]:
    yield crash_and_look(context, registered=before[0].level is Level.OK)


def crash_and_look(context: Context, *, registered: bool) -> Check:
    """Crash a child process, and follow the crash to its record, its core and its stack."""
    if not registered:  # its core would go wherever the present pattern says
        return failed(
            NAME, "not tried: core_pattern does not name crashd's handler", "crashctl install"
        )
    started_ns, started = time.time_ns(), time.monotonic()
    pid = crash_child()
    query = Query(terms=(f"PID={pid}",), since_ns=started_ns - 2 * 10**9)
    try:
        source = open_source(context)
        try:
            row = _wait_for_record(source, query, started + CRASH_SECONDS)
            took_ms = round((time.monotonic() - started) * 1000)
            wrong = _fault_of(row, pid) or _look_into_core(source, row, pid)
            if wrong is not None:
                return wrong
            text = f"pid {pid} was captured completely within {took_ms} ms: {row['id']}"
            seconds = analysis_seconds(context.paths)
            if seconds is None:
                return passed(NAME, text)
            return _follow_analysis(source, row, text, seconds)
        finally:
            source.close()
    except CrashdError as e:
        return failed(NAME, f"pid {pid}: {e}", e.hint)


def _wait_for_record(source: Source, query: Query, deadline: float) -> dict[str, Any]:
    """Wait until the crash is listed and its capture is over; return its row, {} at `deadline`."""
    while True:
        rows = source.select(query)
        row = rows[0] if rows else {}
        if row.get("state") not in (None, "capturing") or time.monotonic() > deadline:
            return row
        time.sleep(_POLL_SECONDS)


def _fault_of(row: dict[str, Any], pid: int) -> Check | None:
    """Return a failed check if the record is not complete, else None."""
    if row.get("state") == "complete" and (row.get("core") or {}).get("path"):
        return None
    capture = row.get("capture") or {}
    if capture.get("disposition") in ("mini", "metadata"):
        text = f"pid {pid} was captured, but only {capture['disposition']}: {capture.get('reason')}"
        return warned(
            NAME, text, "try again later: the limiter keeps less of programs that crash often"
        )
    text = f"pid {pid} was not captured completely within {CRASH_SECONDS:.0f} s: it is not listed"
    if row:
        reason = capture.get("reason")
        text = text.rpartition(":")[0] + f": its state is {row.get('state')}"
        text += f": {reason}" if reason else ""
    return failed(NAME, text, "journalctl -u crashd, after the checks above")


def _look_into_core(source: Source, row: dict[str, Any], pid: int) -> Check | None:
    """Return a failed check if the stored core does not begin as an ELF file, else None."""
    from crashd.store.corefile import read_core

    fd = source.open_core(row["id"])
    try:
        first = next(iter(read_core(fd, row["core"].get("size_bytes") or None)), b"")
    finally:
        os.close(fd)
    if first.startswith(b"\x7fELF"):
        return None
    return failed(
        NAME, f"the stored core of pid {pid} is not an ELF file", "crashctl verify --deep"
    )


def analysis_seconds(paths: Paths) -> float | None:
    """Return how long an analysis may take by the configuration; None if it is disabled."""
    from crashd.configuration import files as configfiles

    try:
        section = configfiles.load(paths).analysis
    except CrashdError:
        return None  # another check reports it
    return section.timeout_seconds + QUEUE_SECONDS if section.enabled else None


def _follow_analysis(source: Source, row: dict[str, Any], text: str, seconds: float) -> Check:
    """Wait until the analysis has named the functions on the stack, or has failed."""
    deadline = time.monotonic() + seconds
    while True:
        found = source.info(row["id"])
        frames = [f for f in found.get("frames") or () if isinstance(f, dict)]
        names = [str(f["function"]) for f in frames if f.get("function")]
        analysis = found.get("analysis") or {}
        if names:
            return passed(NAME, f"{text}; its stack: {' < '.join(names[:4])}")
        if analysis.get("state") in ("done", "failed"):
            why = analysis.get("reason") or "; ".join(map(str, found.get("warnings") or ()))
            text += f"; its stack has no names: {why or 'no reason was recorded'}"
            return failed(NAME, text, "journalctl -u crashd")
        if time.monotonic() > deadline:
            text += f"; its analysis did not finish within {seconds:.0f} s"
            return failed(NAME, text, "journalctl -u crashd")
        time.sleep(_POLL_SECONDS)


def crash_child() -> int:
    """Fork a child that dies of SIGSEGV with the highest core limit allowed; return its pid."""
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
