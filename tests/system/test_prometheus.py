"""A real Prometheus server scrapes a real daemon that catches real crashes."""

import json
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import Daemon, wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the daemon each second; gives its address."""
    assert shutil.which("prometheus"), "Debian's package prometheus is not installed"
    target = urllib.parse.urlsplit(daemon.metrics_url()).netloc
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: crashd\n"
        "    static_configs:\n"
        f"      - targets: ['{target}']\n"
    )
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def query(address: str, expression: str) -> float | None:
    """Ask Prometheus for one value; None while it has none."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return None
    return float(found[0]["value"][1]) if found else None


def test_prometheus_sees_the_counters_move(
    daemon: Daemon, prometheus: str, crash_sleep: Callable[[], int]
) -> None:
    total = 'sum(crashd_crashes_total{kind="process"})'
    wait_until(lambda: query(prometheus, 'up{job="crashd"}') == 1, 60, "Prometheus scrapes")
    wait_until(lambda: query(prometheus, total) == 0, 30, "the counter begins at 0")
    assert query(prometheus, "crashd_core_pattern_owned") == 1
    for _ in range(3):
        crash_sleep()
    daemon.wait_for(3)
    wait_until(lambda: query(prometheus, total) == 3, 30, "the counter is 3")
    assert query(prometheus, 'crashd_crashes_by_signal_total{signal="SIGSEGV"}') == 3
    assert query(prometheus, 'crashd_store_entries{kind="process"}') == 3
    assert query(prometheus, "sum(crashd_capture_hold_seconds_count)") == 3
    assert (query(prometheus, 'crashd_capture_bytes_total{stage="logical"}') or 0) > 300_000


def test_totals_survive_a_restart(daemon: Daemon, crash_sleep: Callable[[], int]) -> None:
    crash_sleep()
    daemon.wait_for(1)
    daemon.stop()
    daemon.start()
    with urllib.request.urlopen(daemon.metrics_url(), timeout=5) as answer:
        text = answer.read().decode()
    assert 'crashd_crashes_total{disposition="full",kind="process"} 1.0' in text


def test_health_and_readiness_are_told(daemon: Daemon) -> None:
    base = daemon.metrics_url().rpartition("/metrics")[0]
    for path in ("/-/healthy", "/-/ready"):
        with urllib.request.urlopen(base + path, timeout=5) as answer:
            assert answer.status == 200
