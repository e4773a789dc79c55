#!/bin/sh
# pyinotify 0.9.6: a failed watch has no errno, and its exception is no OSError.
#
# add_watch(quiet=False) raises WatchManagerError, derived from Exception alone, whose errno stands only
# inside the message ("Errno=No such file or directory (ENOENT)"): to tell a missing directory (wait for
# it) from an exhausted fs.inotify.max_user_watches (say so) a caller has to parse English.
#
# Output seen:
#   WatchManagerError is an OSError: False; errno: None
#   add_watch: cannot watch /nonexistent/x WD=-1, Errno=No such file or directory (ENOENT)
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check pyinotify==0.9.6 'pyasyncore>=1.0; python_version >= "3.12"'
cat >"$dir/seen.py" <<'PY'
import pyinotify

try:
    pyinotify.WatchManager().add_watch("/nonexistent/x", pyinotify.IN_CREATE, quiet=False)
except pyinotify.WatchManagerError as e:
    name, errno = type(e).__name__, getattr(e, "errno", None)
    print(f"{name} is an OSError: {isinstance(e, OSError)}; errno: {errno}")
    print(e)
PY
seen=$(LC_ALL=C "$dir/v/bin/python" -W ignore "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "WatchManagerError is an OSError: False; errno: None
add_watch: cannot watch /nonexistent/x WD=-1, Errno=No such file or directory (ENOENT)"
