#!/bin/bash
# nspawn-run.sh ROOTFS JOB OUT [SECONDS] - boot ROOTFS with its systemd as PID 1, run JOB/run.sh in it as
# a service, and give back its exit status. JOB is /job (read-only), OUT is /out; OUT/job.log has what it
# printed, OUT/console.log the boot. The root is an overlay in memory: nothing is kept. No network.
#
# The odd options are for hosts without systemd: SYSTEMD_NSPAWN_UNIFIED_HIERARCHY gives the container
# cgroup2 alone, --register=no --keep-unit do without machined, script(1) makes the pty without which
# systemd 252 prints nothing, and the cgroup of its own lets several run at once.
set -u
root=$(realpath "$1") job=$(realpath "$2") seconds=${4:-60}
mkdir -p "$3"
out=$(realpath "$3")
name=crashd$$
groups=()
for base in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
	[ -d "$base" ] && groups+=("$base/$name")
done
(
	for group in "${groups[@]}"; do
		mkdir -p "$group" && echo $BASHPID >"$group/cgroup.procs"
	done
	exec timeout -k 5 "$seconds" script -qec "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -D '$root' \
		--volatile=overlay --register=no --keep-unit --private-network --link-journal=no -M $name \
		--bind-ro='$job':/job --bind='$out':/out --boot systemd.show_status=1" \
		"$out/console.log" </dev/null >/dev/null 2>&1
)
status=$?
for group in "${groups[@]}"; do
	find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
done
exit $status
