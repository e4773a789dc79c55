"""Run the real daemon and the real crashctl on a private root."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crashd.cli.control import ControlClient
from crashd.domain.crash.query import Query
from crashd.store.indexread import IndexReader
from crashd.store.paths import Paths

READY_SECONDS = 20
STOP_SECONDS = 90
PLAIN_CONFIG = '[http]\nlisten = "127.0.0.1:0"\n[limiter]\nenabled = false\n'
DEFAULT_CONFIG = PLAIN_CONFIG + "[analysis]\nenabled = false\n"
"""For what is not about the limiter, nor about causes: an analysis takes 0.3 s of a CPU."""
KEEPING_CONFIG = DEFAULT_CONFIG + '[retention.process]\nmax_per_signature = "infinity"\n'
"""For many crashes of one program, whose cores shall all be there."""


def wait_until(check: Callable[[], bool], seconds: float = 60, what: str = "condition") -> None:
    """Poll until `check` holds, for a fifth of the time at most; fail after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if check():
            return
        now = time.monotonic()
        if now > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(min(max(0.02, 4 * (now - begin)), 0.5))


class Daemon:
    """A `crashd run` of its own; its log is in `log`."""

    may_register = True
    """Whether it may become the kernel's handler: not where others may be that meanwhile."""

    def __init__(self, root: Path, *arguments: str, config: str = DEFAULT_CONFIG) -> None:
        self.paths = Paths(root)
        self.arguments = arguments
        self.log = root / "crashd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: dict[str | None, tuple[tuple[object, ...], list[dict[str, Any]]]] = {}
        self.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config_file.write_text(config)

    def __enter__(self) -> "Daemon":
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def start(
        self,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        """Start, and wait until it is ready; by a program that executes it, where there is one."""
        assert self.may_register or "--no-register" in self.arguments, "use core_pattern_lock"
        position = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-m",
                    "crashd",
                    "run",
                    "--root",
                    str(self.paths.root),
                    *self.arguments,
                ],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environ or {})},
                pass_fds=pass_fds,
            )

        def ready() -> bool:
            assert self.process is not None
            text = self.log.read_text()[position:]
            assert self.process.poll() is None, text
            return " is ready" in text

        try:
            wait_until(ready, READY_SECONDS, "the daemon is ready")
        except BaseException:
            # `with` ends only what has started; the status of one that has ended by itself stays
            self.process.kill()
            self.process.wait()
            raise

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        assert self.process is not None
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """End it, if it runs; return its exit status."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(STOP_SECONDS)
        except BaseException:
            self.process.kill()  # it shall fail one test, and not outlive it
            self.process.wait()
            raise
        finally:
            self.process = None
        return status

    def metrics_url(self) -> str:
        """Where this daemon serves its metrics."""
        lines = [line for line in self.log.read_text().splitlines() if "metrics at " in line]
        return lines[-1].rpartition("metrics at ")[2]

    def status(self) -> dict[str, Any]:
        """Ask for its status, as crashctl does."""
        answer = ControlClient(self.paths.control_socket).ask({"verb": "status"})
        found: dict[str, Any] = answer["status"]
        return found

    def crashctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run crashctl on this root."""
        return crashctl(self.paths.root, *arguments, check=check)

    def crashes(self, *arguments: str) -> list[dict[str, Any]]:
        """List crashes as JSON."""
        done = self.crashctl("list", "--json", *arguments, check=False)
        assert done.returncode in (0, 1), done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def seen(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what `crashes` does, for who polls: read from the index here, because crashctl
        takes a tenth of a second of the CPU that the daemon needs.
        """
        log = self.paths.index.with_name(f"{self.paths.index.name}-wal")
        stamp = (round(time.monotonic()), _stamp(self.paths.index), _stamp(log))
        if self._seen.get(kind, ((), []))[0] != stamp:
            self._seen[kind] = stamp, self._rows(kind)
        return self._seen[kind][1]

    def _rows(self, kind: str | None) -> list[dict[str, Any]]:
        with IndexReader.open_readonly(self.paths.index) as index:
            rows = json.loads(json.dumps([*index.each(Query(kind=kind, reverse=True))]))
        for row in rows:
            if row["core"]["path"] is not None:
                row["core"]["path"] = str(self.paths.crashes / row["id"] / row["core"]["path"])
        return list(rows)

    def wait_for(
        self, count: int, *, kind: str | None = None, seconds: float = 90
    ) -> list[dict[str, Any]]:
        """Wait until `count` crashes are there and none is being captured."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = self.seen(kind)
            return len(found) >= count and all(c["state"] != "capturing" for c in found)

        wait_until(there, seconds, f"{count} crashes")
        return found


def _stamp(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return None


def crashctl(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run crashctl on a root."""
    done = subprocess.run(
        [sys.executable, "-m", "crashd.cli", "--root", str(root), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done
