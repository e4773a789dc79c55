"""A real Prometheus server scrapes a real daemon that catches real crashes."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.builders.authority import Authority
from tests.running import DEFAULT_CONFIG, Daemon, wait_until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_prometheus(daemon: Daemon, directory: Path, more: str = "") -> Iterator[str]:
    """Run a Prometheus that scrapes the daemon each second; gives its address."""
    assert shutil.which("prometheus"), "Debian's package prometheus is not installed"
    target = urllib.parse.urlsplit(daemon.metrics_url()).netloc
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: crashd\n"
        "    static_configs:\n"
        f"      - targets: ['{target}']\n"
        f"{more}"
    )
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stderr=log,
        )
    try:
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def prometheus(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """A Prometheus beside a daemon as it is by default."""
    with run_prometheus(daemon, tmp_path) as address:
        yield address


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


def exemplars(address: str, metric: str) -> list[dict[str, str]]:
    """Ask Prometheus for the labels of a metric's exemplars."""
    asked = {"query": metric, "start": "0", "end": str(time.time() + 60)}
    url = f"http://{address}/api/v1/query_exemplars?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        found = json.load(answer)["data"]
    return [one["labels"] for series in found for one in series["exemplars"]]


def test_prometheus_comes_by_tls_with_its_password_and_takes_exemplars(
    short_tmp: Path, tmp_path: Path, core_pattern_owner: None, crash_sleep: Callable[[], int]
) -> None:
    del core_pattern_owner
    authority = Authority(tmp_path)
    authority.sign("server")
    hashed = bcrypt.hashpw(b"pass", bcrypt.gensalt(10)).decode()
    web = tmp_path / "web.yml"
    web.write_text(
        "tls_server_config: {cert_file: server.pem, key_file: server.key}\n"
        f"basic_auth_users: {{prometheus: '{hashed}'}}\n"
    )
    config = DEFAULT_CONFIG.replace("[http]\n", f'[http]\nweb_config = "{web}"\n')
    more = (
        "    scheme: https\n"
        f"    tls_config: {{ca_file: '{authority.certificate}'}}\n"
        "    basic_auth: {username: prometheus, password: pass}\n"
    )
    with (
        Daemon(short_tmp / "r", config=config) as daemon,
        run_prometheus(daemon, tmp_path, more) as address,
    ):
        wait_until(lambda: query(address, 'up{job="crashd"}') == 1, 60, "Prometheus scrapes")
        crash_sleep()
        (crash,) = daemon.wait_for(1)
        for metric in ("crashd_crashes_total", "crashd_capture_hold_seconds_bucket"):
            wait_until(
                lambda metric=metric: {"crash_id": crash["id"]} in exemplars(address, metric),  # type: ignore[misc]
                30,
                f"{metric} has the crash's id",
            )


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
