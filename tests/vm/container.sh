# The package under a systemd of its own: installed, run, hurt, upgraded, removed. Beside it in the job: crashd.deb, the
# same as crashd-previous.deb by a lower version, and a kernel's core. The kernel cannot call a handler in here (core_pattern
# is the host's, and read-only), so the handler is called as the kernel would call it, for a process that lives.
# shellcheck shell=bash
. /job/lib.sh
export RESULT=/out DEBIAN_FRONTEND=noninteractive

apt_install() { apt-get -q -y --allow-downgrades -o APT::Install-Recommends=false install "$1"; }

crash() {
	sleep 1000 &
	local pid=$!
	# %p %e %s %t %P %I %u %g %c %d %F %h
	/usr/libexec/crashd-core $pid sleep 11 "$(date +%s)" $pid $pid 0 0 18446744073709551615 1 "" host </tmp/core
	kill $pid
}

# one more crash than there were is listed
caught() {
	local before
	before=$(rows)
	crash
	until_true 30 has_rows $((before + 1))
}

test_installs_by_apt() {
	apt_install /job/crashd-previous.deb
	crashctl --version
	crashd check-config
	test -x /usr/libexec/crashd-core
	test -d "/usr/lib/crashd/python$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')/crashd/__pycache__"
}

test_other_python_of_the_distribution_is_taken() {
	python3=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
	find /usr/lib/crashd -name __pycache__ -prune -exec rm -rf {} +
	/usr/share/python3/runtime.d/crashd.rtupdate post-rtupdate python3.0 "$python3"
	test -d "/usr/lib/crashd/$python3/crashd/__pycache__"
	systemctl is-active crashd.service
	# a Python that the package knows nothing of, without and with one that it knows
	mv "/usr/lib/crashd/$python3" /tmp
	not crashctl --version 2>/tmp/unknown
	grep -q 'nothing for Python.*none of these' /tmp/unknown
	other=$(ls /usr/lib/crashd | grep python | head -n 1)
	printf '#!/bin/sh\necho "$0 $*"\n' >"/usr/bin/$other"
	chmod 755 "/usr/bin/$other"
	crashctl --version >/tmp/known || true
	rm "/usr/bin/$other"
	mv "/tmp/$python3" /usr/lib/crashd
	grep -q "^/usr/bin/$other -IS /usr/bin/crashctl --version" /tmp/known
	crashctl --version
}

test_units_are_enabled_and_up() {
	for unit in crashd.service crashd.socket crashd-metrics.socket crashd-analyze.socket crashd-hooks.socket crashd-ship.socket; do
		systemctl is-enabled $unit
		systemctl is-active $unit
	done
	systemctl is-enabled crashd-register.service
	test "$(systemctl is-enabled crashd-kernel.socket)" = disabled
	test "$(systemctl is-enabled crashd-fleet.service)" = disabled
	crashd-fleet --version
	test "$(property crashd-register.service ConditionResult)" = no # in a container core_pattern is the host's
	test "$(property crashd.service StatusText)" != ""
	test "$(stat -c %a:%U /run/crashd/handoff.sock)" = 600:root
	test "$(stat -c %a:%U /var/lib/crashd)" = 700:root
}

test_units_as_installed_verify() {
	cd /usr/lib/systemd/system
	systemd-analyze verify --man=no ./crashd*.service ./crashd*.socket 2>&1 | tee /tmp/verify
	test ! -s /tmp/verify
}

