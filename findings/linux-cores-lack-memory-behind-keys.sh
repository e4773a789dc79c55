#!/bin/sh
# Linux 6.18, x86: a core has zeros for memory that the dying thread's protection keys forbid, also for execute-only
# code, although the process itself can read it through /proc/self/mem.
#
# mprotect(PROT_EXEC) gives a mapping a key of its own on CPUs with protection keys, and pkey_mprotect() any other. The
# kernel dumps with the rights of the dying thread (PKRU): what it may not access becomes a hole. So another thread's
# crash has other memory in its core, and text mapped execute-only cannot be disassembled. Readers through
# /proc/PID/mem (gcore, ptrace) are not held up by keys: their cores of the same process differ from the kernel's.
# Source: fs/coredump.c, dump_user_range; mm/gup.c, check_vma_flags; arch_vma_access_permitted of x86.
#
# Seen with linux==6.18.44, glibc==2.36 and gcc==12.2.0. Output seen (exit 77 without protection keys, or if
# kernel.core_pattern is not a file's relative name):
#   plain: by mem yes, in core yes
#   execute-only: by mem yes, in core no
#   key: by mem yes, in core no
set -eu
case $(cat /proc/sys/kernel/core_pattern) in "|"* | "@"* | */*) exit 77 ;; esac
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat >keys.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void) {
    const char *names[] = {"plain", "execute-only", "key"};
    char *at[3], mark[32], seen[32];
    int mem = open("/proc/self/mem", O_RDONLY);
    for (int i = 0; i < 3; i++) {
        at[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        snprintf(at[i], 32, "memory-%s-%s", names[i], "is-here");
    }
    int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    if (key < 0 || pkey_mprotect(at[2], 4096, PROT_READ | PROT_WRITE, key) != 0) return 77;
    if (mprotect(at[1], 4096, PROT_EXEC) != 0) return 77;
    for (int i = 0; i < 3; i++) {
        memset(seen, 0, sizeof seen);
        ssize_t size = pread(mem, seen, 31, (off_t)at[i]);
        snprintf(mark, sizeof mark, "memory-%s-%s", names[i], "is-here");
        printf("%s %s\n", names[i], size > 0 && strcmp(seen, mark) == 0 ? "yes" : "no");
    }
    fflush(stdout);
    memset(mark, 0, sizeof mark);
    memset(seen, 0, sizeof seen);
    abort();
}
C
gcc -O0 -o keys keys.c
ulimit -c unlimited
code=0
./keys >by_mem 2>/dev/null || code=$?
[ "$code" != 77 ] || exit 77
seen=$(while read -r name by_mem; do
    in_core=no
    ! grep -aq "memory-$name-is-here" core* || in_core=yes
    echo "$name: by mem $by_mem, in core $in_core"
done <by_mem)
printf '%s\n' "$seen"
test "$seen" = "plain: by mem yes, in core yes
execute-only: by mem yes, in core no
key: by mem yes, in core no"
