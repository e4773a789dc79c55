"""A PostgreSQL of its own for tests: a cluster below one directory, on a unix socket, gone at the
end.

Debian's package `postgresql` has the programs; no cluster of the system is made or touched. As
root, the server runs as nobody, because PostgreSQL refuses root.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_SECONDS = 60
# What a test gains: no waiting for the disk. The server itself is never killed here.
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off")
LARGE = ("shared_buffers=512MB", "work_mem=32MB", "maintenance_work_mem=128MB", "max_wal_size=4GB")


def find_programs() -> Path | None:
    """Find the directory of initdb and postgres, the newest version; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return None if program is None else Path(program).resolve().parent


class Server:
    """A running server."""

    def __init__(self, directory: Path, programs: Path, settings: Sequence[str]) -> None:
        self.directory = directory
        self._programs = programs
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._demote = (
            {}
            if self._user is None
            else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        )

    @property
    def pid(self) -> int:
        """Pid of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def dsn(self, database: str = "postgres", user: str = "crashd") -> str:
        """Build the connection string."""
        return f"host={self.directory} dbname={database} user={user}"

    def make(self) -> None:
        """Make the cluster."""
        self._make("initdb", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")

    def make_standby(self, primary: "Server") -> None:
        """Make the cluster as a standby of another server that runs."""
        self._make("pg_basebackup", "-h", str(primary.directory), "-R", "-c", "fast", "--no-sync")

    def promote(self) -> None:
        """Make a standby take writes."""
        self._run("pg_ctl", "promote", "-w", "-D", str(self.directory / "data"))

    def _make(self, program: str, *arguments: str) -> None:
        if self._user is not None:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        self._run(program, "-D", str(self.directory / "data"), "-U", "crashd", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            **self._demote,  # type: ignore[call-overload]
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [word for setting in self._settings for word in ("-c", setting)]
        where = ["-D", self.directory / "data", "-k", self.directory]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *where, "-c", "listen_addresses=", *options],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                **self._demote,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_SECONDS
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self.directory)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self.directory / "log").read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL does not start: {text[-1000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server (SIGINT: fast; SIGQUIT: as in a power cut), and wait for its end."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def running(
    settings: Sequence[str] = QUICK, parent: str = "/tmp", *, standby_of: Server | None = None
) -> Iterator[Server]:
    """Run a server until the end of the block."""
    programs = find_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (Debian's package postgresql)")
    directory = Path(tempfile.mkdtemp(prefix="crashd-pg-", dir=parent))
    server = Server(directory, programs, settings)
    try:
        if standby_of is None:
            server.make()
        else:
            server.make_standby(standby_of)
        server.start()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)
