#!/bin/sh
# Try crashd: run a copy of this clone in the foreground, on a private root, as this machine's crash
# handler, until Ctrl-C; then restore every kernel setting.
#
# The kernel runs the handler as root. So the copy, its environment and its root are in a directory that
# only root can change, and nothing of the clone is read after the copy is made: any user may own the clone.
# shellcheck disable=SC2317  # a function called by a trap is reachable
set -eu

program=run.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd / # Python searches for modules in the current directory
. "$here/packaging/lib.sh"
trial=${CRASHD_TRIAL:-/opt/crashd-trial}

READY_SECONDS=30
STOP_SECONDS=60
# In the order of restoring: with suid_dumpable=2 the kernel requires a pattern that is a pipe or absolute.
SETTINGS="fs/suid_dumpable kernel/core_pipe_limit kernel/core_pattern"

usage() {
    cat <<EOF
usage: sudo sh packaging/run.sh [--demo]

Run a copy of this clone on a private root, both below $trial, until Ctrl-C.
It takes over kernel.core_pattern meanwhile, and restores it at the end.
Only root may be able to change the directory, \$CRASHD_TRIAL; remove it (rm -r) when you are done.

  --demo   crash three programs, show what crashd kept of them, check it, and end
  --help   show this help

Exit status: 0 success; 1 crashd or the demo failed, or a kernel setting could not be restored;
2 usage error, or this system lacks something (a message says what).
EOF
}

demo=
for argument in "$@"; do
    case $argument in
    --demo) demo=1 ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
done

# ---- the directory of the trial ----

# Refuse a path to $trial if other users than root can replace a part of it. It has no symbolic link.
refuse_unsafe() {
    way=$trial
    while :; do
        # a directory like /tmp is safe if the next one belongs to root
        if [ -e "$way" ] &&
            [ -n "$(find "$way" -maxdepth 0 \( ! -uid 0 -o -perm /022 ! -perm -1000 \))" ]; then
            refuse "$way can be changed by others than root: set CRASHD_TRIAL to a directory that cannot"
        fi
        [ "$way" != / ] || return 0
        way=$(dirname -- "$way")
    done
}

# Continue as the copy of this script, which nobody else can change while it runs.
become_copy() {
    rm -rf "$trial/source.new"
    mkdir "$trial/source.new"
    for name in crashd packaging pyproject.toml README.md LICENSE; do
        cp -RP "$here/$name" "$trial/source.new/$name"
    done
    find "$trial/source.new" -name __pycache__ -prune -exec rm -rf {} +
    rm -f "$trial/source.new/crashd/native/crashd-core" # rebuilt from source, whatever the clone contains
    rm -rf "$trial/source"
    mv "$trial/source.new" "$trial/source"
    exec sh "$trial/source/packaging/run.sh" "$@"
}

# ---- the kernel's settings ----

saved_value() {
    sed -n "s|^$1=||p" "$saved"
}

is_ours() {
    case $(cat /proc/sys/kernel/core_pattern) in
    "|$root/usr/libexec/crashd-core"*) return 0 ;;
    esac
    return 1
}

# Save the present values in $saved; also for the next run, in case this one is killed.
save_settings() {
    if is_ours; then
        [ -e "$saved" ] || say "core_pattern still names this trial, from a run that was killed, and its old value is unknown:" \
            "crashd will restore the value that it saved itself"
        return 0
    fi
    for name in $SETTINGS; do
        printf '%s=%s\n' "$name" "$(cat "/proc/sys/$name")"
    done >"$saved.new"
    mv -f "$saved.new" "$saved"
}

# Restore what crashd, which does this itself, did not restore because it was killed. Return 1 on failure.
restore_settings() {
    if [ ! -e "$saved" ]; then
        is_ours || return 0
        say "kernel.core_pattern still names $root"
        return 1
    fi
    if ! is_ours && [ "$(cat /proc/sys/kernel/core_pattern)" != "$(saved_value kernel/core_pattern)" ]; then
        # crashd restores the other two, if they have the values that it set
        [ ! -e "$root/var/lib/crashd/previous-core-pattern" ] || crashctl uninstall >/dev/null || true
        say "another program has changed kernel.core_pattern meanwhile; leaving it as it is"
        rm -f "$saved"
        return 0
    fi
    failed=
    for name in $SETTINGS; do
        value=$(saved_value "$name")
        [ "$(cat "/proc/sys/$name")" != "$value" ] || continue
        say "restoring $name to '$value'"
        printf '%s\n' "$value" >"/proc/sys/$name" || true
        [ "$(cat "/proc/sys/$name")" = "$value" ] || failed="$failed $name"
    done
    if [ -n "$failed" ]; then
        say "could not restore:$failed; the values are in $saved"
        return 1
    fi
    rm -f "$saved"
    say "kernel.core_pattern, kernel.core_pipe_limit and fs.suid_dumpable have their old values"
    return 0
}

# ---- the daemon ----

daemon=
ended=
alias=
interrupted=130

running() {
    [ -z "$ended" ] && [ -d "/proc/$daemon" ] && ! grep -q '^State:.Z' "/proc/$daemon/status" 2>/dev/null
}

