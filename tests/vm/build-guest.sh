#!/bin/bash
# build-guest.sh DIR - a Debian for QEMU with systemd, kdump and what crashd.deb depends on: DIR/root.ext4, vmlinuz,
# initrd.img. No loop mount, no boot loader, no network inside. Needs root, mmdebstrap, e2fsprogs and a Debian mirror;
# about a minute. The disk has not been booted: tests/vm/guest.py does that once, and keeps the result (warm.ext4).
set -euo pipefail
dir=$1
[ -e "$dir/root.ext4" ] && exit 0
here=$(cd "$(dirname "$0")" && pwd)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$dir"
root=$dir/rootfs
rm -rf "$root"
cat >"$dir/debconf" <<'S'
kdump-tools kdump-tools/use_kdump boolean true
kexec-tools kexec-tools/load_kexec boolean false
S
mmdebstrap --quiet --mode=root --variant=minbase --components=main \
	--include=systemd,systemd-sysv,udev,dbus,libpam-systemd,kmod,procps,iproute2,util-linux,e2fsprogs,initramfs-tools \
	--include=zstd,linux-image-cloud-amd64,kdump-tools,kexec-tools,makedumpfile,ca-certificates,systemd-coredump \
	--include=systemd-container,python3,python3-systemd,libseccomp2,libstdc++6,libgomp1,liblzo2-2,libsnappy1v5,gdb,curl,crash \
	--aptopt='APT::Install-Recommends "false"' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"
		echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vm"
		printf "%s\n" virtio_pci virtio_blk virtio_console ext4 >"$1/etc/initramfs-tools/modules"' \
	--essential-hook="chroot \"\$1\" debconf-set-selections <'$dir/debconf'" \
	"$suite" "$root"
echo guest >"$root/etc/hostname"
echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
echo '/dev/vda / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
: >"$root/etc/machine-id"
mkdir -p "$root/var/log/journal"
install -D -m 755 "$here/guest-job.sh" "$root/usr/local/sbin/guest-job"
cat >"$root/etc/systemd/system/guest-job.service" <<'S'
[Unit]
Description=Run the job on the disk "jobin"
ConditionPathExists=/dev/disk/by-id/virtio-jobin
After=kdump-tools.service multi-user.target
[Service]
Type=exec
ExecStart=/usr/local/sbin/guest-job
StandardInput=null
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS1
OOMScoreAdjust=-1000
KillMode=process
[Install]
WantedBy=graphical.target
S
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -sf ../guest-job.service "$root/etc/systemd/system/graphical.target.wants/guest-job.service"
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS1.service"
ln -sf /dev/null "$root/etc/systemd/system/apt-daily.timer"
ln -sf /dev/null "$root/etc/systemd/system/apt-daily-upgrade.timer"
basename "$root"/boot/vmlinuz-* | sed s/vmlinuz-// >"$dir/release"
cp "$root"/boot/vmlinuz-* "$dir/vmlinuz"
cp "$root"/boot/initrd.img-* "$dir/initrd.img"
rm -f "$dir/root.ext4.new"
mke2fs -q -t ext4 -L root -d "$root" -E lazy_itable_init=0,lazy_journal_init=0 "$dir/root.ext4.new" 6G
rm -rf "$root"
mv "$dir/root.ext4.new" "$dir/root.ext4"
