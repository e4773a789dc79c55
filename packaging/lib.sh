# Shared by the scripts of packaging/: required packages of the operating system, and the locked environment.
# POSIX sh; sourced with $program (for messages) and $here (the clone, absolute) set.
# Exit status 2 means that something must be fixed before the script can begin.
# shellcheck shell=sh

: "${program:?}" "${here:?}"
umask 022
unset PYTHONHOME PYTHONPATH

say() {
    printf '%s: %s\n' "$program" "$*" >&2
}

refuse() {
    say "$*"
    exit 2
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Run a command without its output; if it fails, show the end of the output on stderr.
quietly() {
    quiet_log=$(mktemp) || return 1
    quiet_status=0
    "$@" </dev/null >"$quiet_log" 2>&1 || quiet_status=$?
    [ "$quiet_status" -eq 0 ] || tail -n 25 "$quiet_log" >&2
    rm -f "$quiet_log"
    return "$quiet_status"
}

# ---- the operating system ----

is_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Set $python to the interpreter for the environment, or to "" if none is new enough.
# /usr/bin/python3 comes first, because it runs the crash-time handler, and apt-get installs its headers.
find_python() {
    python=
    if [ -n "${CRASHD_PYTHON:-}" ]; then
        is_python "$CRASHD_PYTHON" || refuse "CRASHD_PYTHON=$CRASHD_PYTHON is not Python 3.11 or newer"
        python=$CRASHD_PYTHON
        return
    fi
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if is_python "$candidate"; then
            python=$candidate
            return
        fi
    done
}

# Whether this is Debian 12 or later, Ubuntu 24.04 or later, or a derivative, with apt-get.
is_debian() {
    have apt-get && [ -r /etc/os-release ] && (
        ID='' ID_LIKE='' VERSION_ID=''
        # shellcheck disable=SC1091
        . /etc/os-release
        case $ID in
        debian) oldest=12 ;;
        ubuntu) oldest=24 ;;
        *)
            case " $ID_LIKE " in
            *" debian "* | *" ubuntu "*) exit 0 ;;
            esac
            exit 1
            ;;
        esac
        major=${VERSION_ID%%.*}
        [ "${major:-$oldest}" -ge "$oldest" ]
    )
}

system_name() {
    (
        PRETTY_NAME=
        # shellcheck disable=SC1091
        [ ! -r /etc/os-release ] || . /etc/os-release
        printf '%s' "${PRETTY_NAME:-this system}"
    )
}

# need PACKAGE CONDITION...: note the Debian package if the condition does not hold.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has_python_header() {
    "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))'
}

# Whether a library can be loaded; drgn and pyseccomp do not include these.
loads() {
    "${python:-python3}" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1"
}

compiles() {
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -x c -o /dev/null -
}

# Set $missing to the Debian packages still needed to build and run crashd.
find_missing() {
    missing=
    find_python
    if [ -z "$python" ]; then
        missing=" python3 python3-venv python3-dev"
    else
        need python3-venv "$python" -c 'import ensurepip, venv'
        need python3-dev has_python_header
    fi
    need gcc have gcc
    need libc6-dev compiles
    need pkgconf have pkg-config
    need libsystemd-dev pkg-config --exists libsystemd
    need zstd have zstd
    need openssl have openssl
    need util-linux have flock
    need libseccomp2 loads libseccomp.so.2
    need libstdc++6 loads libstdc++.so.6
    ! have apt-get || need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
}

