#!/bin/sh
# Linux 6.18: reading a sparse memfd's mapping through /proc/PID/mem allocates its holes, read(2) does not.
#
# A dumper that reads a process's shared memory through /proc/PID/mem (or process_vm_readv) makes the memory
# grow to the mapping's full size: each page read is faulted in and stays. The same bytes by read(2) from the
# file give zeros and allocate nothing, and SEEK_DATA finds what is there. The kernel's own core dump does the
# same as /proc/PID/mem. What a collector reads is charged to the crashed process's cgroup.
#
# Seen with linux==6.18.44 and python==3.11.2. Output seen (MiB that the memfd holds, of 64 mapped):
#   mapped 0, after read(2) 0, after /proc/self/mem 64
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/seen.py" <<'PY'
import ctypes
import mmap
import os

SIZE, STEP = 64 << 20, 1 << 20
fd = os.memfd_create("sparse")
os.ftruncate(fd, SIZE)
mapped = mmap.mmap(fd, SIZE, mmap.MAP_SHARED)
address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def held() -> int:
    return os.fstat(fd).st_blocks * 512 >> 20


before = held()
for at in range(0, SIZE, STEP):
    assert not any(os.pread(fd, STEP, at))
by_read = held()
memory = os.open("/proc/self/mem", os.O_RDONLY)
for at in range(0, SIZE, STEP):
    os.pread(memory, STEP, address + at)
print(f"mapped {before}, after read(2) {by_read}, after /proc/self/mem {held()}")
PY
seen=$(python3 "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "mapped 0, after read(2) 0, after /proc/self/mem 64"
