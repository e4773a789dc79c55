# Sourced by the jobs: each function test_* is a test by that name, run in order; one that fails does not end the rest.
# shellcheck shell=bash

# run_tests FILE [PREFIX]
run_tests() {
	local name started status
	for name in $(sed -n "s/^\\(${2:-test_}[a-z0-9_]*\\)() {.*/\\1/p" "$1"); do
		started=$(date +%s%N)
		(
			set -eux
			"$name"
		) >"$RESULT/$name.log" 2>&1
		status=$?
		echo "$([ $status = 0 ] && echo PASS || echo FAIL) $name $((($(date +%s%N) - started) / 1000000))"
		[ $status = 0 ] && continue
		tail -n 15 "$RESULT/$name.log" | sed 's/^/    /'
		journalctl -o short --no-pager -n 40 | tee -a "$RESULT/$name.log" | sed 's/^/    /'
	done
}

# until_true SECONDS COMMAND...
until_true() {
	{ set +x; } 2>/dev/null
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}

not() { ! "$@"; } # where a plain ! would let errexit pass
rows() { crashctl list --json "$@" | grep -c '"id"' || true; }
has_rows() { [ "$(rows)" -ge "$1" ]; }
property() { systemctl show "$1" -p "$2" --value; }

# restarted PID RESTARTS: crashd runs again, as another process
restarted() {
	[ "$(property crashd.service MainPID)" != "$1" ] && [ "$(property crashd.service NRestarts)" -gt "$2" ] &&
		systemctl -q is-active crashd.service && crashctl list
}