has_postgres() {
    have initdb || ls /usr/lib/postgresql/*/bin/initdb
}

# What the fleet's index needs on this machine: only its programs, no cluster of the system.
find_missing_of_fleet() {
    need postgresql has_postgres
}

# Further packages for the system tests.
find_missing_of_system_tier() {
    need postgresql has_postgres
    need gdb have gdb
    need dwz have dwz
    need xz-utils have xz
    need binutils have objcopy
    need patchelf have patchelf
    need g++ have g++
    need rustc have rustc
    need golang-go have go
    need php-cli have php
    need ruby have ruby
    need prometheus have prometheus
    need systemd-container have systemd-nspawn
    need mmdebstrap have mmdebstrap
    need strace have strace
    need makedumpfile have makedumpfile
    need chromium have chromium
    need rpm have rpmbuild
    need lintian have lintian
    for name in proxy account container object; do need "swift-$name" have "swift-$name-server"; done
    need memcached have memcached
    [ "${CRASHD_TEST_VM:-}" != 1 ] || need qemu-system-x86 have qemu-system-x86_64
}

# Install what `finder...` finds missing, or refuse with one line and change nothing.
provide() {
    [ "$(uname -s)" = Linux ] || refuse "crashd is for Linux, and this is $(uname -s)"
    case $here in
    *:*) refuse "the path of a Python environment cannot contain a colon: $here" ;;
    esac
    for finder in "$@"; do "$finder"; done
    [ -n "$missing" ] || return 0
    if ! is_debian; then
        [ -n "$python" ] || refuse "Python 3.11 or newer is required, and $(system_name) has none"
        refuse "missing (names of Debian's packages):$missing; this script installs them only on" \
            "Debian 12 and 13 and Ubuntu 24.04, and this is $(system_name)"
    fi
    if [ -z "$python" ] && [ -x /usr/bin/python3 ]; then
        refuse "Python 3.11 or newer is required, and /usr/bin/python3 is $(/usr/bin/python3 -V 2>&1)"
    fi
    [ "$(id -u)" -eq 0 ] || refuse "missing:$missing; run as root: apt-get install$missing"
    # shellcheck disable=SC2086
    apt_install $missing
    for finder in "$@"; do "$finder"; done
    [ -z "$missing" ] || refuse "still missing after apt-get:$missing"
}

apt_install() {
    say "installing $* with apt-get"
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    export DEBIAN_FRONTEND NEEDRESTART_SUSPEND
    # An unreachable source may not be needed: only the installation must succeed.
    quietly apt-get -qq -o DPkg::Lock::Timeout=300 update || say "apt-get update failed, ignoring"
    quietly apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends \
        install "$@" || refuse "apt-get could not install $*"
}

# ---- the locked environment ----

# build_environment DIRECTORY LOCK: a venv with exactly what the lock says, and crashd from the clone.
# Rebuilt only if the locks, pyproject.toml, the interpreter or the place have changed. The stamp is written
# last: an environment without a stamp is unfinished, and is rebuilt.
build_environment() {
    environment=$1
    lock=$here/packaging/$2
    build_lock=$here/packaging/requirements-build.lock
    exec 8<"$here"
    flock 8 # run.sh and test.sh may be started together
    stamp=$({ "$python" -VV && printf '%s\n' "$here" && cat "$build_lock" "$lock" "$here/pyproject.toml"; } |
        sha256sum)
    if [ "$(cat "$environment/stamp" 2>/dev/null)" != "$stamp" ]; then
        say "building $environment with $("$python" -V)"
        rm -rf "$environment" || refuse "cannot replace $environment: was it made by another user?"
        quietly "$python" -m venv "$environment" || refuse "cannot make the environment $environment"
        # Only these two are built from source, with the locked build tools.
        install_locked --only-binary=:all: -r "$build_lock"
        install_locked --only-binary=:all: --no-binary=pyinotify,systemd-python -r "$lock"
        pip_install -e "$here"
        printf '%s\n' "$stamp" >"$environment/stamp"
    fi
    build_handler
    give_back "$environment" "$here/crashd/native"
    exec 8<&-
}

# What root makes in a user's clone is the user's, who goes on there without root.
give_back() {
    [ "$(id -u)" -eq 0 ] && [ "$(stat -c %u "$here")" -ne 0 ] || return 0
    for made in "$@"; do
        case $(realpath "$made") in
        "$here"/*) chown -R --no-dereference --reference="$here" "$made" || refuse "cannot give $made to the clone's owner" ;;
        esac
    done
}

# Build the native crash-time handler beside its source. It is static if the machine has a static libc, so that a
# broken library or loader cannot lose a crash. Without it, the Python handler is installed (store/handlerfile.py).
build_handler() {
    native=$here/crashd/native
    [ ! "$native/crashd-core" -nt "$native/crashd-core.c" ] || return 0
    case $(uname -m) in
    x86_64) branches=-fcf-protection ;;
    aarch64) branches=-mbranch-protection=standard ;;
    *) branches=-fPIE ;;
    esac
    for linked in -static-pie -pie; do
        # The same source must make the same bytes in every directory.
        quietly gcc -std=c11 -O2 -Wall -Wextra -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2 \
            -fstack-clash-protection "$branches" "-ffile-prefix-map=$here=." -s "$linked" \
            -Wl,-z,relro,-z,now -o "$native/crashd-core.new" "$native/crashd-core.c" || continue
        mv "$native/crashd-core.new" "$native/crashd-core"
        return 0
    done
    say "cannot build the native handler (see above); using the Python handler, which is 15 ms slower"
}

install_locked() {
    pip_install --require-hashes "$@"
}

pip_install() {
    PIP_USER=0 quietly "$environment/bin/python" -m pip --disable-pip-version-check --no-input install \
        --quiet --no-deps --no-build-isolation --use-pep517 "$@" || {
        rm -rf "$environment"
        refuse "pip could not fill $environment (see above; it needs a package index)"
    }
}
