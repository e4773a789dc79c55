#!/bin/sh
# Try crashd out: run a copy of this clone in the foreground, on a private root of its own, as the handler
# of this machine's crashes, until Ctrl-C; then every kernel setting is what it was.
#
# The kernel runs the handler as root. So the copy, its environment and its root lie in a directory that
# only root can change, and nothing of the clone is read once the copy is made: the clone may be a user's.
# shellcheck disable=SC2317  # what a trap calls is reachable
set -eu

program=run.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd / # Python looks for modules where it is started
. "$here/packaging/lib.sh"
trial=${CRASHD_TRIAL:-/opt/crashd-trial}

READY_SECONDS=30
STOP_SECONDS=60
# In the order of putting back: with suid_dumpable=2 the kernel wants a pattern that is a pipe or absolute.
SETTINGS="fs/suid_dumpable kernel/core_pipe_limit kernel/core_pattern"

usage() {
    cat <<EOF
usage: sudo sh packaging/run.sh [--demo]

Run a copy of this clone on a private root, both below $trial, until Ctrl-C.
It takes over kernel.core_pattern meanwhile, and gives it back at the end.
The directory, which only root may be able to change, is \$CRASHD_TRIAL; rm -r it when you are done.

  --demo   crash three programs, show what crashd kept of them, check it, and end
  --help   show this help

Exit status: 0 all went well; 1 crashd or the demo failed, or a kernel setting could not be put back;
2 usage, or this system lacks something (one line says what).
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

# Refuse a way to $trial that others than root can replace a part of. It has no symbolic link.
refuse_unsafe() {
    way=$trial
    while :; do
        # a directory like /tmp is safe where the next one is root's
        if [ -e "$way" ] &&
            [ -n "$(find "$way" -maxdepth 0 \( ! -uid 0 -o -perm /022 ! -perm -1000 \))" ]; then
            refuse "$way can be changed by others than root: set CRASHD_TRIAL to a directory that cannot"
        fi
        [ "$way" != / ] || return 0
        way=$(dirname -- "$way")
    done
}

# Go on as the copy of this script, which nobody else can change while it runs.
become_copy() {
    rm -rf "$trial/source.new"
    mkdir "$trial/source.new"
    for name in crashd packaging pyproject.toml README.md LICENSE; do
        cp -RP "$here/$name" "$trial/source.new/$name"
    done
    find "$trial/source.new" -name __pycache__ -prune -exec rm -rf {} +
    rm -f "$trial/source.new/crashd/native/crashd-core" # built from its source, whatever the clone has
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

# Keep what stands there now in $saved: also for a run after this one, should this one be killed.
save_settings() {
    if is_ours; then
        [ -e "$saved" ] || say "core_pattern is still ours, from a run that was killed, and nobody knows" \
            "what it was: at the end it will be what crashd itself remembers"
        return 0
    fi
    for name in $SETTINGS; do
        printf '%s=%s\n' "$name" "$(cat "/proc/sys/$name")"
    done >"$saved.new"
    mv -f "$saved.new" "$saved"
}

# Put back what crashd, which does this itself, did not: it was killed. 1 where that does not work.
restore_settings() {
    if [ ! -e "$saved" ]; then
        is_ours || return 0
        say "kernel.core_pattern still names $root"
        return 1
    fi
    if ! is_ours && [ "$(cat /proc/sys/kernel/core_pattern)" != "$(saved_value kernel/core_pattern)" ]; then
        # the other two are crashd's to give back, where they are as it set them
        [ ! -e "$root/var/lib/crashd/previous-core-pattern" ] || crashctl uninstall >/dev/null || true
        say "kernel.core_pattern was changed by someone else meanwhile, and is left as it is"
        rm -f "$saved"
        return 0
    fi
    failed=
    for name in $SETTINGS; do
        value=$(saved_value "$name")
        [ "$(cat "/proc/sys/$name")" != "$value" ] || continue
        say "putting $name back to '$value'"
        printf '%s\n' "$value" >"/proc/sys/$name" || true
        [ "$(cat "/proc/sys/$name")" = "$value" ] || failed="$failed $name"
    done
    if [ -n "$failed" ]; then
        say "could not put back:$failed; the values are in $saved"
        return 1
    fi
    rm -f "$saved"
    say "kernel.core_pattern, kernel.core_pipe_limit and fs.suid_dumpable are what they were"
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
    set +e # nobody may be left to read what we say; the settings are put back all the same
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
            say "crashd did not stop within $STOP_SECONDS s and is killed"
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
# Opened, not tested: root may write everything, but not where /proc is read-only (a container).
(: >>/proc/sys/kernel/core_pattern) 2>/dev/null ||
    refuse "kernel.core_pattern cannot be written here: a container? Run it on the host"
have realpath || refuse "realpath is missing (coreutils)"
trial=$(realpath -m -- "$trial")
export CRASHD_TRIAL="$trial"
refuse_unsafe
mkdir -p "$trial"
refuse_unsafe # again: in a directory like /tmp another user may have been faster
exec 9<"$trial"
flock -n 9 || refuse "packaging/run.sh is running already on $trial"
[ "$here" = "$trial/source" ] || become_copy "$@"
provide find_missing
is_python /usr/bin/python3 || refuse "/usr/bin/python3 must be 3.11 or newer: it runs the crash-time handler"
build_environment "$trial/venv" requirements.lock

# The kernel takes 127 bytes of pattern and splits it at blanks, a socket's path may have 107 bytes: a
# trial in a long or odd place gets a short name while it runs.
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
# asked, not tried by its lock: a daemon that starts at this moment would find that taken
! crashctl status >/dev/null 2>&1 ||
    refuse "another crashd runs on $trial/root: pid $(cat "$root/run/crashd/daemon.lock")"
# A trial keeps every core, also of programs started where `ulimit -c` is 0, as it is in most shells (and
# as faulthandler._sigsegv() sets it): whoever wants the default removes the line.
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
# Should this script be killed, crashd hears of it and stops in good order.
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
This trial keeps the cores of programs whose \`ulimit -c\` is 0 too ($root/etc/crashd/crashd.toml);
by default crashd honours that limit.
Ctrl-C ends it and puts the kernel's settings back.

EOF
wait "$daemon" && ended=0 || ended=$?
say "crashd ended by itself"
exit 1