finish() {
    status=$?
    set +e # the settings must be restored even if nothing reads our output any more
    trap - EXIT
    trap '' HUP INT TERM
    if [ -n "$daemon" ]; then
        ! running || kill -TERM "$daemon" 2>/dev/null
        tries=$((STOP_SECONDS * 5))
        while running && [ "$tries" -gt 0 ]; do
            sleep 0.2
            tries=$((tries - 1))
        done
        if running; then
            say "crashd did not stop within $STOP_SECONDS s; killing it"
            kill -KILL "$daemon" 2>/dev/null
        fi
        if [ -z "$ended" ]; then
            wait "$daemon"
            ended=$?
        fi
        if [ "$ended" -ne 0 ]; then
            say "crashd ended with status $ended"
            [ "$status" -ne 0 ] || status=1
        fi
        restore_settings || status=1
    fi
    [ -z "$alias" ] || rm -f "$alias"
    exit "$status"
}

crashctl() {
    "$environment/bin/crashctl" --root "$root" "$@"
}

wait_until_ready() {
    tries=$((READY_SECONDS * 5))
    until crashctl status >/dev/null 2>&1; do
        if ! running; then
            say "crashd ended before it was ready"
            return 1
        fi
        if [ "$tries" -eq 0 ]; then
            say "crashd was not ready within $READY_SECONDS s; crashctl status says:"
            crashctl status >&2 || true
            return 1
        fi
        tries=$((tries - 1))
        sleep 0.2
    done
}

[ "$(uname -s)" = Linux ] || refuse "crashd is for Linux, and this is $(uname -s)"
[ "$(id -u)" -eq 0 ] || refuse "must be root to take over kernel.core_pattern: sudo sh packaging/run.sh"
# Opened, not tested with -w: root may write everything, but not if /proc is read-only (a container).
(: >>/proc/sys/kernel/core_pattern) 2>/dev/null ||
    refuse "cannot write kernel.core_pattern: is this a container? Run it on the host"
have realpath || refuse "realpath is missing (coreutils)"
trial=$(realpath -m -- "$trial")
export CRASHD_TRIAL="$trial"
refuse_unsafe
mkdir -p "$trial"
refuse_unsafe # again, because in a directory like /tmp another user may have been faster
exec 9<"$trial"
flock -n 9 || refuse "packaging/run.sh is already running on $trial"
[ "$here" = "$trial/source" ] || become_copy "$@"
provide find_missing
is_python /usr/bin/python3 || refuse "/usr/bin/python3 must be Python 3.11 or newer: it runs the crash-time handler"
build_environment "$trial/venv" requirements.lock

# The kernel accepts 127 bytes of pattern and splits it at blanks, and a socket's path may have 107 bytes:
# a trial with a long or unusual path gets a short alias while it runs.
mkdir -p "$trial/root"
root=$trial/root
case $root in
*[!A-Za-z0-9/._-]*) odd=1 ;;
*) odd= ;;
esac
if [ -n "$odd" ] || [ "${#root}" -gt 60 ]; then
    alias=/run/crashd-trial-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)
    root=$alias
fi
saved=$root/settings-before

trap finish EXIT
trap 'exit "$interrupted"' HUP INT TERM
trap '' PIPE
[ -z "$alias" ] || ln -sfn "$trial/root" "$alias"
# ask the daemon, do not try its lock: a daemon that starts at this moment would find the lock taken
! crashctl status >/dev/null 2>&1 ||
    refuse "another crashd runs on $trial/root: pid $(cat "$root/run/crashd/daemon.lock")"
# A trial keeps every core, also of programs with `ulimit -c` of 0, as in most shells (and as
# faulthandler._sigsegv() sets it); remove the line to get the default.
if [ ! -e "$root/etc/crashd/crashd.toml" ]; then
    mkdir -p "$root/etc/crashd"
    printf '%s\n' '# Written by packaging/run.sh; crashd.toml(5) lists all keys.' '[capture]' \
        'rlimit = "ignore"' >"$root/etc/crashd/crashd.toml"
fi
metrics=$("$environment/bin/python" "$here/packaging/demo/demo.py" endpoint --root "$trial/root") || exit 2

save_settings
if [ -n "$demo" ]; then
    exec 7>"$root/demo.log"
else
    exec 7>&2
fi
# If this script is killed, crashd gets SIGTERM and stops cleanly.
with_us=
! setpriv --pdeathsig TERM true 2>/dev/null || with_us="setpriv --pdeathsig TERM"
# shellcheck disable=SC2086
$with_us "$environment/bin/crashd" run --root "$root" 2>&7 7>&- 9<&- &
daemon=$!
exec 7>&-
if ! wait_until_ready; then
    [ -z "$demo" ] || tail -n 25 "$root/demo.log" >&2
    exit 1
fi

if [ -n "$demo" ]; then
    "$environment/bin/python" "$here/packaging/demo/demo.py" crash --root "$root" \
        --crashctl "$environment/bin/crashctl" --metrics "$metrics" 9<&- && exit 0
    say "the end of crashd's log, $trial/root/demo.log:"
    tail -n 25 "$root/demo.log" >&2
    exit 1
fi

interrupted=0
cat <<EOF

crashd is ready and catches every crash of this machine.
  store     $root/var/lib/crashd/crashes
  metrics   $metrics
  list      sudo '$environment/bin/crashctl' --root '$root' list
This trial also keeps the cores of programs with \`ulimit -c\` of 0 ($root/etc/crashd/crashd.toml);
by default crashd honours that limit.
Ctrl-C ends it and restores the kernel's settings.

EOF
wait "$daemon" && ended=0 || ended=$?
say "crashd ended by itself"
exit 1
