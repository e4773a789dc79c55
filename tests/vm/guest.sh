# The package in a guest of its own kernel: real crashes through core_pattern, early and late ones, and panics. Called
# again after each reboot, with the next STAGE. Beside it: crashd.deb and crashd-previous.deb.
# shellcheck shell=bash
. ./lib.sh
export DEBIAN_FRONTEND=noninteractive
job=$PWD
ulimit -c unlimited

apt_install() { apt-get -q -y -o APT::Install-Recommends=false install "$1"; }
crash() { sh -c 'ulimit -c unlimited; kill -SEGV $$' || true; }
listed() { test "$(rows "comm=$2")" = "$1"; } # COUNT COMM
one_more_than() { has_rows $(($1 + 1)); }
kernel_rows() { crashctl list --kind kernel --json | grep -c '"id"' || true; }
has_kernel_row() { test "$(kernel_rows)" = 1; }
restarted_once() { test "$(property "$1" NRestarts)" = 1; }
json_has() { crashctl info --json "${@:2}" | tr -d '\n' | grep -q "$1"; }

# -- stage 0: a running system --

test_0_installed_it_takes_core_pattern_from_systemd_coredump() {
	grep -q systemd-coredump /proc/sys/kernel/core_pattern
	apt_install "$job/crashd-previous.deb"
	grep -q '^|/usr/libexec/crashd-core %p %e %s %t ' /proc/sys/kernel/core_pattern
	test "$(cat /proc/sys/kernel/core_pipe_limit)" -gt 0
	systemctl is-active crashd.service crashd-register.service crashd.socket
	crashctl status
}

test_0_exposure_is_low() {
	for unit in crashd.service crashd-analyze@x.service crashd-register.service; do
		systemd-analyze security --no-pager $unit | tail -1
	done | tee "$RESULT/exposure"
}

test_0_crash_of_a_service_is_caught_with_its_unit_and_slice() {
	cat >/etc/systemd/system/victim.service <<-'U'
		[Service]
		Slice=victims.slice
		LimitCORE=infinity
		Restart=on-failure
		RestartSec=1
		ExecStart=/bin/sh -c 'test -e /run/crashed && exec sleep 1000; touch /run/crashed; kill -SEGV $$$$'
	U
	systemctl daemon-reload
	systemctl start victim.service
	until_true 120 has_rows 1
	until_true 60 restarted_once victim.service
	crashctl info
	json_has '"unit": *"victim.service"'
	json_has '"slice": *"victims.slice"'
	until_true 60 systemctl -q is-active victim.service
}

test_0_crash_is_analysed_in_its_sealed_unit() {
	until_true 180 json_has '"state": *"done"'
	crashctl info
}

test_0_coredumpctl_lists_shows_and_debugs_it() {
	coredumpctl --no-pager list
	coredumpctl --no-pager list | grep -q SIGSEGV
	coredumpctl --no-pager info | grep -q 'victim.service'
	coredumpctl debug --debugger=gdb -A '-batch -ex bt' 2>&1 | tee /tmp/gdb
	grep -q '^#0 ' /tmp/gdb
}

test_0_crash_of_a_user_service_is_caught_with_its_unit() {
	useradd -m tester
	loginctl enable-linger tester
	uid=$(id -u tester)
	until_true 120 systemctl -q is-active "user@$uid.service"
	cat >/etc/systemd/user/mine.service <<-'U'
		[Service]
		LimitCORE=infinity
		ExecStart=/bin/sh -c 'kill -SEGV $$$$'
	U
	before=$(rows)
	su tester -c "XDG_RUNTIME_DIR=/run/user/$uid systemctl --user daemon-reload"
	su tester -c "XDG_RUNTIME_DIR=/run/user/$uid systemctl --user start mine.service"
	until_true 120 one_more_than "$before"
	json_has '"user_unit": *"mine.service"'
	json_has "\"uid\": *$uid"
	# its user's to see only where the kernel itself vouches for whose it is (pidfd by %F, 6.16)
	case $(uname -r) in
	[1-5].* | 6.? | 6.?.* | 6.1[0-5].*) test "$(su tester -c 'crashctl list --no-legend' | wc -l)" = 0 ;;
	*) test "$(su tester -c 'crashctl list --no-legend' | wc -l)" = 1 ;;
	esac
}

