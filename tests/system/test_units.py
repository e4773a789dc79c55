"""The shipped units under a real systemd as PID 1, in a container that boots in seconds."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTFS = Path("/var/cache/crashd-test/rootfs-2")
"""Another name with each change of build-rootfs.sh."""
MODULES = """
annotated_types asyncore asynchat prometheus_client pydantic pydantic_core pyinotify.py systemd
typing_extensions.py typing_inspection zstandard smtpd
_drgn.*.so _drgn_util drgn drgn.libs capstone capstone.libs pyseccomp.py pystack pystack.libs
rust_demangler packaging
"""
JOB = """
set -eux
install -d /usr/lib/crashd-test /usr/libexec
cp -r /job/site /usr/lib/crashd-test/site
program() {
    {
        echo '#!/bin/sh'
        echo "PYTHONPATH=/usr/lib/crashd-test/site exec /usr/bin/python3 -P $2" '"$@"'
    } >"/usr/bin/$1"
    chmod 755 "/usr/bin/$1"
}
program crashd "-m crashd"
program crashctl "-m crashd.cli"
program crashd-analyze "-c 'from crashd.analyzers.main import run; run()'"
cp /job/systemd/* /etc/systemd/system/
(cd /etc/systemd/system && systemd-analyze verify --man=no ./crashd*.service ./crashd*.socket)
systemctl daemon-reload
systemd-analyze security --no-pager crashd.service | tail -1
systemd-analyze security --no-pager crashd-analyze@x.service | tail -1

# the socket alone, as after boot; the first crash starts the daemon
systemctl start crashd.socket
test "$(stat -c %a /run/crashd/handoff.sock)" = 600
systemctl is-active crashd.service && exit 1

systemctl start crashd.service
systemctl is-active crashd.service
systemctl show crashd.service -p StatusText -p NRestarts -p NotifyAccess -p MemoryCurrent
test "$(systemctl show crashd.service -p StatusText --value)" != ""
crashctl status || test $? = 1   # core_pattern is read-only here: running, not registered

crash() {
    sleep 1000 &
    # the kernel cannot call us in here: the handler is given what it would give, of a live process
    set -- $! sleep 11 "$(date +%s)" $! $! 0 0 0 1 "" host
    head -c 200000 /dev/zero | /usr/libexec/crashd-core "$@"
    kill $!
}
test -x /usr/libexec/crashd-core
crash
for i in $(seq 100); do
    [ "$(crashctl list --json | grep -c '"id"')" = 1 ] && break
    sleep 0.1
done
crashctl list
test "$(crashctl list --json | grep -c '"id"')" = 1

# a crash while the daemon is down waits in systemd's socket, which starts the daemon
systemctl stop crashd.service
test -S /run/crashd/handoff.sock
crash
for i in $(seq 100); do
    [ "$(crashctl list --json | grep -c '"id"')" = 2 ] && break
    sleep 0.1
done
test "$(crashctl list --json | grep -c '"id"')" = 2
systemctl is-active crashd.service

# reload, watchdog, and a kill -9 that systemd mends
systemctl reload crashd.service
systemctl is-active crashd.service
pid=$(systemctl show crashd.service -p MainPID --value)
kill -9 "$pid"
for i in $(seq 100); do
    new=$(systemctl show crashd.service -p MainPID --value)
    [ "$new" != 0 ] && [ "$new" != "$pid" ] && systemctl is-active -q crashd.service && break
    sleep 0.1
done
systemctl is-active crashd.service
test "$(systemctl show crashd.service -p NRestarts --value)" = 1
crash
for i in $(seq 100); do
    [ "$(crashctl list --json | grep -c '"id"')" = 3 ] && break
    sleep 0.1
done
test "$(crashctl list --json | grep -c '"id"')" = 3
crashctl verify

# a configuration that is wrong: the reload keeps the old one and says why
printf '[capture]\\nbufer = 1\\n' >/etc/crashd/crashd.toml
systemctl reload crashd.service
systemctl is-active crashd.service
journalctl -u crashd.service -o cat --no-pager | grep "unknown key 'capture.bufer'"
rm /etc/crashd/crashd.toml
systemctl stop crashd.service
journalctl -u crashd.service -o cat --no-pager
test "$(systemctl show crashd.service -p Result --value)" = success
"""


@pytest.fixture(scope="module")
def rootfs() -> Path:
    """A minimal Debian with systemd, built once for the machine."""
    for program in ("systemd-nspawn", "mmdebstrap", "script"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    subprocess.run(["sh", REPOSITORY / "tests/vm/build-rootfs.sh", ROOTFS], check=True, timeout=600)
    return ROOTFS


@pytest.mark.timeout(800)
def test_units_start_restart_and_catch_under_systemd(rootfs: Path, tmp_path: Path) -> None:
    major, minor = sys.version_info[:2]
    inside = rootfs / f"usr/bin/python{major}.{minor}"
    if not inside.exists():
        pytest.skip(
            f"the container has no python{major}.{minor}, for which this environment is built"
        )
    job, out = tmp_path / "job", tmp_path / "out"
    shutil.copytree(REPOSITORY / "systemd", job / "systemd")
    site = Path(sysconfig.get_path("platlib"))
    sources = [found for name in MODULES.split() for found in site.glob(name)]
    for source in sources:
        name = source.name
        if source.is_dir():
            shutil.copytree(source, job / "site" / name)
        elif source.exists():
            (job / "site").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, job / "site")
    shutil.copytree(
        REPOSITORY / "crashd", job / "site/crashd", ignore=shutil.ignore_patterns("__pycache__")
    )
    (job / "run.sh").write_text(JOB)
    done = subprocess.run(
        ["bash", REPOSITORY / "tests/vm/nspawn-run.sh", rootfs, job, out, "120"],
        timeout=180,
        check=False,
    )
    log = (out / "job.log").read_text(errors="replace") if (out / "job.log").exists() else ""
    console = (out / "console.log").read_text(errors="replace")
    assert done.returncode == 0, f"{log}\n--- console ---\n{console[-3000:]}"
