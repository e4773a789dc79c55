# Symbols of a real panic: the package linux-image-…-dbg is installed after the dump was saved, and the record, crash(8)
# and drgn see names and lines, also inside a module. Called again after the panic, with the next STAGE. Beside it:
# crashd.deb, dbg.deb (the real package of the guest's kernel).
# shellcheck shell=bash
. ./lib.sh
export DEBIAN_FRONTEND=noninteractive
job=$PWD
dbg=linux-image-$(uname -r)-dbg

kernel_id() { crashctl list --kind kernel --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' | head -1; }
symbols_are() { crashctl info --json "$(kernel_id)" | tr -d '\n ' | grep -q "\"symbols\":{[^}]*\"state\":\"$1\""; }
dump_is_judged_as() {
	crashctl info --json "$(kernel_id)" | tr -d '\n ' | grep -q "\"dump\":\"[^\"]*$1\".*\"dump_state\":\"complete\""
}
by_drgn() { crashctl debug --debugger drgn -A "-q -e 'print(prog.crashed_thread().stack_trace())'" "$@" </dev/null; }
by_crash() { echo bt | crashctl debug --debugger crash -A '-s' "$@"; }

# -- stage 0: before the panic --

test_0_installed() {
	mkdir -p /etc/crashd/crashd.toml.d # an emulated processor takes a minute for what a real one does in two seconds
	# the same slowness makes RCU complain, which would be another crash of the kernel than the one that is asked about
	printf '[analysis]\ntimeout = "30m"\n[kdump]\nlive = false\n' >/etc/crashd/crashd.toml.d/slow.toml
	apt-get -q -y -o APT::Install-Recommends=false install "$job/crashd.deb"
	systemctl is-active crashd.service
	until_true 120 crashctl status
}

# -- stage 1: after the panic, which kdump saved --

test_1_record_names_the_package_that_has_the_symbols() {
	until_true 180 symbols_are none
	crashctl info "$(kernel_id)" | tee /tmp/info
	grep -q "symbols: none (build-id [0-9a-f]*; install $dbg)" /tmp/info
	grep -q 'Kernel panic - not syncing: Software Watchdog Timer expired' /tmp/info
	crashctl list --kind kernel --no-legend | tee /tmp/title
}

test_1_package_that_is_installed_later_gives_the_record_its_stack() {
	time dpkg -i "$job/dbg.deb"
	rm "$job/dbg.deb"
	crashctl analyze "$(kernel_id)" || true
	until_true 1800 symbols_are done
	crashctl info --json "$(kernel_id)" >"$RESULT/record.json"
	crashctl info "$(kernel_id)" | tee "$RESULT/info"
	grep -Eq '#[0-9]+ +panic\+.* at kernel/panic\.c:[0-9]+' "$RESULT/info"
	grep -Eq '#[0-9]+ +softdog_fire\+.* at drivers/watchdog/softdog\.c:[0-9]+' "$RESULT/info"
	grep -q "symbols: by /usr/lib/debug/boot/vmlinux-$(uname -r)" "$RESULT/info"
	crashctl list --kind kernel --no-legend | diff /tmp/title - # the same title as without
	test "$(grep -c '"cpu": *[0-9]' "$RESULT/record.json")" -ge 2
}

test_1_drgn_sees_it_through_crashctl_debug() {
	bundle=$(ls -d /usr/lib/crashd/*/drgn | head -1)
	printf '#!/usr/bin/python3\nimport sys\nsys.path.insert(0, "%s")\nfrom drgn.cli import _main\n_main()\n' \
		"$(dirname "$bundle")" >/usr/local/bin/drgn
	chmod 755 /usr/local/bin/drgn
	by_drgn "$(kernel_id)" | tee "$RESULT/drgn"
	grep -q 'panic (kernel/panic.c:' "$RESULT/drgn"
}

test_1_crash_sees_it_through_crashctl_debug() {
	by_crash "$(kernel_id)" | tee "$RESULT/crash"
	grep -Eq '#[0-9]+ \[[0-9a-f]+\] panic at' "$RESULT/crash"
}

test_1_compressed_dump_has_the_same_symbols() {
	dump=$(ls /var/crash/2*/dump.2*)
	frames() { sed -n 's/^ *"\(function\|line\)": *//p' "$1"; }
	gzip -1 "$dump"
	until_true 180 dump_is_judged_as .gz
	crashctl analyze "$(kernel_id)" || true
	until_true 1800 symbols_are done
	crashctl info --json "$(kernel_id)" >"$RESULT/wrapped.json"
	frames "$RESULT/record.json" >/tmp/frames
	frames "$RESULT/wrapped.json" | diff /tmp/frames -
	by_drgn "$(kernel_id)" | diff "$RESULT/drgn" -
}

test_1_bundle_is_debugged_like_the_dump() {
	crashctl bundle "$(kernel_id)" -o /tmp/x.tar.zst
	by_drgn /tmp/x.tar.zst | diff "$RESULT/drgn" -
	by_crash /tmp/x.tar.zst | tee "$RESULT/crash-bundle"
	grep -Eq '#[0-9]+ \[[0-9a-f]+\] panic at' "$RESULT/crash-bundle"
}

run_tests "$job/symbols.sh" "test_${STAGE}_"
case $STAGE in
0)
	sync
	modprobe softdog soft_panic=1 soft_margin=2
	exec 3>/dev/watchdog
	;;
*) exit 0 ;;
esac
sleep 300
exit 3