test_0_crash_in_a_container_is_caught_with_its_id() {
	mkdir -p /srv/box/usr /srv/box/etc
	cp /usr/lib/os-release /srv/box/etc
	for name in bin lib lib64 sbin; do ln -s usr/$name /srv/box/$name; done
	before=$(rows)
	systemd-nspawn -q -D /srv/box --bind-ro=/usr -M box --as-pid2 --pipe \
		/bin/sh -c 'ulimit -c unlimited; kill -SEGV $$' </dev/null || true
	until_true 120 one_more_than "$before"
	crashctl info
	json_has '"container_id": *"box"'
}

test_0_fault_12_crash_of_journald_is_caught_and_blocks_nothing() {
	before=$(rows)
	systemctl kill -s SEGV systemd-journald.service
	until_true 120 one_more_than "$before"
	json_has '"comm": *"systemd-journal"'
	until_true 60 systemctl -q is-active systemd-journald.service
}

test_0_restart_amid_100_crashes_loses_none() {
	before=$(rows)
	(for _ in 1 2 3; do sleep 8; systemctl restart crashd.service; done) &
	for _ in $(seq 100); do crash; done
	wait
	until_true 300 has_rows $((before + 100))
	test "$(rows)" = $((before + 100))
}

test_0_daemon_that_hangs_is_restarted_by_the_watchdog() {
	mkdir -p /run/systemd/system/crashd.service.d
	printf '[Service]\nWatchdogSec=10\n' >/run/systemd/system/crashd.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart crashd.service
	pid=$(property crashd.service MainPID) restarts=$(property crashd.service NRestarts)
	kill -STOP "$pid"
	until_true 180 restarted "$pid" "$restarts"
	rm /run/systemd/system/crashd.service.d/watchdog.conf
	systemctl daemon-reload
	systemctl restart crashd.service
}

test_0_crash_of_the_daemon_or_a_worker_feeds_nothing() {
	before=$(rows)
	pid=$(property crashd.service MainPID) restarts=$(property crashd.service NRestarts)
	pkill -SEGV -P "$pid"
	sleep 3
	kill -SEGV "$pid"
	until_true 180 restarted "$pid" "$restarts"
	sleep 5
	test "$(rows)" = "$before"
	crash
	until_true 120 one_more_than "$before"
}

test_0_crash_of_the_handler_costs_no_other_crash() {
	(until pkill -SEGV -f '^(/usr/bin/python3 -IS )?/usr/libexec/crashd-core'; do :; done; touch /tmp/handler-hit) &
	until test -e /tmp/handler-hit; do crash; done
	wait
	sleep 5
	listed 0 crashd-core
	before=$(rows)
	crash
	until_true 120 one_more_than "$before"
}

test_0_fault_30_upgrade_amid_crashes_loses_none() {
	before=$(rows)
	(for _ in $(seq 30); do crash; done) &
	apt_install "$job/crashd.deb"
	wait
	until_true 180 has_rows $((before + 30))
	test "$(rows)" = $((before + 30))
	grep -q '^|/usr/libexec/crashd-core' /proc/sys/kernel/core_pattern
}

# Ordered before crashd.service a unit starts before it, and stops after it. (/run is mounted noexec.)
test_0_units_that_crash_early_and_late_are_in_place() {
	for name in earlybird latecomer; do cp /bin/sh /usr/local/bin/$name; done
	cat >/etc/systemd/system/early.service <<-'U'
		[Unit]
		DefaultDependencies=no
		After=systemd-sysctl.service local-fs.target
		Before=crashd.service crashd.socket crashd-register.service shutdown.target
		Conflicts=shutdown.target
		[Service]
		Type=oneshot
		RemainAfterExit=yes
		LimitCORE=infinity
		ExecStart=-/usr/local/bin/earlybird -c 'kill -SEGV $$$$'
		ExecStop=-/usr/local/bin/latecomer -c 'kill -SEGV $$$$'
		[Install]
		WantedBy=sysinit.target
	U
	systemctl daemon-reload
	systemctl enable early.service
	systemctl start early.service
	until_true 120 listed 1 earlybird
}

# -- stage 1: after an ordinary reboot --

test_1_registered_after_boot_with_all_units_up() {
	grep -q '^|/usr/libexec/crashd-core' /proc/sys/kernel/core_pattern
	until_true 120 crashctl status
	test "$(systemctl list-units --failed --no-legend | tee /tmp/failed | wc -l)" = 0 || { cat /tmp/failed; false; }
}

