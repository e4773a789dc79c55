#!/bin/sh
# Linux 6.18: PAGEMAP_SCAN says of guard regions that they are swapped.
#
# MADV_GUARD_INSTALL (Linux 6.13) marks pages that fault on every access and cost no memory. Asked for
# PAGE_IS_PRESENT | PAGE_IS_SWAPPED, what CRIU and dumpers copy, the ioctl answers "swapped" for them: a program that
# reads what is "swapped" runs into a fault for every page. PAGE_IS_GUARD (bit 8, Linux 6.15) tells them apart.
# Source: Documentation/admin-guide/mm/pagemap.rst; include/uapi/linux/fs.h.
#
# Seen with linux==6.18.44 and gcc==12.2.0. Output seen (exit 77 where the kernel has no guard regions):
#   pages 0-4: present
#   pages 8-12: swapped guard
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/guard.c" <<'C'
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GUARD_INSTALL = 102, PRESENT = 1 << 3, SWAPPED = 1 << 4, GUARD = 1 << 8 };
struct region { uint64_t start, end, categories; };
struct scan { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, wanted; };

int main(void) {
    size_t page = sysconf(_SC_PAGESIZE);
    char *at = mmap(NULL, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(at, 1, 4 * page);
    if (madvise(at + 8 * page, 4 * page, GUARD_INSTALL) != 0) return 77;
    struct region found[8];
    struct scan ask = {.size = sizeof ask, .start = (uintptr_t)at, .end = (uintptr_t)(at + 16 * page),
                       .vec = (uintptr_t)found, .vec_len = 8, .any = PRESENT | SWAPPED,
                       .wanted = PRESENT | SWAPPED | GUARD};
    int count = ioctl(open("/proc/self/pagemap", O_RDONLY), _IOWR('f', 16, struct scan), &ask);
    if (count < 0) return 77;
    for (int i = 0; i < count; i++)
        printf("pages %d-%d:%s%s%s\n", (int)((found[i].start - (uintptr_t)at) / page),
               (int)((found[i].end - (uintptr_t)at) / page), found[i].categories & PRESENT ? " present" : "",
               found[i].categories & SWAPPED ? " swapped" : "", found[i].categories & GUARD ? " guard" : "");
}
C
gcc -o "$dir/guard" "$dir/guard.c"
seen=$("$dir/guard")
printf '%s\n' "$seen"
test "$seen" = "pages 0-4: present
pages 8-12: swapped guard"
