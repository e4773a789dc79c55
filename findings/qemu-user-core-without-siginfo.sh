#!/bin/sh
# qemu-user 7.2: the core that QEMU writes for its guest program has no siginfo and no list of mapped files.
#
# A core of the kernel says which address could not be accessed and why (NT_SIGINFO), and what was mapped where
# (NT_FILE). The emulator writes NT_PRSTATUS, NT_PRPSINFO and NT_AUXV only (linux-user/elfload.c), so the cause has to be
# read from the instruction at the program counter, and the modules from the memory of the dynamic loader.
#
# Seen with qemu-user of Debian 12 (1:7.2+dfsg) and gcc==12.2.0. Output seen (exit 77 where that cannot be downloaded):
#   NT_PRSTATUS NT_PRPSINFO NT_AUXV
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -q qemu-user >/dev/null 2>&1 || exit 77
case $(dpkg-deb -f qemu-user_*.deb Version) in 1:7.2+dfsg-*) ;; *) exit 77 ;; esac
dpkg-deb -x qemu-user_*.deb root
cat >fault.c <<'C'
int main(void) { *(volatile int *)8 = 1; }
C
gcc -static -o fault fault.c
ulimit -c "$(ulimit -Hc)"
test "$(ulimit -c)" = unlimited || exit 77
sh -c 'root/usr/bin/qemu-x86_64 ./fault; exit $?' 2>/dev/null || true
seen=$(readelf -nW qemu_fault_*.core | grep -o 'NT_[A-Z]*' | paste -sd ' ')
printf '%s\n' "$seen"
test "$seen" = "NT_PRSTATUS NT_PRPSINFO NT_AUXV"
