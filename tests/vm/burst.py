"""Runs in the container of platform.sh, as root: 32 processes crash at once, each in a program of
its own. The journal must have an entry for each within seconds, in the order of the crashes, while
the analyses still run, and coredumpctl must list them. A crash alone must be explained within a
second of its entry. Prints the figures; exit status 1 if something is late.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

CRASHES = 32
ALONE = 5
COUNTED_AFTER = (1, 2, 5, 12)
AT_ONCE_SECONDS = 5
ALL_EXPLAINED_SECONDS = 90
OUT_OF_ORDER_SECONDS = 0.25
"""Crashes of one moment are read by several workers, and noted in the order of their records."""
ALONE_SECONDS = 1.0
CRASHED = "fc2e22bc6ee647b6b90729ab34a250b1"
EXPLAINED = "7c0e3f64b1a94d52a3f28d0c95be6e17"


def entries(message_id: str, since: float) -> list[dict[str, str]]:
    """Return the journal's entries by that MESSAGE_ID, in its order."""
    command = ["journalctl", "-q", "-o", "json", "--all", f"--since=@{since:.6f}"]
    done = subprocess.run([*command, f"MESSAGE_ID={message_id}"], capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def seconds_of(entry: dict[str, str], field: str) -> float:
    """Return a time of an entry, which is in microseconds."""
    return int(entry[field]) / 1e6


def crash(directory: Path, names: Sequence[str]) -> float:
    """Crash a program by each name, all at once; return when the first did."""
    processes = []
    for name in names:
        shutil.copy("/usr/bin/sleep", directory / name)
        processes.append(subprocess.Popen([directory / name, "1000"]))
    for name, process in zip(names, processes, strict=True):
        while Path(f"/proc/{process.pid}/comm").read_text().strip() != name:
            time.sleep(0.01)
    began = time.time()
    for process in processes:
        os.kill(process.pid, signal.SIGSEGV)
    for process in processes:
        process.wait(60)
    return began


def wait(check: Callable[[], bool], seconds: float) -> float:
    """Wait until it holds; return how long that took."""
    began = time.monotonic()
    while not check():
        if time.monotonic() > began + seconds:
            sys.exit(f"not within {seconds} s")
        time.sleep(0.05)
    return time.monotonic() - began


def burst(directory: Path) -> bool:
    """Crash many; return whether the journal was prompt, complete and in order."""
    began = crash(directory, [f"burst{number:02}" for number in range(CRASHES)])
    counts = []
    for seconds in COUNTED_AFTER:
        time.sleep(max(0.0, began + seconds - time.time()))
        found = entries(CRASHED, began)
        counts.append(f"{len(found)} and {len(entries(EXPLAINED, began))} after {seconds} s")
        if seconds == AT_ONCE_SECONDS and len(found) != CRASHES:
            print(f"only {len(found)} entries after {seconds} s")
            return False
    print(f"{CRASHES} crashes at once, entries and explanations:", ", ".join(counts))
    list_them = ["coredumpctl", "--no-legend", "--no-pager", "list", f"--since=@{int(began)}"]
    listed = subprocess.run(list_them, capture_output=True, check=True).stdout.count(b"/burst")
    times = [seconds_of(entry, "COREDUMP_TIMESTAMP") for entry in found]
    early = max(max(times[: n + 1]) - moment for n, moment in enumerate(times))
    if len(found) != CRASHES or listed != CRASHES or early > OUT_OF_ORDER_SECONDS:
        print(f"{len(found)} entries, {listed} listed, {early:.3f} s out of order")
        return False
    wait(lambda: len(entries(EXPLAINED, began)) == CRASHES, ALL_EXPLAINED_SECONDS)
    print(f"all explained {time.time() - began:.0f} s after the crashes")
    return True


def alone(directory: Path) -> bool:
    """Crash one after the other; return whether the explanation follows its entry soon."""
    delays = []
    for number in range(ALONE):
        began = crash(directory, [f"alone{number}"])
        wait(lambda since=began: len(entries(EXPLAINED, since)) == 1, 10)  # type: ignore[misc]
        (entry,), (explained,) = entries(CRASHED, began), entries(EXPLAINED, began)
        field = "__REALTIME_TIMESTAMP"
        delays.append(seconds_of(explained, field) - seconds_of(entry, field))
    print("a crash alone is explained", ", ".join(f"{s:.2f}" for s in delays), "s after its entry")
    return min(delays) < ALONE_SECONDS


def main() -> int:
    """Crash, and judge; return the exit status."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        good = [burst(Path(directory)), alone(Path(directory))]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
