#!/bin/sh
# Try a fleet on one machine: sudo sh packaging/fleet.sh --demo
set -eu

program=fleet.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$here/packaging/lib.sh"
trial=${CRASHD_FLEET_TRIAL:-/opt/crashd-fleet-trial}

usage() {
    cat <<EOF2
usage: sudo sh packaging/fleet.sh --demo

Installs the packages of the operating system that it needs (PostgreSQL, OpenStack Swift, memcached; no
cluster or service of the system is used), copies this clone to $trial (\$CRASHD_FLEET_TRIAL), builds an environment there
from hashed locks, and starts PostgreSQL and an S3 service on loopback. Three simulated hosts and one real crash reach
the index; crashctl --fleet shows them. While it runs, crashd takes over kernel.core_pattern; at the end everything is
stopped and restored. Remove the directory (rm -r) when you are done.

Exit status: 0 success; 1 the demo failed; 2 usage error, or this system lacks something.
EOF2
}

case "${1:-}" in
--demo) [ $# -eq 1 ] || { usage >&2; exit 2; } ;;
-h | --help)
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac

find_missing_of_object_store() {
    for name in proxy account container object; do need "swift-$name" have "swift-$name-server"; done
    need memcached have memcached
}

[ "$(uname -s)" = Linux ] || refuse "crashd is for Linux, and this is $(uname -s)"
[ "$(id -u)" -eq 0 ] || refuse "must be root to take over kernel.core_pattern: sudo sh packaging/fleet.sh --demo"
(: >>/proc/sys/kernel/core_pattern) 2>/dev/null ||
    refuse "cannot write kernel.core_pattern: is this a container? Run it on the host"

# Root runs only what nobody else can change: the directory and every one above it, and a copy of the clone in it.
trial=$(realpath -m -- "$trial")
[ "${#trial}" -le 50 ] || refuse "the path $trial is too long for kernel.core_pattern"
mkdir -p "$trial"
way=$trial
while :; do
    [ -z "$(find "$way" -maxdepth 0 \( ! -uid 0 -o -perm /022 \))" ] ||
        refuse "$way can be changed by others than root: set CRASHD_FLEET_TRIAL to a directory that cannot"
    [ "$way" != / ] || break
    way=$(dirname -- "$way")
done
exec 9<"$trial"
flock -n 9 || refuse "packaging/fleet.sh is already running on $trial"
if [ "$here" != "$trial/source" ]; then
    rm -rf "$trial/source.new"
    mkdir "$trial/source.new"
    for name in crashd packaging tests pyproject.toml README.md LICENSE; do
        cp -RP "$here/$name" "$trial/source.new/$name"
    done
    find "$trial/source.new" -name __pycache__ -prune -exec rm -rf {} +
    rm -f "$trial/source.new/crashd/native/crashd-core" # rebuilt from source, whatever the clone contains
    rm -rf "$trial/source"
    mv "$trial/source.new" "$trial/source"
    exec sh "$trial/source/packaging/fleet.sh" "$@" 9<&-
fi
provide find_missing find_missing_of_fleet find_missing_of_object_store
is_python /usr/bin/python3 || refuse "/usr/bin/python3 must be Python 3.11 or newer: it runs the crash-time handler"
build_environment "$trial/venv" requirements-fleet.lock
cd "$here"
# The environment's interpreter finds tests and packaging/demo here, and nowhere else.
PYTHONPATH=$here exec "$environment/bin/python" packaging/demo/fleet.py "$trial"
