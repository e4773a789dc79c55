"""Asks the host's package manager whose a file is: dpkg-query or rpm, which only read.

They get one path, after `--`; the caller passes none that a user could have made. They have ten
seconds and 64 KiB.
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
from crashd.domain.text import printable
from crashd.errors import UnavailableError, reason_of

SECONDS = 10.0
OUTPUT_MAX = 64 << 10
_TROUBLE_MAX = 200
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
    """Return the package that a file of the host is from; None if it is from none. `dpkg` and `rpm`
    are more options: another database.

    Raises:
        UnavailableError: a package manager did not answer in time, or cannot read its database.

    """
    deadline = time.monotonic() + SECONDS
    found = None
    if dpkg or os.path.exists(DPKG_FILES[0]):
        found = _ask_dpkg(path, [DPKG_QUERY, *dpkg], deadline)
    if found is None and (rpm or any(map(os.path.exists, RPM_FILES))):
        found = _ask_rpm(path, [RPM, *rpm], deadline)
    return found


def _ask_rpm(path: str, program: list[str], deadline: float) -> Package | None:
    query = ["-qf", "--queryformat", r"%{NAME}\t%{EVR}\n", "--", path]
    status, output = _run([*program, *query], deadline, with_errors=True)
    if status == 0:
        # a file in several packages is the same in all of them
        found = (parse_package(line, "rpm") for line in output.splitlines())
        return next((package for package in found if package is not None), None)
    # The status does not tell a file without owner from a database that cannot be opened: on a
    # read-only file system it needs rpmdb.sqlite-wal and -shm.
    trouble = next((line for line in output.splitlines() if line.startswith("error: ")), None)
    if trouble is not None:
        raise UnavailableError(f"rpm: {printable(trouble.removeprefix('error: '))[:_TROUBLE_MAX]}")
    return None


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
    status, output = _run([*program, *query], deadline)
    return parse_package(output, "dpkg") if status == 0 else None


def _search(path: str, program: list[str], deadline: float) -> Owners:
    names = names_in_dpkg(path)
    patterns = [escape_pattern(name) for name in names]
    status, output = _run([*program, "--search", "--", *patterns], deadline)
    if status not in (0, 1):  # 1: one of the names is unknown
        raise UnavailableError(f"dpkg-query failed with status {status}")
    return parse_dpkg_search(output, names)


def _run(argv: list[str], deadline: float, *, with_errors: bool = False) -> tuple[int, str]:
    """Run a program; return its status and output, `with_errors` also what it wrote to stderr.

    Raises:
        UnavailableError: it cannot be run, is too late, or writes too much.

    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRON,
            start_new_session=True,
        )
    except OSError as e:
        raise UnavailableError(f"{argv[0]} cannot be run: {reason_of(e)}") from e
    done = False
    try:
        assert process.stdout is not None  # for the type checker
        with process.stdout as pipe:
            output = _read(pipe.fileno(), deadline)
        process.wait(max(0.1, deadline - time.monotonic()))
        done = True
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UnavailableError(f"{argv[0]} does not answer: {reason_of(e)}") from e
    finally:
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output.decode("ascii", "replace")


def _read(fd: int, deadline: float) -> bytes:
    """Read a pipe to its end.

    Raises:
        UnavailableError: that is too late, or further than OUTPUT_MAX.
        OSError: no descriptor is left.

    """
    output = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(fd, selectors.EVENT_READ)
        while ready.select(max(0.0, deadline - time.monotonic())):
            if not (data := os.read(fd, OUTPUT_MAX)):
                return bytes(output)
            output += data
            if len(output) > OUTPUT_MAX:
                raise UnavailableError("the package manager prints more than a package")
    raise UnavailableError("the package manager does not answer in time")
