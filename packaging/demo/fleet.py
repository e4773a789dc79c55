"""A fleet on one machine, for packaging/fleet.sh --demo: PostgreSQL, an S3 service, three simulated
hosts and one real crash, from the kernel to `crashctl --fleet top`.

Everything listens on loopback or on unix sockets below one directory, and is put away at the end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from crashd.edge.fleet.bucket import Bucket
from crashd.errors import CrashdError
from crashd.store.paths import Paths
from tests import postgres
from tests.fleet.simulate import Plan, write_fleet
from tests.objectstore import BUCKET, running_store
from tests.running import Daemon

URL = f"s3://{BUCKET}/demo"
PROC_SYS = Path("/proc/sys")
SETTINGS = ("fs/suid_dumpable", "kernel/core_pipe_limit", "kernel/core_pattern")
WAIT_SECONDS = 90
CONFIG = f"""[http]
listen = "127.0.0.1:0"
[capture]
rlimit = "ignore"
[fleet]
url = "{URL}"
cores = "full"
labels = ["version=2026.11", "zone=here"]
"""


class DemoError(Exception):
    """The fleet did not do what the demo shows; the message says what, in one line."""


def say(text: str) -> None:
    """Say what comes next."""
    print(f"\n== {text}", flush=True)


def wait_for(check: Callable[[], bool], what: str) -> None:
    """Poll until `check` holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not check():
        if time.monotonic() > deadline:
            raise DemoError(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(0.3)


class Fleet:
    """The index, and the commands that ask it."""

    def __init__(self, dsn: str) -> None:
        os.environ["CRASHD_FLEET"] = dsn
        self._bin = Path(sys.executable).parent

    def show(self, *arguments: str) -> None:
        """Run crashctl for the reader."""
        print(f"$ crashctl --fleet {' '.join(arguments)}", flush=True)
        subprocess.run([str(self._bin / "crashctl"), "--fleet", *arguments], check=True, timeout=60)

    def rows(self, *arguments: str) -> list[dict[str, object]]:
        """List crashes; none if nothing matches."""
        command = [str(self._bin / "crashctl"), "-q", "--fleet", "list", "--json", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60)
        found: list[dict[str, object]] = json.loads(done.stdout or b"[]")
        return found

    def manage(self, *arguments: str) -> None:
        """Run crashd-fleet."""
        subprocess.run([str(self._bin / "crashd-fleet"), *arguments], check=True, timeout=120)

    @contextmanager
    def indexing(self) -> Iterator[None]:
        """Run an indexer."""
        command = [str(self._bin / "crashd-fleet"), "index", "--poll", "1s", "--idle", "2s"]
        with subprocess.Popen([*command, "--listen", "off"]) as process:
            try:
                yield
            finally:
                process.terminate()


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put the kernel's settings back, if crashd, which does so itself, was killed."""
    before = {name: (PROC_SYS / name).read_text() for name in SETTINGS}
    try:
        yield
    finally:
        for name, value in before.items():
            if (PROC_SYS / name).read_text() != value:
                print(f"restoring {name}")
                (PROC_SYS / name).write_text(value)


@contextmanager
def shipping(root: Path) -> Iterator[None]:
    """Run crashd-ship."""
    command = [str(Path(sys.executable).with_name("crashd-ship")), "--root", str(root)]
    with (
        open(root / "ship.log", "ab") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        try:
            wait_for(lambda: Paths(root).ship_socket.exists(), "crashd-ship listens")
            yield
        finally:
            process.terminate()


def write_simulated(directory: Path) -> int:
    """Write the objects of three hosts into the bucket."""
    written = write_fleet(
        Plan(3, 600, signatures=25, days=7, end_ns=time.time_ns()), directory / "simulated"
    )
    bucket = Bucket.open(URL)
    for path in sorted((directory / "simulated").rglob("*.zst")):
        bucket.put(str(path.relative_to(directory / "simulated")), path.read_bytes())
    return written.crashes


def crash_here(fleet: Fleet, directory: Path) -> None:
    """Crash a program under a real crashd, and find it in the fleet's index with its core."""
    root = directory / "host"
    daemon = Daemon(root, config=CONFIG)
    daemon.paths.runtime_dir.mkdir(parents=True, exist_ok=True)
    daemon.paths.machine_id.write_text(uuid.uuid4().hex + "\n")
    try:
        with shipping(root), daemon:
            with subprocess.Popen(["sleep", "1000"]) as victim:
                victim.send_signal(signal.SIGSEGV)
            print(f"crashed: pid {victim.pid}, sleep, killed by SIGSEGV")
            name = ("--label", "zone=here")
            wait_for(lambda: bool(fleet.rows(*name)), "the crash is in the fleet's index")
            crash_id = str(fleet.rows(*name)[0]["id"])
            core = directory / "core"

            def fetched() -> bool:
                command = [str(Path(sys.executable).with_name("crashctl")), "-q", "--fleet"]
                command += ["dump", crash_id, "-f", "-o", str(core)]
                return (
                    subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
                )

            wait_for(fetched, "its core is in the bucket")
            if core.read_bytes()[:4] != b"\x7fELF":
                raise DemoError("the core from the bucket is not an ELF file")
            print(f"its core came from {URL}: {core.stat().st_size} bytes")
            fleet.show("info", crash_id)
    except BaseException:
        for log in (daemon.log, root / "ship.log"):
            if log.exists():
                print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise


def run(directory: Path) -> None:
    """Show it all."""
    with ExitStack() as stack:
        stack.enter_context(settings_kept())
        say("PostgreSQL and an S3 service (OpenStack Swift), on this machine alone")
        server = stack.enter_context(postgres.running((), str(directory)))
        store = stack.enter_context(running_store(directory / "s3"))
        os.environ.update(store.environ)
        fleet = Fleet(server.dsn())
        fleet.manage("init", "--url", URL)
        say("three simulated hosts write a week of crashes, and an indexer reads them")
        count = write_simulated(directory)
        stack.enter_context(fleet.indexing())
        wait_for(lambda: len(fleet.rows()) == count, f"{count} crashes are in the index")
        fleet.show("list", "-n", "5")
        fleet.show("top", "-n", "5")
        fleet.show("top", "--by", "version")
        say("a program crashes on this host: kernel, crashd, crashd-ship, S3, index")
        crash_here(fleet, directory)
        say("the whole fleet")
        fleet.show("top", "--by", "label:zone")
        fleet.show("top", "-n", "5")
        fleet.manage("status")


def main(parent: str) -> int:
    """Run the demo below a directory that only root may change; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(parent) / "fleet"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o711)
    try:
        run(directory)
    except subprocess.CalledProcessError as e:
        print(f"fleet.sh: {e.cmd[0]} ended with status {e.returncode}", file=sys.stderr)
        return 1
    except (DemoError, CrashdError, AssertionError, subprocess.TimeoutExpired) as e:
        print(f"fleet.sh: {e}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print("\nfleet.sh: everything is put away, and the kernel's settings are as before")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