test_1_crash_at_shutdown_is_there() { until_true 120 listed 1 latecomer; }

test_1_crash_before_the_daemon_is_there() { until_true 120 listed 2 earlybird; }

test_1_kdump_is_said_to_be_ready() {
	crashctl kdump
	curl -s http://127.0.0.1:9816/metrics | grep '^crashd_kdump_ready 1'
	test "$(kernel_rows)" = 0
}

# -- stage 2: after a panic that kdump saved --

test_2_panic_is_listed_with_title_log_time_and_dump() {
	until_true 180 has_kernel_row
	crashctl list --kind kernel --no-legend | tee /tmp/row
	grep -q 'complete .* panic: sysrq triggered crash$' /tmp/row
	id=$(crashctl list --kind kernel --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p')
	crashctl info "$id" >/tmp/info
	cat /tmp/info
	stamp=$(basename /var/crash/2*)
	grep -q "^ *Dump: dump.$stamp (kdump-compressed" /tmp/info
	grep -q "^ *Log: dmesg.$stamp$" /tmp/info
	grep -q '^  sysrq: Trigger a crash' /tmp/info
	happened=$(crashctl info --json "$id" | sed -n 's/.*"time_ns": *\([0-9]*\)[0-9]\{9\}.*/\1/p')
	panicked=$(cat "$RESULT/panicked")
	test "$happened" -ge $((panicked - 10)) -a "$happened" -le $((panicked + 60))
}

test_2_panic_is_counted() { curl -s http://127.0.0.1:9816/metrics | grep '^crashd_crashes_total{.*kernel.*} 1'; }

test_2_kdump_is_still_said_to_be_ready() { crashctl kdump; }

test_2_dumps_beyond_kdump_num_dumps_expire() {
	newest=$(ls -d /var/crash/2* | tail -1)
	for day in 1 2 3; do # when it happened is in the dump; the first of them is 2025-01-01
		stamp=2025010${day}0000
		mkdir /var/crash/$stamp
		LC_ALL=C sed "s/CRASHTIME=[0-9]*/CRASHTIME=$((1735603200 + day * 86400))/" "$newest"/dump.* \
			>/var/crash/$stamp/dump.$stamp
		cp "$newest"/dmesg.* /var/crash/$stamp/dmesg.$stamp
	done
	echo KDUMP_NUM_DUMPS=2 >>/etc/default/kdump-tools
	systemctl restart crashd.service
	sleep 5
	crashctl vacuum || true
	until_true 120 sh -c 'test $(ls -d /var/crash/2* | wc -l) = 2'
	test -d "$newest" -a -d /var/crash/202501030000
}

test_2_without_kdump_it_is_said_that_no_dump_will_be_left() {
	kdump-config unload
	test "$(cat /sys/kernel/kexec_crash_loaded)" = 0
	not crashctl kdump
}

# -- stage 3: after a panic that nobody saved --

test_3_panic_without_kdump_leaves_nothing_and_nothing_is_made_up() {
	until_true 120 crashctl status
	test "$(ls -d /var/crash/2* | wc -l)" = 2
	test "$(crashctl list --kind kernel --json | grep -c '"state": *"complete"')" -le 2
	crashctl list --kind kernel
}

test_3_removal_gives_core_pattern_back_to_systemd_coredump() {
	apt-get -q -y remove crashd
	grep -q systemd-coredump /proc/sys/kernel/core_pattern
	test -d /var/lib/crashd/crashes
}

test_3_purge_leaves_nothing() {
	apt-get -q -y purge crashd
	test ! -e /var/lib/crashd
	test ! -e /etc/crashd
	test "$(ls -d /var/crash/2* | wc -l)" = 2 # kdump's, not ours
}

run_tests "$job/guest.sh" "test_${STAGE}_"
case $STAGE in
0) exit 99 ;;
1)
	date +%s >"$RESULT/panicked"
	sync
	echo 1 >/proc/sys/kernel/sysrq
	echo c >/proc/sysrq-trigger
	;;
2)
	sync
	sysctl -q kernel.panic=1 kernel.sysrq=1
	echo c >/proc/sysrq-trigger
	;;
*) exit 0 ;;
esac
sleep 300
exit 3
