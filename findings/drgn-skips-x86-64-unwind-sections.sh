#!/bin/sh
# drgn 0.3.0: no frame is unwound through a module whose .eh_frame has the type SHT_X86_64_UNWIND.
#
# The x86-64 psABI gives .eh_frame the section type SHT_X86_64_UNWIND (0x70000001); LLVM's lld writes it so,
# GNU ld writes SHT_PROGBITS. gdb reads both. drgn's stack of a core ends at the first frame in such a
# module (without .debug_frame), with no word of why. The same bytes with the type PROGBITS give all frames.
# Source: x86-64 psABI, "Sections", table of section types.
#
# Output seen (needs gcc and gdb for a core that every tool takes):
#   PROGBITS innermost middle main
#   X86_64_UNWIND innermost
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check drgn==0.3.0
cd "$dir"
cat >steps.c <<'C'
__attribute__((noinline)) void innermost(volatile int *p) { *p = 1; }
__attribute__((noinline)) void middle(volatile int *p) { innermost(p); *p = 2; }
int main(void) { int x; middle(&x); return x; }
C
gcc -O1 -g -fomit-frame-pointer -fno-inline -o PROGBITS steps.c
cat >retype.py <<'PY'
import struct

data = bytearray(open("PROGBITS", "rb").read())
(at,) = struct.unpack_from("<Q", data, 40)  # e_shoff
count, names = struct.unpack_from("<HH", data, 60)  # e_shnum, e_shstrndx
(strings,) = struct.unpack_from("<Q", data, at + names * 64 + 24)
for number in range(count):
    (name,) = struct.unpack_from("<I", data, at + number * 64)
    if data[strings + name :].startswith(b".eh_frame\0"):
        struct.pack_into("<I", data, at + number * 64 + 4, 0x70000001)
open("X86_64_UNWIND", "wb").write(data)
PY
python3 retype.py
chmod +x X86_64_UNWIND
for program in PROGBITS X86_64_UNWIND; do
    gdb -q -nx -batch -ex 'break innermost' -ex run -ex "generate-core-file core.$program" -ex bt "./$program" >"gdb.$program" 2>&1
    grep -q '^#2 .*main' "gdb.$program" # gdb unwinds both
done
cat >seen.py <<'PY'
import drgn

for name in ("PROGBITS", "X86_64_UNWIND"):
    program = drgn.Program()
    program.set_core_dump("core." + name)
    program.load_debug_info([name], default=False)
    frames = [frame.name for frame in program.main_thread().stack_trace()]
    print(name, *[frame for frame in frames if not frame.startswith("0x")])
PY
seen=$(v/bin/python seen.py)
printf '%s\n' "$seen"
test "$seen" = "PROGBITS innermost middle main
X86_64_UNWIND innermost"
