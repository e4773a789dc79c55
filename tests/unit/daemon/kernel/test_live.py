import gzip
from pathlib import Path

from crashd.daemon.kernel.live import (
    PER_HOUR_MAX,
    PER_SIGNATURE_MAX,
    SETTLE_NS,
    WINDOW,
    LiveOopses,
)
from crashd.domain.crash.losses import LogRecord
from crashd.domain.kernellog.analyse import LogAnalysis
from crashd.domain.kernellog.printk import parse_lines

DATA = Path(__file__).parents[3] / "data" / "dmesg"


class Heard:
    """A LiveOopses, and what it told."""

    def __init__(self) -> None:
        self.found: list[tuple[LogAnalysis, int, int]] = []
        self.flooded = 0
        self.live = LiveOopses()
        self.now_ns = 0
        self.sequence = 0

    def say(self, *lines: str) -> None:
        for line in lines:
            self.now_ns += 1000
            self.sequence += 1
            record = LogRecord(self.sequence, self.now_ns, line.encode())
            self.live.add(record, self.now_ns)

    def wait(self) -> None:
        self.now_ns += SETTLE_NS
        for report in self.live.look(self.now_ns):
            if report.is_flood:
                self.flooded += 1
            else:
                self.found.append((report.analysis, report.sequence, report.time_ns))


def serial_lines() -> list[str]:
    """Give the kernel's lines of a machine that went on after an oops."""
    raw = gzip.decompress((DATA / "oops-not-fatal.serial.gz").read_bytes())
    return [line.text for line in parse_lines(raw)]


def oops_lines(function: str) -> tuple[str, ...]:
    return (
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "#PF: supervisor read access in kernel mode",
        "Oops: 0000 [#1] PREEMPT SMP PTI",
        "CPU: 0 PID: 77 Comm: cat Not tainted 6.1.0 #1",
        f"RIP: 0010:{function}+0x5/0x10 [thing]",
        "Call Trace:",
        f" {function}+0x5/0x10 [thing]",
        " vfs_read+0x9e/0x300",
        "---[ end trace 0000000000000000 ]---",
    )


def test_live_oops_of_a_real_console_is_told_once_with_its_place() -> None:
    heard = Heard()
    heard.say(*serial_lines())
    heard.wait()
    heard.wait()
    (told,) = heard.found
    analysis, sequence, time_ns = told
    assert analysis.title.startswith("BUG: unable to handle kernel NULL pointer dereference")
    assert not analysis.fatal
    assert time_ns == sequence * 1000


def test_live_quiet_log_is_never_due() -> None:
    heard = Heard()
    heard.say("usb 1-1: new device", "eth0: link up")
    assert heard.live.due_ns is None
    assert heard.live.pending_from is None


def test_live_report_is_looked_at_once_the_kernel_pauses() -> None:
    heard = Heard()
    lines = oops_lines("thing_read")
    heard.say(*lines[:3])
    assert heard.live.due_ns == heard.now_ns + SETTLE_NS
    heard.live.look(heard.now_ns)
    assert heard.found == []
    assert heard.live.pending_from == 1  # a daemon that ends here reads it again
    heard.say(*lines[3:])
    heard.wait()
    assert [analysis.function for analysis, _, _ in heard.found] == ["thing_read"]
    assert heard.live.pending_from is None


def test_live_flood_is_limited_and_counted() -> None:
    heard = Heard()
    for _ in range(10):
        heard.say(*oops_lines("thing_read"))
        heard.wait()
    assert len(heard.found) == PER_SIGNATURE_MAX
    assert heard.flooded == 10 - PER_SIGNATURE_MAX
    for number in range(40):
        heard.say(*oops_lines(f"other_{'x' * number}_read"))
        heard.wait()
    assert len(heard.found) <= PER_HOUR_MAX
    assert len(heard.found) + heard.flooded == 50


def test_live_stacks_that_are_shown_for_another_reason_are_not_told() -> None:
    heard = Heard()
    heard.say(
        "sysrq: Show backtrace of all active CPUs",
        "NMI backtrace for cpu 1",
        "CPU: 1 PID: 0 Comm: swapper/1 Not tainted 6.1.0 #1",
        "RIP: 0010:intel_idle+0x6b/0xa0",
        "Call Trace:",
        " cpuidle_enter_state+0xd6/0x420",
        'irq 16: nobody cared (try booting with the "irqpoll" option)',
        "CPU: 0 PID: 0 Comm: swapper/0 Not tainted 6.1.0 #1",
        "Call Trace:",
        " note_interrupt+0x245/0x290",
    )
    heard.wait()
    heard.say(*oops_lines("thing_read"))
    heard.wait()
    assert [analysis.function for analysis, _, _ in heard.found] == ["thing_read"]


def test_live_old_warning_whose_head_left_the_window_is_not_told_again() -> None:
    heard = Heard()
    heard.say(
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 77 at drivers/thing.c:1 thing_warn+0x5/0x10 [thing]",
        "Modules linked in: thing",
        "CPU: 0 PID: 77 Comm: cat Not tainted 6.1.0 #1",
        "RIP: 0010:thing_warn+0x5/0x10 [thing]",
        "Call Trace:",
        " thing_write+0x5/0x10 [thing]",
        "---[ end trace 0000000000000000 ]---",
    )
    heard.wait()
    rest = WINDOW - 6 - len(oops_lines("thing_read"))
    heard.say(*(f"usb 1-{number}: new device" for number in range(rest)))
    heard.say(*oops_lines("thing_read"))
    heard.wait()
    assert [a.function for a, _, _ in heard.found] == ["thing_warn", "thing_read"]
