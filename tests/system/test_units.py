"""The shipped units under a real systemd as PID 1, in a container that boots in seconds."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.system.test_analysis import Crasher, crasher

__all__ = ["crasher"]
REPOSITORY = Path(__file__).parents[2]
ROOTFS = Path("/var/cache/crashd-test/rootfs-4")
"""Another name with each change of build-rootfs.sh."""
MODULES = """
annotated_types asyncore asynchat prometheus_client pydantic pydantic_core pyinotify.py systemd
typing_extensions.py typing_inspection zstandard smtpd
_drgn.*.so _drgn_util drgn drgn.libs capstone capstone.libs pyseccomp.py pystack pystack.libs
rust_demangler packaging obstore pyrage psycopg psycopg_binary psycopg_binary.libs
"""
INSTALL = """
install -d /usr/lib/crashd-test /usr/libexec
cp -r /job/site /usr/lib/crashd-test/site
program() {
    {
        echo '#!/usr/bin/sh'  # the analysis has no more than /usr
        echo "PYTHONPATH=/usr/lib/crashd-test/site exec /usr/bin/python3 -P $2" '"$@"'
    } >"/usr/bin/$1"
    chmod 755 "/usr/bin/$1"
}
program crashd "-m crashd"
program crashctl "-m crashd.cli"
program ../libexec/crashd-ship "-c 'from crashd.ship.main import main; main()'"
program crashd-fleet "-c 'import sys; from crashd.fleet.main import main; sys.exit(main())'"
program ../libexec/crashd-analyze "-c 'from crashd.analyzers.main import run; run()'"
cp /job/systemd/*.service /job/systemd/*.socket /etc/systemd/system/
install -m 755 /job/crashd-kmsg /usr/libexec/
install -D -m 644 /job/crashd.tmpfiles /usr/lib/tmpfiles.d/crashd.conf
systemd-tmpfiles --create crashd.conf
(cd /etc/systemd/system && systemd-analyze verify --man=no ./crashd*.service ./crashd*.socket)
systemctl daemon-reload
"""
JOB = """
set -eux
. /job/install.sh
for unit in crashd.service crashd-analyze@x.service crashd-register.service crashd-ship.service; do
    systemd-analyze security --no-pager $unit | tail -1
done

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
/usr/bin/crashctl install || true   # puts the handler there; core_pattern is read-only
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

# what is sent goes through a process of another user, which sees only what its drop-in gives it
mkdir -m 777 /srv/fleet
install -d /etc/systemd/system/crashd-ship.service.d
printf '[Service]\\nBindPaths=/srv/fleet\\n' >/etc/systemd/system/crashd-ship.service.d/store.conf
printf '[fleet]\\nurl = "file:///srv/fleet"\\ncores = "full"\\n' >/etc/crashd/crashd.toml
systemctl daemon-reload
systemctl start crashd-ship.socket
test "$(systemctl is-active crashd-ship.service)" = inactive
systemctl reload crashd.service
for i in $(seq 200); do
    [ "$(find /srv/fleet -name '*.jsonl.zst' | wc -l)" = 1 ] && break
    sleep 0.1
done
find /srv/fleet -type f -printf '%P %s %U\\n'
crashctl status | grep Fleet
journalctl -u crashd-ship.service -o cat --no-pager
test "$(find /srv/fleet -name '*.jsonl.zst' -not -uid 0 | wc -l)" = 1
shipper=$(systemctl show crashd-ship.service -p MainPID --value)
grep -E 'VmHWM|CapEff|Seccomp' /proc/$shipper/status
ls /proc/$shipper/root/etc /proc/$shipper/root/var
test ! -e /proc/$shipper/root/etc/shadow
test ! -e /proc/$shipper/root/var/lib/crashd
test ! -e /proc/$shipper/root/run/crashd/handoff.sock
kill -9 "$shipper"
crash
for i in $(seq 300); do
    [ "$(find /srv/fleet -name '*.jsonl.zst' | wc -l)" = 2 ] && break
    sleep 0.1
done
test "$(find /srv/fleet -name '*.jsonl.zst' | wc -l)" = 2
crashctl status | grep 'Fleet.*file:///srv/fleet; 0 records'

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
COREDUMPCTL_JOB = """
set -eux
. /job/install.sh
crashctl install || true
systemctl start crashd.service
program=$(cat /job/path)
install -D -m 755 /job/die "$program"
"$program" wait &
pid=$!
sleep 1
# what the kernel would give the handler, and the core that it wrote of the same program on the host
set -- $pid die 11 "$(date +%s)" $pid $pid 0 0 18446744073709551615 1 "" host
/usr/libexec/crashd-core "$@" </job/core
kill $pid
for i in $(seq 300); do
    crashctl list --json | grep -q '"signature": *"p[0-9]-' && break
    sleep 0.1
done
crashctl info
journalctl -o cat -t crashd --no-pager | cat
crashctl list --json | grep -q '"signature": *"p[0-9]-'
crashctl info | grep -q 'NULL pointer'
for i in $(seq 100); do
    coredumpctl --no-pager list && break
    sleep 0.1
done
coredumpctl --no-pager list | grep -q "SIGSEGV *present *$program"
coredumpctl --no-pager info $pid
coredumpctl --no-pager info $pid | grep -q "NULL pointer"
coredumpctl dump -o /tmp/core $pid
cmp /tmp/core /job/core
coredumpctl debug --debugger=gdb -A '-batch -ex bt' $pid 2>&1 | tee /tmp/gdb
grep -q 'crash_here' /tmp/gdb
"""
SOURCE = """
#include <unistd.h>
int crash_here(volatile int *p) { return *p; }
int main(int argc, char **argv) { if (argc > 1) pause(); return crash_here((int *)8); }
"""


@pytest.fixture(scope="module")
def rootfs() -> Path:
    """A minimal Debian with systemd, built once for the machine."""
    for program in ("systemd-nspawn", "mmdebstrap", "script"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    subprocess.run(["sh", REPOSITORY / "tests/vm/build-rootfs.sh", ROOTFS], check=True, timeout=600)
    return ROOTFS


def prepare(job: Path, rootfs: Path) -> None:
    """Put into a job what is needed to run crashd, and its units, in the container."""
    major, minor = sys.version_info[:2]
    inside = rootfs / f"usr/bin/python{major}.{minor}"
    if not inside.exists():
        pytest.skip(
            f"the container has no python{major}.{minor}, for which this environment is built"
        )
    shutil.copytree(REPOSITORY / "systemd", job / "systemd")
    for name in ("crashd-kmsg", "crashd.tmpfiles"):
        shutil.copy(REPOSITORY / "packaging" / name, job)
    (job / "site").mkdir(parents=True)
    site = Path(sysconfig.get_path("platlib"))
    for source in [found for name in MODULES.split() for found in site.glob(name)]:
        if source.is_dir():
            shutil.copytree(source, job / "site" / source.name)
        else:
            shutil.copy(source, job / "site")
    shutil.copytree(
        REPOSITORY / "crashd", job / "site/crashd", ignore=shutil.ignore_patterns("__pycache__")
    )
    (job / "install.sh").write_text(INSTALL)


def run_job(rootfs: Path, job: Path, out: Path, script: str) -> str:
    """Run a script in the container; return what it printed."""
    (job / "run.sh").write_text(script)
    done = subprocess.run(
        ["bash", REPOSITORY / "tests/vm/nspawn-run.sh", rootfs, job, out, "120"],
        timeout=180,
        check=False,
    )
    log = (out / "job.log").read_text(errors="replace") if (out / "job.log").exists() else ""
    console = (out / "console.log").read_text(errors="replace")
    assert done.returncode == 0, f"{log}\n--- console ---\n{console[-3000:]}"
    return log


@pytest.mark.timeout(800)
def test_units_start_restart_and_catch_under_systemd(rootfs: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    prepare(job, rootfs)
    log = run_job(rootfs, job, tmp_path / "out", JOB)
    exposures = re.findall(r"Overall exposure level for (\S+): ([0-9.]+)", log)
    print(exposures)
    # root with CAP_SYS_PTRACE is the rest of the daemon's
    limits = {
        "crashd.service": 1.7,
        "crashd-analyze@x.service": 0.3,
        "crashd-register.service": 3.2,
        "crashd-ship.service": 1.2,
    }
    assert {name for name, value in exposures if float(value) <= limits[name]} == {*limits}


@pytest.mark.timeout(800)
def test_coredumpctl_lists_shows_dumps_and_debugs_our_crash(
    rootfs: Path, tmp_path: Path, crasher: Crasher
) -> None:
    job = tmp_path / "job"
    prepare(job, rootfs)
    source = tmp_path / "die.c"
    source.write_text(SOURCE)
    program = crasher.directory / "die"
    subprocess.run(["gcc", "-g", "-O0", "-o", program, source], check=True)
    died = crasher.run(program)
    shutil.copy(program, job / "die")
    shutil.copy(died.core, job / "core")
    (job / "path").write_text(str(program))
    log = run_job(rootfs, job, tmp_path / "out", COREDUMPCTL_JOB)
    assert "Storage: /var/lib/crashd/crashes/" in log
