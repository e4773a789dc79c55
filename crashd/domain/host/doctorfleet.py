"""What `crashctl doctor` says of sending crashes to the fleet. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from crashd.domain.host.doctor import Check, DaemonFacts, failed, passed, warned
from crashd.domain.units import format_duration

NAME: Final = "fleet"
LATE_NS: Final = 3600 * 10**9
"""Records that wait longer than this are late, whatever the reason."""
_SHIPPER = "systemctl status crashd-ship.socket crashd-ship.service"
_HINTS: Final = {
    "credentials": "give crashd-ship credentials that may put objects, see crashd-ship(8)",
    "missing": "make the bucket, or correct fleet.url in crashd.toml",
    "network": "check the way to the store: names, proxy, firewall",
    "shipper": _SHIPPER,
    "local": "journalctl -u crashd -u crashd-ship",
}


def check_fleet(daemon: DaemonFacts, now_ns: int) -> Iterator[Check]:
    """Yield the check of sending, if this host sends its crashes."""
    told = (daemon.status or {}).get("fleet")
    if isinstance(told, dict):
        yield _judge(told, now_ns)


def _judge(told: Mapping[str, Any], now_ns: int) -> Check:
    waiting, oldest_ns = told.get("waiting"), told.get("oldest_ns")
    count = waiting if isinstance(waiting, int) else 0
    age_ns = now_ns - oldest_ns if isinstance(oldest_ns, int) else 0
    waits = f"{count} records wait"
    if age_ns >= 60 * 10**9:
        waits += f", the oldest for {format_duration(age_ns - age_ns % 10**9)}"
    failure = told.get("failure")
    if failure is not None:
        text = f"{told.get('failure_text') or failure}; {waits}"
        judge = failed if age_ns > LATE_NS else warned
        return judge(NAME, text, _HINTS.get(str(failure), "journalctl -u crashd -u crashd-ship"))
    if age_ns > LATE_NS:
        return warned(NAME, waits, "journalctl -u crashd -u crashd-ship")
    lost = told.get("lost")
    if isinstance(lost, dict) and lost:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(lost.items()))
        return warned(NAME, f"some were never sent: {reasons}", "see crashd-alerts(7)")
    return passed(NAME, f"crashes go to {told.get('url')}; {waits}")
