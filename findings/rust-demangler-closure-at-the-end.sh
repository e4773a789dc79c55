#!/bin/sh
# rust-demangler 1.0 (Python): a v0 symbol that ends in a nameless closure raises IndexError.
#
# In Rust's v0 mangling a closure's identifier is empty and written "0". Where the optional instantiating
# crate is not there, this digit is the symbol's last byte; the parser looks for the optional "_" behind a
# length and indexes past the end. With a crate after it the name is found, though not as Rust itself writes
# it: rustc-demangle says {closure#0}, this {closure:#0}.
# Source: RFC 2603, <undisambiguated-identifier> and <symbol-name>.
#
# Output seen:
#   _RNCNvC7mycrate4main0 IndexError
#   _RNCNvC7mycrate4main0B3_ mycrate::main::{closure:#0}
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check rust-demangler==1.0
cat >"$dir/seen.py" <<'PY'
from rust_demangler import demangle

for symbol in ("_RNCNvC7mycrate4main0", "_RNCNvC7mycrate4main0B3_"):
    try:
        print(symbol, demangle(symbol))
    except IndexError as e:
        print(symbol, type(e).__name__)
PY
seen=$("$dir/v/bin/python" "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "_RNCNvC7mycrate4main0 IndexError
_RNCNvC7mycrate4main0B3_ mycrate::main::{closure:#0}"
