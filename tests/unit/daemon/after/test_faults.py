from dataclasses import replace

from crashd.daemon.after.faults import FaultLines
from crashd.domain.crash.losses import LogRecord
from tests.builders.crashes import START_NS, build_crash

LINE = b"prog[1007]: segfault at 18 ip 000055d0a1b2c3d4 sp 00007ffe00000000 error 6 in prog"


def test_of_only_its_own_thread_time_and_fault_count() -> None:
    lines = FaultLines()
    crash = build_crash(7, tid=1007, fault_address=0x18)
    lines.hear(LogRecord(1, 0, LINE), crash.time_ns - 10**9)
    lines.hear(LogRecord(2, 0, b"another record"), crash.time_ns)
    assert lines.of(crash) == LINE.decode()
    assert lines.of(replace(crash, tid=8)) is None
    assert lines.of(replace(crash, fault_address=0x20)) is None
    assert lines.of(replace(crash, time_ns=START_NS + 60 * 10**9)) is None
    assert lines.of(replace(crash, tid=None, pid=1007)) == LINE.decode()
