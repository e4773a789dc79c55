"""Make crash records, one or very many, all different."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from crashd.domain.crash.model import (
    Capture,
    Core,
    Crash,
    Disposition,
    Kind,
    Mode,
    State,
    build_id_text,
)

START_NS = 1_790_000_000 * 10**9
BOOT_ID = "0123abcd" * 4


def build_crash(number: int = 0, **more: Any) -> Crash:
    """Build one crash; `number` sets its time, pid, token and id."""
    time_ns = more.pop("time_ns", START_NS + number * 10**9)
    dice = random.Random(number)
    crash = Crash(
        id=build_id_text(time_ns, BOOT_ID, 1000 + number, dice.getrandbits(40)),
        kind=Kind.PROCESS,
        state=State.COMPLETE,
        time_ns=time_ns,
        boot_id=BOOT_ID,
        hostname=b"host",
        token=f"a-{number:x}-b",
        pid=1000 + number,
        tid=1000 + number,
        uid=0,
        gid=0,
        signal=11,
        comm=b"prog%d" % (number % 7),
        exe=b"/usr/bin/prog%d" % (number % 7),
        argv=(b"prog", b"--number", b"%d" % number),
        unit=f"web{number % 5}.service",
        slice="system.slice",
        capture=Capture(mode=Mode.PIPE, disposition=Disposition.FULL),
        core=Core("core.zst", 10_000, 1_000, 5_000, 10_000, True),
        title=f"SIGSEGV in prog{number % 7}",
    )
    return replace(crash, **more)


def build_crashes(count: int, **more: Any) -> Iterator[Crash]:
    """Build many crashes."""
    return (build_crash(number, **more) for number in range(count))
