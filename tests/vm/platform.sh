# The package on a release of Debian, in a container whose crashes the kernel itself brings to it: platform.py lets
# core_pattern enter the container of the crashed process. Beside it: crashd.deb, and the same by a lower version.
# shellcheck shell=bash
. /job/lib.sh
export RESULT=/out DEBIAN_FRONTEND=noninteractive
ulimit -c unlimited

apt_install() { apt-get -q -y --allow-downgrades -o APT::Install-Recommends=false install "$1"; }

crash() {
	sleep 1000 &
	until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done
	kill "-$1" $!
	wait $! || true
}

test_first_crash_is_caught_soon_after_the_download() {
	local started=$SECONDS
	apt_install /job/crashd-previous.deb
	crash SEGV
	until_true 60 has_rows 1
	echo "seconds from the downloaded package to the first caught crash: $((SECONDS - started))" >>$RESULT/figures
	test $((SECONDS - started)) -le 60
	crashctl list
	crashctl info | grep -q 'SIGSEGV in sleep'
}

test_upgraded_it_catches_and_has_what_it_had() {
	apt_install /job/crashd.deb
	crash ABRT
	until_true 30 has_rows 2
	crash SEGV
	python3 -c 'import os; os.abort()' || true
	until_true 30 has_rows 4
	until_true 60 sh -c "crashctl list --json | grep -q '\"p[0-9]-'"
}

test_coredumpctl_and_crashctl_find_the_same() {
	until_true 30 sh -c 'test "$(coredumpctl --no-legend list | wc -l)" -ge 4'
	python3 /job/sidebyside.py
}

test_prompt_is_as_quick_as_coredumpctl() {
	python3 - <<'P' >>$RESULT/figures
import subprocess, time
def best(*command):
    def once():
        started = time.monotonic()
        subprocess.run(command, capture_output=True, check=True)
        return time.monotonic() - started
    return min(once() for _ in range(15)) * 1000
for arguments in (["--version"], ["list"], ["info"]):
    them, us = best("coredumpctl", "--no-pager", *arguments), best("crashctl", "--no-pager", *arguments)
    print(f"{arguments[0]}: coredumpctl {them:.0f} ms, crashctl {us:.0f} ms, {us / them:.1f} times")
P
	tail -n 3 $RESULT/figures
}

test_journal_has_a_burst_at_once_and_in_order() {
	python3 /job/burst.py | tee -a $RESULT/figures
	test "${PIPESTATUS[0]}" = 0
}

test_removed_it_keeps_what_it_had_and_leaves_nothing_else() {
	apt-get -q -y remove crashd
	test "$(find /var/lib/crashd/crashes -name crash.json | wc -l)" = 41
	test ! -e /run/crashd
	test ! -e /usr/libexec/crashd-core
}

run_tests /job/platform.sh
exit 0
