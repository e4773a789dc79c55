#!/bin/sh
# glibc 2.36: abort() in the first process of a container ends with SIGSEGV (status 139), not with SIGABRT (134).
#
# The kernel drops a signal without a handler that the init process of a PID namespace sends to itself
# (pid_namespaces(7)), so both of abort()'s raise(SIGABRT) do nothing; its last resort on x86-64 is `hlt`, a privileged
# instruction, and the kernel forces SIGSEGV with si_code SI_KERNEL. Who counts failed assertions by signal, or explains
# a core by it, reports a general protection fault. Source: stdlib/abort.c, sysdeps/x86/abort-instr.h.
#
# Seen with glibc==2.36 and gcc==12.2.0. Output seen (exit 77 without user namespaces, or on another machine):
#   134 with a parent, 139 as PID 1
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
test "$(uname -m)" = x86_64 || exit 77
unshare --user --map-root-user --pid --fork true 2>/dev/null || exit 77
cat >"$dir/abort.c" <<'C'
#include <stdlib.h>
int main(void) { abort(); }
C
gcc -o "$dir/abort" "$dir/abort.c"
ulimit -c 0
plain=0 first=0
sh -c '"$0"; exit $?' "$dir/abort" 2>/dev/null || plain=$?
sh -c 'unshare --user --map-root-user --pid --fork "$0"; exit $?' "$dir/abort" 2>/dev/null || first=$?
seen="$plain with a parent, $first as PID 1"
printf '%s\n' "$seen"
test "$seen" = "134 with a parent, 139 as PID 1"
