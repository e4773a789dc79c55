"""Asks the host's package manager whose a file is: dpkg-query or rpm, which only read.

They get one path, after `--`; the caller passes none that a user could have made. They have a few
seconds; an output that is too long counts for nothing.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

from crashd.domain.crash.package import (
    Owners,
    Package,
    dpkg_owner,
    escape_pattern,
    names_in_dpkg,
    parse_dpkg_search,
    parse_package,
)

SECONDS = 10.0
OUTPUT_MAX = 64 << 10
DPKG_QUERY = "/usr/bin/dpkg-query"
RPM = "/usr/bin/rpm"
DPKG_FILES = ("/var/lib/dpkg/status", "/var/lib/dpkg/diversions")
RPM_FILES = tuple(
    f"{directory}/{name}"
    for directory in ("/usr/lib/sysimage/rpm", "/var/lib/rpm", "/usr/share/rpm")
    for name in ("rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages")
)
_ENVIRON = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


def database_stamp() -> tuple[tuple[int, int], ...]:
    """Return what changes when a package is installed, upgraded or removed."""
    return tuple(_stamp(path) for path in (*DPKG_FILES, *RPM_FILES))


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


def find_package(path: str, dpkg: Sequence[str] = (), rpm: Sequence[str] = ()) -> Package | None:
    """Return the package that a file of the host is from; None if it is from none, or nobody
    answers in time. `dpkg` and `rpm` are more options: another database.
    """
    deadline = time.monotonic() + SECONDS
    found = None
    if dpkg or os.path.exists(DPKG_FILES[0]):
        found = _ask_dpkg(path, [DPKG_QUERY, *dpkg], deadline)
    if found is None and (rpm or any(map(os.path.exists, RPM_FILES))):
        query = ["-qf", "--queryformat", r"%{NAME}\t%{EVR}\n", "--", path]
        line = _run([RPM, *rpm, *query], deadline, whole=True)
        # a file in several packages is the same in all of them
        found = parse_package(line.partition("\n")[0], "rpm")
    return found


def _ask_dpkg(path: str, program: list[str], deadline: float) -> Package | None:
    owners = _search(path, program, deadline)
    if owners.moved_from is None:
        owner = dpkg_owner(owners)
    else:
        original = _search(owners.moved_from, program, deadline)
        owner = dpkg_owner(original._replace(diverted_to=None), original.diverted_to)
    if owner is None:
        return None
    query = ["--show", "--showformat", r"${Package}\t${Version}\n", "--", owner]
    return parse_package(_run([*program, *query], deadline, whole=True), "dpkg")


def _search(path: str, program: list[str], deadline: float) -> Owners:
    names = names_in_dpkg(path)
    patterns = [escape_pattern(name) for name in names]
    # the status is 1 if one of the names is unknown
    output = _run([*program, "--search", "--", *patterns], deadline, whole=False)
    return parse_dpkg_search(output, names)


def _run(argv: list[str], deadline: float, *, whole: bool) -> str:
    """Run a program and return its output; empty if it is too late or too long, or with `whole` if
    the program fails.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRON,
            start_new_session=True,
        )
    except OSError:
        return ""  # there is no such program
    output = None
    try:
        if process.stdout is not None:
            with process.stdout as pipe:
                output = _read(pipe.fileno(), deadline)
        if output is not None:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        output = None
    finally:
        if output is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if output is None or (whole and process.returncode):
        return ""
    return output.decode("ascii", "replace")


def _read(fd: int, deadline: float) -> bytes | None:
    """Read a pipe to its end; None if that is too late, or further than OUTPUT_MAX."""
    output = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(fd, selectors.EVENT_READ)
        while ready.select(max(0.0, deadline - time.monotonic())):
            if not (data := os.read(fd, OUTPUT_MAX)):
                return bytes(output)
            output += data
            if len(output) > OUTPUT_MAX:
                break
    return None
