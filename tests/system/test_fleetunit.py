"""crashd-fleet.service under a real systemd: refused clearly, indexing, killed, stopped."""

import io
import re
from pathlib import Path

import pytest
import zstandard

from crashd.domain.fleet.keys import records_key
from tests import postgres
from tests.fleet.simulate import simulated_host
from tests.integration.fleetindex import make_crash, make_line
from tests.system.test_units import prepare, rootfs, run_job

__all__ = ["rootfs"]
JOB = """
set -eux
. /job/install.sh
systemd-analyze security --no-pager crashd-fleet.service | tail -1
property() { systemctl show crashd-fleet.service -p "$1" --value; }
log() { journalctl -u crashd-fleet.service -o cat --no-pager; }
until_true() {
    for i in $(seq 300); do ! "$@" || return 0; sleep 0.1; done
    return 1
}

# not configured: skipped, and not failed
systemctl start crashd-fleet.service
test "$(property ActiveState)" = inactive
test "$(property ConditionResult)" = no

# no index yet: one line with what to do, and another try
install -d -m 755 /etc/crashd
(umask 077; echo "CRASHD_FLEET=$(cat /job/dsn)" >/etc/crashd/fleet.env)
mkdir -p /etc/systemd/system/crashd-fleet.service.d
printf '[Service]\\nRestartSec=1\\n' >/etc/systemd/system/crashd-fleet.service.d/test.conf
groupadd fleet
install -d -m 2775 -g fleet /srv/fleet
printf '[Service]\\nReadWritePaths=/srv/fleet\\nSupplementaryGroups=fleet\\n' \\
    >/etc/systemd/system/crashd-fleet.service.d/bucket.conf
systemctl daemon-reload
systemctl start crashd-fleet.service || true
said() { log | grep -q 'the database holds no fleet index'; }
until_true said
log | grep 'create it with crashd-fleet init'
again() { test "$(property NRestarts)" -ge 2; }
until_true again

# init, as an operator does; the service goes on by itself
cp -r /job/bucket/records /srv/fleet
chown -R :fleet /srv/fleet
CRASHD_FLEET=$(cat /job/dsn) crashd-fleet init --url file:///srv/fleet
indexed() { CRASHD_FLEET=$(cat /job/dsn) crashd-fleet status | grep -q "crashes: $1\\$"; }
until_true indexed 3
pid=$(property MainPID)
grep -E 'VmHWM|CapEff|Seccomp' /proc/$pid/status
test "$(stat -c %u /proc/$pid)" -ge 61184
test "$(sed -n 's/^Max core file size *\\([0-9]*\\) .*/\\1/p' /proc/$pid/limits)" = 1
python3 - <<'P'
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9818/metrics", timeout=10).read().decode()
assert 'crashd_fleet_records_total{result="new"} 3.0' in text, text
assert urllib.request.urlopen("http://127.0.0.1:9818/-/ready", timeout=10).status == 200
P
written() { test "$(find /srv/fleet/policy -name 'signatures.zst' -not -uid 0 | wc -l)" = 1; }
until_true written
test ! -e /proc/$pid/root/var/lib/crashd/crashes

# killed: systemd starts it again, and nothing is lost or doubled
kill -9 "$pid"
cp -r /job/later/records /srv/fleet
until_true indexed 4
test "$(property MainPID)" != "$pid"

# stopped: at once, and cleanly
systemctl stop crashd-fleet.service
test "$(property Result)" = success
log
"""


def put(directory: Path, count: int) -> None:
    """Write an object of a host."""
    crashes = [make_crash(1) for _ in range(count)]
    key = records_key(simulated_host(1), crashes[0].time_ns, f"{1:032x}", crashes[0].time_ns)
    (directory / key).parent.mkdir(parents=True)
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(buffer, closefd=False) as stream:
        stream.write(b"".join(make_line(crash) + b"\n" for crash in crashes))
    (directory / key).write_bytes(buffer.getvalue())


@pytest.mark.timeout(800)
def test_fleet_unit_waits_for_its_index_and_outlives_a_kill(rootfs: Path, short_tmp: Path) -> None:
    job, out = short_tmp / "job", short_tmp / "out"
    prepare(job, rootfs)
    put(job / "bucket", 3)
    put(job / "later", 1)
    out.mkdir()
    short_tmp.chmod(0o755)
    with postgres.running(parent=str(out)) as server:
        server.directory.chmod(0o755)
        (job / "dsn").write_text(f"host=/out/{server.directory.name} dbname=postgres user=crashd\n")
        log = run_job(rootfs, job, out, JOB)
    assert "Traceback" not in log
    (exposure,) = re.findall(r"Overall exposure level for crashd-fleet.service: ([0-9.]+)", log)
    assert float(exposure) <= 1.2
