"""One user floods a small disk while another's programs crash now and then, as root:
`python -m tests.flood --seconds 120`.

60 crashes at once, of 8 MiB each that do not compress, beside 20 of somebody else's of 4 MiB, by
the same program, on an ext4 of 460 MB of its own. What is to hold: each of the 20 is there with its
core, and `keep_free` stays free. Takes kernel.core_pattern over, and puts it back.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import PROC_SYS, hold_core_pattern, own_settings
from tests.running import Daemon, wait_until
from tests.system.test_security import become

PROGRAM = Path(__file__).parent / "system/programs/dense.c"
DISK_BYTES = 460 * 10**6
FLOODER, OTHER = 60101, 60102
AT_ONCE, MIB, OTHERS, OTHERS_MIB = 60, 8, 20, 4
SETTLE_SECONDS = 120
CONFIG = """
[http]
listen = "127.0.0.1:0"
[limiter]
enabled = false
[analysis]
enabled = false
[retention.process]
max_use = "50%"
"""
"""Half of what may be used is enough for all of the other user's cores."""


@dataclass(slots=True)
class Flood:
    """What came of it."""

    crashes: list[dict[str, Any]] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    """Those of the other user's crashes."""
    free_bytes: int = 0
    keep_free_bytes: int = 0

    def others(self) -> list[dict[str, Any]]:
        """Tell what became of the other user's crashes."""
        known = {crash["pid"]: crash for crash in self.crashes if crash["uid"] == OTHER}
        return [known.get(pid, {"pid": pid, "state": "missing"}) for pid in self.pids]

    def violations(self) -> list[str]:
        """Name what does not hold."""
        found = [
            f"pid {crash['pid']}: {crash['state']}, {crash.get('evicted')}, {crash.get('capture')}"
            for crash in self.others()
            if crash["state"] not in ("complete", "truncated") or not crash["core"]["path"]
        ]
        if self.free_bytes < self.keep_free_bytes:
            found.append(f"{self.free_bytes} bytes are free, not {self.keep_free_bytes}")
        return found

    def report(self) -> list[str]:
        """Print the figures."""
        flood = Counter(crash["state"] for crash in self.crashes if crash["uid"] == FLOODER)
        others = Counter(crash["state"] for crash in self.others())
        return [f"flood     {dict(flood)}", f"others    {dict(others)}", *self.violations()]


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount an ext4 of its own; the root is on it."""
    image, root = directory / "image", directory / "r"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def flood(seconds: int, config: str = CONFIG) -> Flood:
    """Flood for so long, with kernel.core_pattern in our hands."""
    directory = Path(tempfile.mkdtemp(prefix="cf", dir="/tmp"))
    directory.chmod(0o755)
    try:
        program = directory / "dense"
        subprocess.run(["gcc", "-O1", "-o", program, PROGRAM], check=True)
        with small_disk(directory) as root, Daemon(root, config=config) as daemon:
            return _flood(daemon, program, seconds)
    finally:
        shutil.rmtree(directory)


def _flood(daemon: Daemon, program: Path, seconds: int) -> Flood:
    found = Flood()
    command = [str(program), str(MIB), str(AT_ONCE), str(seconds)]
    with subprocess.Popen(command, cwd="/", preexec_fn=lambda: become(FLOODER)) as flooder:
        for _ in range(OTHERS):
            time.sleep(seconds / OTHERS)
            command = [str(program), str(OTHERS_MIB)]
            with subprocess.Popen(command, cwd="/", preexec_fn=lambda: become(OTHER)) as child:
                child.wait(SETTLE_SECONDS)
            found.pids.append(child.pid)
        assert flooder.wait(seconds + SETTLE_SECONDS) == 0
    spool = daemon.paths.spool
    wait_until(lambda: not list(spool.glob(f"*-{OTHER}*")), SETTLE_SECONDS, "theirs are taken in")

    def finished() -> bool:
        found.crashes = daemon.crashes()
        return all(crash["state"] != "capturing" for crash in found.others())

    wait_until(finished, SETTLE_SECONDS, "all of theirs are finished")
    filesystem = os.statvfs(daemon.paths.crashes)
    found.free_bytes = filesystem.f_bavail * filesystem.f_frsize
    found.keep_free_bytes = filesystem.f_blocks * filesystem.f_frsize // 10
    return found


def main(argv: Sequence[str]) -> int:
    """Flood, print what came of it; 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.flood", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="(default: 120)")
    options = parser.parse_args(argv)
    with hold_core_pattern(600):
        owner = own_settings(PROC_SYS)
        try:
            found = flood(options.seconds)
        finally:
            owner.restore()
    print("\n".join(found.report()))
    return 1 if found.violations() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