test_exposure_is_low() {
	for unit in crashd.service:17 crashd-analyze@x.service:3 crashd-register.service:32 crashd-hooks@x.service:80 crashd-ship.service:12 crashd-fleet.service:12; do
		level=$(systemd-analyze security --no-pager ${unit%:*} | sed -n 's/.*level for .*: \([0-9.]*\) .*/\1/p')
		echo "${unit%:*} $level" >>$RESULT/exposure
		test "$(echo "$level" | tr -d .)" -le ${unit#*:}
	done
}

test_crash_is_handed_over_and_listed() {
	caught
	crashctl info
	crashctl verify
	systemctl -q is-active crashd.service
}

test_crash_is_analysed_in_its_sealed_unit() {
	until_true 60 sh -c "crashctl info --json | grep -q '\"state\": *\"done\"'"
}

test_sealed_unit_lets_nothing_through() {
	PYTHONPATH=$(echo /usr/lib/crashd/python3.*[0-9] | tr ' ' '\n' | grep "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')$") \
		python3 - <<'P'
import json
from pathlib import Path
from crashd.edge.sandbox.start import ask_worker
request = {"task": "probe", "cpu_seconds": 10, "memory_bytes": 256 << 20, "paths": ["/usr/local/secret", "/job/run.sh"]}
Path("/usr/local/secret").write_text("x")
Path("/usr/local/secret").chmod(0o600)
result = ask_worker(request, None, 60, Path("/run/crashd/analyze.sock"))
print(result)
found = json.loads(result.output)
# its own program lies in /usr, and its process's own files in /proc
assert set(found["could"]) <= {"open /tmp", "open /proc/self/status", "open /dev/null", "open /var", "open /run"}, found
assert found["nice"] == 19
assert 0 not in found["ids"], found
P
}

test_metrics_are_served_on_the_socket_of_systemd() {
	python3 - <<'P'
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9816/metrics", timeout=10).read().decode()
assert "crashd_crashes_total" in text
assert urllib.request.urlopen("http://127.0.0.1:9816/-/ready", timeout=10).status == 200
P
}

test_hook_runs_outside_the_sandbox() {
	cat >/etc/crashd/hooks.d/note <<-'H'
		#!/bin/sh
		cat >/run/hook.json
		touch /run/hook-wrote-here
	H
	chmod 755 /etc/crashd/hooks.d/note
	caught
	until_true 60 test -s /run/hook.json
	grep -q '"comm": *"sleep"' /run/hook.json
	rm /etc/crashd/hooks.d/note
}

test_crash_while_the_daemon_is_stopped_starts_it() {
	systemctl stop crashd.service
	caught
	systemctl is-active crashd.service
}

test_crash_while_the_sockets_are_stopped_is_spooled() {
	systemctl stop crashd.socket crashd.service
	before=$(find /var/lib/crashd/spool -type f | wc -l)
	crash
	test "$(find /var/lib/crashd/spool -type f | wc -l)" -gt "$before"
	count=$(rows)
	systemctl start crashd.service
	until_true 30 has_rows $((count + 1))
}

test_restarts_amid_crashes_lose_none() {
	before=$(rows)
	(for _ in $(seq 5); do systemctl restart crashd.service; sleep 1; done) &
	for _ in $(seq 30); do crash; done
	wait
	until_true 60 has_rows $((before + 30))
	test "$(rows)" = $((before + 30))
}

test_daemon_that_hangs_is_restarted_by_the_watchdog() {
	mkdir -p /etc/systemd/system/crashd.service.d
	printf '[Service]\nWatchdogSec=3\n' >/etc/systemd/system/crashd.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart crashd.service
	pid=$(property crashd.service MainPID) restarts=$(property crashd.service NRestarts)
	kill -STOP "$pid"
	until_true 60 restarted "$pid" "$restarts"
	rm /etc/systemd/system/crashd.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart crashd.service
	caught
}

test_daemon_that_crashes_comes_back_and_does_not_feed_itself() {
	pid=$(property crashd.service MainPID) restarts=$(property crashd.service NRestarts) before=$(rows)
	test "$(sed -n 's/^Max core file size *\([0-9]*\) .*/\1/p' "/proc/$pid/limits")" = 1
	kill -SEGV "$pid"
	until_true 60 restarted "$pid" "$restarts"
	test "$(rows)" = "$before"
	caught
}

test_worker_that_crashes_is_replaced() {
	pid=$(property crashd.service MainPID)
	pkill -SEGV -P "$pid"
	caught
	caught
}

test_wrong_configuration_is_refused_at_reload() {
	printf '[capture]\nbufer = 1\n' >/etc/crashd/crashd.toml.d/wrong.toml
	systemctl reload crashd.service
	systemctl is-active crashd.service
	until_true 10 sh -c "journalctl -u crashd.service -o cat --no-pager | grep -q \"unknown key 'capture.bufer'\""
	rm /etc/crashd/crashd.toml.d/wrong.toml
	systemctl reload crashd.service
}

test_fault_12_journald_that_is_down_holds_nothing_up() {
	systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \
		systemd-journald.service || true
	caught
	systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
	caught
	systemctl -q is-active crashd.service
}

test_fault_30_upgrade_amid_crashes_loses_none() {
	before=$(rows)
	printf '[log]\nlevel = "debug"\n' >/etc/crashd/crashd.toml.d/mine.toml
	(for _ in $(seq 20); do crash; sleep 0.2; done) &
	apt_install /job/crashd.deb
	wait
	until_true 60 has_rows $((before + 20))
	test "$(rows)" = $((before + 20))
	test -e /etc/crashd/crashd.toml.d/mine.toml
	test "$(dpkg-query -W -f '${Version}' crashd)" = "$(dpkg-deb -f /job/crashd.deb Version)"
	systemctl is-active crashd.service crashd.socket crashd-metrics.socket
	systemctl status crashd.service | tee /tmp/status
	! grep -q -i -e failure -e error -e warning /tmp/status
}

test_removal_keeps_the_data_and_gives_the_rest_back() {
	crashes=$(find /var/lib/crashd/crashes -name crash.json | wc -l)
	apt-get -q -y remove crashd
	test "$(find /var/lib/crashd/crashes -name crash.json | wc -l)" = "$crashes"
	test -e /etc/crashd/crashd.toml
	for path in /usr/libexec/crashd-core /usr/bin/crashd /usr/lib/crashd /usr/lib/sysctl.d/60-crashd.conf \
		/run/crashd; do
		test ! -e $path
	done
	systemctl list-units --no-legend 'crashd*' | tee /tmp/left
	test ! -s /tmp/left
}

test_installed_again_it_has_what_it_had() {
	apt_install /job/crashd.deb
	systemctl is-active crashd.service
	until_true 30 has_rows 50
	caught
}

# crashd-guide(7)
test_what_the_guide_tells_to_do_works() {
	mkdir /tmp/guide
	cd /tmp/guide
	ln -s /job/crashd.deb crashd_1.deb
	echo 'APT::Install-Recommends "false";' >/etc/apt/apt.conf.d/99guide
	while read -r line; do
		bash -euxc "$line" </dev/null
	done </job/guide
	test ! -e /usr/bin/crashd
}

test_purge_leaves_nothing() {
	rm /etc/crashd/crashd.toml.d/mine.toml
	apt-get -q -y purge crashd
	for path in /var/lib/crashd /etc/crashd /run/crashd /usr/lib/crashd; do
		test ! -e $path
	done
	systemctl list-units --failed --no-legend | tee /tmp/failed
	test ! -s /tmp/failed
	find / -xdev -name '*crashd*' -not -path '/proc/*' -not -path '/job/*' -not -path '/out/*' \
		-not -path '/var/log/*' -not -path '/var/lib/dpkg/*' -not -path '/run/*' -not -path '/tmp/*' | tee /tmp/left
	test ! -s /tmp/left
}

zcat /job/core.gz >/tmp/core
run_tests /job/container.sh
exit 0
