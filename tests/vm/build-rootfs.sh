#!/bin/sh
# build-rootfs.sh DIR [SUITE] - a minimal Debian, by default of this machine's release, with systemd as init and python3,
# for nspawn-run.sh. Needs root, mmdebstrap and a Debian mirror; about 40 seconds. DIR appears only when it is whole.
# A mirror may be a snapshot, whose signature is good and whose date is past.
set -eu
dir=$1
suite=${2:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
[ -e "$dir/etc/debian_version" ] && exit 0
mkdir -p "${dir%/*}"
# two processes of one test session may want it at once
exec 9>"$dir.lock"
flock 9
[ -e "$dir/etc/debian_version" ] && exit 0
rm -rf "$dir.new"
mmdebstrap --quiet --mode=root --variant=minbase --components=main \
	--include=systemd,systemd-sysv,dbus,procps,python3,python3-systemd,libsystemd0,systemd-coredump,gdb,libseccomp2,libstdc++6,libgomp1,liblzo2-2,libsnappy1v5 \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	"$suite" "$dir.new"
: >"$dir.new/etc/machine-id"
cat >"$dir.new/etc/systemd/system/job.service" <<'E2'
[Unit]
Description=Run /job/run.sh
After=multi-user.target
SuccessAction=exit
FailureAction=exit
[Service]
Type=exec
Environment=TERM=dumb SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat LC_ALL=C.UTF-8
WorkingDirectory=/job
ExecStart=/bin/sh /job/run.sh
StandardOutput=append:/out/job.log
StandardError=inherit
KillMode=process
TimeoutStopSec=5
E2
mkdir -p "$dir.new/etc/systemd/system/graphical.target.wants"
ln -sf ../job.service "$dir.new/etc/systemd/system/graphical.target.wants/job.service"
mv "$dir.new" "$dir"
