#!/bin/sh
# drgn 0.3.0: Program.set_core_dump(fd) closes the caller's descriptor if it fails, and keeps it open if it succeeds.
#
# The documentation says "Core dump file path or open file descriptor" and not whose it is afterwards. A caller that
# tries another way to read the same file finds it closed, or closes, a moment later, a descriptor that another thread
# has got in the meantime. A duplicate (os.dup) is safe either way.
#
# Output seen:
#   refused: ValueError, the descriptor is closed
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check drgn==0.3.0
cat >"$dir/seen.py" <<'PY'
import os

import drgn

fd = os.open("/etc/passwd", os.O_RDONLY)
try:
    drgn.Program().set_core_dump(fd)
except Exception as e:
    try:
        os.fstat(fd)
        state = "open"
    except OSError:
        state = "closed"
    print(f"refused: {type(e).__name__}, the descriptor is {state}")
PY
seen=$("$dir/v/bin/python" "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "refused: ValueError, the descriptor is closed"
