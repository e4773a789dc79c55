#!/bin/sh
# Python 3.14: the first pathlib.Path.as_uri() of a process imports http.client, email, ssl and 59 more modules.
#
# as_uri() is how one passes a path to sqlite3.connect(..., uri=True), say to open a database read-only. Until 3.13 it
# imports urllib.parse, for quote_from_bytes(); since 3.14 it is urllib.request.pathname2url(), and urllib.request
# imports a HTTP client and OpenSSL. A command-line program starts more slowly for it, and a process that is
# to have no network code has it. `"file://" + urllib.parse.quote(os.fsencode(path))` does the same without.
#
# Needs a Python 3.14 as python3.14, or PYTHON. Output seen (3.14.8 of Debian testing; 3.13 prints 4 and none):
#   as_uri() imported 62 modules, among them: email http http.client socket ssl tempfile urllib.request
set -eu
"${PYTHON:-python3.14}" -I - <<'PY'
import sys
from pathlib import Path

before = set(sys.modules)
Path("/x").as_uri()
new = set(sys.modules) - before
heavy = {"email", "http", "http.client", "socket", "ssl", "tempfile", "urllib.request"}
print(f"as_uri() imported {len(new)} modules, among them:", *sorted(heavy & new))
PY
