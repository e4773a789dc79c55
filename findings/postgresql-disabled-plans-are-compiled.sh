#!/bin/sh
# PostgreSQL 15.18: `SET enable_seqscan = off` makes a small query a hundred times slower, because of JIT.
#
# A plan type that is switched off but cannot be avoided gets 1e10 added to its cost (disable_cost of costsize.c). That is
# above jit_above_cost, so that a query that reads ten rows is compiled by LLVM, with all optimisations, at each execution.
# Whoever steers the planner (enable_seqscan, enable_hashjoin, ...) must also set jit = off. PostgreSQL 18 counts disabled
# nodes instead of adding to the cost.
#
# Output seen: "compiled with enable_seqscan=off: yes, with it on: no"
set -eu
bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)")
dir=$(mktemp -d)
trap '[ ! -e "$dir/d/postmaster.pid" ] || kill -INT "$(head -n 1 "$dir/d/postmaster.pid")"; sleep 1; rm -rf "$dir"' EXIT
user=
if [ "$(id -u)" -eq 0 ]; then
    chown nobody "$dir"
    user="setpriv --reuid=nobody --regid=nogroup --clear-groups"
fi
cd /
$user "$bin/initdb" -D "$dir/d" -U me -A trust --no-sync >/dev/null
$user "$bin/postgres" -D "$dir/d" -k "$dir" -c listen_addresses= >/dev/null 2>&1 &
until "$bin/pg_isready" -q -h "$dir" -U me -d postgres; do sleep 0.2; done
ask() {
    "$bin/psql" -h "$dir" -U me -d postgres -qAtc "$1" -c "EXPLAIN ANALYZE SELECT sum(a) FROM t" | grep -q '^JIT:' &&
        echo yes || echo no
}
"$bin/psql" -h "$dir" -U me -d postgres -qc "CREATE TABLE t AS SELECT generate_series(1, 10) AS a"
seen="compiled with enable_seqscan=off: $(ask 'SET enable_seqscan = off'), with it on: $(ask 'SET enable_seqscan = on')"
printf '%s\n' "$seen"
test "$seen" = "compiled with enable_seqscan=off: yes, with it on: no"
