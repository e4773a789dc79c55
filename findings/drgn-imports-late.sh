#!/bin/sh
# drgn 0.3.0: Program.set_core_dump() imports what `import drgn` did not: over a hundred modules of its command line.
#
# The entry point drgn.plugins of drgn's own distribution registers its commands as soon as a program has a target, and
# with them argparse, csv, email, readline and subprocess. A process that reads hostile cores, and gives up the file
# system between the import and the core, fails at that moment or pays for modules that a library never uses.
# DRGN_DISABLE_PLUGINS='*' prevents it; _drgn_util.elf and .typingutils still come late and have to be imported first.
#
# Output seen, for a core with one thread and no memory:
#   late: argparse csv email readline subprocess, over a hundred: True
#   without plugins: none, over a hundred: False
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check drgn==0.3.0
cat >"$dir/seen.py" <<'PY'
import struct
import sys

import drgn

note = struct.pack("<III8s", 5, 336, 1, b"CORE") + bytes(336)  # NT_PRSTATUS of x86-64
ident = b"\x7fELF\2\1\1" + bytes(9)
header = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)  # ET_CORE, EM_X86_64
segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(note), 0, 4)  # PT_NOTE
with open(sys.argv[1], "wb") as core:
    core.write(ident + header + segment + note)
before = set(sys.modules)
drgn.Program().set_core_dump(sys.argv[1])
late = set(sys.modules) - before
named = sorted(late & {"argparse", "csv", "email", "readline", "subprocess"})
print(f"{sys.argv[2]}: {' '.join(named) or 'none'}, over a hundred: {len(late) > 100}")
PY
unset DRGN_DISABLE_PLUGINS
seen=$(
    "$dir/v/bin/python" "$dir/seen.py" "$dir/core" "late"
    DRGN_DISABLE_PLUGINS='*' "$dir/v/bin/python" "$dir/seen.py" "$dir/core" "without plugins"
)
printf '%s\n' "$seen"
test "$seen" = "late: argparse csv email readline subprocess, over a hundred: True
without plugins: none, over a hundred: False"
